//! Replicas that are restarted one after the other, under load: no request fails.
//!
//! The callers do what a load balancer does: a replica that refuses the connection, or closes one before it took a
//! request, is passed over for the next one. Any other failure is a failure.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use waypost_tests::database::Database;
use waypost_tests::gateway::{ANDROID, TestGateway};
use waypost_tests::identity::TestIdentity;
use waypost_tests::process::{IDENTITY, PUSH_GATEWAY, Server, TempFolder};
use waypost_tests::redis::RedisServer;

/// Callers at once.
const CALLERS: usize = 8;
/// Requests that must have been answered between two steps.
const BETWEEN: usize = 100;

/// The replicas that requests may go to, and what became of the requests.
struct Balancer {
    replicas: Mutex<Vec<SocketAddr>>,
    answered: AtomicUsize,
    over: AtomicBool,
}

impl Balancer {
    fn new(replicas: &[&Server]) -> Arc<Self> {
        let replicas = replicas.iter().map(|server| address(server)).collect();
        Arc::new(Self { replicas: Mutex::new(replicas), answered: AtomicUsize::new(0), over: AtomicBool::new(false) })
    }

    fn replica(&self, number: usize) -> SocketAddr {
        let replicas = self.replicas.lock();
        replicas[number % replicas.len()]
    }

    /// Lets a new replica take the place of one.
    fn replace(&self, old: SocketAddr, new: SocketAddr) {
        let mut replicas = self.replicas.lock();
        *replicas.iter_mut().find(|known| **known == old).unwrap() = new;
    }

    /// Waits until so many more requests were answered.
    async fn some_more(&self) {
        let enough = self.answered.load(Ordering::SeqCst) + BETWEEN;
        while self.answered.load(Ordering::SeqCst) < enough {
            tokio::task::yield_now().await;
        }
    }

    /// Sends one request after the other over connections that stay open, until it is over.
    async fn call(self: Arc<Self>, caller: usize, request: impl Fn(usize) -> String) {
        let mut connection: Option<TcpStream> = None;
        let mut turn = caller;
        for number in 0.. {
            if self.over.load(Ordering::SeqCst) {
                return;
            }
            let request = request(number);
            loop {
                let mut stream = match connection.take() {
                    Some(stream) => stream,
                    None => match TcpStream::connect(self.replica(turn)).await {
                        Ok(stream) => stream,
                        Err(_) => {
                            turn += 1;
                            tokio::task::yield_now().await;
                            continue;
                        }
                    },
                };
                match exchange(&mut stream, &request).await {
                    Some((status, stays_open)) => {
                        assert_eq!(status, 200, "request {number} of caller {caller}");
                        connection = stays_open.then_some(stream);
                        turn += 1;
                        break;
                    }
                    // Closed before a byte of the answer: it stood idle, or was not accepted any more.
                    None => turn += 1,
                }
            }
            self.answered.fetch_add(1, Ordering::SeqCst);
        }
    }
}

fn address(server: &Server) -> SocketAddr {
    server.public.trim_start_matches("http://").parse().unwrap()
}

/// The status of the answer, and whether the connection stays open; none if it was closed without a byte of one.
async fn exchange(stream: &mut TcpStream, request: &str) -> Option<(u16, bool)> {
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = Vec::new();
    loop {
        match stream.read_buf(&mut answer).await {
            Ok(0) | Err(_) if answer.is_empty() => return None,
            Ok(0) | Err(_) => panic!("an answer was cut short: {}", String::from_utf8_lossy(&answer)),
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if body.len() >= length.parse().unwrap() {
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            return Some((status, !head.contains("connection: close")));
        }
    }
}

fn post(path: &str, token: Option<&str>, body: &serde_json::Value) -> String {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let body = body.to_string();
    format!("POST {path} HTTP/1.1\r\nHost: replica\r\n{token}Content-Length: {}\r\n\r\n{body}", body.len())
}

/// Starts a new replica, asks an old one to end, and waits for that; for each of the old ones.
async fn roll(balancer: &Balancer, name: &'static str, old: Vec<Server>, config: &str) -> Vec<Server> {
    let mut new = Vec::new();
    for server in old {
        balancer.some_more().await;
        let fresh = Server::start(name, TempFolder::new(), config).await;
        balancer.replace(address(&server), address(&fresh));
        new.push(fresh);
        assert_eq!(server.stop().await.code(), Some(0));
        balancer.some_more().await;
    }
    new
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn identity_servers_are_restarted_one_after_the_other_and_no_request_fails() {
    let t = TestIdentity::start(Database::Postgres).await;
    let token = t.register("@alice:hs.test").await;
    let pepper = t.pepper(&token).await;
    let config = std::fs::read_to_string(t.server.config_file()).unwrap();
    let old = vec![t.second_replica().await, t.second_replica().await];
    let balancer = Balancer::new(&old.iter().collect::<Vec<_>>());
    let hash = waypost_tests::matrix::lookup_hash("alice@example.com", "email", &pepper);
    let body = json!({"addresses": [hash], "algorithm": "sha256", "pepper": pepper});
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let request = post("/_matrix/identity/v2/lookup", Some(&token), &body);
            tokio::spawn(balancer.clone().call(caller, move |_| request.clone()))
        })
        .collect();
    let new = roll(&balancer, IDENTITY, old, &config).await;
    balancer.over.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
    drop(new);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gateways_are_restarted_one_after_the_other_and_each_push_arrives_once() {
    let redis = RedisServer::start().await;
    let url = redis.url();
    let gateway = TestGateway::start_with(|settings, _| {
        settings
            .set("seen", "redis_url", url)
            .set("seen", "secret", "what all replicas know")
            .append("[limits]\nper_source = { burst = 0 }\nper_app = { burst = 0 }\nper_pushkey = { burst = 0 }\nper_server = { burst = 0 }\n");
    })
    .await;
    let config = std::fs::read_to_string(gateway.server.config_file()).unwrap();
    let old = vec![gateway.replica().await.server, gateway.replica().await.server];
    let balancer = Balancer::new(&old.iter().collect::<Vec<_>>());
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let request = move |number: usize| {
                let devices = json!([{"app_id": ANDROID, "pushkey": format!("phone-{caller}-{number}")}]);
                let event_id = format!("${caller}-{number}");
                let notification = json!({"event_id": event_id, "room_id": "!r:hs.test", "devices": devices});
                post("/_matrix/push/v1/notify", None, &json!({"notification": notification}))
            };
            tokio::spawn(balancer.clone().call(caller, request))
        })
        .collect();
    let new = roll(&balancer, PUSH_GATEWAY, old, &config).await;
    balancer.over.store(true, Ordering::SeqCst);
    for caller in callers {
        tokio::time::timeout(Duration::from_secs(30), caller).await.unwrap().unwrap();
    }
    drop(new);
    let pushes = gateway.fcm.pushes().len();
    assert_eq!(pushes, balancer.answered.load(Ordering::SeqCst), "each was answered, and each arrived once");
}
