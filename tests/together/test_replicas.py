"""Several processes of one service behind one name, as Synapse meets them."""

import secrets
from concurrent.futures import ThreadPoolExecutor

import requests

from neighbours.phones import Phone
from neighbours.redis import Redis
from neighbours.waiting import wait_for

from test_bindings import publish
from test_invitations import accept_by_binding, invited_by_mail


def lookups(person):
    """`person.lookup` at each replica by itself."""
    front, all_of_them = person.identity.front, list(person.identity.front.upstreams)

    def at(upstream):
        def lookup(email):
            front.upstreams = [upstream]
            front.drop_connections()
            try:
                return person.lookup(email)
            finally:
                front.upstreams = all_of_them

        return lookup

    return [at(upstream) for upstream in all_of_them]


def test_two_identity_servers_on_one_postgresql_are_one(neighbourhood, new_identity):
    identity = new_identity("postgres", replicas=2)
    alice, bob = neighbourhood.person("alice", identity), neighbourhood.person("bob", identity)
    email = f"{secrets.token_hex(4)}@replicas.example"

    publish(alice, email)
    for number, lookup in enumerate(lookups(bob), 1):
        found = wait_for(f"replica {number} to know the binding", lambda: lookup(email))
        assert found == {email: alice.user.user_id}

    body = {"medium": "email", "address": email, "id_server": identity.name}
    assert alice.user.call("POST", "/v3/account/3pid/unbind", body) == {"id_server_unbind_result": "success"}
    for number, lookup in enumerate(lookups(bob), 1):
        wait_for(f"replica {number} to forget the binding", lambda: lookup(email) == {})


def test_an_invite_stored_by_one_replica_is_delivered_by_the_other(neighbourhood, new_identity):
    identity = new_identity("postgres", replicas=2)
    first, second = identity.front.upstreams
    email = f"{secrets.token_hex(4)}@replicas.example"

    identity.front.upstreams = [first]
    alice, room_id, _ = invited_by_mail(neighbourhood, email, identity)
    identity.replicas[0].stop()
    identity.front.upstreams = [second]
    identity.front.drop_connections()

    bob = accept_by_binding(neighbourhood, email, room_id, identity)
    assert alice.user.members(room_id)[bob.user.user_id] == "join"


def test_a_push_whose_answer_was_lost_is_not_sent_again_by_the_other_gateway(talk, new_gateway, providers, redis):
    gateway = new_gateway(replicas=2)
    alice, bob, room_id = talk
    phone = Phone("fcm", providers)
    phone.log_in(bob, gateway)
    gateway.front.lose_answers = 1

    first = alice.send(room_id, "Once")

    suppressed = 'waypost_push_gateway_pushes_total{app="fcm.full",provider="fcm",outcome="suppressed"}'
    wait_for("Synapse's second try", lambda: gateway.metric(suppressed) == 1)
    second = alice.send(room_id, "Twice")
    phone.wait_for(2)
    assert phone.events() == [first, second]
    assert phone.service.tries(phone.device) == 2
    # Both have had requests: the first try went to one of them, the second to the other.
    good = 'waypost_push_gateway_http_requests_total{route="/_matrix/push/v1/notify",method="POST",status="200"}'
    assert all(replica.metric(good) for replica in gateway.replicas)
    assert redis.command("DBSIZE") != ":0"


def test_two_gateways_that_get_an_event_at_the_same_time_send_it_once(new_gateway, providers):
    gateway = new_gateway(replicas=2)
    phone = Phone("apns", providers)
    device = {"app_id": phone.app_id, "pushkey": phone.pushkey}
    notification = {"event_id": f"${secrets.token_hex(8)}", "room_id": "!room:example.com", "devices": [device]}

    def notify(replica):
        return requests.post(f"{replica.url}/_matrix/push/v1/notify", json={"notification": notification}, timeout=30)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(notify, gateway.replicas * 4))

    assert [(answer.status_code, answer.json()) for answer in answers] == [(200, {"rejected": []})] * 8
    assert phone.service.tries(phone.device) == 1


def test_pushes_go_on_while_redis_is_away(talk, new_gateway, providers, folder):
    redis = Redis(folder / "redis-away")
    gateway = new_gateway(redis_url=redis.url)
    alice, bob, room_id = talk
    phone = Phone("webpush", providers)
    phone.log_in(bob, gateway)
    connected = "waypost_push_gateway_shared_memory_up"
    try:
        events = [alice.send(room_id, "One")]
        phone.wait_for(1)
        redis.stop()
        events.append(alice.send(room_id, "Two"))
        phone.wait_for(2)
        wait_for("the gateway to miss Redis", lambda: gateway.metric(connected) == 0)
        redis.start()
        wait_for("the gateway to connect again", lambda: gateway.metric(connected) == 1)
        events.append(alice.send(room_id, "Three"))
        phone.wait_for(3)
    finally:
        redis.stop()

    assert phone.events() == events
    assert phone.service.tries(phone.device) == 3
