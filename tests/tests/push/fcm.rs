//! What goes to FCM (docs/payloads.md, "FCM").

use serde_json::{Value, json};
use waypost_tests::fcm::{FcmPush, refusal};
use waypost_tests::gateway::{ANDROID, TestGateway, android, event, event_id_only};
use waypost_tests::tls_server::Answer;

use super::assert_try_again;

async fn sent(gateway: &TestGateway, notification: &Value) -> FcmPush {
    let before = gateway.fcm.pushes().len();
    assert_eq!(gateway.rejected(notification).await, json!([]));
    let pushes = gateway.fcm.pushes().all();
    assert_eq!(pushes.len(), before + 1, "one message goes out");
    pushes.last().unwrap().clone()
}

#[tokio::test]
async fn data_are_strings() {
    let gateway = TestGateway::start().await;
    let push = sent(&gateway, &event("$1", &[android("device")])).await;
    assert_eq!(push.message["token"], "device");
    assert_eq!(push.message["android"]["priority"], "high");
    assert_eq!(
        push.message["data"],
        json!({
            "event_id": "$1",
            "type": "m.room.message",
            "sender": "@exampleuser:matrix.org",
            "room_id": "!slw48wfj34rtnrf:example.com",
            "room_name": "Mission Control",
            "room_alias": "#exampleroom:matrix.org",
            "sender_display_name": "Major Tom",
            "content_msgtype": "m.text",
            "content_body": "I'm floating in a most peculiar way.",
            "prio": "high",
            "unread": "2",
            "missed_calls": "1",
        })
    );
}

#[tokio::test]
async fn element_x_reads_its_default_payload_at_the_top() {
    let gateway = TestGateway::start().await;
    let device = json!({
        "app_id": ANDROID,
        "pushkey": "device",
        "data": {"format": "event_id_only", "default_payload": {"cs": "secret", "number": 7, "nested": {"a": [1]}}},
    });
    let push = sent(&gateway, &event_id_only("$1", &[device])).await;
    assert_eq!(
        push.message["data"],
        json!({
            "cs": "secret",
            "number": "7",
            "nested": "{\"a\":[1]}",
            "event_id": "$1",
            "room_id": "!slw48wfj34rtnrf:example.com",
            "prio": "high",
            "unread": "2",
        })
    );
}

#[tokio::test]
async fn low_priority_is_normal() {
    let gateway = TestGateway::start().await;
    let mut notification = event("$1", &[android("device")]);
    notification["prio"] = json!("low");
    let push = sent(&gateway, &notification).await;
    assert_eq!(push.message["android"]["priority"], "normal");
}

#[tokio::test]
async fn a_default_payload_sets_nothing_that_the_gateway_owns() {
    let gateway = TestGateway::start().await;
    let device = json!({
        "app_id": ANDROID,
        "pushkey": "device",
        "data": {"default_payload": {
            "from": "x", "message_type": "x", "google.a": "x", "gcm.b": "x", "token": "x", "topic": "x",
            "condition": "x", "event_id": "$forged",
        }},
    });
    let push = sent(&gateway, &event_id_only("$1", &[device])).await;
    assert_eq!(push.message["token"], "device");
    assert!(push.message.get("topic").is_none() && push.message.get("condition").is_none());
    let data = push.message["data"].as_object().unwrap();
    for reserved in ["from", "message_type", "google.a", "gcm.b"] {
        assert!(!data.contains_key(reserved), "{reserved}");
    }
    assert_eq!(data["event_id"], "$1");
}

#[tokio::test]
async fn a_long_string_is_cut_at_a_character() {
    let gateway = TestGateway::start().await;
    let mut notification = event("$1", &[android("device")]);
    notification["content"]["body"] = json!("日本".repeat(10_000));
    let push = sent(&gateway, &notification).await;
    let body = push.message["data"]["content_body"].as_str().unwrap();
    assert!(body.len() <= 1024 && body.len() > 900, "{} bytes", body.len());
    assert!(body.starts_with("日本") && body.ends_with('…'));
}

#[tokio::test]
async fn many_long_strings_fit_the_limit() {
    let gateway = TestGateway::start().await;
    let mut notification = event("$1", &[android("device")]);
    for number in 0..20 {
        notification["content"][format!("part{number}")] = json!("x".repeat(900));
    }
    let push = sent(&gateway, &notification).await;
    let data = push.message["data"].as_object().unwrap();
    let bytes: usize = data.iter().map(|(key, value)| key.len() + value.as_str().unwrap().len()).sum();
    assert!(bytes <= 4096, "{bytes} bytes of data");
    assert_eq!(data["event_id"], "$1");
}

#[tokio::test]
async fn one_bearer_token_serves_many_messages() {
    let gateway = TestGateway::start().await;
    for number in 0..5 {
        sent(&gateway, &event(&format!("${number}"), &[android("device")])).await;
    }
    assert_eq!(gateway.fcm.issued(), 1);
}

#[tokio::test]
async fn devices_that_go_out_together_wait_for_one_token() {
    let gateway = TestGateway::start().await;
    let devices: Vec<Value> = (0..20).map(|number| android(&format!("device-{number}"))).collect();
    assert_eq!(gateway.rejected(&event("$1", &devices)).await, json!([]));
    assert_eq!(gateway.fcm.pushes().len(), 20);
    assert_eq!(gateway.fcm.issued(), 1);
}

#[tokio::test]
async fn a_bearer_token_that_is_refused_is_renewed_at_once() {
    let gateway = TestGateway::start().await;
    sent(&gateway, &event("$1", &[android("device")])).await;
    gateway.fcm.revoke_bearers();
    let push = sent(&gateway, &event("$2", &[android("device")])).await;
    assert_eq!(push.bearer, "bearer-2");
}

#[tokio::test]
async fn without_a_token_nothing_is_lost_or_rejected() {
    let gateway = TestGateway::start_impatient().await;
    gateway.fcm.script().always("/token", Answer::json(500, &json!({"error": "internal"})));
    let notification = event("$1", &[android("device")]);
    assert_try_again(&gateway.notify(&notification).await);
    assert!(gateway.fcm.pushes().is_empty());
    gateway.fcm.script().forget("/token");
    // As a homeserver does it: again, until it is taken.
    let mut reply = gateway.notify(&notification).await;
    for _ in 0..10 {
        if reply.status == 200 {
            break;
        }
        reply = gateway.notify(&notification).await;
    }
    assert_eq!(reply.ok(), json!({"rejected": []}));
}

#[tokio::test]
async fn app_options_are_the_base_of_the_message() {
    let gateway = TestGateway::start_apps(|settings, around| {
        settings.push("apps", &around.fcm_app(ANDROID));
        settings.append("[apps.fcm.options.android]\ncollapse_key = \"matrix\"\n");
    })
    .await;
    let push = sent(&gateway, &event_id_only("$1", &[android("device")])).await;
    assert_eq!(push.message["android"]["collapse_key"], "matrix");
    assert_eq!(push.message["android"]["priority"], "high");
    assert_eq!(push.message["token"], "device");
}

#[tokio::test]
async fn a_wrong_project_rejects_nobody() {
    let gateway = TestGateway::start_impatient().await;
    gateway.fcm.script().always("device", refusal(404, "NOT_FOUND", None));
    assert_try_again(&gateway.notify(&event("$1", &[android("device")])).await);
}
