//! Whole requests, against a fake FCM on a loopback port.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::time::sleep;
use waypost_shared::{
    clock::Clock,
    config::file::{Loaded, Source},
    http::{
        MatrixError, Router, json_with,
        server::{self, ServerConfig},
    },
    source::RequestSource,
    stop::Stop,
};

use super::*;
use crate::config::{AppConfig, Config, FcmConfig};

/// A fake FCM: counts what it receives, and answers pushes with `status`.
#[derive(Default)]
struct StandIn {
    pushes: AtomicUsize,
    tokens: AtomicUsize,
    status: AtomicU16,
}

async fn token(fcm: Arc<StandIn>, _request: Incoming) -> Result<Response, MatrixError> {
    fcm.tokens.fetch_add(1, Ordering::SeqCst);
    Ok(json(&json!({"access_token": "t", "expires_in": 3600})))
}

async fn push(fcm: Arc<StandIn>, _request: Incoming) -> Result<Response, MatrixError> {
    fcm.pushes.fetch_add(1, Ordering::SeqCst);
    let status = StatusCode::from_u16(fcm.status.load(Ordering::SeqCst)).unwrap();
    let code = if status == StatusCode::NOT_FOUND { "UNREGISTERED" } else { "INVALID_ARGUMENT" };
    Ok(json_with(status, &json!({"error": {"details": [{"errorCode": code}]}})))
}

/// A gateway whose only app pushes to a fake FCM that answers with `status`.
async fn gateway(status: u16, change: impl FnOnce(&mut Config)) -> (Arc<App>, Arc<StandIn>, Clock) {
    let fcm = Arc::new(StandIn { status: AtomicU16::new(status), ..StandIn::default() });
    let listener = server::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let routes = Router::new().get("/token", token).post("/v1/projects/p/messages:send", push);
    let state = fcm.clone();
    tokio::spawn(async move {
        // Held by the task, so that the server is never told to stop.
        let (_never, stop) = Stop::manual();
        server::serve(listener, routes, state, &ServerConfig::default(), None, None, stop).await
    });
    let fcm_config = FcmConfig {
        project_id: "p".to_owned(),
        endpoint: format!("http://{address}"),
        metadata_uri: format!("http://{address}/token"),
        workload_identity: true,
        ..FcmConfig::default()
    };
    let app = AppConfig { id: "org.example.*".to_owned(), fcm: Some(fcm_config), ..AppConfig::default() };
    let mut config = Config { apps: vec![app], ..Config::default() };
    // No name is resolved here; this keeps the machine's resolver configuration out of the test.
    config.outbound.dns_servers = vec!["127.0.0.1:53".parse().unwrap()];
    config.notify.budget_secs = 1;
    config.notify.attempt_timeout_secs = 1;
    change(&mut config);
    let clock = Clock::manual(1_700_000_000_000);
    let loaded = Loaded { config, source: Source::default() };
    (App::new(&loaded, &mut Registry::default(), clock.clone()).unwrap(), fcm, clock)
}

fn incoming(body: Value) -> Incoming {
    Incoming {
        method: Method::POST,
        path: "/_matrix/push/v1/notify".to_owned(),
        path_params: Vec::new(),
        query: String::new(),
        headers: HeaderMap::new(),
        body: Bytes::from(body.to_string()).into(),
        source: RequestSource::UNKNOWN,
        request_id: "r".to_owned(),
    }
}

fn event(event_id: &str, devices: Value) -> Incoming {
    incoming(json!({"notification": {"event_id": event_id, "room_id": "!r", "devices": devices}}))
}

fn device(pushkey: &str) -> Value {
    json!({"app_id": "org.example.android", "pushkey": pushkey, "pushkey_ts": 1})
}

async fn answered(app: &Arc<App>, request: Incoming) -> (u16, Value) {
    let response = match notify(app.clone(), request).await {
        Ok(response) => response,
        Err(error) => MatrixError::from(&error).into_response(),
    };
    (response.status().as_u16(), serde_json::from_slice(response.body()).unwrap())
}

/// The gateway after a reload.
fn renewed(app: &App, change: impl FnOnce(&mut Config)) -> Arc<App> {
    let mut config = app.whole.clone();
    change(&mut config);
    let (renewed, _) = app.renewed(Loaded { config, source: Source::default() }).unwrap();
    renewed.take_over(app);
    renewed
}

#[tokio::test]
async fn a_reload_refills_no_budget_unless_it_changes_the_limits() {
    let (app, _fcm, _clock) = gateway(200, |config| {
        config.limits.per_app.burst = 1;
        config.limits.per_app.refill_secs = 3600.0;
    })
    .await;
    assert_eq!(answered(&app, event("$1", json!([device("k")]))).await.0, 200);
    let same = renewed(&app, |config| config.notify.max_devices = 50);
    assert_eq!(answered(&same, event("$2", json!([device("k")]))).await.0, 429);
    let more = renewed(&same, |config| config.limits.per_app.burst = 2);
    assert_eq!(answered(&more, event("$3", json!([device("k")]))).await.0, 200);
}

#[tokio::test]
async fn a_reload_does_not_raise_the_in_flight_cap() {
    let (app, _fcm, _clock) = gateway(200, |config| config.apps[0].max_in_flight = 1).await;
    let under_way = app.entry("org.example.android").unwrap().in_flight.enter(None, RequestSource::UNKNOWN).unwrap();
    let same = renewed(&app, |config| config.notify.max_devices = 50);
    assert_eq!(answered(&same, event("$1", json!([device("k")]))).await.0, 503);
    drop(under_way);
    assert_eq!(answered(&same, event("$1", json!([device("k")]))).await.0, 200);
}

#[tokio::test]
async fn fifty_concurrent_copies_are_one_push() {
    let (app, fcm, _clock) = gateway(200, |_| ()).await;
    let copies = (0..50).map(|_| answered(&app, event("$e", json!([device("k")]))));
    for answer in join_all(copies).await {
        assert_eq!(answer, (200, json!({"rejected": []})));
    }
    assert_eq!((fcm.pushes.load(Ordering::SeqCst), fcm.tokens.load(Ordering::SeqCst)), (1, 1));
}

#[tokio::test]
async fn tests_and_counts_are_never_suppressed() {
    let (app, fcm, _clock) = gateway(200, |_| ()).await;
    let test = json!({"event_id": "$THIS_IS_A_FAKE_EVENT_ID", "room_id": "!r", "devices": [device("k")]});
    let counts = json!({"counts": {"unread": 1}, "devices": [device("k")]});
    for notification in [test, counts] {
        let before = fcm.pushes.load(Ordering::SeqCst);
        for _ in 0..2 {
            let request = incoming(json!({"notification": notification}));
            assert_eq!(answered(&app, request).await, (200, json!({"rejected": []})));
        }
        assert_eq!(fcm.pushes.load(Ordering::SeqCst), before + 2);
    }
}

#[tokio::test]
async fn a_dead_pushkey_is_rejected_from_memory_until_it_is_set_again() {
    let (app, fcm, clock) = gateway(404, |_| ()).await;
    for event_id in ["$1", "$2"] {
        let answer = answered(&app, event(event_id, json!([device("k"), device("k")]))).await;
        assert_eq!(answer, (200, json!({"rejected": ["k"]})));
    }
    assert_eq!(fcm.pushes.load(Ordering::SeqCst), 1);
    fcm.status.store(200, Ordering::SeqCst);
    let mut again = device("k");
    again["pushkey_ts"] = (clock.now_ms() / 1000 + 1).into();
    assert_eq!(answered(&app, event("$2", json!([again]))).await, (200, json!({"rejected": []})));
    assert_eq!(fcm.pushes.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_dead_pushkey_that_accepts_a_test_is_alive_again() {
    let (app, fcm, _clock) = gateway(404, |_| ()).await;
    assert_eq!(answered(&app, event("$1", json!([device("k")]))).await, (200, json!({"rejected": ["k"]})));
    fcm.status.store(200, Ordering::SeqCst);
    for event_id in ["$THIS_IS_A_FAKE_EVENT_ID", "$2"] {
        let answer = answered(&app, event(event_id, json!([device("k")]))).await;
        assert_eq!(answer, (200, json!({"rejected": []})), "{event_id}");
    }
    assert_eq!(fcm.pushes.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_overlong_pushkey_is_named_and_affects_no_other_device() {
    let (app, fcm, _clock) = gateway(200, |_| ()).await;
    let long = device(&"k".repeat(2049));
    let (status, body) = answered(&app, event("$e", json!([long]))).await;
    let error = "`notification.devices[0].pushkey` must be at most 2048 bytes";
    assert_eq!((status, body), (400, json!({"errcode": "M_INVALID_PARAM", "error": error})));
    assert_eq!(answered(&app, event("$e", json!([long, device("k")]))).await, (200, json!({"rejected": []})));
    assert_eq!(fcm.pushes.load(Ordering::SeqCst), 1);
}

#[test]
fn an_app_id_is_logged_up_to_its_last_dot() {
    for (app_id, expected) in
        [("im.fluffychat.android.DEVICEID", "im.fluffychat.android.*"), ("swordfish", ".*"), ("", ".*")]
    {
        assert_eq!(family(app_id), expected);
    }
    assert_eq!(family(&format!("{}.x", "a".repeat(100))), format!("{}.*", "a".repeat(64)));
}

#[tokio::test]
async fn a_busy_provider_is_retried_and_then_the_homeserver_is_asked_to_retry() {
    let (app, fcm, _clock) = gateway(503, |_| ()).await;
    let (status, body) = answered(&app, event("$e", json!([device("k")]))).await;
    assert_eq!((status, &body["errcode"], &body["retry_after_ms"]), (503, &json!("M_UNKNOWN"), &json!(30_000)));
    // The budget is a second, and the first wait at most half a second.
    assert!(fcm.pushes.load(Ordering::SeqCst) >= 2);
    fcm.status.store(200, Ordering::SeqCst);
    assert_eq!(answered(&app, event("$e", json!([device("k")]))).await, (200, json!({"rejected": []})));
}

#[tokio::test]
async fn an_app_fault_is_retried_and_a_push_fault_is_not() {
    let (app, fcm, _clock) = gateway(403, |_| ()).await;
    assert_eq!(answered(&app, event("$e", json!([device("k")]))).await.0, 503);
    fcm.status.store(400, Ordering::SeqCst);
    assert_eq!(answered(&app, event("$e", json!([device("k")]))).await, (200, json!({"rejected": []})));
}

#[tokio::test]
async fn a_refused_token_is_refetched_at_most_once_a_minute() {
    let (app, fcm, clock) = gateway(401, |_| ()).await;
    for (event_id, wait_secs, tokens) in [("$1", 0, 2), ("$2", 59, 2), ("$3", 1, 3), ("$4", 0, 3)] {
        clock.advance(Duration::from_secs(wait_secs));
        assert_eq!(answered(&app, event(event_id, json!([device("k")]))).await.0, 503);
        assert_eq!(fcm.tokens.load(Ordering::SeqCst), tokens, "{event_id}");
    }
}

#[tokio::test]
async fn a_token_is_refreshed_in_the_background_before_it_expires() {
    let (app, fcm, clock) = gateway(200, |_| ()).await;
    let fetched = || fcm.tokens.load(Ordering::SeqCst);
    // It is valid for an hour, and due for a refresh after 48 minutes.
    for (event_id, wait_secs) in [("$1", 0), ("$2", 48 * 60 - 1)] {
        clock.advance(Duration::from_secs(wait_secs));
        assert_eq!(answered(&app, event(event_id, json!([device("k")]))).await.0, 200);
        assert_eq!(fetched(), 1, "{event_id}");
    }
    clock.advance(Duration::from_secs(1));
    assert_eq!(answered(&app, event("$3", json!([device("k")]))).await.0, 200);
    let patience = Instant::now() + Duration::from_secs(30);
    while fetched() < 2 {
        assert!(Instant::now() < patience, "no new token was fetched");
        sleep(Duration::from_millis(5)).await;
    }
    // The new one is used, also after the old one has expired.
    clock.advance(Duration::from_secs(13 * 60));
    assert_eq!(answered(&app, event("$4", json!([device("k")]))).await.0, 200);
    assert_eq!((fetched(), fcm.pushes.load(Ordering::SeqCst)), (2, 4));
}

#[tokio::test]
async fn an_unknown_app_is_handled_by_policy() {
    let stranger = json!([{"app_id": "com.example", "pushkey": "k"}]);
    let (app, _fcm, _clock) = gateway(200, |_| ()).await;
    assert_eq!(answered(&app, event("$e", stranger.clone())).await.0, 503);
    let (app, _fcm, _clock) = gateway(200, |config| config.notify.unknown_app = UnknownApp::Reject).await;
    assert_eq!(answered(&app, event("$e", stranger)).await, (200, json!({"rejected": ["k"]})));
}

#[tokio::test]
async fn a_bad_default_payload_is_an_error_only_if_no_device_is_valid() {
    let (app, fcm, _clock) = gateway(200, |_| ()).await;
    let bad = json!({"app_id": "org.example.android", "pushkey": "bad", "data": {"default_payload": "x"}});
    let (status, body) = answered(&app, event("$e", json!([bad]))).await;
    assert_eq!(status, 400);
    let error = "`notification.devices[0].data.default_payload` must be an object";
    assert_eq!(body, json!({"errcode": "M_INVALID_PARAM", "error": error}));
    assert_eq!(answered(&app, event("$e", json!([bad, device("k")]))).await, (200, json!({"rejected": []})));
    assert_eq!(fcm.pushes.load(Ordering::SeqCst), 1);
}
