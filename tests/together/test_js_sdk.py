"""matrix-js-sdk, as Element Web uses it: in Node, and in a page of another origin (so that CORS counts)."""

import secrets
from urllib.parse import parse_qs, urlsplit

import pytest

from js.driver import Client, Thrown
from neighbours.person import open_page, press_button

IDENTITY_SERVICE = "SERVICE_TYPE_IS"


@pytest.fixture(scope="module")
def identity(neighbourhood, new_identity, sms_gateway):
    """An identity server beside Synapse's own, since clients may choose another."""
    return new_identity(changes={"sms": sms_gateway.settings()})


@pytest.fixture
def alice(neighbourhood, new_client, identity):
    return new_client(neighbourhood.synapse.user("alice"), identity)


@pytest.fixture
def bob(neighbourhood, new_client, identity):
    return new_client(neighbourhood.synapse.user("bob"), identity)


def address():
    return f"{secrets.token_hex(6)}@example.com"


def prove(client, token, mailbox, email, folded=None):
    """Proves an address by requestEmailToken and the button of the page; (sid, client_secret).

    The mail goes to `folded`, if that is another one.
    """
    client_secret = secrets.token_hex(16)
    sid = client.call("requestEmailToken", email, client_secret, 1, None, token)["sid"]
    page = open_page(mailbox.wait_for(folded or email).link, client.identity.ca)
    assert press_button(page, client.identity.ca).status_code == 200
    return sid, client_secret


def publish(client, token, sid, client_secret):
    """Binds what was proven as Element Web does: by the homeserver."""
    proof = {"sid": sid, "client_secret": client_secret}
    client.call("bindThreePid", {**proof, "id_server": client.identity.name, "id_access_token": token})


def test_it_registers_by_openid_and_learns_who_it_is(alice):
    token = alice.register()
    assert alice.call("getIdentityAccount", token) == {"user_id": alice.user.user_id}


def test_it_is_told_why_it_was_refused(alice):
    """The status and the error's code must come through; across origins they would be hidden without CORS headers."""
    with pytest.raises(Thrown) as refused:
        alice.call("getIdentityAccount", "no such token")
    assert (refused.value.status, refused.value.errcode) == (401, "M_UNAUTHORIZED")

    with pytest.raises(Thrown) as refused:
        alice.call("registerWithIdentityServer", {"matrix_server_name": alice.user.synapse.name})
    assert (refused.value.status, refused.value.errcode) == (400, "M_MISSING_PARAMS")


def test_it_agrees_to_terms(neighbourhood, new_identity, new_client):
    urls = ["https://id.example/privacy-en.html", "https://id.example/privacy-de.html"]
    languages = {lang: {"name": lang, "url": url} for lang, url in zip(["en", "de"], urls)}
    policies = {"privacy": {"version": "1.2", "languages": languages}}
    identity = new_identity(changes={"terms": {"policies": policies}})
    client = new_client(neighbourhood.synapse.user("terms"), identity)
    token = client.register()

    with pytest.raises(Thrown) as refused:
        client.call("getIdentityAccount", token)
    assert (refused.value.status, refused.value.errcode) == (403, "M_TERMS_NOT_SIGNED")

    terms = client.call("getTerms", IDENTITY_SERVICE, identity.url)
    assert terms == {"policies": {"privacy": {"version": "1.2", **languages}}}
    assert client.call("agreeToTerms", IDENTITY_SERVICE, identity.url, token, [urls[1]]) == {}
    assert client.call("getIdentityAccount", token) == {"user_id": client.user.user_id}


def test_an_address_is_proven_published_found_and_taken_back(alice, bob, mailbox):
    token, bobs_token, email = alice.register(), bob.register(), address()
    client_secret = secrets.token_hex(16)

    # send_attempt goes out as a text. The same one again sends nothing; a higher one sends the same link.
    sid = alice.call("requestEmailToken", email, client_secret, 1, None, token)["sid"]
    assert alice.call("requestEmailToken", email, client_secret, 1, None, token) == {"sid": sid}
    assert len(mailbox.to(email)) == 1
    assert alice.call("requestEmailToken", email, client_secret, 2, None, token) == {"sid": sid}
    first, second = mailbox.wait_for(email, 1), mailbox.wait_for(email, 2)
    assert first.link == second.link and len(mailbox.to(email)) == 2

    page = open_page(first.link, alice.identity.ca)
    assert press_button(page, alice.identity.ca).status_code == 200
    assert bob.call("lookupThreePid", "email", email, bobs_token) == {}
    publish(alice, token, sid, client_secret)

    found = {"address": email, "medium": "email", "mxid": alice.user.user_id}
    assert bob.call("lookupThreePid", "email", email, bobs_token) == found
    # It folds the case before it hashes, and gives the address back as it was asked for.
    assert bob.call("lookupThreePid", "email", email.upper(), bobs_token) == {**found, "address": email.upper()}

    alice.call("unbindThreePid", "email", email)
    assert bob.call("lookupThreePid", "email", email, bobs_token) == {}


def test_an_address_is_found_in_the_letters_that_it_is_published_in(alice, mailbox):
    """The specification wants addresses folded, and matrix-js-sdk only makes them lower case: it leaves a sharp s as it
    is. So it finds such an address as it is bound, and not as it was typed."""
    token, local = alice.register(), secrets.token_hex(4)
    typed, folded = f"Stra\u00df.{local}@example.com", f"strass.{local}@example.com"
    publish(alice, token, *prove(alice, token, mailbox, typed, folded))

    assert alice.call("lookupThreePid", "email", folded.upper(), token)["mxid"] == alice.user.user_id
    assert alice.call("lookupThreePid", "email", typed, token) == {}


def test_many_addresses_are_looked_up_at_once(alice, bob, mailbox):
    token, mine, other = alice.register(), address(), address()
    for client, its_token, email in [(alice, token, mine), (bob, bob.register(), other)]:
        publish(client, its_token, *prove(client, its_token, mailbox, email))

    details = alice.call("getIdentityHashDetails", token)
    assert details["algorithms"] == ["sha256"] and details["lookup_pepper"]
    nobodys = [address() for _ in range(300)]
    asked = [[mine, "email"], *([email, "email"] for email in nobodys), [other, "email"], ["447700900000", "msisdn"]]
    found = alice.call("identityHashedLookup", asked, token)
    by_address = {entry["address"]: entry["mxid"] for entry in found}
    assert by_address == {mine: alice.user.user_id, other: bob.user.user_id} and len(found) == 2

    bulk = alice.call("bulkLookupThreePids", [["email", other], ["email", nobodys[0]], ["msisdn", other]], token)
    assert bulk == {"threepids": [["email", other, bob.user.user_id]]}


def test_next_link_that_is_not_allowed_is_refused(alice):
    token = alice.register()
    with pytest.raises(Thrown) as refused:
        alice.call("requestEmailToken", address(), "monkeys", 1, "https://evil.example/", token)
    assert (refused.value.status, refused.value.errcode) == (400, "M_INVALID_PARAM")


def test_a_phone_number_is_proven_by_its_code_and_found(alice, sms_gateway):
    token, client_secret = alice.register(), secrets.token_hex(16)
    # Ofcom keeps these for films.
    digits = f"7700900{secrets.randbelow(1000):03}"
    number, national = f"+44{digits}", f"0{digits}"
    seen = len(sms_gateway.to(number))

    answer = alice.call("requestMsisdnToken", "GB", national, client_secret, 1, None, token)
    assert (answer["msisdn"], answer["success"]) == (f"44{digits}", True)
    sid = answer["sid"]
    assert alice.call("requestMsisdnToken", "GB", national, client_secret, 1, None, token)["sid"] == sid
    message = sms_gateway.wait_for(number, seen + 1)
    assert len(sms_gateway.to(number)) == seen + 1 and message["code"] in message["text"]

    wrong = f"{(int(message['code']) + 1) % 1000000:06}"
    with pytest.raises(Thrown) as refused:
        alice.call("submitMsisdnToken", sid, client_secret, wrong, token)
    assert (refused.value.status, refused.value.errcode) == (400, "M_TOKEN_INCORRECT")
    assert refused.value.data["success"] is False
    assert alice.call("submitMsisdnToken", sid, client_secret, message["code"], token) == {"success": True}

    publish(alice, token, sid, client_secret)
    found = {"address": f"44{digits}", "medium": "msisdn", "mxid": alice.user.user_id}
    assert alice.call("lookupThreePid", "msisdn", f"44{digits}", token) == found


def test_an_invite_by_mail_is_accepted_with_the_signature_of_its_link(alice, bob, mailbox):
    alice.register()
    email = address()
    room_id = alice.call("createRoom", {"preset": "private_chat", "name": "Tea"})["room_id"]
    alice.call("inviteByThreePid", room_id, "email", email)

    # Element Web takes the room and `signurl` from what follows the # of the link.
    fragment = urlsplit(urlsplit(mailbox.wait_for(email).link).fragment)
    query = parse_qs(fragment.query)
    assert (query["email"], query["room_name"]) == ([email], ["Tea"])
    sign_url = query["signurl"][0]

    # Without the key, or with another, there is no signature; and nobody gets into the room without one.
    wrong = sign_url.replace("private_key=", "private_key=A")[:-1]
    with pytest.raises(Thrown) as refused:
        bob.call("joinRoom", room_id, {"inviteSignUrl": wrong})
    assert (refused.value.status, refused.value.errcode) == (403, "M_FORBIDDEN")
    with pytest.raises(Thrown) as refused:
        bob.call("joinRoom", room_id)
    assert refused.value.status == 403

    # Bob needs no account at the identity server for this.
    options = {"inviteSignUrl": sign_url, "viaServers": [alice.user.synapse.name]}
    assert bob.call("joinRoom", room_id, options) == {"roomId": room_id}
    assert alice.user.members(room_id)[bob.user.user_id] == "join"


def test_a_page_of_another_origin_is_let_in_by_preflights(neighbourhood, browser, identity, sms_gateway):
    """That a browser forbids what it should forbid here, and asked before it sent what was allowed."""
    client = Client(browser, "preflighted", neighbourhood.synapse.user("carol"), identity)
    token = client.register()
    client.call("getIdentityHashDetails", token)
    client.call("requestEmailToken", address(), "monkeys", 1, None, token)
    client.call("lookupThreePid", "email", address(), token)

    # Of all tests so far, since a browser remembers for a while what it may send.
    asked = {urlsplit(url).path for url in browser.ask("preflights") if url.startswith(f"{identity.url}/")}
    v2 = "/_matrix/identity/v2"
    paths = ["/account/register", "/hash_details", "/validate/email/requestToken", "/lookup"]
    assert {v2 + path for path in paths} <= asked
    # The link of an invitation is sent without anything that would need one.
    assert not any("sign-ed25519" in path for path in asked)

    # Errors are readable too, also where there is nothing.
    for path, status in [("/account", 401), ("/no/such/path", 404), ("/lookup", 405)]:
        assert browser.ask("fetch", url=f"{identity.url}{v2}{path}") == status
    # The same browser refuses where a server does not let it: what is seen above is not a browser that lets all pass.
    assert browser.ask("fetch", url=sms_gateway.url) == "TypeError"
