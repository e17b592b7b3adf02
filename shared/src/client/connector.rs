//! From a URI to a TCP connection: resolves the name, checks every address, and connects to the address that was
//! checked, through the proxy if one is configured.

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

/// Time that one address has to accept a connection before the next is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Targets of one authority that are tried. A stranger's SRV records may name thousands, at anybody's addresses.
const MOST_TARGETS: usize = 6;
/// Addresses of one target that are tried.
const MOST_ADDRESSES: usize = 4;
/// Connection attempts for one request, over all targets and addresses.
const MOST_ATTEMPTS: usize = 8;

/// Connection targets for authorities that differ from the authority itself: SRV records, static overrides. TLS and
/// `Host` still use the authority's own name. Clones share their data.
#[derive(Clone, Debug, Default)]
pub struct Targets(Arc<RwLock<HashMap<String, Vec<HostPort>>>>);

/// A host and its port.
type HostPort = (String, u16);

impl Targets {
    /// Strangers choose the names, so their number is limited.
    const MOST: usize = 10_000;

    /// Makes connections for `authority` go to the first of `targets` (host and port) that accepts.
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

/// Why connecting failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("the address is neither public nor in outbound.allowed_ranges")]
    Blocked,
    #[error("the name has no address")]
    NoAddress,
    #[error("the name could not be resolved")]
    Resolve(#[source] hickory_resolver::net::NetError),
    #[error("the connection could not be opened")]
    Io(#[from] io::Error),
    #[error("the proxy cannot be reached")]
    Proxy(#[source] Box<ConnectError>),
    #[error("no tunnel through the proxy")]
    Tunnel(#[from] TunnelError),
    #[error(transparent)]
    Crowded(#[from] Crowded),
}

/// Why connecting failed, for whoever has to fix it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectFailure {
    /// The name has no addresses, or could not be resolved.
    Name,
    /// The name has no address that may be reached.
    Blocked,
    /// No address accepted in time.
    Network,
    /// The proxy is unreachable, or opened no tunnel.
    Proxy,
    /// The peer's certificate is not trusted.
    Certificate,
    /// TLS failed for another reason.
    Tls,
    /// Too many requests to the address are in flight.
    Crowded,
}

impl ConnectFailure {
    fn of(error: &(dyn StdError + 'static)) -> Self {
        // TCP errors arrive wrapped in a `ConnectError`, so a bare I/O error comes from the TLS handshake.
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
            // `io::Error` does not report its inner error as its source.
            cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inside) => Some(inside as &(dyn StdError + 'static)),
                None => error.source(),
            };
        }
        fallback
    }
}

/// Why there is no connection. All requests that waited for it share the reason.
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

/// Resolves, checks and connects.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) resolver: Resolver,
    /// Ranges that are allowed in addition to public addresses; `None` disables the guard.
    pub(super) guard: Option<Arc<[IpNet]>>,
    pub(super) targets: Option<Targets>,
    pub(super) proxy: Option<Proxy>,
    /// The request counts of the origin being connected to, if requests are limited by address.
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
        let (mut last, mut attempts) = (ConnectError::NoAddress, MOST_ATTEMPTS);
        for (host, port) in targets.into_iter().take(MOST_TARGETS) {
            match self.connect_to(&host, port, &mut attempts).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
            if attempts == 0 {
                break;
            }
        }
        Err(last)
    }

    /// Connects to the first address of `host` that accepts. Takes each attempt from `attempts`.
    async fn connect_to(&self, host: &str, port: u16, attempts: &mut usize) -> Result<Stream, ConnectError> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let proxy = self.proxy.as_ref().filter(|proxy| !proxy.spares(host));
        if let Some(proxy) = proxy
            && self.guard.is_none()
        {
            // A name chosen by the operator may be one that only the proxy can resolve.
            let target = match self.resolver.fixed(host) {
                Some(address) => SocketAddr::new(address, port).to_string(),
                None => format!("{host}:{port}"),
            };
            return Ok(Stream { tcp: self.through(proxy, &target).await?, _connected: None });
        }
        let mut last = ConnectError::NoAddress;
        for address in
            self.resolver.addresses(host).await.map_err(ConnectError::Resolve)?.into_iter().take(MOST_ADDRESSES)
        {
            if *attempts == 0 {
                break;
            }
            *attempts -= 1;
            if !self.may_reach(address) {
                last = ConnectError::Blocked;
                continue;
            }
            // Counted before the connection exists: requests also wait for connections that are never accepted.
            let counted = match self.load.as_ref().map(|load| load.connect(address)).transpose() {
                Ok(counted) => counted,
                Err(crowded) => {
                    last = crowded.into();
                    continue;
                }
            };
            let place = SocketAddr::new(address, port);
            let connected = match proxy.filter(|proxy| !proxy.spares_address(address)) {
                // By the checked address: how the proxy would resolve the name is unknown here.
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
        // The peer should be the address that was checked; checked again in case the network translates addresses.
        if self.may_reach(stream.peer_addr()?.ip()) { Ok(stream) } else { Err(ConnectError::Blocked) }
    }

    /// A tunnel to `target`. The guard does not apply to the proxy's own address, which the operator chose.
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

/// A connection that counts towards its address for as long as it is open.
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

/// A TCP connection without Nagle's algorithm.
async fn tcp(place: SocketAddr) -> Result<TcpStream, ConnectError> {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(place)).await;
    let stream = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
