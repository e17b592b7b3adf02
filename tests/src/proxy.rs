//! A stand-in for an HTTP proxy: opens tunnels (RFC 9110, CONNECT) for clients with the password, and records their
//! targets.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::record::Record;

/// The user that may use it.
const USER: &str = "waypost";
/// Contains a character that has to be escaped in a URL.
const PASSWORD: &str = "p@ss";

/// The running proxy, stopped on drop.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    /// The targets requested with the right password.
    pub tunnels: Arc<Record<String>>,
    names: Arc<Mutex<HashMap<String, SocketAddr>>>,
    task: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tunnels = Arc::new(Record::default());
        let names = Arc::new(Mutex::new(HashMap::new()));
        let task = tokio::spawn({
            let (tunnels, names) = (Arc::clone(&tunnels), Arc::clone(&names));
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(serve(stream, Arc::clone(&tunnels), Arc::clone(&names)));
                }
            }
        });
        Self { address, tunnels, names, task }
    }

    /// Its URL, with the right password.
    pub fn url(&self) -> String {
        format!("http://{USER}:{}@{}", PASSWORD.replace('@', "%40"), self.address)
    }

    /// Adds a target (`host:port`) that only this proxy can resolve, and the address to connect to instead.
    pub fn knows(&self, name: &str, address: SocketAddr) {
        self.names.lock().insert(name.to_owned(), address);
    }
}

async fn serve(mut stream: TcpStream, tunnels: Arc<Record<String>>, names: Arc<Mutex<HashMap<String, SocketAddr>>>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let credentials = format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(format!("{USER}:{PASSWORD}")));
    if !head.contains(&credentials) {
        let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n";
        let _ = stream.write_all(answer).await;
        return;
    }
    let Some(target) = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()) else { return };
    tunnels.push(target.to_owned());
    let known = names.lock().get(target).copied();
    let Some(address) = known.or_else(|| target.parse().ok()) else {
        let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n").await;
        return;
    };
    let Ok(mut far) = TcpStream::connect(address).await else { return };
    let _ = stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await;
    let _ = copy_bidirectional(&mut stream, &mut far).await;
}
