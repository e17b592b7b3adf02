//! One app, one homeserver or one device that is too much is nobody else's trouble
//! (docs/security.md, push gateway, 8).

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};
use waypost_tests::gateway::{
    ANDROID, IOS, PROXIES, TestGateway, UNIFIED, WEB, android, apns_token, event, ios, unifiedpush_app, with,
};
use waypost_tests::process::timed;
use waypost_tests::tls_server::Answer;
use waypost_tests::webpush::{HOST, PushService};

use super::{assert_try_again, retry_after};

#[tokio::test]
async fn a_provider_that_hangs_holds_so_many_pushes_and_no_more() {
    let gateway = TestGateway::start_apps(|settings, around| {
        settings.push("apps", &with(around.fcm_app(ANDROID), &[("max_in_flight", json!(5))]));
        settings.push("apps", &around.apns_app(IOS));
        settings.set("server", "trusted_proxies", vec![PROXIES]);
    })
    .await;
    for number in 0..30 {
        gateway.fcm.script().always(&format!("device-{number}"), Answer::Hang);
    }
    let hanging: Vec<_> = (0..5).map(|number| event("$1", &[android(&format!("device-{number}"))])).collect();
    let further: Vec<_> = (5..30).map(|number| event("$1", &[android(&format!("device-{number}"))])).collect();
    let others: Vec<_> = (0..20).map(|number| event("$1", &[ios(&apns_token(number))])).collect();
    // Several sources, since one alone may not have all five.
    let sources = ["192.0.2.1", "192.0.2.2"].into_iter().cycle();
    let stuck = join_all(sources.zip(&hanging).map(|(source, event)| gateway.notify_from(source, event)));
    let (stuck, ()) = tokio::join!(stuck, async {
        gateway.fcm.pushes().wait_for("five pushes", |_| gateway.fcm.pushes().len() == 5).await;
        // What is too much is given back at once, and nothing of it is asked.
        for event in &further {
            let (reply, took) = timed(gateway.notify(event)).await;
            assert_try_again(&reply);
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
        assert_eq!(gateway.fcm.pushes().len(), 5);
        // And the other app notices nothing.
        for event in &others {
            let (reply, took) = timed(gateway.notify(event)).await;
            assert_eq!(reply.ok(), json!({"rejected": []}));
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
    });
    for reply in &stuck {
        assert_try_again(reply);
    }
    let full = gateway.server.logs().iter().filter(|line| line.to_string().contains("max_in_flight")).count();
    assert_eq!(full, 1, "one line, not one for each push");
    // There is room again.
    assert_eq!(gateway.rejected(&event("$1", &[android("another")])).await, json!([]));
}

#[tokio::test]
async fn a_push_server_that_hangs_leaves_room_for_the_others() {
    let gateway = TestGateway::start_apps(|settings, around| {
        settings.push(
            "apps",
            &with(
                around.webpush_app(WEB),
                &[("max_in_flight", json!(8)), ("webpush.allowed_endpoints", json!([HOST, "127.0.0.1"]))],
            ),
        );
        settings.set("server", "trusted_proxies", vec![PROXIES]);
    })
    .await;
    // Another host: ports of one are one server's.
    let other = PushService::start(&gateway.ca).await;
    let devices: Vec<_> = (0..20)
        .map(|number| {
            let browser = gateway.webpush.subscribe(&format!("browser-{number}"));
            gateway.webpush.script().always(browser.path(), Answer::Hang);
            browser.device(WEB)
        })
        .collect();
    let notification = event("$1", &devices);
    let (stuck, ()) = tokio::join!(gateway.notify(&notification), async {
        gateway.webpush.pushes().wait_for("six pushes", |_| gateway.webpush.pushes().len() == 6).await;
        for number in 0..10 {
            let mut device = other.subscribe(&format!("browser-{number}")).device(WEB);
            let endpoint = device["data"]["endpoint"].as_str().unwrap().replace(HOST, "127.0.0.1");
            device["data"]["endpoint"] = json!(endpoint);
            let (reply, took) = timed(gateway.notify_from("192.0.2.2", &event("$1", &[device]))).await;
            assert_eq!(reply.ok(), json!({"rejected": []}));
            assert!(took < Duration::from_secs(5), "{took:?}");
        }
        assert_eq!(gateway.webpush.pushes().len(), 6);
    });
    assert_try_again(&stuck);
    assert_eq!(other.pushes().len(), 10);
}

/// A gateway with one limit of two at once.
async fn limited(key: &'static str) -> TestGateway {
    TestGateway::start_apps(|settings, around| {
        settings.push("apps", &around.apns_app(IOS));
        settings.push("apps", &around.fcm_app(ANDROID));
        settings.append(&format!("[limits]\n{key} = {{ burst = 2, refill_secs = 600.0 }}\n"));
    })
    .await
}

#[tokio::test]
async fn a_push_server_that_a_stranger_chose_gets_no_flood() {
    let limits = "[limits]\nper_server = { burst = 2, refill_secs = 600.0 }\n";
    for (allowed, status) in [(vec![], 503), (vec![HOST], 200)] {
        let gateway = TestGateway::start_apps(|settings, _| {
            let app = with(unifiedpush_app(UNIFIED), &[("unifiedpush.allowed_endpoints", json!(allowed))]);
            settings.push("apps", &app);
            settings.append(limits);
        })
        .await;
        let push = |number: u32| {
            let device = json!({"app_id": UNIFIED, "pushkey": gateway.unifiedpush.endpoint(&format!("d{number}"))});
            event(&format!("${number}"), &[device])
        };
        for number in 0..2 {
            assert_eq!(gateway.rejected(&push(number)).await, json!([]));
        }
        let reply = gateway.notify(&push(2)).await;
        assert_eq!(reply.status, status, "{}", reply.text);
        if status == 503 {
            assert!((500..=600).contains(&retry_after(&reply)), "{}", retry_after(&reply));
            let counted = r#"waypost_push_gateway_limited_requests_total{limit="server"}"#;
            assert_eq!(gateway.metric(counted).await, Some(1.0));
        }
    }
}

/// Sends one that must be too much.
async fn too_much(gateway: &TestGateway, notification: &Value, limit: &str) {
    let pushes = gateway.apns.pushes().len();
    let reply = gateway.notify(notification).await;
    assert_eq!(reply.failure(), (429, "M_LIMIT_EXCEEDED".to_owned()));
    assert!((500..=600).contains(&retry_after(&reply)), "{}", retry_after(&reply));
    assert_eq!(gateway.apns.pushes().len(), pushes, "no work was done");
    let counted = format!("waypost_push_gateway_limited_requests_total{{limit=\"{limit}\"}}");
    assert_eq!(gateway.metric(&counted).await, Some(1.0));
}

#[tokio::test]
async fn a_pushkey_that_gets_too_much_is_told_to_wait() {
    let gateway = limited("per_pushkey").await;
    let mine = |number: u32| event(&format!("${number}"), &[ios(&apns_token(1))]);
    for number in 0..2 {
        assert_eq!(gateway.rejected(&mine(number)).await, json!([]));
    }
    too_much(&gateway, &mine(2), "pushkey").await;
    assert_eq!(gateway.rejected(&event("$1", &[ios(&apns_token(2))])).await, json!([]));
    // The same text as another app's pushkey is another pushkey.
    assert_eq!(gateway.rejected(&event("$1", &[android(&apns_token(1))])).await, json!([]));
}

#[tokio::test]
async fn an_app_that_gets_too_much_is_told_to_wait() {
    let gateway = limited("per_app").await;
    let mine = |number: u8| event("$1", &[ios(&apns_token(number))]);
    for number in 0..2 {
        assert_eq!(gateway.rejected(&mine(number)).await, json!([]));
    }
    too_much(&gateway, &mine(2), "app").await;
    assert_eq!(gateway.rejected(&event("$1", &[android("device")])).await, json!([]));
}

#[tokio::test]
async fn a_source_that_sends_too_much_is_told_to_wait() {
    let gateway = limited("per_source").await;
    let mine = |number: u8| event("$1", &[ios(&apns_token(number))]);
    for number in 0..2 {
        assert_eq!(gateway.rejected(&mine(number)).await, json!([]));
    }
    too_much(&gateway, &mine(2), "source").await;
    // Each device counts.
    let gateway = limited("per_source").await;
    let devices: Vec<_> = (0..3).map(|number| ios(&apns_token(number))).collect();
    too_much(&gateway, &event("$1", &devices), "source").await;
}
