//! What is not a notification gets a Matrix error and reaches nobody.

use ::http::Method;
use bytes::Bytes;
use serde_json::json;
use waypost_tests::gateway::{IOS, NOTIFY, TestGateway, apns_token, event, ios};
use waypost_tests::http::Reply;

async fn post(gateway: &TestGateway, body: &[u8]) -> Reply {
    gateway.api.call(Method::POST, NOTIFY, None, Bytes::copy_from_slice(body)).await
}

#[tokio::test]
async fn what_is_no_json_is_m_not_json() {
    let gateway = TestGateway::start().await;
    for body in [&b""[..], b"{", b"not json", b"{\"notification\":{\"devices\":[]}", b"\xff\xfe", b"{\"a\":NaN}"] {
        let reply = post(&gateway, body).await;
        assert_eq!(reply.failure(), (400, "M_NOT_JSON".to_owned()), "{body:?}");
    }
}

#[tokio::test]
async fn what_is_the_wrong_json_is_400() {
    let gateway = TestGateway::start().await;
    let device = ios(&apns_token(1));
    let bodies = [
        json!([]),
        json!("text"),
        json!(1),
        json!({}),
        json!({"notification": null}),
        json!({"notification": []}),
        json!({"notification": {}}),
        json!({"notification": {"devices": null}}),
        json!({"notification": {"devices": {}}}),
        json!({"notification": {"devices": [1]}}),
        json!({"notification": {"devices": [{}]}}),
        json!({"notification": {"devices": [{"app_id": IOS}]}}),
        json!({"notification": {"devices": [{"pushkey": apns_token(1)}]}}),
        json!({"notification": {"devices": [{"app_id": 1, "pushkey": apns_token(1)}]}}),
        json!({"notification": {"devices": [{"app_id": IOS, "pushkey": ["a"]}]}}),
        json!({"notification": {"event_id": 5, "devices": [device]}}),
        json!({"notification": {"event_id": "$1", "room_id": {}, "devices": [device]}}),
    ];
    for body in bodies {
        let reply = post(&gateway, body.to_string().as_bytes()).await;
        assert_eq!(reply.status, 400, "{body}: {}", reply.text);
        assert!(reply.errcode().starts_with("M_"), "{body}: {}", reply.text);
        assert!(!reply.text.contains(&apns_token(1)), "a pushkey is a secret: {}", reply.text);
    }
    assert!(gateway.apns.pushes().is_empty());
}

#[tokio::test]
async fn deep_json_is_refused() {
    let gateway = TestGateway::start().await;
    let deep = format!(
        "{{\"notification\":{{\"event_id\":\"$1\",\"content\":{}{},\"devices\":[]}}}}",
        "[".repeat(10_000),
        "]".repeat(10_000)
    );
    let reply = post(&gateway, deep.as_bytes()).await;
    assert_eq!(reply.status, 400, "{}", reply.text);
    // And the gateway is still there.
    assert_eq!(gateway.rejected(&event("$2", &[ios(&apns_token(1))])).await, json!([]));
}

#[tokio::test]
async fn an_oversized_body_is_413() {
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("server", "max_body_bytes", 300_000);
    })
    .await;
    let reply = post(&gateway, &vec![b' '; 400_000]).await;
    assert_eq!(reply.failure(), (413, "M_TOO_LARGE".to_owned()));
}

#[tokio::test]
async fn too_many_devices_are_refused() {
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("notify", "max_devices", 2);
    })
    .await;
    let devices = [ios(&apns_token(1)), ios(&apns_token(2)), ios(&apns_token(3))];
    let reply = gateway.notify(&event("$1", &devices)).await;
    assert!((400..500).contains(&reply.status), "{}: {}", reply.status, reply.text);
    assert!(gateway.apns.pushes().is_empty());
}

#[tokio::test]
async fn no_devices_is_nothing_to_do() {
    let gateway = TestGateway::start().await;
    assert_eq!(gateway.rejected(&event("$1", &[])).await, json!([]));
}

#[tokio::test]
async fn unknown_paths_are_404_with_cors() {
    let gateway = TestGateway::start().await;
    let trailing = format!("{NOTIFY}/");
    for path in ["/", "/_matrix/push/v1", "/_matrix/push/v2/notify", "/metrics", "/health/live", trailing.as_str()] {
        let reply = gateway.api.get(path, None).await;
        assert_eq!(reply.failure(), (404, "M_UNRECOGNIZED".to_owned()), "{path}");
        assert_eq!(reply.header("access-control-allow-origin"), "*", "{path}");
    }
}

#[tokio::test]
async fn options_are_answered() {
    let gateway = TestGateway::start().await;
    let reply = gateway.api.call(Method::OPTIONS, NOTIFY, None, Bytes::new()).await;
    assert!([200, 204].contains(&reply.status));
    assert_eq!(reply.header("access-control-allow-origin"), "*");
    assert!(reply.header("access-control-allow-methods").contains("POST"));
}
