//! What goes to push services of browsers (docs/payloads.md, "WebPush").

use serde_json::{Value, json};
use waypost_tests::gateway::{ANDROID, IOS, TestGateway, UNIFIED, WEB, event, unifiedpush_app, with};
use waypost_tests::service::{Service, Target};
use waypost_tests::tls_server::Answer;
use waypost_tests::webpush::{Subscriber, WebPush};

async fn sent(gateway: &TestGateway, notification: &Value) -> WebPush {
    let before = gateway.webpush.pushes().len();
    assert_eq!(gateway.rejected(notification).await, json!([]));
    let pushes = gateway.webpush.pushes().all();
    assert_eq!(pushes.len(), before + 1, "one message goes out");
    pushes.last().unwrap().clone()
}

fn device_with(subscriber: &Subscriber, key: &str, value: Value) -> Value {
    let mut device = subscriber.device(WEB);
    device["data"][key] = value;
    device
}

#[tokio::test]
async fn the_browser_reads_the_event() {
    let gateway = TestGateway::start().await;
    let browser = gateway.webpush.subscribe("a");
    let device = device_with(&browser, "default_payload", json!({"mine": {"kept": true}}));
    let mut notification = event("$1", &[device]);
    notification["content"]["formatted_body"] = json!("<b>never sent</b>");
    let push = sent(&gateway, &notification).await;
    assert_eq!(
        browser.decrypt(&push.body).unwrap(),
        json!({
            "mine": {"kept": true},
            "room_id": "!slw48wfj34rtnrf:example.com",
            "room_name": "Mission Control",
            "room_alias": "#exampleroom:matrix.org",
            "event_id": "$1",
            "sender": "@exampleuser:matrix.org",
            "sender_display_name": "Major Tom",
            "type": "m.room.message",
            "content": {"msgtype": "m.text", "body": "I'm floating in a most peculiar way."},
            "unread": 2,
            "missed_calls": 1,
        })
    );
}

#[tokio::test]
async fn the_gateway_proves_who_it_is() {
    let gateway = TestGateway::start().await;
    let browser = gateway.webpush.subscribe("a");
    let first = sent(&gateway, &event("$1", &[browser.device(WEB)])).await;
    assert_eq!(first.vapid.claims["aud"], gateway.webpush.origin().as_str());
    assert_eq!(first.vapid.claims["sub"], "mailto:push@example.org");
    assert_eq!(first.vapid_key, gateway.webpush.vapid_public_key());
    let second = sent(&gateway, &event("$2", &[browser.device(WEB)])).await;
    assert_eq!(first.headers["authorization"], second.headers["authorization"]);
    assert_ne!(first.body, second.body);
}

#[tokio::test]
async fn headers_say_how_urgent_it_is() {
    let gateway = TestGateway::start().await;
    let browser = gateway.webpush.subscribe("a");
    let mut notification = event("$1", &[browser.device(WEB)]);
    let push = sent(&gateway, &notification).await;
    assert_eq!(push.header("urgency"), "high");
    assert!(push.header("ttl").parse::<u64>().is_ok());
    assert_eq!(push.header("topic"), "");
    notification["event_id"] = json!("$2");
    notification["prio"] = json!("low");
    assert_ne!(sent(&gateway, &notification).await.header("urgency"), "high");
}

#[tokio::test]
async fn the_topic_is_the_one_that_apps_already_have() {
    let gateway = TestGateway::start().await;
    let browser = gateway.webpush.subscribe("a");
    let device = device_with(&browser, "only_last_per_room", json!(true));
    let push = sent(&gateway, &event("$1", &[device])).await;
    // Python: urlsafe_b64encode(blake2s(b"!slw48wfj34rtnrf:example.com", digest_size=22).digest()).rstrip(b"=")
    assert_eq!(push.header("topic"), "KT_bhozU196tNhXVsoCxGq9v4bKaoA");
}

#[tokio::test]
async fn events_only_skips_mere_counts() {
    let gateway = TestGateway::start().await;
    let browser = gateway.webpush.subscribe("a");
    let device = device_with(&browser, "events_only", json!(true));
    let notification = json!({"counts": {"unread": 1}, "devices": [device]});
    assert_eq!(gateway.rejected(&notification).await, json!([]));
    assert!(gateway.webpush.pushes().is_empty());

    let notification = json!({"counts": {"unread": 0}, "devices": [browser.device(WEB)]});
    let push = sent(&gateway, &notification).await;
    assert_eq!(browser.decrypt(&push.body).unwrap(), json!({"unread": 0}));
}

#[tokio::test]
async fn a_long_message_is_cut_to_what_a_push_may_have() {
    let gateway = TestGateway::start().await;
    let browser = gateway.webpush.subscribe("a");
    let mut notification = event("$1", &[browser.device(WEB)]);
    notification["content"]["body"] = json!("日本".repeat(10_000));
    let push = sent(&gateway, &notification).await;
    assert!(push.body.len() <= 4096, "{} bytes", push.body.len());
    let payload = browser.decrypt(&push.body).unwrap();
    assert_eq!(payload["event_id"], "$1");
    assert!(payload["content"]["body"].as_str().unwrap().starts_with("日本"));
}

#[tokio::test]
async fn keys_that_cannot_work_are_rejected() {
    let gateway = TestGateway::start().await;
    let browser = gateway.webpush.subscribe("a");
    let mut bad_point = browser.device(WEB);
    // 65 bytes that are no point of the curve.
    bad_point["pushkey"] = json!(format!("BA{}", "B".repeat(85)));
    let mut no_auth = gateway.webpush.subscribe("b").device(WEB);
    no_auth["data"].as_object_mut().unwrap().remove("auth");
    let mut no_endpoint = gateway.webpush.subscribe("c").device(WEB);
    no_endpoint["data"].as_object_mut().unwrap().remove("endpoint");
    for device in [bad_point, no_auth, no_endpoint] {
        let rejected = gateway.rejected(&event("$1", std::slice::from_ref(&device))).await;
        assert_eq!(rejected, json!([device["pushkey"]]), "{}", device["data"]);
    }
    assert!(gateway.webpush.pushes().is_empty());
}

#[tokio::test]
async fn only_allowed_endpoints_are_called() {
    let gateway = TestGateway::start().await;
    let port = gateway.webpush.server.port();
    let urls = [
        // Not on the list, though the certificate would do.
        format!("https://127.0.0.1:{port}/push/a"),
        // Not TLS.
        format!("http://push.test:{port}/push/a"),
        // Whoever reads it carelessly goes elsewhere.
        format!("https://push.test@127.0.0.1:{port}/push/a"),
        format!("https://push.test.evil.test:{port}/push/a"),
    ];
    for (number, url) in urls.into_iter().enumerate() {
        let device = device_with(&gateway.webpush.subscribe("a"), "endpoint", json!(url));
        let reply = gateway.notify(&event(&format!("${number}"), &[device])).await;
        assert!(reply.status != 500, "{url}: {}", reply.text);
    }
    assert!(gateway.webpush.server.requests.is_empty());
}

#[tokio::test]
async fn a_strangers_endpoint_never_reaches_a_private_address() {
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("outbound", "allowed_ranges", json!([]));
    })
    .await;
    let browser = gateway.webpush.subscribe("a");
    // The name is allowed; what it resolves to, 127.0.0.1, is not.
    let reply = gateway.notify(&event("$1", &[browser.device(WEB)])).await;
    assert_ne!(reply.status, 500, "{}", reply.text);
    assert!(gateway.webpush.server.requests.is_empty());
}

#[tokio::test]
async fn time_to_live_is_the_apps() {
    let gateway = TestGateway::start_apps(|settings, around| {
        settings.push("apps", &with(around.webpush_app(WEB), &[("webpush.ttl_secs", json!(77))]));
    })
    .await;
    let browser = gateway.webpush.subscribe("a");
    assert_eq!(sent(&gateway, &event("$1", &[browser.device(WEB)])).await.header("ttl"), "77");
}

#[tokio::test]
async fn where_a_push_service_sends_a_push_on_to_nobody_follows() {
    let gateway = TestGateway::start().await;
    for service in [Service::WebPush, Service::UnifiedPush] {
        for status in [301, 302, 307, 308] {
            let target = service.target(&gateway, u8::try_from(status - 300).unwrap());
            let elsewhere = format!("{}/elsewhere", service.server(&gateway).url());
            let answer = Answer::empty(status).header("location", &elsewhere);
            service.script(&gateway).always(target.key(), answer);
            // It is no delivery, and no death either.
            assert_eq!(gateway.rejected(&event("$1", &[target.device()])).await, json!([]), "{service:?} {status}");
            assert_eq!(target.events(&gateway, false), ["$1"], "{service:?} {status}");
        }
        let requests = service.server(&gateway).requests.all();
        assert!(requests.iter().all(|request| !request.path.contains("elsewhere")), "{service:?}");
    }
}

#[tokio::test]
async fn by_default_no_service_sees_more_than_ids() {
    let gateway = TestGateway::start_apps(|settings, around| {
        for app in [around.apns_app(IOS), around.fcm_app(ANDROID), around.webpush_app(WEB), unifiedpush_app(UNIFIED)] {
            settings.push("apps", &app);
        }
    })
    .await;
    let devices = Service::ALL.map(|service| service.target(&gateway, 1));
    let Some(Target::Browser(browser)) = devices.iter().find(|target| matches!(target, Target::Browser(_))) else {
        panic!("there is a browser")
    };
    assert_eq!(gateway.rejected(&event("$1", &devices.each_ref().map(Target::device))).await, json!([]));
    let seen = [
        gateway.apns.pushes().all()[0].payload.to_string(),
        gateway.fcm.pushes().all()[0].message.to_string(),
        browser.decrypt(&gateway.webpush.pushes().all()[0].body).unwrap().to_string(),
        gateway.unifiedpush.messages().all()[0].json().to_string(),
    ];
    for text in seen {
        assert!(text.contains("$1") && text.contains("!slw48wfj34rtnrf"), "{text}");
        for content in ["floating", "Major Tom", "Mission Control", "exampleroom", "exampleuser", "m.room.message"] {
            assert!(!text.contains(content), "{content} is in {text}");
        }
    }
}
