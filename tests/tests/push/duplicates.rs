//! A homeserver repeats itself; devices must not notice (docs/compatibility.md, P8 and P9; docs/push-gateway.md,
//! "Duplicates and dead pushkeys").

use std::time::Duration;

use futures_util::future::Either;
use serde_json::json;
use waypost_tests::apns::refusal;
use waypost_tests::fcm;
use waypost_tests::gateway::{IOS, TestGateway, WEB, android, apns_token, event, ios};
use waypost_tests::service::Service;
use waypost_tests::tls_server::Answer;

use super::assert_try_again;

#[tokio::test]
async fn the_same_event_wakes_a_device_once() {
    let gateway = TestGateway::start().await;
    for _ in 0..3 {
        assert_eq!(gateway.rejected(&event("$1", &[ios(&apns_token(1))])).await, json!([]));
    }
    assert_eq!(gateway.apns.pushes().len(), 1);
    // Another device, and another event, are something else.
    gateway.rejected(&event("$1", &[ios(&apns_token(2))])).await;
    gateway.rejected(&event("$2", &[ios(&apns_token(1))])).await;
    assert_eq!(gateway.apns.pushes().len(), 3);
}

#[tokio::test]
async fn after_a_503_only_the_rest_is_sent_again() {
    let gateway = TestGateway::start_impatient().await;
    let gone = apns_token(2);
    gateway.apns.script().always(&gone, refusal(410, "Unregistered"));
    gateway.fcm.script().always("device", fcm::refusal(503, "UNAVAILABLE", Some("UNAVAILABLE")));
    let notification = event("$1", &[ios(&apns_token(1)), ios(&gone), android("device")]);
    assert_try_again(&gateway.notify(&notification).await);

    gateway.fcm.script().forget("device");
    let mut reply = gateway.notify(&notification).await;
    for _ in 0..10 {
        if reply.status == 200 {
            break;
        }
        reply = gateway.notify(&notification).await;
    }
    // It still learns of the dead one, and nobody was woken twice.
    assert_eq!(reply.ok(), json!({"rejected": [gone]}));
    assert_eq!(gateway.apns.pushes_for(&apns_token(1)).len(), 1);
    assert_eq!(gateway.apns.pushes_for(&gone).len(), 1);
}

#[tokio::test]
async fn counts_are_never_taken_for_a_repetition() {
    let gateway = TestGateway::start().await;
    for _ in 0..2 {
        let notification = json!({"counts": {"unread": 1}, "devices": [ios(&apns_token(1))]});
        assert_eq!(gateway.rejected(&notification).await, json!([]));
    }
    assert_eq!(gateway.apns.pushes().len(), 2);
}

#[tokio::test]
async fn element_xs_test_may_be_pressed_again() {
    let gateway = TestGateway::start().await;
    for _ in 0..2 {
        gateway.rejected(&event("$THIS_IS_A_FAKE_EVENT_ID", &[ios(&apns_token(1))])).await;
    }
    assert_eq!(gateway.apns.pushes().len(), 2);
}

#[tokio::test]
async fn a_dead_pushkey_is_remembered_until_it_is_registered_anew() {
    let gateway = TestGateway::start().await;
    let gone = apns_token(1);
    let device = |registered: i64| json!({"app_id": IOS, "pushkey": gone, "pushkey_ts": registered});
    gateway.apns.script().once(&gone, refusal(410, "Unregistered"));
    assert_eq!(gateway.rejected(&event("$1", &[device(1_000)])).await, json!([gone]));
    // Continuwuity ignores `rejected` and goes on.
    assert_eq!(gateway.rejected(&event("$2", &[device(1_000)])).await, json!([gone]));
    assert_eq!(gateway.apns.pushes().len(), 1);
    // The app registered the same token again.
    let later = waypost_tests::jwt::now_secs() + 60;
    assert_eq!(gateway.rejected(&event("$3", &[device(later)])).await, json!([]));
    assert_eq!(gateway.apns.pushes().len(), 2);
}

#[tokio::test]
async fn what_was_said_of_one_endpoint_is_not_said_of_another() {
    let gateway = TestGateway::start().await;
    let browser = gateway.webpush.subscribe("old");
    let old = browser.device(WEB);
    let mut new = old.clone();
    new["data"]["endpoint"] = json!(format!("{}/push/new", gateway.webpush.origin()));
    gateway.webpush.script().always(browser.path(), Answer::empty(410));

    // The browser kept its keys and got a new endpoint.
    assert_eq!(gateway.rejected(&event("$1", std::slice::from_ref(&old))).await, json!([browser.p256dh()]));
    assert_eq!(gateway.rejected(&event("$2", std::slice::from_ref(&new))).await, json!([]));
    // The old one is still known to be dead.
    assert_eq!(gateway.rejected(&event("$3", std::slice::from_ref(&old))).await, json!([browser.p256dh()]));
    assert_eq!(gateway.webpush.pushes_for(&browser).len(), 1);
}

#[tokio::test]
async fn two_endpoints_with_the_same_keys_are_two_devices() {
    let gateway = TestGateway::start().await;
    let one = gateway.webpush.subscribe("one").device(WEB);
    let mut two = one.clone();
    two["data"]["endpoint"] = json!(format!("{}/push/two", gateway.webpush.origin()));
    // In one request, and one after the other.
    gateway.rejected(&event("$1", &[one.clone(), two.clone(), two.clone()])).await;
    for device in [one, two] {
        gateway.rejected(&event("$2", &[device])).await;
    }
    let mut paths: Vec<_> = gateway.webpush.pushes().all().into_iter().map(|push| push.path).collect();
    paths.sort();
    assert_eq!(paths, ["/push/one", "/push/one", "/push/two", "/push/two"]);
}

#[tokio::test]
async fn the_same_event_at_the_same_moment_wakes_a_device_once() {
    let gateway = TestGateway::start().await;
    let token = apns_token(1);
    // Long enough for all of them to come while the first one is under way.
    gateway.apns.script().always(&token, Answer::Late(Duration::from_millis(500), Box::new(Answer::empty(200))));
    let notification = event("$1", &[ios(&token)]);
    let replies = futures_util::future::join_all((0..50).map(|_| gateway.notify(&notification))).await;
    for reply in &replies {
        assert_eq!(reply.ok(), json!({"rejected": []}));
    }
    assert_eq!(gateway.apns.pushes().len(), 1);
    let labels = |outcome: &str| format!("app=\"{IOS}\",provider=\"apns\",outcome=\"{outcome}\"");
    for (outcome, count) in [("delivered", 1.0), ("suppressed", 49.0)] {
        let sample = format!("waypost_push_gateway_pushes_total{{{}}}", labels(outcome));
        assert_eq!(gateway.metric(&sample).await, Some(count), "{outcome}");
    }
}

#[tokio::test]
async fn of_copies_of_an_event_for_a_dead_pushkey_each_is_told_so() {
    let gateway = TestGateway::start().await;
    let gone = apns_token(1);
    let answer = Answer::Late(Duration::from_millis(500), Box::new(refusal(410, "Unregistered")));
    gateway.apns.script().always(&gone, answer);
    let notification = event("$1", &[ios(&gone)]);
    let replies = futures_util::future::join_all((0..50).map(|_| gateway.notify(&notification))).await;
    for reply in &replies {
        assert_eq!(reply.ok(), json!({"rejected": [gone]}));
    }
    assert_eq!(gateway.apns.pushes().len(), 1);
}

#[tokio::test]
async fn a_homeserver_that_hangs_up_and_comes_again_wakes_nobody_twice() {
    let gateway = TestGateway::start().await;
    for service in Service::ALL {
        let target = service.target(&gateway, 1);
        let late = Answer::Late(Duration::from_millis(500), Box::new(Answer::empty(200)));
        service.script(&gateway).once(target.key(), late);
        let notification = event("$1", &[target.device()]);
        {
            let call = std::pin::pin!(gateway.notify(&notification));
            let under_way = std::pin::pin!(async {
                while target.events(&gateway, false).is_empty() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
            // Who loses is dropped, and with the call its connection.
            let ended = futures_util::future::select(call, under_way).await;
            assert!(matches!(ended, Either::Right(_)), "{service:?}: it was answered at once");
        }
        assert_eq!(gateway.rejected(&notification).await, json!([]), "{service:?}");
        assert_eq!(target.events(&gateway, false), ["$1"], "{service:?}");
    }
}
