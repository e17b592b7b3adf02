//! The identity server, on both databases.

mod account;
mod associations;
mod bad_input;
mod commands;
mod discovery;
mod hosted_terms;
mod internal;
mod lookup;
mod pepper;
mod pubkey;
mod replicas;
mod status;
mod terms;
mod validation;

/// A user of the stand-in homeserver.
const ALICE: &str = "@alice:hs.test";
/// Another one.
const BOB: &str = "@bob:hs.test";
/// Alice's address.
const EMAIL: &str = "alice@example.com";
/// What a client makes up for one validation.
const SECRET: &str = "monkeys_are_GREAT";

/// A failure, for one comparison with [`waypost_tests::http::Reply::failure`].
fn failure(status: u16, errcode: &str) -> (u16, String) {
    (status, errcode.to_owned())
}
