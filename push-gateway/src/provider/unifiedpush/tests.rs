//! Requests to push servers, those that are refused up front, and the meaning of the answers.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use waypost_shared::client::{Outbound, OutboundConfig};

use super::*;
use crate::{jwt::Es256Key, notification::tests::notification, outcome::Fault};

/// The keys of RFC 8291, appendix A.
const P256DH: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";
const ENDPOINT: &str = "https://push.example:8443/up?id=1";

fn unifiedpush(change: impl FnOnce(&mut WebPushConfig)) -> UnifiedPush {
    signed(change, None)
}

fn signed(change: impl FnOnce(&mut WebPushConfig), key: Option<Es256Key>) -> UnifiedPush {
    let outbound = OutboundConfig { dns_servers: vec!["127.0.0.1:53".parse().unwrap()], ..OutboundConfig::default() };
    let upstream = Upstream::new(Outbound::new(&outbound).unwrap(), Clock::manual(1_700_000_000_000));
    let mut config = WebPushConfig::default();
    change(&mut config);
    UnifiedPush::new(config, key, 1000, &upstream)
}

fn prepared(unifiedpush: &UnifiedPush, pushkey: &str, data: &Value, kind: Kind) -> Result<Request<Bytes>, Ended> {
    let notification = notification(json!({
        "event_id": "$e", "room_id": "!r", "counts": {"unread": 1},
        "devices": [{"app_id": "a", "pushkey": pushkey, "data": data}],
    }));
    unifiedpush.prepare(&notification, &notification.devices[0], kind)
}

#[tokio::test]
async fn a_message_is_plain_json_if_the_app_gave_no_keys() {
    let request = prepared(&unifiedpush(|_| ()), ENDPOINT, &json!({}), Kind::IdsOnly).unwrap();
    assert_eq!(request.uri(), ENDPOINT);
    let header = |name: &str| request.headers()[name].to_str().unwrap();
    assert_eq!((header("content-type"), header("ttl"), header("urgency")), ("application/json", "86400", "high"));
    assert!(!request.headers().contains_key("content-encoding") && !request.headers().contains_key("authorization"));
    let body: Value = serde_json::from_slice(request.body()).unwrap();
    assert_eq!(
        body,
        json!({"notification": {"event_id": "$e", "room_id": "!r", "counts": {"unread": 1}, "prio": "high"}})
    );
}

#[tokio::test]
async fn a_message_is_encrypted_if_the_app_gave_keys() {
    let data = json!({"p256dh": P256DH, "auth": AUTH});
    let key = Es256Key::from_pem(&crate::jwt::tests::p8()).unwrap();
    let with_vapid = signed(|config| config.vapid_contact = "mailto:ops@example.com".to_owned(), Some(key));
    let request = prepared(&with_vapid, ENDPOINT, &data, Kind::IdsOnly).unwrap();
    assert_eq!(request.headers()["content-encoding"], "aes128gcm");
    assert!(request.headers()["authorization"].to_str().unwrap().starts_with("vapid t="));
    assert!(!request.body().windows(2).any(|bytes| bytes == b"$e"), "the message can be read");
}

#[tokio::test]
async fn unsendable_pushes_are_refused_without_rejecting_the_pushkey() {
    let one_key = json!({"auth": AUTH});
    let bad_point = json!({"p256dh": format!("BA{}", "B".repeat(85)), "auth": AUTH});
    for (pushkey, data) in [
        ("http://push.example/up", json!({})),
        ("https://user@push.example/up", json!({})),
        ("a token of FCM's", json!({})),
        ("https://elsewhere.example/up", json!({})),
        (ENDPOINT, one_key),
        (ENDPOINT, json!({"p256dh": "c2hvcnQ", "auth": AUTH})),
        (ENDPOINT, bad_point),
    ] {
        let unifiedpush = unifiedpush(|config| config.allowed_endpoints = vec![Glob::new("push.example")]);
        let unsent = prepared(&unifiedpush, pushkey, &data, Kind::IdsOnly).unwrap_err();
        let Ended::With(Outcome::Refused(refusal)) = unsent else { panic!("{pushkey} {data} is refused") };
        assert_eq!(refusal.fault, Fault::Push, "{pushkey} {data}");
        assert!(!refusal.why.contains("push.example"), "{}", refusal.why);
    }
}

#[tokio::test]
async fn counts_alone_are_sent_unless_events_only_is_set() {
    let all = prepared(&unifiedpush(|_| ()), ENDPOINT, &json!({}), Kind::CountsOnly).unwrap();
    assert_eq!(all.headers()["urgency"], "normal");
    let quiet = unifiedpush(|config| config.events_only = true);
    assert_eq!(prepared(&quiet, ENDPOINT, &json!({}), Kind::CountsOnly).unwrap_err(), Ended::Dropped);
}

#[tokio::test]
async fn each_answer_maps_to_its_outcome() {
    let unifiedpush = unifiedpush(|_| ());
    let outcome = |status: u16| {
        let answer = Response::builder().status(status).header("retry-after", "7").body(Bytes::new()).unwrap();
        unifiedpush.outcome(&answer)
    };
    for status in [200, 201, 202, 204] {
        assert_eq!(outcome(status), Outcome::Delivered, "{status}");
    }
    for status in [404, 410] {
        assert_eq!(outcome(status), Outcome::Gone, "{status}");
    }
    for status in [408, 425, 429, 500, 502, 503, 507] {
        assert_eq!(outcome(status), Outcome::Busy { retry_after: Some(Duration::from_secs(7)) }, "{status}");
    }
    for status in [301, 400, 401, 403, 413] {
        let Outcome::Refused(refusal) = outcome(status) else { panic!("{status} is refused") };
        assert_eq!(refusal.fault, Fault::Push, "{status}");
    }
}
