//! Replicas that share what they remember in Redis (docs/compatibility.md, P8 and P9; docs/security.md, push gateway,
//! 6).

use std::time::Duration;

use serde_json::{Value, json};
use waypost_tests::apns::refusal;
use waypost_tests::gateway::{Replica, TestGateway, apns_token, event, ios, metric};
use waypost_tests::process::{Server, eventually, timed};
use waypost_tests::redis::RedisServer;
use waypost_tests::tls_server::Answer;

/// Two gateways with one configuration.
async fn two(redis: &RedisServer) -> (TestGateway, Replica) {
    let url = redis.url();
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("seen", "redis_url", url).set("seen", "secret", "what all replicas know");
    })
    .await;
    let other = gateway.replica().await;
    (gateway, other)
}

fn says(text: &'static str) -> impl Fn(&Value) -> bool {
    move |line| line["message"].as_str().is_some_and(|message| message.contains(text))
}

async fn is_up(server: &Server) -> bool {
    metric(server, "waypost_push_gateway_shared_memory_up").await == Some(1.0)
}

#[tokio::test]
async fn a_replica_that_has_nothing_to_do_yet_knows_whether_redis_is_there() {
    let redis = RedisServer::start().await;
    let (gateway, other) = two(&redis).await;
    for server in [&gateway.server, &other.server] {
        let up = async || is_up(server).await.then_some(());
        eventually(Duration::from_secs(30), "a connection to Redis", up).await;
    }
}

#[tokio::test]
async fn an_event_that_reaches_both_wakes_a_device_once() {
    let redis = RedisServer::start().await;
    let (gateway, other) = two(&redis).await;
    let notification = event("$1", &[ios(&apns_token(1))]);
    assert_eq!(gateway.rejected(&notification).await, json!([]));
    assert_eq!(other.notify(&notification).await.ok(), json!({"rejected": []}));
    assert_eq!(gateway.apns.pushes().len(), 1);

    // At the same moment: the second one waits for the first.
    let token = apns_token(2);
    gateway.apns.script().always(&token, Answer::Late(Duration::from_millis(500), Box::new(Answer::empty(200))));
    let notification = event("$2", &[ios(&token)]);
    let (here, there) = tokio::join!(gateway.notify(&notification), other.notify(&notification));
    assert_eq!((here.ok(), there.ok()), (json!({"rejected": []}), json!({"rejected": []})));
    assert_eq!(gateway.apns.pushes_for(&token).len(), 1);
    assert!(is_up(&gateway.server).await && is_up(&other.server).await);
}

#[tokio::test]
async fn what_one_could_not_deliver_the_other_may() {
    let redis = RedisServer::start().await;
    let (gateway, other) = two(&redis).await;
    let token = apns_token(1);
    gateway.apns.script().once(&token, refusal(403, "InvalidProviderToken"));
    let notification = event("$1", &[ios(&token)]);
    assert_eq!(gateway.notify(&notification).await.status, 503);
    assert_eq!(other.notify(&notification).await.ok(), json!({"rejected": []}));
    assert_eq!(gateway.apns.pushes_for(&token).len(), 2);
}

#[tokio::test]
async fn a_pushkey_that_is_dead_for_one_is_dead_for_both_until_it_is_set_again() {
    let redis = RedisServer::start().await;
    let (gateway, other) = two(&redis).await;
    let gone = apns_token(1);
    gateway.apns.script().once(&gone, refusal(410, "Unregistered"));
    assert_eq!(gateway.rejected(&event("$1", &[ios(&gone)])).await, json!([gone]));
    assert_eq!(other.notify(&event("$2", &[ios(&gone)])).await.ok(), json!({"rejected": [gone]}));
    assert_eq!(gateway.apns.pushes_for(&gone).len(), 1);

    let mut again = ios(&gone);
    again["pushkey_ts"] = json!(waypost_tests::jwt::now_secs() + 60);
    assert_eq!(other.notify(&event("$3", &[again])).await.ok(), json!({"rejected": []}));
    // And the one that found it dead knows that it lives.
    assert_eq!(gateway.rejected(&event("$4", &[ios(&gone)])).await, json!([]));
    assert_eq!(gateway.apns.pushes_for(&gone).len(), 3);
}

#[tokio::test]
async fn redis_learns_nothing_and_keeps_nothing_for_ever() {
    let redis = RedisServer::start().await;
    let (gateway, _other) = two(&redis).await;
    let gone = apns_token(0xab);
    gateway.apns.script().once(&gone, refusal(410, "Unregistered"));
    gateway.rejected(&event("$secret-event", &[ios(&apns_token(0xcd)), ios(&gone)])).await;
    let keys = redis.ask(&["keys", "*"]);
    // The delivered push and the dead pushkey; the dead one's push is nobody's any more.
    assert_eq!(keys.lines().filter(|key| key.starts_with("waypost:dead:")).count(), 1, "{keys}");
    assert!(keys.lines().any(|key| key.starts_with("waypost:push:")), "{keys}");
    for key in keys.lines() {
        let value = redis.ask(&["get", key]);
        let ttl: i64 = redis.ask(&["pttl", key]).trim().parse().unwrap();
        // -2: the dead one's push has just been given up.
        assert!(ttl == -2 || (1..=7_200_000).contains(&ttl), "{key}: {ttl}");
        for secret in ["abababab", "cdcdcdcd", "secret-event", "org.example", "slw48"] {
            assert!(!key.contains(secret) && !value.contains(secret), "{secret} is in {key}: {value}");
        }
    }
}

#[tokio::test]
async fn without_redis_each_remembers_by_itself_until_it_is_back() {
    let mut redis = RedisServer::start().await;
    let (gateway, other) = two(&redis).await;
    assert_eq!(gateway.rejected(&event("$1", &[ios(&apns_token(1))])).await, json!([]));
    assert_eq!(other.notify(&event("$2", &[ios(&apns_token(1))])).await.ok(), json!({"rejected": []}));

    // Killed while a push is under way.
    let token = apns_token(2);
    gateway.apns.script().always(&token, Answer::Late(Duration::from_secs(1), Box::new(Answer::empty(200))));
    let notification = event("$3", &[ios(&token)]);
    let (reply, ()) = tokio::join!(gateway.notify(&notification), async {
        gateway.apns.pushes().wait_for("the push to be under way", |push| push.token == token).await;
        redis.kill();
    });
    assert_eq!(reply.ok(), json!({"rejected": []}));
    for server in [&gateway.server, &other.server] {
        server.wait_for_log("the warning", says("Redis is away")).await;
    }

    // Each on its own: it knows what it sent itself, and what it found dead.
    let gone = apns_token(3);
    gateway.apns.script().once(&gone, refusal(410, "Unregistered"));
    for _ in 0..2 {
        assert_eq!(gateway.rejected(&event("$4", &[ios(&apns_token(4)), ios(&gone)])).await, json!([gone]));
    }
    assert_eq!(gateway.apns.pushes_for(&apns_token(4)).len(), 1);
    assert_eq!(gateway.apns.pushes_for(&gone).len(), 1);
    assert_eq!(gateway.rejected(&notification).await, json!([]));
    assert_eq!(gateway.apns.pushes_for(&token).len(), 1);
    assert!(!is_up(&gateway.server).await && !is_up(&other.server).await);

    redis.restart().await;
    for server in [&gateway.server, &other.server] {
        server.wait_for_log("its return", says("Redis is back")).await;
        assert!(is_up(server).await);
        assert_eq!(server.logs().iter().filter(|line| says("Redis is away")(line)).count(), 1, "one warning");
    }
    let notification = event("$5", &[ios(&apns_token(5))]);
    assert_eq!(gateway.rejected(&notification).await, json!([]));
    assert_eq!(other.notify(&notification).await.ok(), json!({"rejected": []}));
    assert_eq!(gateway.apns.pushes_for(&apns_token(5)).len(), 1);
}

#[tokio::test]
async fn a_redis_that_is_stuck_costs_a_moment_and_no_push() {
    let redis = RedisServer::start().await;
    let (gateway, _other) = two(&redis).await;
    assert_eq!(gateway.rejected(&event("$1", &[ios(&apns_token(1))])).await, json!([]));
    redis.freeze();
    for number in 2..6 {
        let notification = event("$1", &[ios(&apns_token(number))]);
        let (rejected, took) = timed(gateway.rejected(&notification)).await;
        assert_eq!(rejected, json!([]), "{number}");
        // A homeserver waits for 30 s at the least.
        assert!(took < Duration::from_secs(10), "{number}: {took:?}");
        // What was sent is remembered here.
        assert_eq!(gateway.rejected(&notification).await, json!([]), "{number}");
        assert_eq!(gateway.apns.pushes_for(&apns_token(number)).len(), 1, "{number}");
    }
    gateway.server.wait_for_log("the warning", says("Redis is away")).await;
    redis.thaw();
    gateway.server.wait_for_log("its return", says("Redis is back")).await;
}

#[tokio::test]
async fn a_gateway_whose_redis_was_never_there_serves() {
    let mut redis = RedisServer::start().await;
    redis.kill();
    let (gateway, _other) = two(&redis).await;
    for _ in 0..2 {
        assert_eq!(gateway.rejected(&event("$1", &[ios(&apns_token(1))])).await, json!([]));
    }
    assert_eq!(gateway.apns.pushes().len(), 1);
    assert!(!gateway.server.log_text().contains("what all replicas know"), "the secret is in the log");
}
