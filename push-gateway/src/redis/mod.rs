//! The client of Redis and Valkey: one shared, pipelined connection that fails fast while the server is unreachable.
//!
//! The `redis` crate speaks the protocol: to a single server, to the master that Sentinel names, or to a cluster. This
//! module adds how connections are made (`[outbound]`) and what happens during an outage (docs/decisions/0006).

mod address;
mod node;

use std::{convert::Infallible, fmt, io, time::Duration};

use futures_util::future::{select_ok, try_join_all};
use prometheus_client::metrics::gauge::Gauge;
use redis::{
    Cmd, ErrorKind, FromRedisValue, RedisError, RedisResult, Value, cluster_async::ClusterConnection, cmd,
    from_redis_value,
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use waypost_shared::client::{Outbound, retry::Backoff};

pub(crate) use self::address::Address;
use self::{
    address::Sentinel,
    node::{Node, PATIENCE},
};

/// Time limit for one connection attempt, which may involve several servers. No push waits this long.
const ATTEMPT: Duration = Duration::from_secs(5);
/// Back-off between connection attempts.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };
/// The back-off is reset only if the connection failed later than this after the attempt began.
const HELD: Duration = Duration::from_secs(10);
/// Interval of health probes, so that the metric is correct without traffic too.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Prefix of the keys that a probe writes; a number follows.
const PROBE: &str = "waypost:probe:";
/// Keys that a probe writes in a cluster: enough to reach each shard of a typical cluster.
const CLUSTER_PROBES: u32 = 16;

/// The shared connection; clones use the same one.
#[derive(Clone)]
pub(crate) struct Redis {
    address: Address,
    outbound: Outbound,
    up: Gauge,
    link: watch::Sender<Link>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("address", &self.address).finish_non_exhaustive()
    }
}

/// The state of the connection, as commands see it.
enum Link {
    /// The first connection attempt is running. Commands wait for it, so that the first pushes after a start are not
    /// sent twice; once one command has waited for [`PATIENCE`], the link counts as down.
    Starting,
    Up(Session),
    /// Commands fail at once.
    Down,
}

/// A connection, from when it is established until its first failure.
#[derive(Clone)]
struct Session {
    connection: Connection,
    failure: mpsc::Sender<RedisError>,
}

#[derive(Clone)]
enum Connection {
    Node(Node),
    Cluster(ClusterConnection<Node>),
}

impl Connection {
    async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::Node(node) => command.query_async(node).await,
            Self::Cluster(cluster) => command.query_async(cluster).await,
        }
    }

    /// Checks that the server accepts writes; a read-only replica, or a server that is out of memory, would still
    /// answer a PING.
    async fn probe(&self) -> RedisResult<()> {
        let keys = match self {
            Self::Node(_) => 1,
            Self::Cluster(_) => CLUSTER_PROBES,
        };
        let writes = (0..keys).map(|key| {
            let mut connection = self.clone();
            let mut write = cmd("SET");
            write.arg(format!("{PROBE}{key}")).arg("").arg("PX").arg(1000);
            async move { connection.query::<()>(&write).await }
        });
        try_join_all(writes).await.map(drop)
    }
}

impl Redis {
    /// Opens no connection yet. `up` is 1 while connected, else 0.
    pub(crate) fn new(address: Address, outbound: Outbound, up: Gauge) -> Self {
        Self { address, outbound, up, link: watch::Sender::new(Link::Starting) }
    }

    /// Starts the task that connects, and reconnects for as long as the process runs. Call once.
    pub(crate) fn connect(&self) {
        let redis = self.clone();
        tokio::spawn(async move { redis.supervise().await });
    }

    /// Runs a command. None while the server is unreachable, or if it rejects the command.
    pub(crate) async fn call<T: FromRedisValue>(&self, command: &Cmd) -> Option<T> {
        let mut session = self.session().await?;
        match session.connection.query::<Value>(command).await {
            Ok(reply) => from_redis_value(reply).ok(),
            Err(error) => {
                // If the channel is full or closed, another command has reported a failure of this session.
                drop(session.failure.try_send(error));
                None
            }
        }
    }

    /// Runs a command in the background, for its effect.
    pub(crate) fn post(&self, command: Cmd) {
        let redis = self.clone();
        // Without a runtime the process is shutting down; a lease that is not released expires.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { redis.call::<Value>(&command).await });
        }
    }

    async fn session(&self) -> Option<Session> {
        let mut link = self.link.subscribe();
        if timeout(PATIENCE, link.wait_for(|link| !matches!(link, Link::Starting))).await.is_err() {
            self.link.send_if_modified(|link| {
                let is_starting = matches!(link, Link::Starting);
                if is_starting {
                    *link = Link::Down;
                }
                is_starting
            });
        }
        match &*self.link.borrow() {
            Link::Up(session) => Some(session.clone()),
            Link::Starting | Link::Down => None,
        }
    }

    async fn supervise(self) {
        let (mut failures, mut is_reported) = (0_u32, false);
        loop {
            let started = Instant::now();
            let Err(error) = Box::pin(self.run_session(&mut is_reported)).await;
            self.up.set(0);
            self.link.send_replace(Link::Down);
            if !is_reported {
                is_reported = true;
                let error = reason(&error);
                tracing::warn!(%error, "Redis is unreachable; relying on local memory and reconnecting");
            }
            // Retry quickly only if the connection had held for a while.
            if started.elapsed() > HELD {
                failures = 0;
            }
            sleep(BACKOFF.delay(failures)).await;
            failures = failures.saturating_add(1);
        }
    }

    /// Connects and probes until the connection fails.
    async fn run_session(&self, is_reported: &mut bool) -> Result<Infallible, RedisError> {
        let connecting = async {
            let connection = self.open().await?;
            connection.probe().await?;
            Ok::<_, RedisError>(connection)
        };
        let connection = timeout(ATTEMPT, connecting).await.map_err(io::Error::from)??;
        let (failure, mut failed) = mpsc::channel(1);
        self.up.set(1);
        self.link.send_replace(Link::Up(Session { connection: connection.clone(), failure }));
        if *is_reported {
            *is_reported = false;
            tracing::info!("Redis is back; sharing deliveries and dead pushkeys again");
        }
        loop {
            tokio::select! {
                Some(error) = failed.recv() => return Err(error),
                () = sleep(PROBE_INTERVAL) => connection.probe().await?,
            }
        }
    }

    async fn open(&self) -> RedisResult<Connection> {
        let Self { address, outbound, .. } = self;
        Ok(match address {
            Address::Server(server) => Connection::Node(Node::connect(outbound, server).await?),
            Address::Sentinel(sentinel) => Connection::Node(master(outbound, sentinel).await?),
            Address::Cluster(seeds) => Connection::Cluster(node::cluster(outbound, seeds).await?),
        })
    }
}

/// Connects to the master that the first Sentinel to answer names. If it has been demoted meanwhile, the probe fails.
async fn master(outbound: &Outbound, sentinel: &Sentinel) -> RedisResult<Node> {
    let unknown = || RedisError::from((ErrorKind::MasterNameNotFoundBySentinel, "Sentinel knows no such service"));
    let asking = sentinel.sentinels.iter().map(|server| {
        let ask = async move {
            let mut question = cmd("SENTINEL");
            question.arg("GET-MASTER-ADDR-BY-NAME").arg(&sentinel.service);
            let mut node = Node::connect(outbound, server).await?;
            question.query_async::<Option<(String, u16)>>(&mut node).await?.ok_or_else(unknown)
        };
        Box::pin(ask)
    });
    let ((host, port), _) = select_ok(asking).await?;
    Node::connect(outbound, &sentinel.master(host, port).ok_or_else(unknown)?).await
}

/// Describes a failure for the log. Of a server's error only the code is shown: the rest may quote the command.
fn reason(error: &RedisError) -> String {
    match error.code() {
        Some(code) => format!("the server answered {}", code.chars().take(32).collect::<String>()),
        None if error.is_io_error() => error.to_string(),
        None => error.category().to_owned(),
    }
}

#[cfg(test)]
mod tests;
