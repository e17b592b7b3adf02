//! Failures, against a minimal fake server. Real servers are used in the workspace's tests.

#![allow(clippy::unwrap_used)]

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};
use waypost_shared::client::OutboundConfig;

use super::*;

/// A client of a server that answers the commands with `answers` in turn, then hangs up and stops listening.
async fn client_of(answers: &'static [&'static str]) -> (Redis, Gauge) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        drop(listener);
        let mut stream = BufReader::new(stream);
        for answer in answers {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let arguments: usize = line.trim().strip_prefix('*').unwrap().parse().unwrap();
            for _ in 0..arguments {
                line.clear();
                stream.read_line(&mut line).await.unwrap();
                let length: usize = line.trim().strip_prefix('$').unwrap().parse().unwrap();
                stream.read_exact(&mut vec![0; length + 2]).await.unwrap();
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let up = Gauge::default();
    let address = Address::parse(&format!("redis://127.0.0.1:{port}")).unwrap();
    let redis = Redis::new(address, outbound(), up.clone());
    redis.connect();
    (redis, up)
}

fn outbound() -> Outbound {
    let config = OutboundConfig { dns_servers: vec!["127.0.0.1:9".parse().unwrap()], ..OutboundConfig::default() };
    Outbound::new(&config).unwrap()
}

fn get() -> Cmd {
    let mut get = cmd("GET");
    get.arg("a");
    get
}

/// Waits until the failed command has ended the connection, for less time than until the next probe, which would end it
/// too.
async fn until_down(redis: &Redis) {
    let mut link = redis.link.subscribe();
    let down = timeout(PROBE_INTERVAL - PATIENCE, link.wait_for(|link| matches!(link, Link::Down))).await;
    assert!(down.is_ok(), "the failed command did not end the connection");
}

#[tokio::test]
async fn the_first_command_waits_for_the_connection_and_later_ones_fail_fast() {
    let (redis, up) = client_of(&["+OK\r\n", "$1\r\n1\r\n"]).await;
    assert_eq!(redis.call::<Option<String>>(&get()).await, Some(Some("1".to_owned())));
    assert_eq!(up.get(), 1);
    assert_eq!(redis.call::<Value>(&get()).await, None);
    until_down(&redis).await;
    assert_eq!(redis.call::<Value>(&get()).await, None);
}

#[tokio::test]
async fn only_one_command_waits_for_a_first_attempt_that_hangs() {
    let redis = Redis::new(Address::parse("redis://cache").unwrap(), outbound(), Gauge::default());
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(redis.call::<Value>(&get()).await, None);
    }
    assert!((PATIENCE..PATIENCE * 5).contains(&start.elapsed()), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_server_that_accepts_no_writes_counts_as_unreachable() {
    for answer in
        ["-READONLY a replica\r\n", "-LOADING the dataset\r\n", "-NOAUTH who are you\r\n", "-OOM full\r\n", "HTTP/1.1"]
    {
        let (redis, up) = client_of(Box::leak(Box::new([answer]))).await;
        assert_eq!(redis.call::<Value>(&get()).await, None, "{answer}");
        assert_eq!(up.get(), 0, "{answer}");
    }
}

#[tokio::test]
async fn a_rejected_command_ends_the_connection() {
    let (redis, up) = client_of(&["+OK\r\n", "-READONLY a replica\r\n"]).await;
    assert_eq!(redis.call::<Value>(&get()).await, None);
    until_down(&redis).await;
    assert_eq!(redis.call::<Value>(&get()).await, None);
    assert_eq!(up.get(), 0);
}

#[test]
fn the_reason_for_an_outage_quotes_no_command() {
    for (reply, expected) in [
        ("-WRONGPASS swordfish\r\n", "the server answered WRONGPASS"),
        ("-READONLY swordfish\r\n", "the server answered READONLY"),
        ("-ERR unknown command 'AUTH', with args beginning with: 'swordfish'\r\n", "the server answered ERR"),
    ] {
        let error = redis::parse_redis_value(reply.as_bytes()).unwrap().extract_error().unwrap_err();
        assert_eq!(reason(&error), expected);
    }
    assert_eq!(reason(&io::Error::from(io::ErrorKind::ConnectionRefused).into()), "connection refused");
}
