//! The client over real sockets, and its guard.

#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::config::file::Source;

const LIMITS: CallLimits = CallLimits { timeout: Duration::from_secs(5), max_body: 16 };

fn outbound(allowed: &[&str], hosts: &[(&str, &str)]) -> Outbound {
    Outbound::new(&OutboundConfig {
        allowed_ranges: allowed.iter().map(|range| range.parse().unwrap()).collect(),
        dns_servers: vec!["127.0.0.1:9".parse().unwrap()],
        hosts: hosts.iter().map(|(name, ip)| ((*name).to_owned(), ip.parse().unwrap())).collect(),
        ..OutboundConfig::default()
    })
    .unwrap()
}

/// Answers the first request of each connection with `answer`, and keeps the connection open.
async fn server(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            drop(stream.read(&mut buffer).await);
            drop(stream.write_all(answer.as_bytes()).await);
            open.push(stream);
        }
    });
    address
}

fn get(uri: String) -> Request<Bytes> {
    Request::get(uri).body(Bytes::new()).unwrap()
}

#[test]
fn addresses_that_are_not_public_are_recognised() {
    for special in [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.31.255.255",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:10.0.0.1",
        "::ffff:169.254.169.254",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "2001:db8::1",
        "2001::1",
        "64:ff9b:1::1",
        "::127.0.0.1",
    ] {
        assert!(!is_public(special.parse().unwrap()), "{special}");
    }
    for public in ["1.1.1.1", "172.32.0.1", "192.0.1.1", "2606:4700::1111", "2a00::1", "64:ff9b::101:101"] {
        assert!(is_public(public.parse().unwrap()), "{public}");
    }
}

#[tokio::test]
async fn a_guarded_client_reaches_loopback_only_when_allowed() {
    let address = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let port = address.port();
    let hosts = [("internal.test", "127.0.0.1")];
    for uri in [
        format!("http://127.0.0.1:{port}/"),
        format!("http://internal.test:{port}/"),
        format!("http://[::ffff:127.0.0.1]:{port}/"),
    ] {
        let guarded = outbound(&[], &hosts).client(Reach::PublicOnly);
        let refused = guarded.send(get(uri.clone()), LIMITS).await.unwrap_err();
        assert!(matches!(refused, HttpClientError::Blocked), "{uri}: {refused:?}");
        assert!(!refused.may_have_arrived());

        let allowed = outbound(&["127.0.0.0/8"], &hosts).client(Reach::PublicOnly);
        assert_eq!(allowed.send(get(uri.clone()), LIMITS).await.unwrap().body(), "ok", "{uri}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_is_not_read() {
    let address = server("HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n0123456789abcdefg").await;
    let client = outbound(&[], &[]).client(Reach::Anywhere);
    let refused = client.send(get(format!("http://{address}/")), LIMITS).await.unwrap_err();
    assert!(matches!(refused, HttpClientError::TooLarge(16)), "{refused:?}");
}

#[tokio::test]
async fn a_status_holds_whatever_happens_to_the_body() {
    for (answer, body) in [
        ("HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok", "ok"),
        // Too large, late, broken.
        ("HTTP/1.1 201 Created\r\nContent-Length: 17\r\n\r\n0123456789abcdefg", ""),
        ("HTTP/1.1 201 Created\r\nContent-Length: 5\r\n\r\nab", ""),
        ("HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ""),
    ] {
        let address = server(answer).await;
        let client = outbound(&[], &[]).client(Reach::Anywhere);
        let limits = CallLimits { timeout: Duration::from_secs(1), ..LIMITS };
        let got = client.send_for_status(get(format!("http://{address}/")), limits).await.unwrap();
        assert_eq!((got.status().as_u16(), got.body().as_ref()), (201, body.as_bytes()), "{answer}");
    }
}

#[test]
fn an_unusable_certificate_file_is_a_problem() {
    for (file, expected) in [
        (
            "/nowhere/ca.pem",
            "outbound.extra_ca_file: cannot read /nowhere/ca.pem: No such file or directory (os error 2)",
        ),
        ("/dev/null", "outbound.extra_ca_file: /dev/null contains no PEM certificate"),
    ] {
        let config = OutboundConfig { extra_ca_file: Some(file.into()), ..OutboundConfig::default() };
        let problems: Vec<_> = config.problems(&Source::default()).iter().map(ToString::to_string).collect();
        assert_eq!(problems, [expected]);
    }
    assert!(OutboundConfig::default().problems(&Source::default()).is_empty());
}

#[tokio::test]
async fn an_error_does_not_show_the_url() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = outbound(&[], &[]).client(Reach::Anywhere);
    let error = client.send(get(format!("http://{address}/swordfish")), LIMITS).await.unwrap_err();
    assert!(matches!(error, HttpClientError::Connect(_)));
    assert!(!format!("{error:?} {error}").contains("swordfish"), "{error:?}");
}

#[tokio::test]
async fn targets_send_a_name_elsewhere() {
    let address = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let targets = Targets::default();
    targets.set("hs.test", vec![("127.0.0.1".to_owned(), address.port())]);
    let client = outbound(&[], &[]).client_with_targets(Reach::Anywhere, targets);
    assert_eq!(client.send(get("http://HS.test/".to_owned()), LIMITS).await.unwrap().body(), "ok");
}

/// SRV records of a stranger may name thousands of targets, at anybody's addresses.
#[tokio::test]
async fn a_few_targets_are_tried_and_no_more() {
    let served = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let place = |address: SocketAddr| (address.ip().to_string(), address.port());
    for (dead, is_reached) in [(5, true), (6, false), (100, false)] {
        let targets = Targets::default();
        targets.set("a.test", [vec![place(closed); dead], vec![place(served)]].concat());
        let client = outbound(&["127.0.0.1/32"], &[]).client_with_targets(Reach::PublicOnly, targets);
        let answer = client.send(get("http://a.test/".to_owned()), LIMITS).await;
        assert_eq!(answer.is_ok(), is_reached, "{dead}");
    }
}

/// Answers every request, one after another on each connection, and counts the connections.
async fn lasting_server() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut buffer = [0; 1024];
                // The requests here have no body and arrive in one piece.
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await);
                }
            });
        }
    });
    (address, connections)
}

#[tokio::test]
async fn a_connection_is_reused() {
    let (address, connections) = lasting_server().await;
    let client = outbound(&[], &[]).client(Reach::Anywhere);
    for _ in 0..3 {
        assert_eq!(client.send(get(format!("http://{address}/")), LIMITS).await.unwrap().body(), "ok");
        // A separate task returns it to the pool.
        let origin = client.pool().origin(&format!("http://{address}/").parse().unwrap()).unwrap();
        while !origin.is_idle() {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn connections_are_limited_and_every_queued_request_is_served() {
    let (address, connections) = lasting_server().await;
    let config = OutboundConfig {
        max_connections_per_origin: 3,
        dns_servers: vec!["127.0.0.1:9".parse().unwrap()],
        ..OutboundConfig::default()
    };
    let client = Outbound::new(&config).unwrap().client(Reach::Anywhere);
    let calls = (0..50).map(|_| client.send(get(format!("http://{address}/")), LIMITS));
    for answer in join_all(calls).await {
        assert_eq!(answer.unwrap().body(), "ok");
    }
    let opened = connections.load(Ordering::SeqCst);
    assert!((1..=3).contains(&opened), "{opened}");
}

#[tokio::test]
async fn requests_that_wait_for_a_connection_share_its_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = outbound(&[], &[]).client(Reach::Anywhere);
    let calls = (0..50).map(|_| client.send(get(format!("http://{address}/")), LIMITS));
    for answer in join_all(calls).await {
        assert!(matches!(answer, Err(HttpClientError::Connect(_))), "{answer:?}");
    }
}

#[tokio::test]
async fn connections_are_kept_to_the_most_recently_used_origins() {
    let config = OutboundConfig {
        max_origins: 2,
        dns_servers: vec!["127.0.0.1:9".parse().unwrap()],
        ..OutboundConfig::default()
    };
    let client = Outbound::new(&config).unwrap().client(Reach::Anywhere);
    for _ in 0..4 {
        let (address, _) = lasting_server().await;
        assert_eq!(client.send(get(format!("http://{address}/")), LIMITS).await.unwrap().body(), "ok");
    }
    assert_eq!(client.pool().len(), 2);
}

#[tokio::test]
async fn one_owner_does_not_evict_the_connections_of_others() {
    let (address, _) = lasting_server().await;
    let names: Vec<_> = (0..20).map(|number| format!("{number}.evil.test")).chain(["good.test".to_owned()]).collect();
    let config = OutboundConfig {
        max_origins: 8,
        allowed_ranges: vec!["127.0.0.0/8".parse().unwrap()],
        dns_servers: vec!["127.0.0.1:9".parse().unwrap()],
        hosts: names.into_iter().map(|name| (name, address.ip())).collect(),
        ..OutboundConfig::default()
    };
    let client = Outbound::new(&config).unwrap().client(Reach::PublicOnly);
    let good = format!("http://good.test:{}/", address.port());
    client.send(get(good.clone()), LIMITS).await.unwrap();
    for number in 0..20 {
        let evil = format!("http://{number}.evil.test:{}/", address.port());
        client.send(get(evil), LIMITS).await.unwrap();
    }
    assert!(client.pool().keeps(&good.parse().unwrap()));
    // A quarter of eight, plus the good one.
    assert_eq!(client.pool().len(), 3);
}

/// Accepts connections and sends nothing; the receiver reports how many there were.
async fn silent_server() -> (SocketAddr, tokio::sync::watch::Receiver<usize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (accepted, count) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            open.push(listener.accept().await.unwrap());
            accepted.send_replace(open.len());
        }
    });
    (address, count)
}

#[tokio::test]
async fn the_names_of_one_address_share_its_in_flight_cap() {
    let ((silent, mut accepted), (good, _)) = (silent_server().await, lasting_server().await);
    let names = (0..5).map(|number| (format!("evil{number}.test"), silent.ip()));
    let config = OutboundConfig {
        allowed_ranges: vec!["127.0.0.0/8".parse().unwrap()],
        dns_servers: vec!["127.0.0.1:9".parse().unwrap()],
        hosts: names.chain([("good.test".to_owned(), "127.0.0.1".parse().unwrap())]).collect(),
        ..OutboundConfig::default()
    };
    let client = Outbound::new(&config).unwrap().client_for_strangers(4);
    // TLS makes them wait for the handshake: there is no connection yet that could carry a request.
    let hanging: Vec<_> = (0..4)
        .map(|number| {
            let (client, uri) = (client.clone(), format!("https://evil{number}.test:{}/", silent.port()));
            tokio::spawn(async move { client.send(get(uri), LIMITS).await })
        })
        .collect();
    accepted.wait_for(|count| *count == 4).await.unwrap();
    for name in ["evil4.test", "good.test"] {
        let port = if name == "good.test" { good.port() } else { silent.port() };
        let refused = client.send(get(format!("http://{name}:{port}/")), LIMITS).await.unwrap_err();
        assert!(matches!(refused, HttpClientError::Crowded), "{name}: {refused:?}");
        assert!(!refused.may_have_arrived());
    }
    for task in hanging {
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
    // An abandoned request makes room at once.
    assert_eq!(client.send(get(format!("http://good.test:{}/", good.port())), LIMITS).await.unwrap().body(), "ok");
}

/// A proxy that opens every tunnel requested with the credentials `us:pw`, and the targets requested.
async fn proxy() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let targets = asked.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = vec![0; 1024];
            let read = stream.read(&mut buffer).await.unwrap();
            let head = String::from_utf8(buffer[..read].to_vec()).unwrap();
            let target = head.strip_prefix("CONNECT ").unwrap().split(' ').next().unwrap().to_owned();
            // base64 of `us:pw`.
            if !head.contains("\r\nProxy-Authorization: Basic dXM6cHc=\r\n") {
                stream.write_all(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n").await.unwrap();
                continue;
            }
            targets.lock().unwrap().push(target.clone());
            // The name that only the proxy can resolve points here.
            let mut far = TcpStream::connect(target.replace("only-proxy.test", "127.0.0.1")).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            tokio::spawn(async move { drop(copy_bidirectional(&mut stream, &mut far).await) });
        }
    });
    (address, asked)
}

fn behind_a_proxy(proxy: SocketAddr, credentials: &str, allowed: &[&str], no_proxy: &[&str]) -> Outbound {
    Outbound::new(&OutboundConfig {
        allowed_ranges: allowed.iter().map(|range| range.parse().unwrap()).collect(),
        dns_servers: vec!["127.0.0.1:9".parse().unwrap()],
        hosts: [("hs.test".to_owned(), "127.0.0.1".parse().unwrap())].into(),
        proxy_url: Some(format!("http://{credentials}@{proxy}").into()),
        no_proxy: no_proxy.iter().map(|name| (*name).to_owned()).collect(),
        ..OutboundConfig::default()
    })
    .unwrap()
}

#[tokio::test]
async fn a_guarded_call_goes_through_the_proxy_to_the_checked_address() {
    let (far, _) = lasting_server().await;
    let (proxy, asked) = proxy().await;
    let uri = format!("http://hs.test:{}/", far.port());

    let blocked = behind_a_proxy(proxy, "us:pw", &[], &[]).client(Reach::PublicOnly);
    let refused = blocked.send(get(uri.clone()), LIMITS).await.unwrap_err();
    assert!(matches!(refused, HttpClientError::Blocked), "{refused:?}");
    assert!(asked.lock().unwrap().is_empty());

    let allowed = behind_a_proxy(proxy, "us:pw", &["127.0.0.0/8"], &[]).client(Reach::PublicOnly);
    assert_eq!(allowed.send(get(uri), LIMITS).await.unwrap().body(), "ok");
    assert_eq!(*asked.lock().unwrap(), [format!("127.0.0.1:{}", far.port())]);
}

#[tokio::test]
async fn a_configured_name_may_be_one_that_only_the_proxy_resolves() {
    let (far, _) = lasting_server().await;
    let (proxy, asked) = proxy().await;
    let client = behind_a_proxy(proxy, "us:pw", &[], &["hs.test"]).client(Reach::Anywhere);
    let uri = format!("http://only-proxy.test:{}/", far.port());
    assert_eq!(client.send(get(uri), LIMITS).await.unwrap().body(), "ok");
    assert_eq!(*asked.lock().unwrap(), [format!("only-proxy.test:{}", far.port())]);
    // Listed in no_proxy.
    let uri = format!("http://hs.test:{}/", far.port());
    assert_eq!(client.send(get(uri), LIMITS).await.unwrap().body(), "ok");
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_proxy_that_requires_other_credentials_is_reported() {
    let (far, _) = lasting_server().await;
    let (proxy, _) = proxy().await;
    let client = behind_a_proxy(proxy, "us:swordfish", &[], &[]).client(Reach::Anywhere);
    let error = client.send(get(format!("http://{far}/")), LIMITS).await.unwrap_err();
    let text = crate::error::Chain(&error).to_string();
    assert!(matches!(error, HttpClientError::Connect(_)), "{text}");
    assert!(text.contains("407") && !text.contains("swordfish"), "{text}");
}

#[test]
fn an_unusable_proxy_is_a_problem() {
    let config = OutboundConfig { proxy_url: Some("swordfish".into()), max_origins: 0, ..OutboundConfig::default() };
    let problems: Vec<_> = config.problems(&Source::default()).iter().map(ToString::to_string).collect();
    let url =
        "outbound.proxy_url: must be http://host:port, with user:password@ before the host if the proxy wants them";
    assert_eq!(problems, [url, "outbound.max_origins: must be 1 or more"]);
}
