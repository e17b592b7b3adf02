//! The operations listener, and the end.

use std::time::Duration;

use serde_json::json;
use waypost_tests::gateway::{TestGateway, apns_token, event, ios};
use waypost_tests::http::Api;
use waypost_tests::tls_server::Answer;

#[tokio::test]
async fn health_and_metrics_are_on_their_own_listener() {
    let gateway = TestGateway::start().await;
    let operations = Api::new(&gateway.server.operations);
    assert_eq!(operations.get("/health/live", None).await.status, 200);
    assert_eq!(operations.get("/health/ready", None).await.status, 200);
    gateway.rejected(&event("$1", &[ios(&apns_token(0xab))])).await;
    let metrics = operations.get("/metrics", None).await;
    assert_eq!(metrics.status, 200);
    assert!(metrics.text.contains("# TYPE") && metrics.text.trim_end().ends_with("# EOF"), "{}", metrics.text);
    assert!(!metrics.text.contains("abababab"), "a pushkey is in the metrics");
}

#[tokio::test]
async fn what_is_in_flight_is_finished_at_sigterm() {
    let gateway = TestGateway::start().await;
    let token = apns_token(1);
    let late = Answer::Late(Duration::from_secs(1), Box::new(Answer::empty(200)));
    gateway.apns.script().always(&token, late);
    let TestGateway { server, api, apns, .. } = gateway;
    let notification = event("$1", &[ios(&token)]);
    let body = json!({"notification": notification});
    let (reply, ()) = tokio::join!(api.post(waypost_tests::gateway::NOTIFY, None, &body), async {
        apns.pushes().wait_for("the push to be under way", |push| push.token == token).await;
        server.terminate();
    });
    assert_eq!(reply.ok(), json!({"rejected": []}));
    assert!(server.stop().await.success());
}
