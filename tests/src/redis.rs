//! Real Redis servers on free ports: a single one, a pair watched by Sentinel, or a cluster.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::ca::Ca;
use crate::process::{TempFolder, eventually, text};
use crate::record::{PATIENCE, Record};

/// A user with exactly the permissions that docs/push-gateway.md says the gateway needs.
pub const USER: &str = "user push on >swordfish ~waypost:* -@all +set +get +del +eval";

/// A Sentinel user that may only ask for the master.
pub const SENTINEL_USER: &str = "user asker on >halibut -@all +sentinel|get-master-addr-by-name";

/// Sentinel's name for the pair of servers.
pub const SERVICE: &str = "main";

/// A running server or Sentinel, killed on drop.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    /// The port for other nodes of a cluster.
    bus_port: u16,
    is_tls: bool,
    is_sentinel: bool,
    folder: TempFolder,
    child: Child,
}

impl RedisServer {
    /// Starts a server without persistence.
    ///
    /// # Panics
    ///
    /// If Redis is not installed, or not ready within 30 s.
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// The same with extra configuration lines.
    pub async fn start_with(config: &str) -> Self {
        Self::configured(config, None, false).await
    }

    /// Starts a server that only accepts TLS, with a certificate for 127.0.0.1 issued by `ca`.
    pub async fn start_tls(ca: &Ca, config: &str) -> Self {
        Self::configured(config, Some(ca), false).await
    }

    async fn configured(config: &str, ca: Option<&Ca>, is_sentinel: bool) -> Self {
        let (port, bus_port) = (free_port(), free_port());
        let folder = TempFolder::new();
        let mut lines = format!("bind 127.0.0.1\n{config}\n");
        if !is_sentinel {
            lines.push_str("save \"\"\nappendonly no\n");
            // Only used by cluster nodes. The default, 10,000 above the other port, may not be a valid port.
            writeln!(lines, "cluster-port {bus_port}").unwrap();
        }
        match ca {
            None => writeln!(lines, "port {port}").unwrap(),
            Some(ca) => {
                let (certificate, key) = ca.node_certificate("127.0.0.1");
                let certificate = text(&folder.write("server.pem", &certificate));
                let key = text(&folder.write("server.key", &key));
                let root = text(&ca.write(folder.path()));
                writeln!(lines, "port 0\ntls-port {port}\ntls-cluster yes\ntls-auth-clients no").unwrap();
                writeln!(lines, "tls-cert-file {certificate}\ntls-key-file {key}\ntls-ca-cert-file {root}").unwrap();
            }
        }
        folder.write("redis.conf", &lines);
        let child = spawn(&folder, is_sentinel).await;
        Self { port, bus_port, is_tls: ca.is_some(), is_sentinel, folder, child }
    }

    /// The value for `seen.redis_url`.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.is_tls { "rediss" } else { "redis" }, self.address())
    }

    /// Its address and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Freezes it: its connections stay open, but nothing is answered.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Unfreezes it.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        // `kill` is a shell built-in; the program of that name may not be installed.
        let script = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success(), "{script}");
    }

    /// Restarts it, empty, on the same port. A cluster node still knows its cluster.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = spawn(&self.folder, self.is_sentinel).await;
    }

    /// Runs a command with `redis-cli` and returns the answer.
    pub fn ask(&self, command: &[&str]) -> String {
        let mut cli = Command::new("redis-cli");
        cli.args(["-p", &self.port.to_string()]);
        if self.is_tls {
            cli.arg("--tls").arg("--cacert").arg(self.folder.path().join("test-root.pem"));
        }
        let output = cli.args(command).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Repeats a command until the answer contains `expected`.
    ///
    /// # Panics
    ///
    /// If it does not within 30 s.
    pub async fn ask_until(&self, command: &[&str], expected: &str) {
        let answered = async || {
            // `redis-cli` runs synchronously, so without this the time-out would never be polled.
            tokio::task::yield_now().await;
            self.ask(command).contains(expected).then_some(())
        };
        eventually(PATIENCE, &format!("{expected} from {command:?}"), answered).await;
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A master, its replica, and three Sentinels that watch them.
#[derive(Debug)]
pub struct SentinelPair {
    /// The master, until it is killed.
    pub master: RedisServer,
    /// The replica, which becomes the master.
    pub replica: RedisServer,
    sentinels: Vec<RedisServer>,
}

impl SentinelPair {
    /// Starts them, with [`USER`] and [`SENTINEL_USER`], and waits until they know each other.
    pub async fn start() -> Self {
        let master = RedisServer::start_with(USER).await;
        let replica = RedisServer::start_with(&format!("{USER}\nreplicaof 127.0.0.1 {}", master.port)).await;
        master.ask_until(&["info", "replication"], "state=online").await;
        let config = format!(
            "{SENTINEL_USER}\nsentinel monitor {SERVICE} 127.0.0.1 {} 2\n\
             sentinel down-after-milliseconds {SERVICE} 1000\nsentinel failover-timeout {SERVICE} 5000\n",
            master.port
        );
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(RedisServer::configured(&config, None, true).await);
        }
        for sentinel in &sentinels {
            sentinel.ask_until(&["sentinel", "ckquorum", SERVICE], "OK 3 usable").await;
            sentinel.ask_until(&["sentinel", "replicas", SERVICE], &replica.port.to_string()).await;
        }
        Self { master, replica, sentinels }
    }

    /// The value for `seen.redis_url`.
    pub fn url(&self) -> String {
        let sentinels = addresses(&self.sentinels);
        format!("redis+sentinel://push:swordfish@{sentinels}/{SERVICE}?sentinel_user=asker&sentinel_password=halibut")
    }
}

/// Three masters that share the slots.
#[derive(Debug)]
pub struct Cluster {
    /// The masters.
    pub nodes: Vec<RedisServer>,
}

impl Cluster {
    /// Starts one with [`USER`], which may also query the slots, and waits until it is ready.
    pub async fn start(ca: Option<&Ca>) -> Self {
        let config = format!("{USER} +ping +cluster|slots\ncluster-enabled yes\ncluster-node-timeout 2000\n");
        let mut nodes = Vec::new();
        for _ in 0..3 {
            nodes.push(RedisServer::configured(&config, ca, false).await);
        }
        for (node, (first, last)) in nodes.iter().zip([("0", "5460"), ("5461", "10922"), ("10923", "16383")]) {
            node.ask(&["cluster", "addslotsrange", first, last]);
        }
        for node in &nodes[1..] {
            let (port, bus_port) = (node.port.to_string(), node.bus_port.to_string());
            nodes[0].ask(&["cluster", "meet", "127.0.0.1", &port, &bus_port]);
        }
        for node in &nodes {
            node.ask_until(&["cluster", "info"], "cluster_state:ok").await;
            node.ask_until(&["cluster", "info"], "cluster_slots_ok:16384").await;
        }
        Self { nodes }
    }

    /// Starts migrating most of the first master's slots, with their keys, to the second one.
    pub fn reshard(&self) -> Child {
        let [from, to] = [0, 1].map(|node: usize| self.nodes[node].ask(&["cluster", "myid"]).trim().to_owned());
        Command::new("redis-cli")
            .args(["--cluster", "reshard", &self.nodes[0].address(), "--cluster-slots", "5000", "--cluster-yes"])
            .args(["--cluster-from", &from, "--cluster-to", &to])
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// The value for `seen.redis_url`, with two of the nodes as seeds.
    pub fn url(&self) -> String {
        let scheme = if self.nodes[0].is_tls { "rediss" } else { "redis" };
        format!("{scheme}+cluster://push:swordfish@{}", addresses(&self.nodes[..2]))
    }
}

fn addresses(servers: &[RedisServer]) -> String {
    servers.iter().map(RedisServer::address).collect::<Vec<_>>().join(",")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

async fn spawn(folder: &TempFolder, is_sentinel: bool) -> Child {
    let mut child = Command::new("redis-server")
        .arg(folder.path().join("redis.conf"))
        .args(is_sentinel.then_some("--sentinel"))
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|err| panic!("redis-server cannot be started ({err}). ./tests/run installs it"));
    let lines = Arc::new(Record::default());
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn({
        let lines = Arc::clone(&lines);
        move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lines.push(line);
            }
        }
    });
    let ready = if is_sentinel { "Sentinel ID is" } else { "Ready to accept connections" };
    lines.wait_for("redis-server to be ready", |line: &String| line.contains(ready)).await;
    child
}
