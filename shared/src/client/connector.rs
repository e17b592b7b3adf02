//! From a URI to a TCP connection: the name is resolved here, each address is checked, and the connection goes to the
//! address that was checked, through the proxy if there is one.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt,
    io::{self, IoSlice},
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper_util::{
    client::legacy::connect::{self, Connection},
    rt::TokioIo,
};
use ipnet::IpNet;
use parking_lot::RwLock;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tower_service::Service;

use super::{
    address::is_public,
    load::{Connected, Crowded, OriginLoad},
    proxy::{Proxy, TunnelError},
};
use crate::client::resolver::Resolver;

/// How long one address may take to accept a connection before the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where to connect for an authority, when not to the authority itself: SRV records, static overrides. TLS and `Host`
/// keep the authority's own name. Copies share their content.
#[derive(Clone, Debug, Default)]
pub struct Targets(Arc<RwLock<HashMap<String, Vec<HostPort>>>>);

/// A host and its port.
type HostPort = (String, u16);

impl Targets {
    /// Strangers choose the names, so their number is bounded.
    const MOST: usize = 10_000;

    /// Sends connections for `authority` to the first of `targets` (host and port) that accepts.
    pub fn set(&self, authority: &str, targets: Vec<HostPort>) {
        let mut all = self.0.write();
        if all.len() >= Self::MOST {
            all.clear();
        }
        all.insert(authority.to_ascii_lowercase(), targets);
    }

    fn get(&self, authority: &str) -> Option<Vec<HostPort>> {
        let all = self.0.read();
        all.get(&authority.to_ascii_lowercase()).cloned()
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("the address is not public and not in outbound.allowed_ranges")]
    Blocked,
    #[error("the name has no address")]
    NoAddress,
    #[error("the name could not be resolved")]
    Resolve(#[source] hickory_resolver::net::NetError),
    #[error("the connection was not accepted")]
    Io(#[from] io::Error),
    #[error("the proxy cannot be reached")]
    Proxy(#[source] Box<ConnectError>),
    #[error("there is no way through the proxy")]
    Tunnel(#[from] TunnelError),
    #[error(transparent)]
    Crowded(#[from] Crowded),
}

/// Why a connection could not be made, for whoever has to fix it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFailure {
    /// The name has no address, or nobody could say which.
    Name,
    /// The name has no address that may be reached.
    Blocked,
    /// Nobody accepted in time.
    Network,
    /// The proxy is away, or opens no tunnel.
    Proxy,
    /// The peer's certificate is not to be trusted.
    Certificate,
    /// TLS, for another reason.
    Tls,
    /// Too many requests to the address are under way.
    Crowded,
}

impl ConnectFailure {
    fn of(error: &(dyn StdError + 'static)) -> Self {
        // Those of TCP are a `ConnectError`'s, so that one on the outside is of the handshake.
        let fallback = if error.is::<io::Error>() { Self::Tls } else { Self::Network };
        let mut cause = Some(error);
        while let Some(error) = cause {
            match error.downcast_ref() {
                Some(ConnectError::Blocked) => return Self::Blocked,
                Some(ConnectError::NoAddress | ConnectError::Resolve(_)) => return Self::Name,
                Some(ConnectError::Io(_)) => return Self::Network,
                Some(ConnectError::Crowded(_)) => return Self::Crowded,
                Some(ConnectError::Proxy(_) | ConnectError::Tunnel(_)) => return Self::Proxy,
                None => {}
            }
            match error.downcast_ref() {
                Some(rustls::Error::InvalidCertificate(_)) => return Self::Certificate,
                Some(_) => return Self::Tls,
                None => {}
            }
            // What is inside an error of the system is not its source.
            cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inside) => Some(inside as &(dyn StdError + 'static)),
                None => error.source(),
            };
        }
        fallback
    }
}

/// Why there is no connection. Those that waited for it share the reason.
#[derive(Clone, Debug)]
pub(super) struct NoConnection {
    pub(super) failure: ConnectFailure,
    error: Arc<dyn StdError + Send + Sync>,
}

impl NoConnection {
    pub(super) fn new(error: Box<dyn StdError + Send + Sync>) -> Self {
        Self { failure: ConnectFailure::of(&*error), error: error.into() }
    }
}

impl fmt::Display for NoConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl StdError for NoConnection {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

/// Resolves, checks, connects.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) resolver: Resolver,
    /// The ranges that are allowed beside public addresses; none is no guard at all.
    pub(super) guard: Option<Arc<[IpNet]>>,
    pub(super) targets: Option<Targets>,
    pub(super) proxy: Option<Proxy>,
    /// The requests of the origin that is connected to, where they are counted by address.
    pub(super) load: Option<Arc<OriginLoad>>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move { connector.connect(&uri).await.map(TokioIo::new) })
    }
}

impl Connector {
    async fn connect(&self, uri: &Uri) -> Result<Stream, ConnectError> {
        let authority = uri.authority().ok_or(ConnectError::NoAddress)?;
        let elsewhere = self.targets.as_ref().and_then(|targets| targets.get(authority.as_str()));
        let targets = elsewhere.unwrap_or_else(|| {
            let default_port = if uri.scheme_str() == Some("http") { 80 } else { 443 };
            vec![(authority.host().to_owned(), authority.port_u16().unwrap_or(default_port))]
        });
        let mut last = ConnectError::NoAddress;
        for (host, port) in targets {
            match self.connect_to(&host, port).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, host: &str, port: u16) -> Result<Stream, ConnectError> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let proxy = self.proxy.as_ref().filter(|proxy| !proxy.spares(host));
        if let Some(proxy) = proxy
            && self.guard.is_none()
        {
            // What the operator named may be a name that only the proxy knows.
            let target = match self.resolver.fixed(host) {
                Some(address) => SocketAddr::new(address, port).to_string(),
                None => format!("{host}:{port}"),
            };
            return Ok(Stream { tcp: self.through(proxy, &target).await?, _connected: None });
        }
        let mut last = ConnectError::NoAddress;
        for address in self.resolver.addresses(host).await.map_err(ConnectError::Resolve)? {
            if !self.may_reach(address) {
                last = ConnectError::Blocked;
                continue;
            }
            // Before the connection is there: one that is never accepted keeps requests waiting too.
            let counted = match self.load.as_ref().map(|load| load.connect(address)).transpose() {
                Ok(counted) => counted,
                Err(crowded) => {
                    last = crowded.into();
                    continue;
                }
            };
            let place = SocketAddr::new(address, port);
            let connected = match proxy.filter(|proxy| !proxy.spares_address(address)) {
                // By the address that was checked: what the proxy would make of the name is not known here.
                Some(proxy) => self.through(proxy, &place.to_string()).await,
                None => self.directly(place).await,
            };
            match connected {
                Ok(tcp) => return Ok(Stream { tcp, _connected: counted }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn directly(&self, place: SocketAddr) -> Result<TcpStream, ConnectError> {
        let stream = tcp(place).await?;
        // The peer is the address that was checked; a translating network is asked once more.
        if self.may_reach(stream.peer_addr()?.ip()) { Ok(stream) } else { Err(ConnectError::Blocked) }
    }

    /// A tunnel to `target`. The operator chose the proxy, so that the guard has no say about its own address.
    pub(super) async fn through(&self, proxy: &Proxy, target: &str) -> Result<TcpStream, ConnectError> {
        let unreachable = |error: ConnectError| ConnectError::Proxy(Box::new(error));
        let addresses = self.resolver.addresses(&proxy.host).await;
        let mut last = ConnectError::NoAddress;
        for address in addresses.map_err(|error| unreachable(ConnectError::Resolve(error)))? {
            match tcp(SocketAddr::new(address, proxy.port)).await {
                Ok(mut stream) => {
                    let tunnel = timeout(CONNECT_TIMEOUT, proxy.tunnel(&mut stream, target)).await;
                    tunnel.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(unreachable(last))
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        let Some(allowed) = &self.guard else { return true };
        let address = address.to_canonical();
        allowed.iter().any(|range| range.contains(&address)) || is_public(address)
    }
}

/// A connection that counts for its address as long as it is open.
#[derive(Debug)]
pub(super) struct Stream {
    tcp: TcpStream,
    _connected: Option<Connected>,
}

impl Connection for Stream {
    fn connected(&self) -> connect::Connected {
        self.tcp.connected()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(context)
    }
}

/// A connection that sends what it is given at once.
async fn tcp(place: SocketAddr) -> Result<TcpStream, ConnectError> {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(place)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
