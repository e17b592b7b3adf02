//! The push gateway.

mod apns;
mod apps;
mod bad_input;
mod calls;
mod connections;
mod duplicates;
mod faults;
mod fcm;
mod hold;
mod isolation;
mod leniency;
mod operations;
mod operators;
mod outcomes;
mod owners;
mod payloads;
mod proxy;
mod replicas;
mod retrier;
mod unifiedpush;
mod webpush;

use waypost_tests::http::Reply;

/// An answer that makes a homeserver try again later (docs/compatibility.md, P3).
fn assert_try_again(reply: &Reply) {
    assert!([429, 502, 503].contains(&reply.status), "status {}: {}", reply.status, reply.text);
    assert!(!reply.errcode().is_empty(), "{}", reply.text);
    assert!(reply.json().get("rejected").is_none(), "{}", reply.text);
}

/// The seconds of Retry-After.
fn retry_after(reply: &Reply) -> u64 {
    reply.header("retry-after").parse().unwrap_or_else(|_| panic!("no Retry-After: {:?}", reply.headers))
}
