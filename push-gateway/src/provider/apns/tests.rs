//! Request headers, and the meaning of Apple's answers.

#![allow(clippy::unwrap_used)]

use serde_json::json;
use waypost_shared::client::{Outbound, OutboundConfig};

use super::*;
use crate::{jwt::Es256Key, notification::tests::notification, outcome::Fault};

const NOW_MS: i64 = 1_700_000_000_000;

fn apns(change: impl FnOnce(&mut ApnsConfig)) -> Apns {
    let outbound = OutboundConfig { dns_servers: vec!["127.0.0.1:53".parse().unwrap()], ..OutboundConfig::default() };
    let upstream = Upstream::new(Outbound::new(&outbound).unwrap(), Clock::manual(NOW_MS));
    let key = Es256Key::from_pem(&crate::jwt::tests::p8()).unwrap();
    let mut config = ApnsConfig {
        topic: "org.example.app".to_owned(),
        endpoint: "https://api.push.apple.com".to_owned(),
        key_id: "K".to_owned(),
        team_id: "T".to_owned(),
        ..ApnsConfig::default()
    };
    change(&mut config);
    Apns::new(config, ApnsCredentials::Token(key), &upstream, &mut TeamTokens::default()).unwrap()
}

fn prepared(apns: &Apns, value: Value, kind: Kind) -> Result<Request<Bytes>, Ended> {
    let notification = notification(value);
    apns.prepare(&notification, &notification.devices[0], kind)
}

fn headers(request: &Request<Bytes>) -> Vec<(&str, &str)> {
    let mut headers: Vec<_> = request
        .headers()
        .iter()
        .filter(|(name, _)| name.as_str() != "apns-id")
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    headers.sort_unstable();
    headers
}

#[tokio::test]
async fn an_alert_has_the_expected_headers() {
    // "AQID" is base64 of the bytes 1, 2, 3.
    let value = json!({
        "event_id": "$e", "room_id": "!room:example.com", "prio": "low", "devices": [{"app_id": "a", "pushkey": "AQID"}],
    });
    let request = prepared(&apns(|config| config.collapse = true), value, Kind::IdsOnly).unwrap();
    assert_eq!(request.uri(), "https://api.push.apple.com/3/device/010203");
    assert_eq!(
        headers(&request),
        [
            ("apns-collapse-id", COLLAPSE_ID),
            ("apns-expiration", "1700086400"),
            ("apns-priority", "5"),
            ("apns-push-type", "alert"),
            ("apns-topic", "org.example.app"),
        ]
    );
    assert_eq!(request.headers()["apns-id"].len(), 36);
    let high = json!({"event_id": "$e", "devices": [{"app_id": "a", "pushkey": "AQID"}]});
    let request = prepared(&apns(|_| ()), high, Kind::IdsOnly).unwrap();
    assert_eq!(request.headers()["apns-priority"], "10");
    assert!(!request.headers().contains_key("apns-collapse-id"));
}

/// Python: `urlsafe_b64encode(sha256(b"!room:example.com").digest())`, unpadded.
const COLLAPSE_ID: &str = "uce7d7oePB4iYO1H4mwyuMH7TpYBlvdaZoZ1IkYeCu8";

#[tokio::test]
async fn counts_alone_are_sent_as_background_pushes() {
    let value = json!({"counts": {"unread": 1}, "devices": [{"app_id": "a", "pushkey": "AQID"}]});
    let request = prepared(&apns(|_| ()), value, Kind::CountsOnly).unwrap();
    assert_eq!(request.headers()["apns-push-type"], "background");
    assert_eq!(request.headers()["apns-priority"], "5");
}

#[tokio::test]
async fn voip_apps_get_only_calls() {
    let voip = apns(|config| config.push_type = Some(PushType::Voip));
    let event = |kind: &str| {
        json!({
            "event_id": "$e", "type": kind, "content": {"lifetime": 30_000},
            "devices": [{"app_id": "a", "pushkey": "AQID"}],
        })
    };
    let request = prepared(&voip, event("m.call.invite"), Kind::IdsOnly).unwrap();
    assert_eq!(request.headers()["apns-push-type"], "voip");
    assert_eq!(request.headers()["apns-expiration"], "1700000030");
    assert_eq!(prepared(&voip, event("m.room.message"), Kind::IdsOnly).unwrap_err(), Ended::Dropped);
}

#[tokio::test]
async fn device_tokens_are_accepted_in_base64_and_hex() {
    let converting = apns(|_| ());
    let hex = "AB".repeat(32);
    for (pushkey, expected) in [
        (hex.as_str(), Some("ab".repeat(32))),
        ("-_8", Some("fbff".to_owned())),
        ("+/8=", Some("fbff".to_owned())),
        ("not a token", None),
    ] {
        assert_eq!(converting.device_token(pushkey), expected, "{pushkey}");
    }
    let plain = apns(|config| config.convert_device_token_to_hex = false);
    assert_eq!(plain.device_token("a/../b"), Some("a%2F%2E%2E%2Fb".to_owned()));
}

/// The outcome of an answer for a device whose pushkey was set at `NOW_MS`.
fn outcome(apns: &Apns, status: u16, body: &Value) -> Outcome {
    let answer = Response::builder().status(status).header("retry-after", "7").body(Bytes::new()).unwrap();
    let trouble = Trouble::read(body.to_string().as_bytes());
    let notification = notification(json!({
        "devices": [{"app_id": "a", "pushkey": "AQID", "pushkey_ts": NOW_MS / 1000}],
    }));
    apns.outcome(&answer, &trouble, &notification.devices[0])
}

fn fault(outcome: Outcome) -> Option<Fault> {
    match outcome {
        Outcome::Refused(refusal) => Some(refusal.fault),
        _ => None,
    }
}

#[tokio::test]
async fn each_answer_maps_to_its_outcome() {
    let apns = apns(|_| ());
    let reason = |reason: &str| json!({"reason": reason});
    // No push has been accepted yet, so this may well be the wrong environment.
    assert_eq!(fault(outcome(&apns, 400, &reason("BadDeviceToken"))), Some(Fault::App));
    assert_eq!(fault(outcome(&apns, 410, &json!({}))), Some(Fault::App));
    assert_eq!(outcome(&apns, 410, &reason("ExpiredToken")), Outcome::Gone);
    assert_eq!(outcome(&apns, 200, &json!({})), Outcome::Delivered);
    assert_eq!(outcome(&apns, 400, &reason("BadDeviceToken")), Outcome::Gone);
    assert_eq!(outcome(&apns, 410, &json!({})), Outcome::Gone);
    assert_eq!(outcome(&apns, 410, &reason("NewInIos99")), Outcome::Gone);

    for (status, name, expected) in [
        (400, "BadTopic", Fault::App),
        (400, "DeviceTokenNotForTopic", Fault::App),
        (400, "TopicDisallowed", Fault::App),
        (403, "InvalidProviderToken", Fault::App),
        (403, "ExpiredProviderToken", Fault::App),
        (404, "BadPath", Fault::App),
        (400, "InvalidPushType", Fault::App),
        (400, "BadExpirationDate", Fault::App),
        (400, "BadCollapseId", Fault::App),
        (400, "BadPriority", Fault::App),
        (400, "MissingDeviceToken", Fault::App),
        (400, "DuplicateHeaders", Fault::App),
        (400, "", Fault::App),
        (413, "PayloadTooLarge", Fault::Push),
        (413, "", Fault::Push),
        (400, "PayloadTooLarge", Fault::Push),
        (400, "PayloadEmpty", Fault::Push),
    ] {
        assert_eq!(fault(outcome(&apns, status, &reason(name))), Some(expected), "{status} {name}");
    }
    let busy = Outcome::Busy { retry_after: Some(Duration::from_secs(7)) };
    for status in [408, 421, 425, 429, 500, 503] {
        assert_eq!(outcome(&apns, status, &json!({})), busy, "{status}");
    }
    assert_eq!(outcome(&apns, 400, &reason("IdleTimeout")), busy);
}

#[tokio::test]
async fn a_dead_token_is_gone_unless_the_pushkey_may_have_been_set_later() {
    let apns = apns(|_| ());
    // The pushkey was set within the second that starts at NOW_MS.
    for timestamp in [json!(NOW_MS + 999), json!(1_700_000_000_999.0), json!("1700000000999"), json!(null), json!([])] {
        let trouble = json!({"reason": "Unregistered", "timestamp": timestamp});
        assert_eq!(outcome(&apns, 410, &trouble), Outcome::Gone, "{timestamp}");
    }
    for timestamp in [json!(NOW_MS + 998), json!(1_700_000_000_998.2), json!("1700000000998")] {
        let trouble = json!({"reason": "Unregistered", "timestamp": timestamp});
        assert_eq!(fault(outcome(&apns, 410, &trouble)), Some(Fault::Push), "{timestamp}");
    }
}

#[test]
fn reasons_are_sorted_and_unique() {
    assert!(REASONS.is_sorted_by(|a, b| a < b), "{REASONS:?}");
    for reason in ["IdleTimeout", "DuplicateHeaders", "BadEnvironmentKeyIdInToken", "TooManyProviderTokenUpdates"] {
        assert!(REASONS.contains(&reason), "{reason}");
    }
}
