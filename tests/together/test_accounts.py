"""Accounts at the identity server by OpenID of a real homeserver, and addresses proven by a real mail."""


def test_a_user_of_synapse_registers_proves_an_address_and_is_found(neighbourhood):
    alice, bob = neighbourhood.person("alice"), neighbourhood.person("bob")
    assert alice.call("GET", "/account") == {"user_id": alice.user.user_id}

    email = "Alice.First@Example.com"
    association = alice.bind(email)

    assert association["mxid"] == alice.user.user_id
    assert bob.lookup("alice.first@example.com", "nobody@example.com") == {
        "alice.first@example.com": alice.user.user_id
    }
