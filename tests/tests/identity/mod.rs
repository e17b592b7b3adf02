//! The identity server, on both databases.

mod account;
mod associations;
mod bad_input;
mod commands;
mod discovery;
mod doctor;
mod historical_ids;
mod hosted_terms;
mod internal;
mod invitations;
mod keys;
mod lookup;
mod mail;
mod msisdn;
mod onbind;
mod owners;
mod pages;
mod pepper;
mod pubkey;
mod replicas;
mod status;
mod terms;
mod unbind;
mod v1;
mod validation;

/// A user of the stand-in homeserver.
const ALICE: &str = "@alice:hs.test";
/// Another one.
const BOB: &str = "@bob:hs.test";
/// Alice's address.
const EMAIL: &str = "alice@example.com";
/// What a client makes up for one validation.
const SECRET: &str = "monkeys_are_GREAT";

/// A room that somebody is invited to.
const ROOM: &str = "!something:hs.test";

/// Bob invites Alice's address: what Synapse sends, with its empty texts.
fn invitation() -> serde_json::Value {
    serde_json::json!({
        "medium": "email",
        "address": EMAIL,
        "room_id": ROOM,
        "room_alias": "",
        "room_avatar_url": "",
        "room_join_rules": "invite",
        "room_name": "Bob's Emporium",
        "sender": BOB,
        "sender_display_name": "Bob Smith",
        "sender_avatar_url": "",
    })
}

/// A failure, for one comparison with [`waypost_tests::http::Reply::failure`].
fn failure(status: u16, errcode: &str) -> (u16, String) {
    (status, errcode.to_owned())
}
