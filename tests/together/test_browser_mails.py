"""HTML mails, shown in Debian's Chromium as a mail program shows them."""

import secrets
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest

from js.pages import Eyes, Session, invite, with_open_v1

LONG_NAME = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft, Ortsgruppe Wien"

INVITATIONS = {
    "room": {"room_name": "Tea & Biscuits", "sender_display_name": "Alice <3"},
    "room-without-names": {},
    "room-with-long-names": {"room_name": LONG_NAME, "sender_display_name": LONG_NAME[:40] * 2},
    "space": {"room_name": "The Village", "sender_display_name": "Alice", "room_type": "m.space"},
    "space-without-names": {"room_type": "m.space"},
}

in_both_languages = pytest.mark.parametrize("lang", ["en", "de"])


@pytest.fixture(scope="module")
def identity(new_identity):
    return new_identity(changes=with_open_v1({}))


@pytest.fixture
def eyes(browser, pictures):
    eyes = Eyes(browser, pictures)
    yield eyes
    eyes.close()


@in_both_languages
def test_a_verification_can_be_read_and_its_button_leads_to_the_page(lang, identity, mailbox, eyes):
    long = f"{secrets.token_hex(4)}.von-und-zu-oberwiesenthal-unterfranken@" + "very-long-label." * 4 + "example.com"
    session = Session(identity, mailbox, lang, long)
    mail = eyes.show(session.mail.html)
    assert mail["lang"] == lang and long in mail["text"] and mail["scripts"] == 0
    assert mail["title"] == mail["heading"] == session.mail.message["subject"]
    assert set(mail["links"]) == {session.link} and session.link in mail["text"]
    eyes.picture(f"mail-verification-{lang}")
    eyes.close()

    # As people get there: from one mail to one page.
    page = eyes.open(session.link)
    assert page["heading"] == mail["heading"] and long in page["text"]


@in_both_languages
@pytest.mark.parametrize("kind", INVITATIONS)
def test_an_invitation_can_be_read(kind, lang, identity, mailbox, eyes):
    texts = INVITATIONS[kind]
    received = invite(identity, mailbox, lang, **texts)
    mail = eyes.show(received.html)
    assert mail["lang"] == lang and mail["scripts"] == 0
    # What others chose is text and never markup, and whose invitation it is stands there whatever they chose.
    # (The beginning of a very long name is enough.)
    assert texts.get("room_name", "")[:15] in mail["heading"]
    assert texts.get("sender_display_name", "example.com")[:15] in mail["heading"]
    assert "@alice:example.com" in mail["text"] and "app.element.io" in mail["text"]
    assert ("space" in mail["heading"].lower()) == (texts.get("room_type") == "m.space")
    assert set(mail["links"]) == {received.link}
    eyes.picture(f"mail-{kind}-{lang}")

    # Element Web reads the part after the #, as a path with a query.
    wanted = urlsplit(urlsplit(received.link).fragment)
    assert unquote(wanted.path) == "/room/!WvUWVjzTAzhwUjVIvC:example.com"
    query = dict(parse_qsl(wanted.query, keep_blank_values=True))
    assert query.get("room_name", "")[:15] == texts.get("room_name", "")[:15]
    assert query["signurl"].startswith(f"{identity.url}/_matrix/identity/v2/sign-ed25519?")
