//! Too many dead at once are held (DESIGN.md, decision 7; THREATS.md, 5).

use serde_json::{Value, json};
use waypost_tests::gateway::{ANDROID, TestGateway, android, event, ios};
use waypost_tests::http::Reply;
use waypost_tests::{apns, fcm};

use super::{assert_try_again, retry_after};

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
}

#[tokio::test]
async fn pushkeys_that_die_by_the_dozen_are_held_until_they_live_again() {
    let gateway = TestGateway::start().await;
    let token = |number: u32| format!("token-{number}");
    for number in 0..80 {
        gateway.fcm.script().always(&token(number), fcm::refusal(404, "NOT_FOUND", Some("UNREGISTERED")));
    }
    // One device in a request, as homeservers do it. By default 50 make a hold.
    for number in 0..80 {
        let reply = gateway.notify(&event("$1", &[android(&token(number))])).await;
        if number < 49 {
            assert_eq!(reply.ok(), json!({"rejected": [token(number)]}), "{number}");
        } else {
            assert_try_again(&reply);
            assert!(retry_after(&reply) > 60, "{number}");
        }
    }
    let line =
        gateway.server.wait_for_log("the alarm", |line| line["level"] == "ERROR" && line["app"] == ANDROID).await;
    assert_eq!((&line["dead"], &line["of"]), (&json!(50), &json!(50)), "{line}");
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
