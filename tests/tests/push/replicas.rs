//! Replicas that share what they remember in Redis (docs/compatibility.md, P8 and P9; docs/security.md, push gateway,
//! 6).

use std::time::Duration;

use serde_json::{Value, json};
use waypost_tests::apns::refusal;
use waypost_tests::ca::Ca;
use waypost_tests::gateway::{Replica, TestGateway, apns_token, event, ios, metric};
use waypost_tests::process::{Server, eventually, text, timed};
use waypost_tests::redis::{Cluster, RedisServer, SentinelPair, USER};
use waypost_tests::tls_server::Answer;

/// Two gateways with one configuration.
async fn two(redis: &RedisServer) -> (TestGateway, Replica) {
    two_at(redis.url(), None).await
}

/// Two gateways that share what they remember at `url`, and trust `ca` too.
async fn two_at(url: String, ca: Option<&Ca>) -> (TestGateway, Replica) {
    let gateway = TestGateway::start_with(|settings, around| {
        settings.set("seen", "redis_url", url).set("seen", "secret", "what all replicas know");
        if let Some(ca) = ca {
            let roots = around.folder.write("roots.pem", &format!("{}{}", around.ca.pem(), ca.pem()));
            settings.set("outbound", "extra_ca_file", text(&roots));
        }
    })
    .await;
    let other = gateway.replica().await;
    (gateway, other)
}

/// Sends an event for one device to both gateways, which has to wake it once.
async fn wakes_once(gateway: &TestGateway, other: &Replica, number: u32) {
    let token = format!("{number:064x}");
    let notification = event(&format!("$shared-{number}"), &[ios(&token)]);
    assert_eq!(gateway.rejected(&notification).await, json!([]));
    assert_eq!(other.notify(&notification).await.ok(), json!({"rejected": []}));
    assert_eq!(gateway.apns.pushes_for(&token).len(), 1, "{number}");
}

/// Sends pushes to both gateways, each to be delivered within a moment, until both have Redis again.
async fn push_until_it_is_back(gateway: &TestGateway, other: &Replica) {
    for number in 0_u32.. {
        // None of those of `wakes_once`.
        let token = format!("ff{number:062x}");
        let notification = event(&format!("$alone-{number}"), &[ios(&token)]);
        let (reply, took) = timed(async {
            if number % 2 == 0 { gateway.notify(&notification).await } else { other.notify(&notification).await }
        })
        .await;
        assert_eq!(reply.ok(), json!({"rejected": []}), "{number}");
        assert!(took < Duration::from_secs(5), "{number}: {took:?}");
        assert_eq!(gateway.apns.pushes_for(&token).len(), 1, "{number}");
        let back = |server: &Server| server.logs().iter().any(says("Redis is back"));
        if back(&gateway.server) && back(&other.server) {
            return;
        }
    }
}

fn outages(server: &Server) -> usize {
    server.logs().iter().filter(|line| says("Redis is unreachable")(line)).count()
}

async fn until_up(server: &Server) {
    let up = async || is_up(server).await.then_some(());
    eventually(Duration::from_secs(30), "a connection to Redis", up).await;
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
        until_up(server).await;
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
        server.wait_for_log("the warning", says("Redis is unreachable")).await;
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
        assert_eq!(outages(server), 1, "one warning");
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
        // The first one waits for the reply that does not come, and those after it for nothing.
        assert!(took < Duration::from_secs(if number == 2 { 5 } else { 1 }), "{number}: {took:?}");
        // What was sent is remembered here.
        assert_eq!(gateway.rejected(&notification).await, json!([]), "{number}");
        assert_eq!(gateway.apns.pushes_for(&apns_token(number)).len(), 1, "{number}");
    }
    gateway.server.wait_for_log("the warning", says("Redis is unreachable")).await;
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

#[tokio::test]
async fn a_server_that_was_demoted_is_unreachable_until_it_takes_writes_again() {
    let redis = RedisServer::start().await;
    let (gateway, other) = two(&redis).await;
    wakes_once(&gateway, &other, 1).await;
    // Its connections stay open, and it answers whatever only reads.
    redis.ask(&["replicaof", "127.0.0.1", "1"]);
    let notification = event("$2", &[ios(&apns_token(2))]);
    for _ in 0..3 {
        assert_eq!(gateway.rejected(&notification).await, json!([]));
    }
    assert_eq!(gateway.apns.pushes_for(&apns_token(2)).len(), 1);
    for server in [&gateway.server, &other.server] {
        let line = server.wait_for_log("the warning", says("Redis is unreachable")).await;
        assert_eq!(line["error"], "the server answered READONLY");
        assert!(!is_up(server).await);
    }
    redis.ask(&["replicaof", "no", "one"]);
    for server in [&gateway.server, &other.server] {
        server.wait_for_log("its return", says("Redis is back")).await;
        assert_eq!(outages(server), 1);
    }
    wakes_once(&gateway, &other, 3).await;
}

#[tokio::test]
async fn a_user_with_few_rights_over_tls_is_enough() {
    let ca = Ca::new();
    let redis = RedisServer::start_tls(&ca, USER).await;
    let url = redis.url().replace("://", "://push:swordfish@");
    let (gateway, other) = two_at(url.clone(), Some(&ca)).await;
    wakes_once(&gateway, &other, 1).await;
    let token = apns_token(2);
    gateway.apns.script().once(&token, refusal(403, "InvalidProviderToken"));
    let notification = event("$2", &[ios(&token)]);
    assert_eq!(gateway.notify(&notification).await.status, 503);
    assert_eq!(other.notify(&notification).await.ok(), json!({"rejected": []}));
    let gone = apns_token(3);
    gateway.apns.script().once(&gone, refusal(410, "Unregistered"));
    assert_eq!(gateway.rejected(&event("$3", &[ios(&gone)])).await, json!([gone]));
    assert_eq!(other.notify(&event("$4", &[ios(&gone)])).await.ok(), json!({"rejected": [gone]}));
    assert_eq!((outages(&gateway.server), outages(&other.server)), (0, 0));

    // One that does not trust its certificate.
    let (stranger, _) = two_at(url, None).await;
    stranger.server.wait_for_log("the warning", says("Redis is unreachable")).await;
    assert_eq!(stranger.rejected(&event("$5", &[ios(&apns_token(5))])).await, json!([]));
    assert!(!is_up(&stranger.server).await);
}

#[tokio::test]
async fn a_wrong_password_is_reported_and_not_printed() {
    let redis = RedisServer::start_with(USER).await;
    let (gateway, _other) = two_at(redis.url().replace("://", "://push:mackerel@"), None).await;
    let line = gateway.server.wait_for_log("the warning", says("Redis is unreachable")).await;
    assert_eq!(line["error"], "authentication failed");
    assert_eq!(gateway.rejected(&event("$1", &[ios(&apns_token(1))])).await, json!([]));
    assert!(!gateway.server.log_text().contains("mackerel"));
}

#[tokio::test]
async fn sentinel_leads_to_the_new_master_while_pushes_go_on() {
    let mut pair = SentinelPair::start().await;
    let (gateway, other) = two_at(pair.url(), None).await;
    wakes_once(&gateway, &other, 1).await;
    pair.master.kill();
    push_until_it_is_back(&gateway, &other).await;
    wakes_once(&gateway, &other, 2).await;
    for server in [&gateway.server, &other.server] {
        assert_eq!(outages(server), 1, "one warning");
        assert!(is_up(server).await);
        for secret in ["swordfish", "halibut"] {
            assert!(!server.log_text().contains(secret), "{secret} is in the log");
        }
    }
    assert!(pair.replica.ask(&["keys", "waypost:push:*"]).lines().count() >= 2);
}

#[tokio::test]
async fn a_cluster_shares_what_its_masters_hold_together() {
    let mut cluster = Cluster::start(None).await;
    let (gateway, other) = two_at(cluster.url(), None).await;
    for number in 1..=30 {
        wakes_once(&gateway, &other, number).await;
    }
    for node in &cluster.nodes {
        assert!(node.ask(&["keys", "waypost:push:*"]).contains("waypost:push:"), "each master holds some");
    }
    // A lease is given back by a script, which needs the right node too.
    for number in 31..=36 {
        let token = apns_token(number);
        gateway.apns.script().once(&token, refusal(403, "InvalidProviderToken"));
        let notification = event(&format!("${number}"), &[ios(&token)]);
        assert_eq!(gateway.notify(&notification).await.status, 503);
        assert_eq!(other.notify(&notification).await.ok(), json!({"rejected": []}), "{number}");
    }
    assert_eq!((outages(&gateway.server), outages(&other.server)), (0, 0));

    // Without one of its masters it counts as unreachable altogether.
    cluster.nodes[2].kill();
    for server in [&gateway.server, &other.server] {
        server.wait_for_log("the warning", says("Redis is unreachable")).await;
    }
    for number in 40..60 {
        let (rejected, took) = timed(gateway.rejected(&event("$alone", &[ios(&apns_token(number))]))).await;
        assert_eq!(rejected, json!([]));
        assert!(took < Duration::from_secs(1), "{number}: {took:?}");
    }
    assert!(!is_up(&gateway.server).await && !is_up(&other.server).await);
    cluster.nodes[2].restart().await;
    push_until_it_is_back(&gateway, &other).await;
    for number in 61..=70 {
        wakes_once(&gateway, &other, number).await;
    }
    assert_eq!((outages(&gateway.server), outages(&other.server)), (1, 1));
}

#[tokio::test]
async fn slots_that_move_to_another_master_are_followed() {
    let cluster = Cluster::start(None).await;
    let (gateway, other) = two_at(cluster.url(), None).await;
    for number in 1..=10 {
        wakes_once(&gateway, &other, number).await;
    }
    let mut moving = cluster.reshard();
    let mut number = 10;
    while moving.try_wait().unwrap().is_none() {
        number += 1;
        wakes_once(&gateway, &other, number).await;
    }
    assert!(moving.wait().unwrap().success());
    for number in number + 1..=number + 20 {
        wakes_once(&gateway, &other, number).await;
    }
    assert_eq!((outages(&gateway.server), outages(&other.server)), (0, 0));
}

#[tokio::test]
async fn a_cluster_is_reached_over_tls() {
    let ca = Ca::new();
    let cluster = Cluster::start(Some(&ca)).await;
    let (gateway, other) = two_at(cluster.url(), Some(&ca)).await;
    for number in 1..=10 {
        wakes_once(&gateway, &other, number).await;
    }
    assert_eq!((outages(&gateway.server), outages(&other.server)), (0, 0));
}
