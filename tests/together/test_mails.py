"""Mails as a mail server gets them, and mail servers that are not to be trusted or not there."""

import email.utils
import secrets

import pytest

from neighbours.ca import CertificateAuthority
from neighbours.person import Person
from neighbours.settings import merged
from neighbours.smtp import Mailbox


def request_mail(person, address, client_secret="a.secret", attempt=1):
    """Asks for a mail; the response, whatever its status."""
    body = {"client_secret": client_secret, "email": address, "send_attempt": attempt}
    return person.identity.call("POST", "/v2/validate/email/requestToken", person.token, json=body)


def check_refused(person, answer, why):
    """The client is told that it failed, and the operator `why`."""
    assert (answer.status_code, answer.json()["errcode"]) == (400, "M_EMAIL_SEND_ERROR"), answer.text
    lines = [line.get("error", "") for line in person.identity.replicas[0].log_lines()]
    assert [line for line in lines if why in line], lines


def check_form(mail):
    """What a careful mail server looks at. Source: RFC 5322."""
    message = mail.message
    assert message.defects == [] and [part.defects for part in message.walk() if part.defects] == []
    for name in ("From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type"):
        assert len(message.get_all(name, [])) == 1, name
    assert email.utils.parsedate_to_datetime(message["Date"]).tzinfo is not None
    assert max(len(line) for line in mail.raw.split(b"\r\n")) <= 998 and b"\n" not in mail.raw.replace(b"\r\n", b"")
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]


def test_a_mail_has_the_form_that_mail_servers_want(neighbourhood, mailbox):
    alice = neighbourhood.person("alice")
    address = f"{secrets.token_hex(4)}@form.example"
    assert request_mail(alice, address).status_code == 200

    mail = mailbox.wait_for(address)

    assert (mail.sender, mail.recipients) == ("noreply@id.example", [address])
    assert mail.encrypted and mail.login == "waypost"
    check_form(mail)
    assert mail.message["To"] == address
    assert address in mail.text and address in mail.html


def test_names_that_people_choose_are_text_in_an_invitation(neighbourhood, mailbox):
    alice = neighbourhood.person("alice")
    name = "Größe & <b>Ehre</b> 🚀\r\nBcc: everybody@example.com"
    room_id = alice.user.create_room(name=name)
    address = f"{secrets.token_hex(4)}@form.example"
    alice.user.invite_address(room_id, address, alice.identity, alice.token)

    mail = mailbox.wait_for(address)

    check_form(mail)
    assert mail.recipients == [address] and "Bcc" not in mail.message
    assert "Größe & <b>Ehre</b> 🚀" in mail.text
    assert "Größe &amp; &lt;b&gt;Ehre&lt;/b&gt; 🚀" in mail.html and "<b>Ehre" not in mail.html


@pytest.fixture
def strange_mailbox(background, ca, folder):
    """A mail server whose certificate is of an authority that nobody trusts."""
    mailbox = Mailbox(background, CertificateAuthority(folder / "strange-ca"))
    yield mailbox
    mailbox.stop()


def test_no_mail_goes_through_tls_that_is_not_to_be_trusted(neighbourhood, new_identity, strange_mailbox):
    identity = new_identity(changes={"email": strange_mailbox.settings()})
    alice = Person(neighbourhood.synapse.user("alice"), identity, strange_mailbox)

    check_refused(alice, request_mail(alice, "alice@trust.example"), "did not accept the mail")

    assert strange_mailbox.to("alice@trust.example") == []


def test_no_mail_goes_with_a_wrong_password(neighbourhood, new_identity, mailbox):
    identity = new_identity(changes={"email": {"smtp_password": "wrong"}})
    alice = Person(neighbourhood.synapse.user("alice"), identity, mailbox)

    check_refused(alice, request_mail(alice, "alice@password.example"), "SMTP status 535")

    assert mailbox.to("alice@password.example") == []


def test_no_mail_goes_without_the_tls_that_was_asked_for(neighbourhood, new_identity, background):
    """"starttls" is required, not merely tried: a mail server that does not offer it gets nothing."""
    plain = Mailbox(background, None)
    try:
        identity = new_identity(changes={"email": merged(plain.settings(), {"smtp_tls": "starttls"})})
        alice = Person(neighbourhood.synapse.user("alice"), identity, plain)

        check_refused(alice, request_mail(alice, "alice@plain.example"), "did not accept the mail")

        assert plain.to("alice@plain.example") == [] and plain.logins == 0
    finally:
        plain.stop()


def test_the_same_attempt_may_try_again_when_the_mail_server_is_back(neighbourhood, new_identity, background, ca):
    mailbox = Mailbox(background, ca)
    identity = new_identity(changes={"email": mailbox.settings()})
    alice = Person(neighbourhood.synapse.user("alice"), identity, mailbox)
    mailbox.stop()

    check_refused(alice, request_mail(alice, "alice@away.example"), "did not accept the mail")
    mailbox.start()
    try:
        answer = request_mail(alice, "alice@away.example")
        assert answer.status_code == 200, answer.text
        assert answer.json()["sid"] in mailbox.wait_for("alice@away.example").link
    finally:
        mailbox.stop()
