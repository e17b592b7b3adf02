//! How many connections there are, and who waits for whom.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use waypost_tests::gateway::{TestGateway, WEB, apns_token, event, ios};
use waypost_tests::service::Service;
use waypost_tests::tls_server::Answer;

fn slow() -> Answer {
    Answer::Late(Duration::from_millis(300), Box::new(Answer::empty(200)))
}

#[tokio::test]
async fn one_connection_carries_many_pushes() {
    let gateway = TestGateway::start().await;
    for service in Service::ALL {
        let targets: Vec<_> = (1..=50).map(|number| service.target(&gateway, number)).collect();
        let devices: Vec<_> = targets.iter().map(|target| target.device()).collect();
        for round in 0..3 {
            assert_eq!(gateway.rejected(&event(&format!("${round}"), &devices)).await, json!([]));
        }
        assert_eq!(service.server(&gateway).connections(), 1, "{service:?}");
    }
}

#[tokio::test]
async fn further_connections_are_opened_when_streams_run_out() {
    let gateway = TestGateway::start().await;
    gateway.apns.server.allow_streams(10);
    let devices: Vec<_> = (0..40)
        .map(|number| {
            gateway.apns.script().always(&apns_token(number), slow());
            ios(&apns_token(number))
        })
        .collect();
    // What the peer allows is known from the first connection on.
    assert_eq!(gateway.rejected(&event("$1", &devices[..1])).await, json!([]));
    assert_eq!(gateway.rejected(&event("$2", &devices)).await, json!([]));
    let connections = gateway.apns.server.connections();
    assert!((2..=5).contains(&connections), "{connections}");
    assert_eq!(gateway.apns.pushes().len(), 41);
}

#[tokio::test]
async fn there_is_a_limit_to_connections_and_who_finds_none_free_waits() {
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("outbound", "streams_per_connection", 5).set("outbound", "max_connections_per_origin", 2);
    })
    .await;
    let devices: Vec<_> = (0..40)
        .map(|number| {
            gateway.apns.script().always(&apns_token(number), slow());
            ios(&apns_token(number))
        })
        .collect();
    assert_eq!(gateway.rejected(&event("$1", &devices)).await, json!([]));
    assert_eq!(gateway.apns.server.connections(), 2);
    assert_eq!(gateway.apns.pushes().len(), 40);
}

#[tokio::test]
async fn a_connection_on_which_nobody_is_answered_is_not_used_again() {
    let gateway = TestGateway::start_impatient().await;
    gateway.apns.script().always(&apns_token(1), Answer::Hang);
    assert_eq!(gateway.notify(&event("$1", &[ios(&apns_token(1))])).await.status, 503);
    assert_eq!(gateway.rejected(&event("$2", &[ios(&apns_token(2))])).await, json!([]));
    assert!(gateway.apns.server.connections() >= 2);
}

#[tokio::test]
async fn many_homeservers_at_once_are_served() {
    let gateway = TestGateway::start().await;
    let browser = gateway.webpush.subscribe("a");
    let notifications: Vec<_> =
        (0..200).map(|number| event(&format!("${number}"), &[browser.device(WEB), ios(&apns_token(1))])).collect();
    for reply in join_all(notifications.iter().map(|notification| gateway.notify(notification))).await {
        assert_eq!(reply.ok(), json!({"rejected": []}));
    }
    assert_eq!((gateway.webpush.pushes().len(), gateway.apns.pushes().len()), (200, 200));
}
