//! What real homeservers send, beside the specification (docs/compatibility.md, P5, P7, P10 and P12).

use ::http::Method;
use bytes::Bytes;
use serde_json::{Value, json};
use waypost_tests::gateway::{IOS, NOTIFY, TestGateway, android, apns_token, event, ios};

async fn accepted(gateway: &TestGateway, notification: &Value) {
    let pushes = gateway.apns.pushes().len() + gateway.fcm.pushes().len();
    assert_eq!(gateway.notify(notification).await.ok(), json!({"rejected": []}), "{notification}");
    assert_eq!(gateway.apns.pushes().len() + gateway.fcm.pushes().len(), pushes + 1, "{notification}");
}

#[tokio::test]
async fn odd_fields_are_accepted() {
    let gateway = TestGateway::start().await;
    let device = ios(&apns_token(1));
    let odd = [
        // Synapse's badge update.
        json!({"id": "", "type": null, "sender": "", "counts": {"unread": 3}, "devices": [device]}),
        json!({"event_id": "$1", "room_id": "!a:hs", "counts": null, "devices": [device]}),
        json!({"event_id": "$2", "room_id": "!a:hs", "prio": "extreme", "devices": [device]}),
        json!({"event_id": "$3", "room_id": "!a:hs", "prio": null, "room_name": null, "content": null, "devices": [device]}),
        json!({"event_id": "$4", "room_id": "!a:hs", "id": "x", "membership": null, "new_field": [1], "devices": [device]}),
        json!({"event_id": "$5", "room_id": "!a:hs", "counts": {"unread": 9_007_199_254_740_992_u64}, "devices": [device]}),
        json!({"event_id": "$6", "devices": [
            {"app_id": IOS, "pushkey": apns_token(1), "pushkey_ts": null, "data": null, "tweaks": null, "more": 1},
        ]}),
        json!({"event_id": "$7", "devices": [
            {"app_id": IOS, "pushkey": apns_token(1), "pushkey_ts": 9_007_199_254_740_992_u64, "data": {"format": null}},
        ]}),
        json!({"event_id": "$8", "room_id": "!a:hs", "devices": [
            {"app_id": "org.example.android", "pushkey": "d", "data": {"data_message": true}},
        ]}),
        json!({"event_id": "$9", "room_id": "!a:hs", "devices": [
            {"app_id": "org.example.android", "pushkey": "d", "data": {"data_message": "android"}},
        ]}),
    ];
    for notification in &odd {
        accepted(&gateway, notification).await;
    }
}

#[tokio::test]
async fn the_content_type_does_not_matter() {
    let gateway = TestGateway::start().await;
    let body = json!({"notification": event("$1", &[ios(&apns_token(1))])});
    let request = ::http::Request::post(gateway.api.absolute(NOTIFY))
        .header("content-type", "text/plain")
        .body(Bytes::from(body.to_string()))
        .unwrap();
    assert_eq!(gateway.api.send(request).await.ok(), json!({"rejected": []}));
}

#[tokio::test]
async fn a_body_of_256_kib_is_accepted() {
    let gateway = TestGateway::start().await;
    let mut notification = event("$1", &[ios(&apns_token(1))]);
    notification["content"]["body"] = json!("x".repeat(256 * 1024));
    accepted(&gateway, &notification).await;
}

#[tokio::test]
async fn absent_counts_leave_the_badge_alone_and_zero_clears_it() {
    let gateway = TestGateway::start().await;
    let device = json!({"app_id": IOS, "pushkey": apns_token(1), "data": {"format": "event_id_only"}});
    let absent = json!({"event_id": "$1", "room_id": "!a:hs", "devices": [device]});
    accepted(&gateway, &absent).await;
    let zero = json!({"event_id": "$2", "room_id": "!a:hs", "counts": {"unread": 0}, "devices": [device]});
    accepted(&gateway, &zero).await;
    let pushes = gateway.apns.pushes().all();
    assert_eq!(pushes[0].payload, json!({"room_id": "!a:hs", "event_id": "$1"}));
    assert_eq!(pushes[1].payload, json!({"room_id": "!a:hs", "event_id": "$2", "unread_count": 0}));

    let zero = json!({"event_id": "$3", "room_id": "!a:hs", "counts": {"unread": 0}, "devices": [android("d")]});
    accepted(&gateway, &zero).await;
    assert_eq!(gateway.fcm.pushes().all()[0].message["data"]["unread"], "0");
}

#[tokio::test]
async fn sealed_notifications_pass_through() {
    let gateway = TestGateway::start().await;
    // MSC3013: three fields at the top, and no cutting.
    let mut notification = event("$1", &[ios(&apns_token(1))]);
    notification.as_object_mut().unwrap().remove("content");
    for (key, value) in [("ciphertext", "c2VhbGVk"), ("ephemeral", "ZXBoZW1lcmFs"), ("mac", "bWFj")] {
        notification[key] = json!(value);
    }
    accepted(&gateway, &notification).await;
    let payload = &gateway.apns.pushes().all()[0].payload;
    assert_eq!(payload["ciphertext"], "c2VhbGVk");
    assert_eq!(payload["ephemeral"], "ZXBoZW1lcmFs");
    assert_eq!(payload["mac"], "bWFj");
}

#[tokio::test]
async fn a_wrong_default_payload_is_400_and_never_rejected() {
    let gateway = TestGateway::start().await;
    let bad = json!({"app_id": IOS, "pushkey": apns_token(1), "data": {"default_payload": "text"}});
    let reply = gateway.notify(&event("$1", std::slice::from_ref(&bad))).await;
    assert_eq!(reply.status, 400, "{}", reply.text);
    assert!(reply.text.contains("default_payload"), "{}", reply.text);
    assert!(!reply.text.contains(&apns_token(1)), "a pushkey is a secret: {}", reply.text);
    // Another device is good: it is served, and the answer is good.
    accepted(&gateway, &event("$2", &[bad, ios(&apns_token(2))])).await;
}

#[tokio::test]
async fn get_is_405() {
    // Without an app of UnifiedPush: with one, GET is how it is discovered.
    let gateway = TestGateway::start_apps(|settings, around| {
        settings.push("apps", &around.apns_app(IOS));
    })
    .await;
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let reply = gateway.api.call(method.clone(), NOTIFY, None, Bytes::new()).await;
        assert_eq!(reply.failure(), (405, "M_UNRECOGNIZED".to_owned()), "{method}");
    }
}

#[tokio::test]
async fn no_pushkey_and_no_body_is_logged() {
    let gateway = TestGateway::start().await;
    accepted(&gateway, &event("$1", &[ios(&apns_token(0xab))])).await;
    accepted(&gateway, &event("$2", &[android("a-very-secret-device")])).await;
    gateway.notify(&event("$3", &[json!({"app_id": "unknown", "pushkey": "another-secret-device"})])).await;
    let log = gateway.server.log_text();
    for secret in ["abababab", "secret-device", "floating", "Major Tom"] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}
