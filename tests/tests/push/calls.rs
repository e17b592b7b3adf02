//! Calls ring, and nothing else does (docs/payloads.md, "APNs"; docs/security.md, push gateway, 9).

use serde_json::{Value, json};
use waypost_tests::apns::ApnsPush;
use waypost_tests::gateway::{IOS, TOPIC, TestGateway, apns_token};
use waypost_tests::jwt::now_secs;

/// The app of the same team that iOS wakes for calls.
const VOIP: &str = "org.example.ios.voip";

async fn start() -> TestGateway {
    TestGateway::start_apps(|settings, around| {
        settings.push("apps", &around.apns_app(IOS));
        settings.push("apps", &around.apns_app(VOIP));
    })
    .await
}

fn notification(event_id: &str, kind: &str, content: &Value, app_id: &str) -> Value {
    json!({
        "event_id": event_id, "room_id": "!a:hs.test", "type": kind, "sender": "@tom:hs.test", "content": content,
        "prio": "high", "counts": {"unread": 1}, "devices": [{"app_id": app_id, "pushkey": apns_token(1)}],
    })
}

async fn sent(gateway: &TestGateway, notification: &Value) -> Option<ApnsPush> {
    let before = gateway.apns.pushes().len();
    assert_eq!(gateway.rejected(notification).await, json!([]));
    gateway.apns.pushes().all().get(before).cloned()
}

#[tokio::test]
async fn call_events_ring_for_as_long_as_the_call() {
    let gateway = start().await;
    let cases = [
        ("m.call.invite", json!({"lifetime": 30_000}), 30),
        ("m.call.member", json!({}), 60),
        ("org.matrix.msc3401.call.member", json!({"lifetime": 0}), 1),
        ("m.rtc.notification", json!({"lifetime": 45_000}), 45),
        ("org.matrix.msc4075.rtc.notification", json!({"lifetime": "soon"}), 60),
    ];
    for (number, (kind, content, rings_secs)) in cases.into_iter().enumerate() {
        let before = now_secs();
        let push = sent(&gateway, &notification(&format!("${number}"), kind, &content, VOIP)).await.unwrap();
        let after = now_secs();
        assert_eq!(push.header("apns-push-type"), "voip", "{kind}");
        assert_eq!(push.header("apns-topic"), format!("{TOPIC}.voip"), "{kind}");
        assert_eq!(push.header("apns-priority"), "10", "{kind}");
        let expires: i64 = push.header("apns-expiration").parse().unwrap();
        assert!((before + rings_secs..=after + rings_secs).contains(&expires), "{kind}: {}", expires - before);
        assert_eq!(
            (&push.payload["room_id"], &push.payload["event_id"]),
            (&json!("!a:hs.test"), &json!(format!("${number}")))
        );
    }
}

#[tokio::test]
async fn an_app_for_calls_gets_nothing_else() {
    let gateway = start().await;
    let mut ids_only = notification("$1", "", &json!({}), VOIP);
    ids_only.as_object_mut().unwrap().remove("type");
    let counts = json!({"counts": {"unread": 1}, "devices": [{"app_id": VOIP, "pushkey": apns_token(1)}]});
    for other in [
        notification("$2", "m.room.message", &json!({"body": "m.call.invite"}), VOIP),
        notification("$3", "m.room.encrypted", &json!({}), VOIP),
        notification("$4", "m.call.hangup", &json!({}), VOIP),
        notification("$5", "m.room.member", &json!({"membership": "invite"}), VOIP),
        ids_only,
        counts,
    ] {
        assert!(sent(&gateway, &other).await.is_none(), "{other}");
    }
}

#[tokio::test]
async fn another_app_is_told_of_a_call_as_of_any_event() {
    let gateway = start().await;
    let push = sent(&gateway, &notification("$1", "m.call.invite", &json!({"lifetime": 30_000}), IOS)).await.unwrap();
    assert_eq!((push.header("apns-push-type"), push.header("apns-topic")), ("alert", TOPIC));
}
