//! The protocol, against a server of a few lines. The real one's turn is in the workspace's tests.

#![allow(clippy::unwrap_used)]

use tokio::net::TcpListener;
use waypost_shared::client::OutboundConfig;

use super::*;

fn redis(port: u16) -> (Redis, Gauge) {
    let config = OutboundConfig { dns_servers: vec!["127.0.0.1:9".parse().unwrap()], ..OutboundConfig::default() };
    let up = Gauge::default();
    let address = Address::parse(&format!("redis://127.0.0.1:{port}")).unwrap();
    (Redis::new(address, Outbound::new(&config).unwrap(), up.clone()), up)
}

/// A server that reads so many bytes and writes a text, in turn.
async fn server(script: Vec<(usize, &'static str)>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for (length, answer) in script {
            let mut read = vec![0; length];
            stream.read_exact(&mut read).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        // Gone, and nobody listens any more.
    });
    port
}

/// `*1\r\n$4\r\nPING\r\n`, which opens each connection.
const PING: usize = 14;

#[test]
fn a_command_is_an_array_of_texts() {
    assert_eq!(encoded(&[b"GET", b"a\r\nb"]), b"*2\r\n$3\r\nGET\r\n$4\r\na\r\nb\r\n");
    assert_eq!(encoded(&[b"PING"]).len(), PING);
}

#[tokio::test]
async fn replies_are_read_in_each_form() {
    for (bytes, expected) in [
        ("+OK\r\n", Some(Reply::Done)),
        (":1\r\n", Some(Reply::Done)),
        ("$-1\r\n", Some(Reply::Nothing)),
        ("$0\r\n\r\n", Some(Reply::Text(Vec::new()))),
        ("$4\r\na\r\nb\r\n", Some(Reply::Text(b"a\r\nb".to_vec()))),
        ("-LOADING the dataset\r\n", None),
        ("*1\r\n+a\r\n", None),
        ("$5000\r\n", None),
        ("$4\r\nabc", None),
        ("+OK", None),
        ("", None),
    ] {
        assert_eq!(read_reply(&mut bytes.as_bytes()).await.ok(), expected, "{bytes:?}");
    }
    let error = read_reply(&mut b"-WRONGPASS swordfish\r\n".as_slice()).await.unwrap_err().to_string();
    assert_eq!(error, "the server answered WRONGPASS");
}

#[tokio::test]
async fn commands_are_answered_in_their_order() {
    // `*2\r\n$3\r\nGET\r\n$1\r\na\r\n` twice: 20 bytes each.
    let port = server(vec![(PING, "+PONG\r\n"), (40, "$1\r\n1\r\n$1\r\n2\r\n")]).await;
    let (redis, up) = redis(port);
    let (a, b): ([&[u8]; 2], [&[u8]; 2]) = ([b"GET", b"a"], [b"GET", b"b"]);
    let (first, second) = tokio::join!(redis.call(&a), redis.call(&b));
    assert_eq!((first, second), (Some(Reply::Text(b"1".to_vec())), Some(Reply::Text(b"2".to_vec()))));
    // The server has gone: nobody waits for it.
    assert_eq!(redis.call(&[b"GET", b"a"]).await, None);
    assert_eq!(up.get(), 0);
}

#[tokio::test]
async fn a_server_that_refuses_us_is_away() {
    let port = server(vec![(PING, "-NOAUTH Authentication required.\r\n")]).await;
    let (redis, up) = redis(port);
    assert_eq!(redis.call(&[b"GET", b"a"]).await, None);
    assert_eq!(up.get(), 0);
}
