//! What strangers and peers send is not kept beyond what counts against a limit.

use std::net::SocketAddr;

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use waypost_tests::ca::{Alpn, Ca};
use waypost_tests::database::Database;
use waypost_tests::gateway::{NOTIFY, TestGateway, UNIFIED, event, unifiedpush_app, with};
use waypost_tests::identity::TestIdentity;
use waypost_tests::process::Server;
use waypost_tests::tls_server::Answer;
use waypost_tests::webpush::HOST;

const MIB: usize = 1024 * 1024;

/// Connections at once.
const CLIENTS: usize = 200;

/// Sends `text` on each of many connections, up to where the server reads no further; returns the connections.
async fn flood(server: &Server, text: &[u8]) -> Vec<TcpStream> {
    let address: SocketAddr = server.public.strip_prefix("http://").unwrap().parse().unwrap();
    let send = async || {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // A server that has read enough closes the connection, or reads no more.
        let writing = stream.write_all(text);
        drop(tokio::time::timeout(std::time::Duration::from_secs(2), writing).await);
        stream
    };
    join_all((0..CLIENTS).map(|_| send())).await
}

/// The memory of a server once it has done with what was sent to it: its CPU stands still.
async fn settled(server: &Server) -> usize {
    let (mut cpu, mut quiet) = (server.cpu(), 0);
    while quiet < 5 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let now = server.cpu();
        quiet = if now - cpu < std::time::Duration::from_millis(2) { quiet + 1 } else { 0 };
        cpu = now;
    }
    server.memory()
}

/// Asserts that `text` on many connections takes no more than `limit` bytes on each.
async fn assert_flood_takes(server: &Server, what: &str, text: &[u8], limit: usize) {
    let before = server.memory();
    let connections = flood(server, text).await;
    let grown = settled(server).await.saturating_sub(before);
    assert!(grown < CLIENTS * limit, "{what}: {} KiB for each of {CLIENTS} connections", grown / CLIENTS / 1024);
    drop(connections);
}

#[tokio::test]
async fn what_is_not_read_is_not_kept() {
    let t = TestIdentity::start(Database::Sqlite).await;
    let chunk = format!("{:x}\r\n{}\r\n", MIB / 2, "a".repeat(MIB / 2));
    for method in ["GET", "HEAD"] {
        let head =
            format!("{method} /_matrix/identity/versions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
        let text = format!("{head}{chunk}");
        assert_flood_takes(&t.server, &format!("a body of {method}"), text.as_bytes(), 160 * 1024).await;
    }
    let head = format!("GET /_matrix/identity/versions HTTP/1.1\r\nHost: a\r\nX-Long: {}", "a".repeat(MIB / 2));
    assert_flood_takes(&t.server, "a header without an end", head.as_bytes(), 160 * 1024).await;
    let headers: String = (0..20_000).map(|number| format!("X-{number}: a\r\n")).collect();
    let head = format!("GET /_matrix/identity/versions HTTP/1.1\r\nHost: a\r\n{headers}");
    assert_flood_takes(&t.server, "headers without an end", head.as_bytes(), 160 * 1024).await;
}

/// A push server that begins an answer and never ends its headers: `piece` again and again. Returns its port, and the
/// bytes that were taken from it on each connection once it could write no more.
async fn endless(ca: &Ca, begin: &'static str, piece: &'static str) -> (u16, mpsc::UnboundedReceiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = TlsAcceptor::from(ca.leaf(&[HOST], Alpn::Http1));
    let (taken, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, taken) = (tls.clone(), taken.clone());
            tokio::spawn(async move {
                let Ok(mut stream) = tls.accept(stream).await else { return };
                drop(stream.read(&mut [0; 1024]).await);
                drop(stream.write_all(begin.as_bytes()).await);
                let (piece, mut bytes) = (piece.repeat(1000), 0);
                while bytes < MIB && stream.write_all(piece.as_bytes()).await.is_ok() {
                    bytes += piece.len();
                }
                let _ = taken.send(bytes);
            });
        }
    });
    (port, receiver)
}

#[tokio::test]
async fn what_peers_answer_is_not_kept() {
    let gateway = TestGateway::start_apps(|settings, _| {
        settings.push("apps", &with(unifiedpush_app(UNIFIED), &[("max_in_flight", json!(1000))]));
    })
    .await;
    for (what, begin, piece) in [
        ("a header without an end", "HTTP/1.1 200 OK\r\nX-Long: ", "aaaaaaaaaaaaaaaa"),
        ("headers without an end", "HTTP/1.1 200 OK\r\n", "X-Short: a\r\n"),
        ("hints without an end", "", "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"),
        (
            "a body without an end",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "10\r\naaaaaaaaaaaaaaaa\r\n",
        ),
    ] {
        let (port, mut taken) = endless(&gateway.ca, begin, piece).await;
        let devices: Vec<Value> = (0..100)
            .map(|number| json!({"app_id": UNIFIED, "pushkey": format!("https://{HOST}:{port}/{what}-{number}")}))
            .collect();
        let before = gateway.server.memory();
        let notification = event(&format!("${what}"), &devices);
        let notify = gateway.notify(&notification);
        tokio::pin!(notify);
        let mut most = 0;
        // Until the answer, or as many connections as there are devices, have come to an end.
        for _ in 0..devices.len() {
            tokio::select! {
                _ = &mut notify => break,
                ended = taken.recv() => assert!(ended.is_some()),
            }
            most = most.max(gateway.server.memory().saturating_sub(before));
        }
        assert!(most < devices.len() * 128 * 1024, "{what}: {} KiB for each", most / devices.len() / 1024);
    }
}

/// A list of short numbers takes sixteen times its bytes once it is parsed.
#[tokio::test]
async fn what_no_push_needs_is_not_kept_while_pushes_wait() {
    let gateway = TestGateway::start_apps(|settings, _| {
        settings.push("apps", &with(unifiedpush_app(UNIFIED), &[("max_in_flight", json!(1000))]));
        settings.set("notify", "budget_secs", 24);
        settings.set("notify", "attempt_timeout_secs", 24);
    })
    .await;
    let arrived = gateway.unifiedpush.messages();
    let many = vec![1; 400_000];
    let before = settled(&gateway.server).await;
    const PUSHES: usize = 15;
    for number in 0..PUSHES {
        let name = format!("distributor-{number}");
        gateway.unifiedpush.script().always(&name, Answer::Hang);
        let mut device = json!({"app_id": UNIFIED, "pushkey": gateway.unifiedpush.endpoint(&name)});
        let mut notification = event("$1", &[]);
        // Wherever a stranger may put it.
        match number % 3 {
            0 => notification["content"] = json!({"a": many}),
            1 => notification["other"] = json!(many),
            _ => device["tweaks"] = json!({"a": many}),
        }
        notification["devices"] = json!([device]);
        let (api, body) = (gateway.api.clone(), json!({"notification": notification}));
        tokio::spawn(async move { api.post(NOTIFY, None, &body).await });
        arrived.wait_for("a push that hangs", |_| arrived.len() == number + 1).await;
    }
    // The allocator keeps what one body took while it was parsed.
    let grown = settled(&gateway.server).await.saturating_sub(before);
    assert!(grown < 48 * MIB, "{} MiB for {PUSHES} pushes", grown / MIB);
}
