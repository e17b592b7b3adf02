//! The operations listener, and the end.

use std::time::Duration;

use serde_json::{Value, json};
use waypost_tests::apns;
use waypost_tests::fcm;
use waypost_tests::gateway::{ANDROID, TestGateway, WEB, android, apns_token, event, ios};
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

/// The sum of a counter's values whose labels hold this text.
fn sum(metrics: &str, name: &str, label: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn each_push_ends_in_exactly_one_way_and_nobody_is_named() {
    let gateway = TestGateway::start_impatient().await;
    let browser = gateway.webpush.subscribe("browser-of-somebody");
    gateway.apns.script().always(&apns_token(2), apns::refusal(410, "Unregistered"));
    gateway.apns.script().always(&apns_token(3), apns::refusal(400, "PayloadTooLarge"));
    gateway.apns.script().always(&apns_token(4), apns::refusal(400, "BadTopic"));
    gateway.fcm.script().always("phone-of-somebody", fcm::refusal(503, "UNAVAILABLE", None));
    let (twice, stranger) = (ios(&apns_token(1)), json!({"app_id": "org.unknown", "pushkey": "key-of-somebody"}));
    let confused = json!({"app_id": ANDROID, "pushkey": "confused-phone", "data": {"default_payload": "no object"}});
    let devices = [
        twice.clone(),
        twice,
        ios(&apns_token(2)),
        ios(&apns_token(3)),
        ios(&apns_token(4)),
        android("phone-of-somebody"),
        android("another-phone-of-somebody"),
        browser.device(WEB),
        stranger,
        confused.clone(),
    ];
    let mut sent = 0;
    for event_id in ["$event-of-somebody", "$event-of-somebody", "$another-event-of-somebody"] {
        assert_eq!(gateway.notify(&event(event_id, &devices)).await.status, 503);
        sent += devices.len();
    }
    let alone = std::slice::from_ref(&confused);
    assert_eq!(gateway.notify(&event("$event-of-somebody", alone)).await.status, 400);
    let counts = json!({"counts": {"unread": 1}, "devices": [ios(&apns_token(1))]});
    assert_eq!(gateway.rejected(&counts).await, json!([]));
    sent += 2;

    let metrics = Api::new(&gateway.server.operations).get("/metrics", None).await.text;
    let pushes = "waypost_push_gateway_pushes_total";
    let ended = |outcome: &str| sum(&metrics, pushes, &format!("outcome=\"{outcome}\""));
    assert_eq!(sum(&metrics, pushes, ""), u64::try_from(sent).unwrap());
    // Two events to three devices that live, and the counts.
    assert_eq!(ended("delivered"), 7);
    assert_eq!(ended("gone"), 3);
    assert_eq!(ended("busy"), 3);
    // A push that does not fit, a topic that is wrong and an app that nobody knows, three times each.
    assert_eq!(ended("refused"), 9);
    // The same device twice in each of three requests, and what the second request repeats of the first.
    assert_eq!(ended("suppressed"), 3 + 3);
    assert_eq!(ended("dropped"), 4);
    for (app, provider) in [("org.example.ios", "apns"), (ANDROID, "fcm"), (WEB, "webpush")] {
        let labels = format!("{{app=\"{app}\",provider=\"{provider}\"}}");
        let count =
            sum(&metrics.replace(&labels, "{COUNTED}"), "waypost_push_gateway_push_attempt_seconds_count", "COUNTED");
        assert!(count > 0, "{app}: {metrics}");
    }

    let everything = format!("{metrics}{}", gateway.server.log_text());
    let room = "!slw48wfj34rtnrf";
    let (token, p256dh, auth) = (apns_token(1), browser.p256dh(), browser.auth());
    for secret in ["of-somebody", "confused-phone", room, "exampleuser", &token, &p256dh, &auth] {
        assert!(!everything.contains(secret), "{secret} is in {everything}");
    }
    let lines: Vec<Value> = gateway.server.logs();
    assert!(lines.iter().any(|line| line["message"] == "push refused"), "what was refused is in the log");
}
