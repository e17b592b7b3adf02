"""Messages in Synapse that arrive at phones and browsers, through the push gateway."""

import time

import pytest

from neighbours.phones import KINDS, Phone
from neighbours.providers.service import Answer
from neighbours.waiting import wait_for

UNAVAILABLE = 'waypost_push_gateway_http_requests_total{route="/_matrix/push/v1/notify",method="POST",status="503"}'


def the_message(kind, alice, room_id, event_id, unread):
    """What a phone of `kind` gets of Alice's "Hello, Bob", of everything."""
    name = alice.user_id[1:].split(":")[0].capitalize()
    if kind == "apns":
        alert = {"loc-key": "MSG_FROM_USER_IN_ROOM_WITH_CONTENT", "loc-args": [name, "Mission Control", "Hello, Bob"]}
        return {"aps": {"alert": alert, "badge": unread}, "room_id": room_id, "event_id": event_id}
    common = {
        "event_id": event_id,
        "room_id": room_id,
        "type": "m.room.message",
        "sender": alice.user_id,
        "sender_display_name": name,
        "room_name": "Mission Control",
    }
    if kind == "fcm":
        content = {"content_msgtype": "m.text", "content_body": "Hello, Bob"}
        return {**common, **content, "prio": "high", "unread": str(unread)}
    return {**common, "content": {"msgtype": "m.text", "body": "Hello, Bob"}, "unread": unread}


def ids_alone(kind, room_id, event_id, unread, default_payload):
    ids = {"room_id": room_id, "event_id": event_id}
    if kind == "apns":
        return {**default_payload, **ids, "unread_count": unread}
    if kind == "fcm":
        return {"cs": default_payload["cs"], **ids, "prio": "high", "unread": str(unread)}
    return {**default_payload, **ids, "unread": unread}


def counts_alone(kind, unread):
    if kind == "apns":
        return {"aps": {"badge": unread}}
    return {"unread": str(unread), "prio": "high"} if kind == "fcm" else {"unread": unread}


def urgency(kind, push):
    """How urgent a push is, in the words of its service."""
    if kind == "apns":
        return push.headers["apns-push-type"], push.headers["apns-priority"]
    return push.message["android"]["priority"] if kind == "fcm" else push.headers["urgency"]


ALERT = {"apns": ("alert", "10"), "fcm": "high", "webpush": "high"}
SILENT = {"apns": ("background", "5"), "fcm": "normal", "webpush": "normal"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_arrives_in_full_and_the_badge_rises_and_clears(kind, talk, gateway, providers):
    alice, bob, room_id = talk
    phone = Phone(kind, providers)
    phone.log_in(bob, gateway)

    first = alice.send(room_id, "Hello, Bob")
    second = (phone.wait_for(1), alice.send(room_id, "Hello, Bob"))[1]
    pushes = phone.wait_for(2)
    bob.read_up_to(room_id, second)
    cleared = phone.wait_for(3)[2]

    assert pushes[0].payload == the_message(kind, alice, room_id, first, 1)
    assert pushes[1].payload == the_message(kind, alice, room_id, second, 2)
    assert [urgency(kind, push) for push in pushes] == [ALERT[kind]] * 2
    assert cleared.payload == counts_alone(kind, 0)
    assert urgency(kind, cleared) == SILENT[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_event_id_only_tells_the_push_service_nothing_but_ids(kind, talk, gateway, providers):
    alice, bob, room_id = talk
    phone = Phone(kind, providers, "ids")
    default_payload = {"cs": "a secret of the app"}
    if kind == "apns":
        alert = {"loc-key": "Notification", "loc-args": []}
        default_payload = {"aps": {"mutable-content": 1, "alert": alert}, "pusher_notification_client_identifier": "x"}
    phone.log_in(bob, gateway, {"format": "event_id_only", "default_payload": default_payload})

    event_id = alice.send(room_id, "Nobody else shall read this")
    [push] = phone.wait_for(1)

    assert push.payload == ids_alone(kind, room_id, event_id, 1, default_payload)


@pytest.mark.parametrize("kind", KINDS)
def test_synapse_forgets_the_pusher_of_an_app_that_is_gone(kind, talk, gateway, providers):
    alice, bob, room_id = talk
    gone, other = Phone(kind, providers), Phone(kind, providers)
    gone.log_in(bob, gateway)
    other.log_in(bob, gateway)
    first = alice.send(room_id, "One")
    for phone in (gone, other):
        phone.wait_for(1)
    # Synapse says in whole seconds when a pushkey was set, and a death in the same second may be from before.
    set_at = int(time.time())
    wait_for("the next second", lambda: int(time.time()) > set_at)
    gone.service.set_trouble(gone.device, gone.service.gone())

    second = alice.send(room_id, "Two")

    def left():
        pushkeys = [pusher["pushkey"] for pusher in bob.pushers()]
        return pushkeys == [other.pushkey] and pushkeys

    wait_for("Synapse to forget one pusher", left)
    other.wait_for(2)
    gone.service.set_trouble(gone.device, None)
    third = alice.send(room_id, "Three")
    other.wait_for(3)
    assert other.events() == [first, second, third]
    assert gone.events() == [first]
    assert gone.service.tries(gone.device) == 2


def test_a_death_from_before_the_pushkey_was_set_again_is_not_believed(talk, gateway, providers):
    """The app was removed and installed again, got the same token, and Apple still knows of the removal only."""
    alice, bob, room_id = talk
    phone = Phone("apns", providers)
    phone.log_in(bob, gateway)
    an_hour_ago = int(time.time() * 1000) - 3_600_000
    phone.service.set_trouble(phone.device, Answer(410, {"reason": "Unregistered", "timestamp": an_hour_ago}))

    alice.send(room_id, "One")

    wait_for("a push that is refused", lambda: phone.service.tries(phone.device) == 1)
    phone.service.set_trouble(phone.device, None)
    second = alice.send(room_id, "Two")
    phone.wait_for(1)
    assert phone.events() == [second]
    assert [pusher["pushkey"] for pusher in bob.pushers()] == [phone.pushkey]


def send_while_away(alice, room_id, gateway):
    """Sends a message and waits until the gateway gave Synapse's pushes back, each twice; its event id."""
    before = gateway.metric(UNAVAILABLE)
    event_id = alice.send(room_id, "Are you there?")
    wait_for("Synapse to try again in vain", lambda: gateway.metric(UNAVAILABLE) >= before + 2 * len(KINDS))
    return event_id


def test_what_busy_push_services_did_not_take_arrives_once_when_they_are_back(talk, gateway, providers):
    alice, bob, room_id = talk
    phones = [Phone(kind, providers) for kind in KINDS]
    for phone in phones:
        phone.log_in(bob, gateway)
        phone.service.set_trouble(phone.device, phone.service.away())

    first = send_while_away(alice, room_id, gateway)
    for phone in phones:
        assert phone.events() == [] and phone.service.tries(phone.device) >= 2
        phone.service.set_trouble(phone.device, None)

    for phone in phones:
        phone.wait_for(1)
    second = alice.send(room_id, "Good to have you back")
    for phone in phones:
        phone.wait_for(2)
        assert phone.events() == [first, second]
    assert len(bob.pushers()) == len(KINDS)


def test_what_push_services_that_are_down_did_not_take_arrives_once_when_they_are_back(talk, gateway, providers):
    alice, bob, room_id = talk
    phones = [Phone(kind, providers) for kind in KINDS]
    for phone in phones:
        phone.log_in(bob, gateway)
    for service in providers.values():
        service.stop()
    try:
        first = send_while_away(alice, room_id, gateway)
    finally:
        for service in providers.values():
            service.start()

    for phone in phones:
        phone.wait_for(1)
    second = alice.send(room_id, "Good to have you back")
    for phone in phones:
        phone.wait_for(2)
        assert phone.events() == [first, second]
    assert len(bob.pushers()) == len(KINDS)
