//! Too many dead at once are held (docs/push-gateway.md; docs/security.md, push gateway, 5).

use serde_json::{Value, json};
use waypost_tests::gateway::{ANDROID, IOS, TestGateway, WEB, android, event, ios};
use waypost_tests::http::Reply;
use waypost_tests::{apns, fcm};

use super::{assert_try_again, retry_after};

/// The samples of an app's pushes that ended like this, and whether its rejections are held.
async fn counted(gateway: &TestGateway, app: &str, provider: &str, outcome: &str) -> (Option<f64>, Option<f64>) {
    let labels = format!("app=\"{app}\",provider=\"{provider}\",outcome=\"{outcome}\"");
    let pushes = gateway.metric(&format!("waypost_push_gateway_pushes_total{{{labels}}}")).await;
    (pushes, gateway.metric(&format!("waypost_push_gateway_rejections_held{{app=\"{app}\"}}")).await)
}

/// Requests of 100 devices each, for 1000 devices.
async fn thousand(gateway: &TestGateway, device: impl Fn(u32) -> Value) -> Vec<Reply> {
    let mut replies = Vec::new();
    for hundred in 0..10 {
        let devices: Vec<_> = (0..100).map(|number| device(hundred * 100 + number)).collect();
        replies.push(gateway.notify(&event(&format!("${hundred}"), &devices)).await);
    }
    replies
}

fn says(why: &'static str) -> impl Fn(&Value) -> bool {
    move |line| line["why"].as_str().is_some_and(|text| text.contains(why))
}

fn held_metric() -> String {
    format!("waypost_push_gateway_rejections_held{{app=\"{ANDROID}\"}}")
}

#[tokio::test]
async fn the_wrong_environment_rejects_none_of_a_thousand() {
    let gateway = TestGateway::start().await;
    let token = |number: u32| format!("{number:064x}");
    for number in 0..1000 {
        gateway.apns.script().always(&token(number), apns::refusal(400, "BadDeviceToken"));
    }
    for reply in thousand(&gateway, |number| ios(&token(number))).await {
        assert_try_again(&reply);
    }
    gateway.server.wait_for_log("the reason", says("is `environment` the right one?")).await;
    assert_eq!(counted(&gateway, IOS, "apns", "refused").await.0, Some(1000.0));
    assert_eq!(counted(&gateway, IOS, "apns", "gone").await.0, Some(0.0));

    // The operator mended it: all live but the last one, which really is gone, and nobody was taken for dead.
    for number in 0..999 {
        gateway.apns.script().forget(&token(number));
    }
    gateway.apns.script().always(&token(999), apns::refusal(410, "Unregistered"));
    for (hundred, reply) in thousand(&gateway, |number| ios(&token(number))).await.iter().enumerate() {
        let rejected = if hundred == 9 { json!([token(999)]) } else { json!([]) };
        assert_eq!(reply.ok(), json!({"rejected": rejected}), "{hundred}");
    }
    assert_eq!(counted(&gateway, IOS, "apns", "delivered").await, (Some(999.0), Some(0.0)));
}

#[tokio::test]
async fn the_wrong_project_rejects_none_of_a_thousand() {
    let gateway = TestGateway::start().await;
    let token = |number: u32| format!("token-{number}");
    let refusal = fcm::refusal(403, "PERMISSION_DENIED", Some("SENDER_ID_MISMATCH"));
    for number in 0..1000 {
        gateway.fcm.script().always(&token(number), refusal.clone());
    }
    for reply in thousand(&gateway, |number| android(&token(number))).await {
        assert_try_again(&reply);
    }
    gateway.server.wait_for_log("the reason", says("registered with another Firebase project")).await;
    assert_eq!(counted(&gateway, ANDROID, "fcm", "refused").await.0, Some(1000.0));
    assert_eq!(counted(&gateway, ANDROID, "fcm", "gone").await.0, Some(0.0));

    for number in 0..999 {
        gateway.fcm.script().forget(&token(number));
    }
    gateway.fcm.script().always(&token(999), fcm::refusal(404, "NOT_FOUND", Some("UNREGISTERED")));
    for (hundred, reply) in thousand(&gateway, |number| android(&token(number))).await.iter().enumerate() {
        let rejected = if hundred == 9 { json!([token(999)]) } else { json!([]) };
        assert_eq!(reply.ok(), json!({"rejected": rejected}), "{hundred}");
    }
    assert_eq!(counted(&gateway, ANDROID, "fcm", "delivered").await, (Some(999.0), Some(0.0)));
}

#[tokio::test]
async fn pushkeys_that_die_by_the_dozen_are_held_until_they_live_again() {
    let gateway = TestGateway::start().await;
    let token = |number: u32| format!("token-{number}");
    for number in 0..80 {
        gateway.fcm.script().always(&token(number), fcm::refusal(404, "NOT_FOUND", Some("UNREGISTERED")));
    }
    // One device in a request, as homeservers do it. As long as no push was taken five make a hold, and fifty later.
    for number in 0..80 {
        let reply = gateway.notify(&event("$1", &[android(&token(number))])).await;
        if number < 4 {
            assert_eq!(reply.ok(), json!({"rejected": [token(number)]}), "{number}");
        } else {
            assert_try_again(&reply);
            assert!(retry_after(&reply) > 60, "{number}");
        }
    }
    let line =
        gateway.server.wait_for_log("the alarm", |line| line["level"] == "ERROR" && line["app"] == ANDROID).await;
    assert_eq!((&line["dead"], &line["of"]), (&json!(5), &json!(5)), "{line}");
    assert_eq!(gateway.metric(&held_metric()).await, Some(1.0));

    // The operator mended it: all of them are alive, also those that were believed dead at first.
    for number in 0..80 {
        gateway.fcm.script().forget(&token(number));
    }
    for number in 0..80 {
        let rejected = gateway.rejected(&event("$2", &[android(&token(number))])).await;
        assert_eq!(rejected, json!([]), "{number}");
        assert_eq!(gateway.fcm.pushes_for(&token(number)).last().unwrap().message["data"]["event_id"], "$2");
    }
    assert_eq!(gateway.metric(&held_metric()).await, Some(0.0));

    // And a real death is believed at once.
    gateway.fcm.script().always("really-gone", fcm::refusal(404, "NOT_FOUND", Some("UNREGISTERED")));
    let rejected = gateway.rejected(&event("$3", &[android("really-gone")])).await;
    assert_eq!(rejected, json!(["really-gone"]));
}

#[tokio::test]
async fn one_apps_hold_is_no_other_apps() {
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("hold", "min_gone", 2);
    })
    .await;
    for name in ["a", "b"] {
        gateway.fcm.script().always(name, fcm::refusal(404, "NOT_FOUND", Some("UNREGISTERED")));
    }
    assert_eq!(gateway.rejected(&event("$1", &[android("a")])).await, json!(["a"]));
    assert_try_again(&gateway.notify(&event("$1", &[android("b")])).await);
    let gone = "1".repeat(64);
    gateway.apns.script().always(&gone, apns::refusal(410, "Unregistered"));
    assert_eq!(gateway.rejected(&event("$1", &[ios(&gone)])).await, json!([gone]));
}

#[tokio::test]
async fn an_app_whose_type_is_a_mistake_does_not_lose_its_pushers() {
    let gateway = TestGateway::start().await;
    // Registration tokens of FCM, for an app that is configured as `webpush`: none of them can be pushed to.
    for number in 0..60 {
        let device = json!({"app_id": WEB, "pushkey": format!("registration-token-{number}")});
        let reply = gateway.notify(&event("$1", std::slice::from_ref(&device))).await;
        if number < 4 {
            assert_eq!(reply.ok(), json!({"rejected": [device["pushkey"]]}), "{number}");
        } else {
            assert_try_again(&reply);
        }
    }
    gateway.server.wait_for_log("the alarm", |line| line["level"] == "ERROR" && line["app"] == WEB).await;
    assert_eq!(counted(&gateway, WEB, "webpush", "busy").await, (Some(56.0), Some(1.0)));
}
