//! What goes to push servers of UnifiedPush, and how others find this gateway (docs/payloads.md,
//! "UnifiedPush"; docs/compatibility.md, P12; docs/security.md, push gateway, 2).

use ::http::Method;
use bytes::Bytes;
use serde_json::{Value, json};
use waypost_tests::gateway::{NOTIFY, TestGateway, UNIFIED, event, event_id_only, unifiedpush_app};
use waypost_tests::tls_server::Answer;

use super::{assert_try_again, retry_after};

async fn start() -> TestGateway {
    TestGateway::start_apps(|settings, _| {
        settings.push("apps", &unifiedpush_app(UNIFIED));
        settings.set("notify", "budget_secs", 3).set("notify", "attempt_timeout_secs", 1);
    })
    .await
}

fn device(gateway: &TestGateway, name: &str) -> Value {
    json!({"app_id": UNIFIED, "pushkey": gateway.unifiedpush.endpoint(name)})
}

#[tokio::test]
async fn a_message_is_the_notification_for_one_device() {
    let gateway = start().await;
    let devices = [device(&gateway, "one"), device(&gateway, "two")];
    assert_eq!(gateway.rejected(&event_id_only("$1", &devices)).await, json!([]));
    let messages = gateway.unifiedpush.messages().all();
    assert_eq!(messages.len(), 2);
    for message in messages {
        assert_eq!(message.header("content-type"), "application/json");
        assert!(!message.header("ttl").is_empty() && message.header("urgency") == "high");
        assert_eq!(
            message.json(),
            json!({"notification": {
                "event_id": "$1", "room_id": "!slw48wfj34rtnrf:example.com", "counts": {"unread": 2}, "prio": "high",
            }})
        );
    }
}

#[tokio::test]
async fn a_message_is_encrypted_for_an_app_that_gives_keys() {
    let gateway = start().await;
    let browser = gateway.webpush.subscribe("keys");
    let mut device = device(&gateway, "keys");
    device["data"] = json!({"p256dh": browser.p256dh(), "auth": browser.auth()});
    assert_eq!(gateway.rejected(&event_id_only("$1", &[device])).await, json!([]));
    let message = gateway.unifiedpush.messages().all().pop().unwrap();
    assert_eq!(message.header("content-encoding"), "aes128gcm");
    assert_eq!(browser.decrypt(&message.body).unwrap()["notification"]["event_id"], "$1");
}

#[tokio::test]
async fn answers_of_push_servers() {
    let gateway = start().await;
    for (status, is_gone) in [(200, false), (201, false), (202, false), (404, true), (410, true), (413, false)] {
        let name = format!("status-{status}");
        gateway.unifiedpush.script().always(&name, Answer::empty(status));
        let device = device(&gateway, &name);
        let rejected = gateway.rejected(&event(&format!("${status}"), std::slice::from_ref(&device))).await;
        assert_eq!(rejected, if is_gone { json!([device["pushkey"]]) } else { json!([]) }, "{status}");
    }
    for status in [429, 500, 503, 507] {
        let name = format!("status-{status}");
        gateway.unifiedpush.script().always(&name, Answer::empty(status).header("retry-after", "120"));
        let reply = gateway.notify(&event(&format!("${status}"), &[device(&gateway, &name)])).await;
        assert_try_again(&reply);
        assert_eq!(retry_after(&reply), 120, "{status}");
    }
}

#[tokio::test]
async fn a_pushkey_leads_nowhere_inside() {
    let gateway = TestGateway::start_apps(|settings, _| {
        let mut app = unifiedpush_app(UNIFIED);
        app.retain(|(key, _)| *key != "unifiedpush.allowed_endpoints");
        app.push(("unifiedpush", json!({})));
        settings.push("apps", &app);
        settings.set("outbound", "allowed_ranges", json!([]));
    })
    .await;
    let port = gateway.unifiedpush.server.port();
    for (number, pushkey) in [
        gateway.unifiedpush.endpoint("private"),
        format!("https://127.0.0.1:{port}/up/a?up=1"),
        format!("https://[::ffff:127.0.0.1]:{port}/up/a?up=1"),
        format!("http://push.test:{port}/up/a?up=1"),
        format!("https://user@push.test:{port}/up/a?up=1"),
        "a token of FCM's".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        // Refused, and no reason to delete anybody's pusher.
        let device = json!({"app_id": UNIFIED, "pushkey": pushkey});
        assert_eq!(gateway.rejected(&event(&format!("${number}"), &[device])).await, json!([]), "{pushkey}");
    }
    assert!(gateway.unifiedpush.server.requests.is_empty());
    assert!(!gateway.server.log_text().contains("/up/"), "a pushkey is in the log");
}

#[tokio::test]
async fn the_gateway_can_be_discovered_where_it_is_one() {
    let gateway = start().await;
    let reply = gateway.api.get(NOTIFY, None).await;
    assert_eq!(reply.ok(), json!({"gateway": "matrix", "unifiedpush": {"gateway": "matrix"}}));
    for method in [Method::PUT, Method::DELETE] {
        let reply = gateway.api.call(method.clone(), NOTIFY, None, Bytes::new()).await;
        assert_eq!(reply.failure(), (405, "M_UNRECOGNIZED".to_owned()), "{method}");
    }
    // Elsewhere it is 405: `leniency::get_is_405`.
}

#[tokio::test]
async fn contents_are_sent_only_where_they_are_asked_for() {
    let gateway = start().await;
    gateway.rejected(&event("$1", &[device(&gateway, "a")])).await;
    let message = gateway.unifiedpush.messages().all().pop().unwrap();
    let text = String::from_utf8(message.body).unwrap();
    assert!(!text.contains("floating") && !text.contains("Major Tom") && !text.contains("devices"), "{text}");
}
