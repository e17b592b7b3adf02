"""Publishing an address and taking it back through Synapse, which signs for its user."""

import secrets


def publish(person, email):
    """Proves an address at the identity server and has Synapse publish it."""
    sid, client_secret = person.prove(email)
    body = {
        "sid": sid,
        "client_secret": client_secret,
        "id_server": person.identity.name,
        "id_access_token": person.token,
    }
    person.user.call("POST", "/v3/account/3pid/bind", body)


def test_an_address_that_is_bound_and_unbound_through_synapse(neighbourhood):
    alice, bob = neighbourhood.person("alice"), neighbourhood.person("bob")
    email = f"{secrets.token_hex(4)}@bound.example"
    publish(alice, email)
    assert bob.lookup(email) == {email: alice.user.user_id}

    body = {"medium": "email", "address": email, "id_server": alice.identity.name}
    assert alice.user.call("POST", "/v3/account/3pid/unbind", body) == {"id_server_unbind_result": "success"}

    assert bob.lookup(email) == {}


def test_synapse_knows_by_itself_where_an_address_was_bound(neighbourhood):
    alice, bob = neighbourhood.person("alice"), neighbourhood.person("bob")
    email = f"{secrets.token_hex(4)}@bound.example"
    publish(alice, email)

    body = {"medium": "email", "address": email}
    assert alice.user.call("POST", "/v3/account/3pid/unbind", body) == {"id_server_unbind_result": "success"}

    assert bob.lookup(email) == {}


def test_synapse_cannot_unbind_what_is_another_users(neighbourhood):
    alice, mallory, bob = (neighbourhood.person(name) for name in ("alice", "mallory", "bob"))
    email = f"{secrets.token_hex(4)}@bound.example"
    publish(alice, email)

    body = {"medium": "email", "address": email, "id_server": alice.identity.name}
    # As if it had never been bound: nobody learns by this whose it is.
    assert mallory.user.call("POST", "/v3/account/3pid/unbind", body) == {"id_server_unbind_result": "success"}

    assert bob.lookup(email) == {email: alice.user.user_id}


def test_a_deactivated_account_is_not_found_any_more(neighbourhood):
    alice, bob = neighbourhood.person("alice"), neighbourhood.person("bob")
    first, second = (f"{secrets.token_hex(4)}@bound.example" for _ in range(2))
    publish(alice, first)
    publish(alice, second)
    assert bob.lookup(first, second) == {first: alice.user.user_id, second: alice.user.user_id}

    answer = alice.user.with_password("POST", "/v3/account/deactivate", {"erase": True})

    assert answer == {"id_server_unbind_result": "success"}
    assert bob.lookup(first, second) == {}


def test_a_binding_outlives_a_crash_of_the_identity_server(neighbourhood, new_identity):
    """On the embedded database: killed right after the answer."""
    identity = new_identity("sqlite")
    alice = neighbourhood.person("alice", identity)
    email = f"{secrets.token_hex(4)}@bound.example"
    publish(alice, email)

    identity.restart()

    assert alice.lookup(email) == {email: alice.user.user_id}
    body = {"medium": "email", "address": email, "id_server": identity.name}
    assert alice.user.call("POST", "/v3/account/3pid/unbind", body) == {"id_server_unbind_result": "success"}
    assert alice.lookup(email) == {}
