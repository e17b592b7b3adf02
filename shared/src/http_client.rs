//! Calling out: one client, with a guard for addresses that strangers choose.
//!
//! A name is resolved here, each address is checked, and the connection goes to the address that was checked, so a
//! name that resolves differently the next time gains nothing. Redirects are never followed by this client.

use std::{
    collections::HashMap,
    error::Error as StdError,
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, RwLock},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde::Deserialize;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tower_service::Service;

use crate::{
    config_file::{ConfigError, Source},
    http::causes,
    resolver::Resolver,
};

/// How long one address may take to accept a connection before the next one is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The section `[outbound]`: how other servers are reached.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OutboundConfig {
    /// Address ranges that are reached although they are not public, such as `127.0.0.0/8`. Default none.
    pub allowed_ranges: Vec<IpNet>,
    /// A PEM file of root certificates, trusted beside the system's. Default none.
    pub extra_ca_file: Option<PathBuf>,
    /// Name servers to ask, `address:port`. Default those of the system.
    pub dns_servers: Vec<SocketAddr>,
    /// Names that are answered from here and not by DNS, `"name" = "address"`. Default none.
    pub hosts: HashMap<String, IpAddr>,
}

impl OutboundConfig {
    /// What the types cannot tell: whether the file of certificates can be used.
    #[must_use]
    pub fn problems(&self, source: &Source) -> Vec<ConfigError> {
        let Err(error) = extra_roots(self) else { return Vec::new() };
        let problem = match causes(&error) {
            causes if causes.is_empty() => error.to_string(),
            causes => format!("{error}: {causes}"),
        };
        vec![source.error("outbound.extra_ca_file", problem)]
    }
}

/// The client could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// A certificate file cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// As configured.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// There are no certificates in the file.
    #[error("{0} holds no PEM certificate")]
    NoCertificate(String),
    /// A client certificate or its key is not what it should be.
    #[error("the client certificate or its key cannot be used: {0}")]
    ClientCertificate(String),
    /// The resolver's configuration cannot be read.
    #[error("the name servers' configuration cannot be read")]
    Resolver(#[source] hickory_resolver::net::NetError),
}

/// Which addresses a client may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All: for what the operator configured.
    Anywhere,
    /// Public ones and the configured ranges: for what a stranger named.
    PublicOnly,
}

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
        let mut all = self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if all.len() >= Self::MOST {
            all.clear();
        }
        all.insert(authority.to_ascii_lowercase(), targets);
    }

    fn get(&self, authority: &str) -> Option<Vec<HostPort>> {
        let all = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        all.get(&authority.to_ascii_lowercase()).cloned()
    }
}

/// What all clients of the process share: trust, name servers, allowed ranges.
#[derive(Clone)]
pub struct Outbound {
    tls: ClientConfig,
    roots: Arc<RootCertStore>,
    resolver: Resolver,
    allowed: Arc<[IpNet]>,
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl Outbound {
    /// Reads the trusted roots (the system's, or those of `SSL_CERT_FILE`, and the extra ones) and sets up DNS.
    ///
    /// # Errors
    ///
    /// [`OutboundError`] that names the file.
    pub fn new(config: &OutboundConfig) -> Result<Self, OutboundError> {
        let roots = Arc::new(roots(config)?);
        let tls = ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
        let hosts = config.hosts.iter().map(|(name, address)| (name.to_ascii_lowercase(), *address)).collect();
        let resolver = Resolver::new(&config.dns_servers, hosts).map_err(OutboundError::Resolver)?;
        Ok(Self { tls, roots, resolver, allowed: config.allowed_ranges.clone().into() })
    }

    /// The resolver, for SRV records.
    #[must_use]
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// What TLS is spoken with, for protocols other than HTTP.
    #[must_use]
    pub fn tls(&self) -> ClientConfig {
        self.tls.clone()
    }

    /// A client with its own pool of connections.
    #[must_use]
    pub fn client(&self, reach: Reach) -> HttpClient {
        self.build(self.tls.clone(), reach, None)
    }

    /// A client that connects to `targets` where they name other hosts than the URI does.
    #[must_use]
    pub fn client_with_targets(&self, reach: Reach, targets: Targets) -> HttpClient {
        self.build(self.tls.clone(), reach, Some(targets))
    }

    /// A client that shows a certificate (PEM chain and PEM key), and reaches any address.
    ///
    /// # Errors
    ///
    /// [`OutboundError::ClientCertificate`] when they are no PEM or do not belong together.
    pub fn client_with_certificate(&self, chain: &[u8], key: &[u8]) -> Result<HttpClient, OutboundError> {
        let bad = |error: &dyn fmt::Display| OutboundError::ClientCertificate(error.to_string());
        let chain =
            CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().map_err(|error| bad(&error))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| bad(&error))?;
        let tls = ClientConfig::builder()
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad(&error))?;
        Ok(self.build(tls, Reach::Anywhere, None))
    }

    fn build(&self, tls: ClientConfig, reach: Reach, targets: Option<Targets>) -> HttpClient {
        let connector = Connector {
            resolver: self.resolver.clone(),
            guard: match reach {
                Reach::Anywhere => None,
                Reach::PublicOnly => Some(self.allowed.clone()),
            },
            targets,
        };
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(connector);
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .pool_max_idle_per_host(32)
            .http2_keep_alive_interval(Duration::from_secs(30))
            .http2_keep_alive_timeout(Duration::from_secs(10))
            .build(https);
        HttpClient { client }
    }
}

fn roots(config: &OutboundConfig) -> Result<RootCertStore, OutboundError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(system.certs);
    roots.add_parsable_certificates(extra_roots(config)?);
    if roots.is_empty() {
        tracing::warn!(
            "no root certificates were found, so no TLS server can be trusted: install ca-certificates, or set SSL_CERT_FILE or outbound.extra_ca_file"
        );
    }
    Ok(roots)
}

/// The certificates of the extra file, if one is configured.
fn extra_roots(config: &OutboundConfig) -> Result<Vec<CertificateDer<'static>>, OutboundError> {
    let Some(path) = &config.extra_ca_file else { return Ok(Vec::new()) };
    let name = path.display().to_string();
    let pem = match fs::read(path) {
        Ok(pem) => pem,
        Err(source) => return Err(OutboundError::Unreadable { path: name, source }),
    };
    let extra: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
    let (good, _) = RootCertStore::empty().add_parsable_certificates(extra.iter().cloned());
    if good == 0 { Err(OutboundError::NoCertificate(name)) } else { Ok(extra) }
}

/// Bounds of one call.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// For the whole call, from the name to the last byte of the body.
    pub timeout: Duration,
    /// Bytes of the answer's body at the most.
    pub max_body: usize,
}

/// A call that got no answer. Neither text names the URL: it may hold a pushkey or a token.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    /// The name has no address that this client may reach.
    #[error("the address is not one that this server may connect to")]
    Blocked,
    /// No answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The answer's body is larger than allowed.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// No connection: name, network or TLS. The request did not leave.
    #[error("cannot connect")]
    Connect(#[source] Box<dyn StdError + Send + Sync>),
    /// The connection broke while the request or its answer was under way.
    #[error("the connection broke")]
    Exchange(#[source] Box<dyn StdError + Send + Sync>),
}

impl HttpClientError {
    /// Whether the peer may have seen the request.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::Blocked | Self::Connect(_) => false,
            Self::Timeout(_) | Self::TooLarge(_) | Self::Exchange(_) => true,
        }
    }
}

/// Sends requests. Copies share one pool of connections; HTTP/2 where the peer offers it.
#[derive(Clone)]
pub struct HttpClient {
    client: Client<HttpsConnector<Connector>, Full<Bytes>>,
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpClient")
    }
}

impl HttpClient {
    /// Sends a request (absolute URI) and reads the whole answer. Redirects come back as they are.
    ///
    /// # Errors
    ///
    /// [`HttpClientError`]; any answer, whatever its status, is not an error.
    pub async fn send(&self, request: Request<Bytes>, limits: CallLimits) -> Result<Response<Bytes>, HttpClientError> {
        let exchange = async {
            let (head, body) = self.begin(request).await?.into_parts();
            Ok(Response::from_parts(head, read(body, limits.max_body).await?))
        };
        timeout(limits.timeout, exchange).await.unwrap_or(Err(HttpClientError::Timeout(limits.timeout)))
    }

    /// Sends a request whose effect must not be doubted once the status is there: a body that is too large, late or
    /// broken counts as empty. Redirects come back as they are.
    ///
    /// # Errors
    ///
    /// [`HttpClientError`] when there is no status.
    pub async fn send_for_status(
        &self,
        request: Request<Bytes>,
        limits: CallLimits,
    ) -> Result<Response<Bytes>, HttpClientError> {
        let deadline = Instant::now() + limits.timeout;
        let begun = timeout_at(deadline, self.begin(request)).await;
        let (head, body) = begun.unwrap_or(Err(HttpClientError::Timeout(limits.timeout)))?.into_parts();
        let body = match timeout_at(deadline, read(body, limits.max_body)).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) | Err(_) => Bytes::new(),
        };
        Ok(Response::from_parts(head, body))
    }

    /// Up to the answer's body.
    async fn begin(&self, request: Request<Bytes>) -> Result<Response<Incoming>, HttpClientError> {
        self.client.request(request.map(Full::new)).await.map_err(|error| {
            if is_blocked(&error) {
                HttpClientError::Blocked
            } else if error.is_connect() {
                HttpClientError::Connect(error.into())
            } else {
                HttpClientError::Exchange(error.into())
            }
        })
    }
}

/// The rest of an answer.
async fn read(body: Incoming, max_body: usize) -> Result<Bytes, HttpClientError> {
    match Limited::new(body, max_body).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(HttpClientError::TooLarge(max_body)),
        Err(error) => Err(HttpClientError::Exchange(error)),
    }
}

fn is_blocked(error: &(dyn StdError + 'static)) -> bool {
    let mut error = Some(error);
    while let Some(cause) = error {
        if matches!(cause.downcast_ref(), Some(ConnectError::Blocked)) {
            return true;
        }
        error = cause.source();
    }
    false
}

#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("the address is not public and not in outbound.allowed_ranges")]
    Blocked,
    #[error("the name has no address")]
    NoAddress,
    #[error("the name could not be resolved")]
    Resolve(#[source] hickory_resolver::net::NetError),
    #[error("the connection was not accepted")]
    Io(#[from] io::Error),
}

/// Resolves, checks, connects.
#[derive(Clone)]
struct Connector {
    resolver: Resolver,
    /// The ranges that are allowed beside public addresses; none is no guard at all.
    guard: Option<Arc<[IpNet]>>,
    targets: Option<Targets>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
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
    async fn connect(&self, uri: &Uri) -> Result<TcpStream, ConnectError> {
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

    async fn connect_to(&self, host: &str, port: u16) -> Result<TcpStream, ConnectError> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let found = self.resolver.addresses(host).await.map_err(ConnectError::Resolve)?;
        let mut last = ConnectError::NoAddress;
        for address in found {
            if !self.may_reach(address) {
                last = ConnectError::Blocked;
                continue;
            }
            let connecting = TcpStream::connect(SocketAddr::new(address, port));
            match timeout(CONNECT_TIMEOUT, connecting).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    // The peer is the address that was checked; a translating network is asked once more.
                    return if self.may_reach(stream.peer_addr()?.ip()) {
                        Ok(stream)
                    } else {
                        Err(ConnectError::Blocked)
                    };
                }
                Ok(Err(error)) => last = error.into(),
                Err(_) => last = io::Error::from(io::ErrorKind::TimedOut).into(),
            }
        }
        Err(last)
    }

    fn may_reach(&self, address: IpAddr) -> bool {
        let Some(allowed) = &self.guard else { return true };
        let address = address.to_canonical();
        allowed.iter().any(|range| range.contains(&address)) || is_public(address)
    }
}

/// Whether an address belongs to the public internet: none of the special-purpose ranges that IANA keeps
/// (RFC 6890 and its successors), so no private, loopback, link-local, shared, metadata, multicast or documentation
/// address, nor an IPv6 form of one.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    const SPECIAL: [Ipv4Net; 15] = [
        v4([0, 0, 0, 0], 8),
        v4([10, 0, 0, 0], 8),
        v4([100, 64, 0, 0], 10),
        v4([127, 0, 0, 0], 8),
        v4([169, 254, 0, 0], 16),
        v4([172, 16, 0, 0], 12),
        v4([192, 0, 0, 0], 24),
        v4([192, 0, 2, 0], 24),
        v4([192, 88, 99, 0], 24),
        v4([192, 168, 0, 0], 16),
        v4([198, 18, 0, 0], 15),
        v4([198, 51, 100, 0], 24),
        v4([203, 0, 113, 0], 24),
        v4([224, 0, 0, 0], 4),
        v4([240, 0, 0, 0], 4),
    ];
    !SPECIAL.iter().any(|range| range.contains(&address))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    /// 64:ff9b::/96 (RFC 6052): how an IPv6-only network writes IPv4 addresses.
    const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);
    const GLOBAL: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);
    // Teredo and 6to4 carry IPv4 addresses of anybody's choice; the others are for documentation and protocols.
    const SPECIAL: [Ipv6Net; 4] = [
        v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23),
        v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32),
        v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16),
        v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20),
    ];
    if NAT64.contains(&address) {
        let [.., a, b, c, d] = address.octets();
        return is_public_v4(Ipv4Addr::new(a, b, c, d));
    }
    GLOBAL.contains(&address) && !SPECIAL.iter().any(|range| range.contains(&address))
}

const fn v4(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    let [a, b, c, d] = octets;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix)
}

const fn v6(segments: [u16; 8], prefix: u8) -> Ipv6Net {
    let [a, b, c, d, e, f, g, h] = segments;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), prefix)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

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

    /// Answers each connection's first request with `answer`, and keeps the connection open.
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
    fn addresses_that_are_not_public_are_told_apart() {
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
    async fn a_status_holds_whatever_becomes_of_the_body() {
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
    fn a_file_of_certificates_that_cannot_be_used_is_a_problem() {
        for (file, expected) in [
            (
                "/nowhere/ca.pem",
                "outbound.extra_ca_file: cannot read /nowhere/ca.pem: No such file or directory (os error 2)",
            ),
            ("/dev/null", "outbound.extra_ca_file: /dev/null holds no PEM certificate"),
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
}
