//! Requests to push services, and those that are refused up front.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use waypost_shared::client::{Outbound, OutboundConfig};

use super::*;
use crate::{notification::tests::notification, outcome::Fault};

/// The browser's keys from RFC 8291, appendix A.
const P256DH: &str = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4";
const AUTH: &str = "BTBZMqHH6r4Tts7J_aSIgg";

fn webpush(allowed_endpoints: &[&str]) -> WebPush {
    let outbound = OutboundConfig { dns_servers: vec!["127.0.0.1:53".parse().unwrap()], ..OutboundConfig::default() };
    let upstream = Upstream::new(Outbound::new(&outbound).unwrap(), Clock::manual(1_700_000_000_000));
    let config = WebPushConfig {
        vapid_contact: "mailto:ops@example.com".to_owned(),
        allowed_endpoints: allowed_endpoints.iter().map(|host| Glob::new(host)).collect(),
        ..WebPushConfig::default()
    };
    let key = Es256Key::from_pem(&crate::jwt::tests::p8()).unwrap();
    WebPush::new(config, key, 1000, &upstream)
}

fn prepared(webpush: &WebPush, pushkey: &str, data: &Value, kind: Kind) -> Result<Request<Bytes>, Ended> {
    let notification = notification(json!({
        "event_id": "$e", "room_id": "!room:example.com", "counts": {"unread": 1},
        "devices": [{"app_id": "a", "pushkey": pushkey, "data": data}],
    }));
    webpush.prepare(&notification, &notification.devices[0], kind)
}

#[tokio::test]
async fn a_message_has_the_expected_headers() {
    let data = json!({"endpoint": "https://push.example:8443/v1/abc#x", "auth": AUTH, "only_last_per_room": true});
    let request = prepared(&webpush(&["*.example"]), P256DH, &data, Kind::IdsOnly).unwrap();
    assert_eq!(request.uri(), "https://push.example:8443/v1/abc");
    let header = |name: &str| request.headers()[name].to_str().unwrap();
    assert_eq!((header("ttl"), header("urgency"), header("content-encoding")), ("900", "high", "aes128gcm"));
    // Python: urlsafe_b64encode(blake2s(b"!room:example.com", digest_size=22).digest()), unpadded.
    assert_eq!(header("topic"), "S89mJDjplnA_9cge-UGBNlxVbKuFhw");
    assert!(header("authorization").starts_with("vapid t="));
}

#[tokio::test]
async fn a_malformed_subscription_is_gone() {
    let webpush = webpush(&[]);
    let good = json!({"endpoint": "https://push.example/x", "auth": AUTH});
    assert!(prepared(&webpush, P256DH, &good, Kind::IdsOnly).is_ok());
    let gone = Ended::With(Outcome::Gone);
    for (pushkey, data) in [
        ("short", good),
        (P256DH, json!({})),
        (P256DH, json!({"endpoint": "https://push.example/x"})),
        (P256DH, json!({"endpoint": "https://push.example/x", "auth": "c2hvcnQ"})),
        (P256DH, json!({"endpoint": "http://push.example/x", "auth": AUTH})),
        (P256DH, json!({"endpoint": "https://user:pw@push.example/x", "auth": AUTH})),
        (P256DH, json!({"endpoint": "file:///etc/passwd", "auth": AUTH})),
        (P256DH, json!({"endpoint": 5, "auth": AUTH})),
    ] {
        assert_eq!(prepared(&webpush, pushkey, &data, Kind::IdsOnly).unwrap_err(), gone, "{data}");
    }
}

#[tokio::test]
async fn pushes_go_to_allowed_hosts_only() {
    let webpush = webpush(&["*.push.example"]);
    for (endpoint, allowed) in [
        ("https://eu.push.example/x", true),
        ("https://EU.push.example./x", true),
        ("https://push.example.evil/x", false),
    ] {
        let data = json!({"endpoint": endpoint, "auth": AUTH});
        assert_eq!(prepared(&webpush, P256DH, &data, Kind::IdsOnly).is_ok(), allowed, "{endpoint}");
    }
}

#[tokio::test]
async fn only_a_fault_of_the_subscription_itself_makes_it_gone() {
    assert_eq!(unsent(NotEncrypted::NoPoint), Ended::With(Outcome::Gone));
    let Ended::With(Outcome::Refused(refusal)) = unsent(NotEncrypted::Failed) else { panic!("it is refused") };
    assert_eq!(refusal.fault, Fault::App);
    // A valid URL of 2049 bytes.
    let data = json!({"endpoint": format!("https://push.example/{}", "x".repeat(2028)), "auth": AUTH});
    let refused = prepared(&webpush(&[]), P256DH, &data, Kind::IdsOnly).unwrap_err();
    let Ended::With(Outcome::Refused(refusal)) = refused else { panic!("it is refused") };
    assert_eq!(refusal.fault, Fault::Push);
}

#[tokio::test]
async fn each_answer_maps_to_its_outcome() {
    let strangers = webpush(&[]);
    let webpush = webpush(&["push.example"]);
    let outcome = |status: u16| {
        let answer = Response::builder().status(status).header("retry-after", "7").body(Bytes::new()).unwrap();
        webpush.outcome(&answer)
    };
    for status in [200, 201, 202] {
        assert_eq!(outcome(status), Outcome::Delivered, "{status}");
    }
    for status in [404, 410] {
        assert_eq!(outcome(status), Outcome::Gone, "{status}");
    }
    for status in [408, 421, 425, 429, 500, 507] {
        assert_eq!(outcome(status), Outcome::Busy { retry_after: Some(Duration::from_secs(7)) }, "{status}");
    }
    // A server that a stranger chose says nothing about the app.
    for status in [401, 403] {
        let answer = Response::builder().status(status).body(Bytes::new()).unwrap();
        assert_eq!(strangers.outcome(&answer), Outcome::Busy { retry_after: Some(WAIT_WHERE_REFUSED) }, "{status}");
    }
    for (status, expected) in [(400, Fault::Push), (413, Fault::Push), (401, Fault::App), (403, Fault::App)] {
        let Outcome::Refused(refusal) = outcome(status) else { panic!("{status} is refused") };
        assert_eq!(refusal.fault, expected, "{status}");
    }
}

#[tokio::test]
async fn counts_alone_are_not_sent_if_events_only_is_set() {
    let data = json!({"endpoint": "https://push.example/x", "auth": AUTH, "events_only": true});
    let unsent = prepared(&webpush(&[]), P256DH, &data, Kind::CountsOnly).unwrap_err();
    assert_eq!(unsent, Ended::Dropped);
}
