//! What a push service's answer means for the homeserver (docs/payloads.md, "Answers"; docs/compatibility.md, P1
//! to P4 and P6).

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};
use waypost_tests::apns::{self, unregistered};
use waypost_tests::fcm;
use waypost_tests::gateway::{IOS, TestGateway, WEB, android, apns_token, event, ios};
use waypost_tests::process::timed;
use waypost_tests::tls_server::Answer;

use super::{assert_try_again, retry_after};

/// What the homeserver must be told.
#[derive(Clone, Copy, Debug)]
enum Told {
    /// 200, and the pushkey is not in `rejected`.
    Delivered,
    /// 200, and it is.
    Gone,
    /// Not 200.
    Again,
}

async fn check(gateway: &TestGateway, device: &Value, name: &str, told: Told) {
    let notification = event(&format!("${name}"), std::slice::from_ref(device));
    let reply = gateway.notify(&notification).await;
    match told {
        Told::Delivered => assert_eq!(reply.ok(), json!({"rejected": []}), "{name}"),
        Told::Gone => assert_eq!(reply.ok(), json!({"rejected": [device["pushkey"]]}), "{name}"),
        Told::Again => {
            assert_ne!(reply.status, 200, "{name}: {}", reply.text);
            assert_try_again(&reply);
        }
    }
}

#[tokio::test]
async fn apns_answers() {
    let gateway = TestGateway::start_impatient().await;
    // The environment is proven to be the right one before a token is called bad.
    check(&gateway, &ios(&apns_token(0)), "first", Told::Delivered).await;
    let cases = [
        (410, "Unregistered", Told::Gone),
        (410, "ExpiredToken", Told::Gone),
        (400, "BadDeviceToken", Told::Gone),
        (400, "PayloadTooLarge", Told::Delivered),
        (400, "IdleTimeout", Told::Again),
        (400, "InvalidPushType", Told::Again),
        (400, "DeviceTokenNotForTopic", Told::Again),
        (400, "TopicDisallowed", Told::Again),
        (400, "BadTopic", Told::Again),
        (403, "InvalidProviderToken", Told::Again),
        (403, "Forbidden", Told::Again),
        (429, "TooManyRequests", Told::Again),
        (500, "InternalServerError", Told::Again),
        (503, "ServiceUnavailable", Told::Again),
    ];
    for (number, (status, reason, told)) in cases.into_iter().enumerate() {
        let token = apns_token(u8::try_from(number).unwrap() + 1);
        gateway.apns.script().always(&token, apns::refusal(status, reason));
        check(&gateway, &ios(&token), reason, told).await;
    }
}

#[tokio::test]
async fn bad_device_token_rejects_nobody_before_another_token_was_good() {
    let gateway = TestGateway::start_impatient().await;
    // All tokens look bad when production's are sent to the sandbox.
    let token = apns_token(1);
    gateway.apns.script().always(&token, apns::refusal(400, "BadDeviceToken"));
    let reply = gateway.notify(&event("$1", &[ios(&token)])).await;
    assert_ne!(reply.status, 200, "{}", reply.text);
}

#[tokio::test]
async fn a_death_older_than_the_pushkey_is_not_believed() {
    let gateway = TestGateway::start_impatient().await;
    let registered_secs = 1_700_000_000_i64;
    let device = |token: &str| json!({"app_id": IOS, "pushkey": token, "pushkey_ts": registered_secs});
    gateway.apns.script().always(&apns_token(1), unregistered((registered_secs - 60) * 1000));
    let reply = gateway.notify(&event("$1", &[device(&apns_token(1))])).await;
    // Nor is the push repeated for a day: Apple would say the same.
    assert_eq!(reply.ok(), json!({"rejected": []}));
    gateway.apns.script().always(&apns_token(2), unregistered((registered_secs + 60) * 1000));
    check(&gateway, &device(&apns_token(2)), "after", Told::Gone).await;
}

#[tokio::test]
async fn an_expired_provider_token_is_renewed_once() {
    let gateway = TestGateway::start().await;
    let token = apns_token(1);
    gateway.apns.script().once(&token, apns::refusal(403, "ExpiredProviderToken"));
    check(&gateway, &ios(&token), "expired", Told::Delivered).await;
    assert_eq!(gateway.apns.pushes_for(&token).len(), 2);
}

#[tokio::test]
async fn fcm_answers() {
    let gateway = TestGateway::start_impatient().await;
    let cases = [
        ("unregistered", fcm::refusal(404, "NOT_FOUND", Some("UNREGISTERED")), Told::Gone),
        ("bad-token", fcm::bad_field("message.token"), Told::Gone),
        ("bad-data", fcm::bad_field("message.data"), Told::Delivered),
        ("bad-option", fcm::bad_field("message.android.ttl"), Told::Again),
        ("not-found", fcm::refusal(404, "NOT_FOUND", None), Told::Again),
        ("sender", fcm::refusal(403, "PERMISSION_DENIED", Some("SENDER_ID_MISMATCH")), Told::Again),
        ("quota", fcm::refusal(429, "RESOURCE_EXHAUSTED", Some("QUOTA_EXCEEDED")), Told::Again),
        ("internal", fcm::refusal(500, "INTERNAL", Some("INTERNAL")), Told::Again),
        ("unavailable", fcm::refusal(503, "UNAVAILABLE", Some("UNAVAILABLE")), Told::Again),
        ("no-json", Answer::text(502, "<html>bad gateway</html>"), Told::Again),
    ];
    for (name, answer, told) in cases {
        gateway.fcm.script().always(name, answer);
        check(&gateway, &android(name), name, told).await;
    }
}

#[tokio::test]
async fn push_service_answers() {
    let gateway = TestGateway::start_impatient().await;
    let cases = [
        (200, Told::Delivered),
        (201, Told::Delivered),
        (202, Told::Delivered),
        (404, Told::Gone),
        (410, Told::Gone),
        (413, Told::Delivered),
        (425, Told::Again),
        (429, Told::Again),
        (500, Told::Again),
        (503, Told::Again),
    ];
    for (status, told) in cases {
        let name = format!("status-{status}");
        let browser = gateway.webpush.subscribe(&name);
        gateway.webpush.script().always(browser.path(), Answer::empty(status));
        check(&gateway, &browser.device(WEB), &name, told).await;
    }
}

#[tokio::test]
async fn a_push_that_was_taken_is_not_sent_again_for_its_answers_body() {
    let gateway = TestGateway::start().await;
    let long = "x".repeat(70_000);
    let browser = gateway.webpush.subscribe("long");
    gateway.webpush.script().always(browser.path(), Answer::text(201, &long));
    check(&gateway, &browser.device(WEB), "webpush", Told::Delivered).await;
    assert_eq!(gateway.webpush.pushes_for(&browser).len(), 1);
    gateway.fcm.script().always("long", Answer::text(200, &long));
    check(&gateway, &android("long"), "fcm", Told::Delivered).await;
    assert_eq!(gateway.fcm.pushes_for("long").len(), 1);
    gateway.apns.script().always(&apns_token(1), Answer::text(200, &long));
    check(&gateway, &ios(&apns_token(1)), "apns", Told::Delivered).await;
    assert_eq!(gateway.apns.pushes_for(&apns_token(1)).len(), 1);
}

#[tokio::test]
async fn a_push_service_that_is_busy_for_a_moment_is_asked_again() {
    let gateway = TestGateway::start().await;
    gateway.fcm.script().once("device", fcm::refusal(503, "UNAVAILABLE", Some("UNAVAILABLE")));
    check(&gateway, &android("device"), "busy", Told::Delivered).await;
    let pushes = gateway.fcm.pushes_for("device");
    assert_eq!(pushes.len(), 2);
    assert_eq!(pushes[0].message, pushes[1].message);

    let token = apns_token(1);
    gateway.apns.script().once(&token, Answer::Reset);
    check(&gateway, &ios(&token), "reset", Told::Delivered).await;
    let pushes = gateway.apns.pushes_for(&token);
    assert_eq!(pushes.len(), 2);
    // Apple recognises a repetition by its id.
    assert_eq!(pushes[0].header("apns-id"), pushes[1].header("apns-id"));
}

#[tokio::test]
async fn the_push_services_retry_after_is_handed_on() {
    let gateway = TestGateway::start_impatient().await;
    let busy = fcm::refusal(429, "RESOURCE_EXHAUSTED", Some("QUOTA_EXCEEDED")).header("retry-after", "120");
    gateway.fcm.script().always("device", busy);
    let reply = gateway.notify(&event("$1", &[android("device")])).await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!((100..=120).contains(&retry_after(&reply)), "{}", retry_after(&reply));
    // Nobody is asked again before the time it named.
    assert_eq!(gateway.fcm.pushes_for("device").len(), 1);
}

#[tokio::test]
async fn a_push_service_that_hangs_does_not_hang_the_homeserver() {
    let gateway = TestGateway::start_impatient().await;
    gateway.apns.script().always(&apns_token(1), Answer::Hang);
    let (reply, took) = timed(gateway.notify(&event("$1", &[ios(&apns_token(1))]))).await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(retry_after(&reply) > 0);
    assert!(took < Duration::from_secs(20), "{took:?}");
}

#[tokio::test]
async fn the_default_budget_answers_within_25_seconds() {
    let gateway = TestGateway::start().await;
    gateway.apns.script().always(&apns_token(1), Answer::Hang);
    let (reply, took) = timed(gateway.notify(&event("$1", &[ios(&apns_token(1))]))).await;
    assert_try_again(&reply);
    assert!(took < Duration::from_secs(25), "{took:?}");
}

#[tokio::test]
async fn one_hanging_push_service_leaves_the_others_quick() {
    let gateway = TestGateway::start().await;
    gateway.apns.script().always(&apns_token(1), Answer::Hang);
    let (slow, fast) = (event("$1", &[ios(&apns_token(1))]), event("$2", &[android("device")]));
    let (stuck, quick) = tokio::join!(gateway.notify(&slow), timed(gateway.notify(&fast)));
    assert_try_again(&stuck);
    let (reply, took) = quick;
    assert_eq!(reply.ok(), json!({"rejected": []}));
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn a_rejected_pushkey_comes_back_byte_for_byte() {
    let gateway = TestGateway::start().await;
    gateway.apns.script().always(&apns_token(0xfb), apns::refusal(410, "Unregistered"));
    // The same token, as three clients write it.
    let hexadecimal = "FB".repeat(32);
    let standard = STANDARD.encode([0xfb; 32]);
    let url_safe = URL_SAFE.encode([0xfb; 32]);
    for (number, pushkey) in [hexadecimal, standard, url_safe].iter().enumerate() {
        check(&gateway, &ios(pushkey), &number.to_string(), Told::Gone).await;
    }
}

#[tokio::test]
async fn each_device_has_its_own_outcome() {
    let gateway = TestGateway::start().await;
    gateway.apns.script().always(&apns_token(2), apns::refusal(410, "Unregistered"));
    gateway.fcm.script().always("gone", fcm::refusal(404, "NOT_FOUND", Some("UNREGISTERED")));
    let devices = [ios(&apns_token(1)), ios(&apns_token(2)), android("good"), android("gone")];
    let mut rejected = gateway.rejected(&event("$1", &devices)).await;
    rejected.as_array_mut().unwrap().sort_by_key(Value::to_string);
    let mut expected = json!([apns_token(2), "gone"]);
    expected.as_array_mut().unwrap().sort_by_key(Value::to_string);
    assert_eq!(rejected, expected);
    assert_eq!(gateway.apns.pushes_for(&apns_token(1)).len(), 1);
    assert_eq!(gateway.fcm.pushes_for("good").len(), 1);
}

#[tokio::test]
async fn devices_go_out_side_by_side() {
    let gateway = TestGateway::start().await;
    let slow = Answer::Late(Duration::from_millis(500), Box::new(Answer::empty(200)));
    let devices: Vec<Value> = (0..20)
        .map(|number| {
            gateway.apns.script().always(&apns_token(number), slow.clone());
            ios(&apns_token(number))
        })
        .collect();
    let (rejected, took) = timed(gateway.rejected(&event("$1", &devices))).await;
    assert_eq!(rejected, json!([]));
    // One after the other they would take 10 s.
    assert!(took < Duration::from_secs(5), "{took:?}");
}
