"""Invitations by address, through Synapse: stored at the identity server, mailed, and accepted in both ways."""

from urllib.parse import parse_qsl, urlsplit

import requests

from neighbours.waiting import wait_for

FAILED = 'waypost_identity_onbinds_total{outcome="failed"}'


def invited_by_mail(neighbourhood, email, identity=None):
    """Alice invites an address to a room with a name; (alice, room id, the mail)."""
    alice = neighbourhood.person("alice", identity)
    room_id = alice.user.create_room(name="Mission Control")
    alice.user.invite_address(room_id, email, alice.identity, alice.token)
    return alice, room_id, neighbourhood.mailbox.wait_for(email)


def link_parameters(mail):
    """The parameters that web clients read in the link of an invitation; they stand behind its #."""
    _, query = urlsplit(mail.link).fragment.split("?", 1)
    return dict(parse_qsl(query))


def accept_by_binding(neighbourhood, email, room_id, identity=None):
    """A new user proves the address and publishes it; the invite then comes by itself, and the user joins."""
    bob = neighbourhood.person("bob", identity)
    bob.bind(email)
    events = bob.user.wait_for_invite(room_id)
    [membership] = [event for event in events if event.get("state_key") == bob.user.user_id]
    assert membership["content"]["membership"] == "invite"
    bob.user.join(room_id)
    return bob


def test_who_is_invited_by_address_is_mailed_and_let_in_after_binding_it(neighbourhood):
    email = "carol@invited.example"
    alice, room_id, mail = invited_by_mail(neighbourhood, email)

    assert mail.encrypted and mail.login == "waypost"
    assert mail.message.defects == []
    assert alice.user.user_id in mail.text and "Mission Control" in mail.text
    parameters = link_parameters(mail)
    assert (parameters["email"], parameters["room_name"]) == (email, "Mission Control")

    # What everybody in the room sees: no address, and keys that the identity server answers for.
    [(token, content)] = alice.user.state(room_id, "m.room.third_party_invite").items()
    assert "carol@" not in str(content) and "invited.example" not in str(content)
    assert dict(parse_qsl(urlsplit(parameters["signurl"]).query))["token"] == token
    for key in content["public_keys"]:
        ca = alice.identity.ca.root
        answer = requests.get(key["key_validity_url"], {"public_key": key["public_key"]}, verify=ca, timeout=30)
        assert answer.json() == {"valid": True}

    bob = accept_by_binding(neighbourhood, email, room_id)

    assert alice.user.members(room_id) == {alice.user.user_id: "join", bob.user.user_id: "join"}
    event_id = bob.user.send(room_id, "I am here")
    path = f"/v3/rooms/{room_id}/event/{event_id}"
    assert alice.user.call("GET", path)["content"]["body"] == "I am here"


def test_the_mails_link_lets_in_without_binding(neighbourhood):
    email = "dave@invited.example"
    alice, room_id, mail = invited_by_mail(neighbourhood, email)
    bob = neighbourhood.person("bob")

    # As Element Web does it: the link as it stands, with the user's id, neither token nor body.
    sign_url = link_parameters(mail)["signurl"]
    assert sign_url.startswith(f"{neighbourhood.identity.url}/")
    ca = neighbourhood.identity.ca.root
    signed = requests.post(sign_url, params={"mxid": bob.user.user_id}, verify=ca, timeout=30)
    assert signed.status_code == 200, signed.text
    assert signed.headers["access-control-allow-origin"] == "*"
    bob.user.join(room_id, {"third_party_signed": signed.json()})

    assert alice.user.members(room_id) == {alice.user.user_id: "join", bob.user.user_id: "join"}
    assert alice.lookup(email) == {}


def test_a_forged_signature_lets_nobody_in(neighbourhood):
    _, room_id, mail = invited_by_mail(neighbourhood, "erin@invited.example")
    mallory = neighbourhood.person("mallory")
    ca = neighbourhood.identity.ca.root
    sign_url = link_parameters(mail)["signurl"]
    signed = requests.post(sign_url, params={"mxid": "@somebody:example.com"}, verify=ca, timeout=30).json()
    signed["mxid"] = mallory.user.user_id

    answer = mallory.user.request("POST", f"/v3/rooms/{room_id}/join", {"third_party_signed": signed})

    assert answer.status_code == 403, answer.text


def test_an_invite_to_an_address_that_is_bound_goes_to_its_owner(neighbourhood):
    email = "frank@invited.example"
    bob, alice = neighbourhood.person("bob"), neighbourhood.person("alice")
    bob.bind(email)
    mails = len(neighbourhood.mailbox.to(email))
    room_id = alice.user.create_room()

    alice.user.invite_address(room_id, email, alice.identity, alice.token)

    bob.user.wait_for_invite(room_id)
    assert alice.user.members(room_id)[bob.user.user_id] == "invite"
    assert len(neighbourhood.mailbox.to(email)) == mails


def test_all_invites_that_wait_for_an_address_come_with_one_binding(neighbourhood):
    email = "grace@invited.example"
    rooms = [invited_by_mail(neighbourhood, email)[1] for _ in range(3)]
    bob = neighbourhood.person("bob")

    bob.bind(email)

    for room_id in rooms:
        bob.user.wait_for_invite(room_id)
    assert len(neighbourhood.mailbox.to(email)) == 4, "three invitations and one confirmation"


def test_an_invite_waits_while_synapse_is_not_to_be_reached(neighbourhood):
    """onbind is tried again: the identity server cannot reach Synapse when the address is bound."""
    email = "heidi@invited.example"
    _, room_id, _ = invited_by_mail(neighbourhood, email)
    bob = neighbourhood.person("bob")
    sid, client_secret = bob.prove(email)
    identity, front = neighbourhood.identity.replicas[0], neighbourhood.synapse.front
    failed = identity.metric(FAILED)
    upstreams, front.upstreams = front.upstreams, []
    try:
        front.drop_connections()
        body = {"sid": sid, "client_secret": client_secret, "mxid": bob.user.user_id}
        bob.call("POST", "/3pid/bind", json=body)
        wait_for("a failed onbind", lambda: identity.metric(FAILED) != failed)
    finally:
        front.upstreams = upstreams

    bob.user.wait_for_invite(room_id)
