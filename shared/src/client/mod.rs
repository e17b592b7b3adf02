//! Outbound HTTP: one client, with a guard for destinations that strangers choose.
//!
//! Names are resolved here, every address is checked, and the connection goes to the address that was checked, so a
//! name that resolves differently the next time gains nothing. Redirects are never followed.
//!
//! A request passes `pool` (which origin) -> `origin` (which connection) -> `connection` (HTTP) -> `connector` (TCP).

mod address;
mod config;
mod connection;
mod connector;
mod lease;
mod load;
mod origin;
mod pool;
mod proxy;
pub mod resolver;
pub mod retry;

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use ipnet::IpNet;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use tokio::time::{Instant, timeout, timeout_at};

pub use self::{
    address::is_public,
    config::{OutboundConfig, OutboundError},
    connector::{ConnectFailure, Targets},
};
use self::{
    connector::{ConnectError, Connector, NoConnection},
    lease::Lease,
    load::{Crowded, Loads, UnderWay},
    origin::{Origin, PoolLimits},
    pool::{Pool, Shares},
    proxy::{Proxy, TunnelError},
};
use crate::{
    client::resolver::Resolver,
    owner::Owners,
    trace::{self, Span},
};

/// How often a request is sent in total if the peer keeps refusing it unprocessed.
const MOST_TRIES: u32 = 4;
/// How long an idle connection is kept: one to a service the operator configured ...
const SERVICE_IDLE: Duration = Duration::from_secs(30 * 60);
/// ... and one to a destination a stranger chose.
const STRANGER_IDLE: Duration = Duration::from_secs(60);

/// The addresses a client may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// All addresses: for destinations the operator configured.
    Anywhere,
    /// Public addresses and the configured ranges: for destinations a stranger chose.
    PublicOnly,
}

/// What all clients of the process share: trusted roots, name servers, proxy, allowed ranges.
#[derive(Clone)]
pub struct Outbound {
    tls: ClientConfig,
    roots: Arc<RootCertStore>,
    resolver: Resolver,
    proxy: Option<Proxy>,
    allowed: Arc<[IpNet]>,
    limits: PoolLimits,
    owners: Owners,
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl Outbound {
    /// Loads the trusted roots (the system's, or those in `SSL_CERT_FILE`, and the additional ones) and sets up DNS.
    ///
    /// # Errors
    ///
    /// [`OutboundError`], which names the file or the key.
    pub fn new(config: &OutboundConfig) -> Result<Self, OutboundError> {
        let roots = Arc::new(config.roots()?);
        let tls = ClientConfig::builder().with_root_certificates(roots.clone()).with_no_client_auth();
        let hosts = config.hosts.iter().map(|(name, address)| (name.to_ascii_lowercase(), *address)).collect();
        let resolver = Resolver::new(&config.dns_servers, hosts).map_err(OutboundError::Resolver)?;
        let proxy = config.proxy().map_err(|(key, problem)| OutboundError::Proxy { key, problem })?;
        let limits = PoolLimits {
            streams: config.streams_per_connection,
            connections: config.max_connections_per_origin,
            origins: config.max_origins,
            idle: STRANGER_IDLE,
            warm: false,
        };
        let (allowed, owners) = (config.allowed_ranges.clone().into(), config.owners());
        Ok(Self { tls, roots, resolver, proxy, allowed, limits, owners })
    }

    /// Determines the owners of servers.
    #[must_use]
    pub fn owners(&self) -> &Owners {
        &self.owners
    }

    /// The resolver, for SRV records.
    #[must_use]
    pub fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// The TLS configuration, for protocols other than HTTP.
    #[must_use]
    pub fn tls(&self) -> ClientConfig {
        self.tls.clone()
    }

    /// A client with its own connection pool.
    #[must_use]
    pub fn client(&self, reach: Reach) -> HttpClient {
        self.build(self.tls.clone(), reach, None, None)
    }

    /// A client for destinations that strangers choose, with its own connection pool. It has at most
    /// `most_per_address` requests in flight to one address (IPv6: one /64), whatever names lead there. Further
    /// requests fail immediately with [`HttpClientError::Crowded`].
    #[must_use]
    pub fn client_for_strangers(&self, most_per_address: usize) -> HttpClient {
        self.build(self.tls.clone(), Reach::PublicOnly, None, Some(most_per_address))
    }

    /// A client that connects to `targets` where they override the URI's authority.
    #[must_use]
    pub fn client_with_targets(&self, reach: Reach, targets: Targets) -> HttpClient {
        self.build(self.tls.clone(), reach, Some(targets), None)
    }

    /// A client that authenticates with a certificate (PEM chain and PEM key) and may reach any address.
    ///
    /// # Errors
    ///
    /// [`OutboundError::ClientCertificate`] if they are not PEM or do not belong together.
    pub fn client_with_certificate(&self, chain: &[u8], key: &[u8]) -> Result<HttpClient, OutboundError> {
        let bad = |error: &dyn fmt::Display| OutboundError::ClientCertificate(error.to_string());
        let chain =
            CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>().map_err(|error| bad(&error))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| bad(&error))?;
        let tls = ClientConfig::builder()
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(chain, key)
            .map_err(|error| bad(&error))?;
        Ok(self.build(tls, Reach::Anywhere, None, None))
    }

    /// Whether the proxy is up, speaks HTTP and accepts our credentials. It is asked for a tunnel to a name that
    /// cannot exist (RFC 6761), which it must fail to open. `None` without a proxy.
    ///
    /// # Errors
    ///
    /// [`HttpClientError`] if the proxy reports an error or does not respond within `limit`.
    pub async fn try_proxy(&self, limit: Duration) -> Option<Result<(), HttpClientError>> {
        let proxy = self.proxy.clone()?;
        let connector =
            Connector { resolver: self.resolver.clone(), guard: None, targets: None, proxy: None, load: None };
        Some(match timeout(limit, connector.through(&proxy, "waypost.invalid:443")).await {
            Err(_) => Err(HttpClientError::Timeout(limit)),
            Ok(Ok(_) | Err(ConnectError::Tunnel(TunnelError::Refused(_)))) => Ok(()),
            Ok(Err(error)) => Err(NoConnection::new(error.into()).into()),
        })
    }

    fn build(
        &self,
        mut tls: ClientConfig,
        reach: Reach,
        targets: Option<Targets>,
        most_per_address: Option<usize>,
    ) -> HttpClient {
        let (guard, shares, limits) = match reach {
            Reach::Anywhere => (None, None, PoolLimits { idle: SERVICE_IDLE, warm: true, ..self.limits }),
            Reach::PublicOnly => {
                let loads = most_per_address.map(|most| Arc::new(Loads::new(most)));
                (Some(self.allowed.clone()), Some(Shares { owners: self.owners.clone(), loads }), self.limits)
            }
        };
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let (resolver, proxy) = (self.resolver.clone(), self.proxy.clone());
        let connector = Connector { resolver, guard, targets, proxy, load: None };
        HttpClient { pool: Arc::new(Pool::new(connector, tls, shares, limits)) }
    }
}

/// Limits of one call.
#[derive(Clone, Copy, Debug)]
pub struct CallLimits {
    /// For the whole call, from resolving the name to the last byte of the body.
    pub timeout: Duration,
    /// Largest response body in bytes.
    pub max_body: usize,
}

/// Why a call got no response. No message contains the URL, which may hold a pushkey or a token.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    /// The name has no address that this client may reach.
    #[error("this server may not connect to the address")]
    Blocked,
    /// The in-flight cap of the address has been reached.
    #[error("too many requests to this address are in flight")]
    Crowded,
    /// No response in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The response body is larger than allowed.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// No connection: name resolution, network or TLS failed. The request was not sent.
    #[error("cannot connect")]
    Connect(#[source] Box<dyn StdError + Send + Sync>),
    /// The peer refused the request unprocessed on every attempt: it was closing the connection or had no capacity.
    #[error("the peer refused the request without processing it")]
    TurnedAway(#[source] Box<dyn StdError + Send + Sync>),
    /// The connection broke while the request or its response was in transit.
    #[error("the connection broke")]
    Exchange(#[source] Box<dyn StdError + Send + Sync>),
}

impl HttpClientError {
    /// Why connecting failed; `None` if it did not fail, or if time ran out first.
    #[must_use]
    pub fn connect_failure(&self) -> Option<ConnectFailure> {
        match self {
            Self::Blocked => Some(ConnectFailure::Blocked),
            Self::Crowded => Some(ConnectFailure::Crowded),
            Self::Connect(reason) => reason.downcast_ref::<NoConnection>().map(|reason| reason.failure),
            Self::Timeout(_) | Self::TooLarge(_) | Self::TurnedAway(_) | Self::Exchange(_) => None,
        }
    }

    /// A one-word label for traces.
    fn label(&self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Crowded => "crowded",
            Self::Timeout(_) => "timeout",
            Self::TooLarge(_) => "too_large",
            Self::Connect(_) => "connect",
            Self::TurnedAway(_) => "turned_away",
            Self::Exchange(_) => "broken",
        }
    }

    /// Whether the peer may have received the request.
    #[must_use]
    pub fn may_have_arrived(&self) -> bool {
        match self {
            Self::Blocked | Self::Crowded | Self::Connect(_) | Self::TurnedAway(_) => false,
            Self::Timeout(_) | Self::TooLarge(_) | Self::Exchange(_) => true,
        }
    }
}

impl From<NoConnection> for HttpClientError {
    fn from(reason: NoConnection) -> Self {
        match reason.failure {
            ConnectFailure::Blocked => Self::Blocked,
            ConnectFailure::Crowded => Self::Crowded,
            _ => Self::Connect(reason.into()),
        }
    }
}

impl From<Crowded> for HttpClientError {
    fn from(_: Crowded) -> Self {
        Self::Crowded
    }
}

/// An HTTP client. Clones share one connection pool. Uses HTTP/2 if the peer offers it.
#[derive(Clone, Debug)]
pub struct HttpClient {
    pool: Arc<Pool>,
}

impl HttpClient {
    /// Sends a request (absolute URI) and reads the whole response. Redirects are returned as they are.
    ///
    /// # Errors
    ///
    /// [`HttpClientError`]; a response is not an error, whatever its status.
    pub async fn send(&self, request: Request<Bytes>, limits: CallLimits) -> Result<Response<Bytes>, HttpClientError> {
        let span = trace::call(&request);
        let exchange = async {
            let (answer, lease, _under_way) = self.begin(request).await?;
            let (head, body) = answer.into_parts();
            Ok(Response::from_parts(head, read(body, lease, limits.max_body).await?))
        };
        let sent = timeout(limits.timeout, exchange).await.unwrap_or(Err(HttpClientError::Timeout(limits.timeout)));
        ended(span, &sent);
        sent
    }

    /// Like [`HttpClient::send`], for requests whose outcome is known once the status has arrived: a body that is too
    /// large, late or broken is treated as empty.
    ///
    /// # Errors
    ///
    /// [`HttpClientError`] if no status was received.
    pub async fn send_for_status(
        &self,
        request: Request<Bytes>,
        limits: CallLimits,
    ) -> Result<Response<Bytes>, HttpClientError> {
        let span = trace::call(&request);
        let deadline = Instant::now() + limits.timeout;
        let exchange = async {
            let begun = timeout_at(deadline, self.begin(request)).await;
            let (answer, lease, _under_way) = begun.unwrap_or(Err(HttpClientError::Timeout(limits.timeout)))?;
            let (head, body) = answer.into_parts();
            let body = match timeout_at(deadline, read(body, lease, limits.max_body)).await {
                Ok(Ok(body)) => body,
                Ok(Err(_)) | Err(_) => Bytes::new(),
            };
            Ok(Response::from_parts(head, body))
        };
        let sent: Result<_, HttpClientError> = exchange.await;
        ended(span, &sent);
        sent
    }

    /// Sends a request and returns the response, its body unread. Retries immediately if the peer certainly did not
    /// process the request.
    async fn begin(&self, request: Request<Bytes>) -> Result<Begun, HttpClientError> {
        let request = request.map(Full::new);
        let origin = self.origin(request.uri())?;
        let under_way = origin.begin()?;
        let mut tries = 0;
        loop {
            let mut lease = Lease::of(&origin).await?;
            // Cloning is cheap: body and URI are shared.
            match lease.send(request.clone()).await {
                Ok(answer) => return Ok((answer, lease, under_way)),
                Err(unanswered) if !unanswered.is_untouched => {
                    return Err(HttpClientError::Exchange(unanswered.error.into()));
                }
                Err(unanswered) => {
                    tries += 1;
                    if tries == MOST_TRIES {
                        return Err(HttpClientError::TurnedAway(unanswered.error.into()));
                    }
                }
            }
        }
    }

    fn origin(&self, uri: &Uri) -> Result<Arc<Origin>, HttpClientError> {
        self.pool.origin(uri).ok_or_else(|| HttpClientError::Connect("the URI is not absolute".into()))
    }

    /// Connects to the server of `uri` (absolute), with TLS for https, and sends nothing.
    ///
    /// # Errors
    ///
    /// [`HttpClientError`]: why there was no connection within `limit`.
    pub async fn reach(&self, uri: &Uri, limit: Duration) -> Result<(), HttpClientError> {
        let connecting = async {
            drop(Lease::of(&self.origin(uri)?).await?);
            Ok(())
        };
        timeout(limit, connecting).await.unwrap_or(Err(HttpClientError::Timeout(limit)))
    }

    /// The connection pool, for tests.
    #[cfg(test)]
    fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }
}

/// A response whose body is unread, and what is held until it has been read: the connection and the in-flight count.
type Begun = (Response<Incoming>, Lease, Option<UnderWay>);

/// Records the outcome of a call in its span, and ends the span.
fn ended(span: Option<Span>, sent: &Result<Response<Bytes>, HttpClientError>) {
    let Some(mut span) = span else { return };
    match sent {
        Ok(answer) => span.status(answer.status(), 400),
        Err(error) => span.fail(error.label()),
    }
}

/// Reads the rest of a response, then returns the connection to the pool.
async fn read(body: Incoming, lease: Lease, max_body: usize) -> Result<Bytes, HttpClientError> {
    match Limited::new(body, max_body).collect().await {
        Ok(body) => {
            lease.finish();
            Ok(body.to_bytes())
        }
        Err(error) if error.is::<LengthLimitError>() => Err(HttpClientError::TooLarge(max_body)),
        Err(error) => Err(HttpClientError::Exchange(error)),
    }
}

#[cfg(test)]
mod tests;
