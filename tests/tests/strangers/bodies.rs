//! Bodies that are announced and never sent, or sent and never dealt with, hold up nobody else.

use std::net::SocketAddr;

use ::http::Request;
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use waypost_tests::database::Database;
use waypost_tests::gateway::{ANDROID, NOTIFY, TestGateway, UNIFIED, android, event, unifiedpush_app, with};
use waypost_tests::identity::{TestIdentity, V2};
use waypost_tests::tls_server::Answer;

/// As many as the largest bodies that there is memory for.
const CLIENTS: usize = 64;

/// Opens a connection and sends the beginning of a request, as far as the server reads it before it answers.
async fn begin(public: &str, request: &str) -> TcpStream {
    let address: SocketAddr = public.strip_prefix("http://").unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(address).await.unwrap();
    drop(stream.write_all(request.as_bytes()).await);
    stream
}

/// Whether nothing has come back yet.
fn is_silent(stream: &TcpStream) -> bool {
    matches!(stream.try_read(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn announced_bodies_keep_nobody_waiting() {
    let t = TestIdentity::start(Database::Sqlite).await;
    let token = t.register("@alice:hs.test").await;
    let head = format!("POST {V2}/lookup HTTP/1.1\r\nHost: a\r\nContent-Length: 1048576\r\n\r\n{{");
    let idle = join_all((0..2 * CLIENTS).map(|_| begin(&t.server.public, &head))).await;
    let pepper = t.pepper(&token).await;
    let lookup = json!({"algorithm": "sha256", "pepper": pepper, "addresses": []});
    let reply = t.post("/lookup", Some(&token), &lookup).await;
    assert_eq!(reply.ok(), json!({"mappings": {}}));
    assert!(idle.iter().all(is_silent), "the others have had no answer yet");
    // They are not waited for for ever.
    for mut stream in idle {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
}

#[tokio::test]
async fn a_source_cannot_take_all_the_memory() {
    let t = TestIdentity::start_with(Database::Sqlite, |settings| {
        settings.set("server", "max_buffered_bytes", 8 * 1024 * 1024);
        settings.set("server", "trusted_proxies", vec!["127.0.0.0/8"]);
    })
    .await;
    let token = t.register("@alice:hs.test").await;
    let pepper = t.pepper(&token).await;
    let body = json!({"algorithm": "sha256", "pepper": pepper, "addresses": ["a".repeat(900_000)]}).to_string();
    let length = body.len();
    let head = format!(
        "POST {V2}/lookup HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.1\r\nContent-Length: {length}\r\n\r\n"
    );
    let all_but_a_byte = format!("{head}{}", &body[..length - 1]);
    let send = async |source: &str| {
        let request = Request::post(t.api.absolute(&format!("{V2}/lookup")))
            .header("x-forwarded-for", source)
            .header("authorization", format!("Bearer {token}"))
            .body(Bytes::from(body.clone()))
            .unwrap();
        t.api.send(request).await
    };
    // The share has room for one body. It goes to the one whose bytes arrive first, which may be the finished one.
    let mut held = begin(&t.server.public, &all_but_a_byte).await;
    let refused = loop {
        let reply = send("192.0.2.1").await;
        if !is_silent(&held) {
            held = begin(&t.server.public, &all_but_a_byte).await;
        } else if reply.status == 429 {
            break reply;
        }
    };
    assert_eq!(refused.failure(), (429, "M_LIMIT_EXCEEDED".to_owned()));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(send("192.0.2.2").await.ok(), json!({"mappings": {}}));
    drop(held);
    while send("192.0.2.1").await.status == 429 {}
}

#[tokio::test]
async fn pushes_that_wait_for_a_server_hold_no_memory() {
    let gateway = TestGateway::start_apps(|settings, around| {
        settings.push("apps", &with(unifiedpush_app(UNIFIED), &[("max_in_flight", json!(1000))]));
        settings.push("apps", &around.fcm_app(ANDROID));
        settings.set("server", "trusted_proxies", vec!["127.0.0.0/8"]);
        settings.set("server", "max_buffered_bytes", 1024 * 1024);
        settings.set("notify", "budget_secs", 24);
        settings.set("notify", "attempt_timeout_secs", 24);
    })
    .await;
    // Each has half a megabyte that nothing is done with any more.
    let padding = " ".repeat(500_000);
    let arrived = gateway.unifiedpush.messages();
    for number in 0..16 {
        let name = format!("distributor-{number}");
        gateway.unifiedpush.script().always(&name, Answer::Hang);
        let device = json!({"app_id": UNIFIED, "pushkey": gateway.unifiedpush.endpoint(&name)});
        let body = format!("{}{padding}", json!({"notification": event("$1", &[device])}));
        let api = gateway.api.clone();
        let request = Request::post(api.absolute(NOTIFY)).header("x-forwarded-for", "192.0.2.1");
        let request = request.body(Bytes::from(body)).unwrap();
        tokio::spawn(async move { api.try_send(request).await });
        arrived.wait_for("a push that hangs", |_| arrived.len() == number + 1).await;
    }
    let notification = json!({"notification": event("$2", &[android("device")])}).to_string();
    let request = Request::post(gateway.api.absolute(NOTIFY)).header("x-forwarded-for", "192.0.2.2");
    let reply = gateway.api.send(request.body(Bytes::from(notification)).unwrap()).await;
    assert_eq!(reply.ok(), json!({"rejected": []}));
}
