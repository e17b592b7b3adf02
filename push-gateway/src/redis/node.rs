//! Connections over our own streams, so that name resolution and TLS trust follow `[outbound]`, for clusters too.

use std::{
    io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures_util::future::select_ok;
use redis::{
    AsyncConnectionConfig, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline, RedisError,
    RedisFuture, RedisResult, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterClient,
    cluster_async::{ClusterConnection, Connect},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use waypost_shared::client::Outbound;

/// Time limit for one reply, and for connecting to one server, TLS included. A push may wait this long.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);
/// Redirections (MOVED, ASK) and retries of one command in a cluster, after which it counts as unreachable.
const CLUSTER_RETRIES: u32 = 3;
/// The shortest and the longest back-off before a retry, in milliseconds.
const CLUSTER_RETRY_MS: (u64, u64) = (10, 100);

/// How to reach a cluster's nodes. The crate connects to them itself, through a trait function without state, so this
/// has to be a global. That is sound since a process uses one Redis.
static TO_CLUSTER: OnceLock<Outbound> = OnceLock::new();

/// A pipelined connection to one server. Clones share it; dropping the last one closes it.
#[derive(Clone)]
pub(super) struct Node {
    connection: MultiplexedConnection,
    // Aborts the crate's driver on drop: it would otherwise outlive the connection while a reply is due, which is
    // forever if the server is silent.
    _driver: Arc<JoinSet<()>>,
}

impl Node {
    pub(super) async fn connect(outbound: &Outbound, server: &ConnectionInfo) -> RedisResult<Self> {
        timeout(PATIENCE, Box::pin(Self::connect_patiently(outbound, server))).await.map_err(io::Error::from)?
    }

    async fn connect_patiently(outbound: &Outbound, server: &ConnectionInfo) -> RedisResult<Self> {
        match server.addr() {
            ConnectionAddr::Tcp(host, port) => Self::over(tcp(outbound, host, *port).await?, server).await,
            ConnectionAddr::TcpTls { host, port, .. } => {
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                let stream = tcp(outbound, host, *port).await?;
                let stream = TlsConnector::from(Arc::new(outbound.tls())).connect(name, stream).await?;
                Self::over(stream, server).await
            }
            _ => Err(RedisError::from((ErrorKind::InvalidClientConfig, "this kind of address is not supported"))),
        }
    }

    async fn over<S>(stream: S, server: &ConnectionInfo) -> RedisResult<Self>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        // Skip CLIENT SETINFO: nobody needs the library's name, and an ACL would have to allow the command.
        let login = server.redis_settings().clone().set_skip_set_lib_name();
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
        let (connection, driver) = MultiplexedConnection::new_with_config(&login, stream, config).await?;
        let mut driving = JoinSet::new();
        driving.spawn(driver);
        Ok(Self { connection, _driver: Arc::new(driving) })
    }
}

async fn tcp(outbound: &Outbound, host: &str, port: u16) -> io::Result<TcpStream> {
    let addresses = outbound.resolver().addresses(host).await.map_err(io::Error::other)?;
    let connecting: Vec<_> =
        addresses.into_iter().map(|address| Box::pin(TcpStream::connect((address, port)))).collect();
    if connecting.is_empty() {
        return Err(io::Error::other("the host name has no address"));
    }
    let (stream, _) = select_ok(connecting).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl ConnectionLike for Node {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        self.connection.req_packed_command(command)
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        self.connection.req_packed_commands(pipeline, offset, count)
    }

    fn get_db(&self) -> i64 {
        self.connection.get_db()
    }
}

impl Connect for Node {
    fn connect_with_config<'a, T>(server: T, _: AsyncConnectionConfig) -> RedisFuture<'a, Self>
    where
        T: IntoConnectionInfo + Send + 'a,
    {
        Box::pin(async move {
            let server = server.into_connection_info()?;
            let outbound = TO_CLUSTER.get().ok_or((ErrorKind::Client, "there is no way to the cluster"))?;
            Self::connect(outbound, &server).await
        })
    }
}

/// Discovers a cluster's topology from the first of `seeds` that answers, and connects to its masters.
pub(super) async fn cluster(outbound: &Outbound, seeds: &[ConnectionInfo]) -> RedisResult<ClusterConnection<Node>> {
    TO_CLUSTER.get_or_init(|| outbound.clone());
    let (shortest_ms, longest_ms) = CLUSTER_RETRY_MS;
    let client = ClusterClient::builder(seeds.iter().cloned())
        .response_timeout(PATIENCE)
        .connection_timeout(PATIENCE)
        .retries(CLUSTER_RETRIES)
        .min_retry_wait(shortest_ms)
        .max_retry_wait(longest_ms)
        .build()?;
    client.get_async_generic_connection().await
}
