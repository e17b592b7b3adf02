#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::watch,
};

use super::*;
use crate::http::{Incoming, MatrixError, Response, json};

/// Anything slower is taken for a hang.
const PATIENCE: Duration = Duration::from_secs(20);

async fn length(_state: (), request: Incoming) -> Result<Response, MatrixError> {
    Ok(json(&request.body.len()))
}

async fn start(config: ServerConfig) -> (SocketAddr, watch::Sender<bool>, tokio::task::JoinHandle<io::Result<()>>) {
    let listener = bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, stop) = Stop::manual();
    let router = Router::new().post("/length", length);
    let served = tokio::spawn(async move { serve(listener, router, (), &config, None, None, stop).await });
    (address, sender, served)
}

async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn chunked_and_oversized_bodies_are_read_or_refused() {
    let (address, _stop, _served) = start(ServerConfig { max_body_bytes: 8, ..ServerConfig::default() }).await;
    let head = "POST /length HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
    for (rest, status, body) in [
        ("Content-Length: 3\r\n\r\nabc", "200", "3"),
        ("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n", "200", "7"),
        ("Content-Length: 9\r\n\r\nabcdefghi", "413", "M_TOO_LARGE"),
        ("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n6\r\ndefghi\r\n0\r\n\r\n", "413", "M_TOO_LARGE"),
    ] {
        let answer = exchange(address, &format!("{head}{rest}")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert!(answer.contains(body), "{answer}");
        assert!(answer.contains("x-request-id: "), "{answer}");
    }
}

/// A client that writes all of its body before it reads would otherwise see a broken connection.
#[tokio::test]
async fn a_client_sees_the_refusal_of_a_large_body() {
    let (address, _stop, _served) = start(ServerConfig { max_body_bytes: 8, ..ServerConfig::default() }).await;
    let body = "a".repeat(900_000);
    let length = body.len();
    for framing in [format!("Content-Length: {length}\r\n\r\n{body}"), {
        format!("Transfer-Encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n\r\n")
    }] {
        let head = "POST /length HTTP/1.1\r\nHost: a\r\nConnection: close\r\n";
        // Most of it waits for the server to read it.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(16 * 1024).unwrap();
        let mut stream = socket.connect(address).await.unwrap();
        stream.write_all(format!("{head}{framing}").as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
    // Who waits to be told to continue is answered at once.
    let head = "POST /length HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 900000\r\n\r\n";
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    timeout(PATIENCE, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"HTTP/1.1 413");
}

#[tokio::test]
async fn clients_that_are_slow_with_their_headers_are_disconnected() {
    let config = ServerConfig { header_timeout_secs: 1, ..ServerConfig::default() };
    let (address, _stop, _served) = start(config).await;
    for begun in ["", "P", "POST /length HTTP/1.1\r\nHos"] {
        // Reading ends only if the server closes the connection.
        timeout(PATIENCE, exchange(address, begun)).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_responses_is_disconnected() {
    let config = ServerConfig { header_timeout_secs: 1, ..ServerConfig::default() };
    let (address, _stop, _served) = start(config).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".repeat(1000);
    // Writing fails only if the server closes the connection.
    let writing = async { while stream.write_all(&request).await.is_ok() {} };
    timeout(PATIENCE, writing).await.unwrap();
}

#[tokio::test]
async fn a_request_without_a_path_is_refused() {
    let (address, _stop, _served) = start(ServerConfig::default()).await;
    let answer = exchange(address, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_is_abandoned() {
    let config = ServerConfig { body_timeout_secs: 1, ..ServerConfig::default() };
    let (address, _stop, _served) = start(config).await;
    let head = "POST /length HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 100\r\n\r\na";
    let answer = exchange(address, head).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

#[tokio::test]
async fn a_stop_ends_serving() {
    let (address, stop, served) = start(ServerConfig::default()).await;
    stop.send(true).unwrap();
    served.await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}
