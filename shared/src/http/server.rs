//! The HTTP server: an accept loop of our own around warp's service.
//!
//! warp's own server lacks a header time-out (a half-sent request stays open for ever), TCP_NODELAY and a connection
//! limit, and panics if the port is taken; hyper-util's builder around `warp::service` provides all of these.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{
    Stream, StreamExt as _,
    future::{Either, Ready, ready},
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header::CONTENT_LENGTH};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use ipnet::IpNet;
use serde::Deserialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
    time::{Instant, timeout, timeout_at},
};
use tower_service::Service;
use warp::Filter as _;

use crate::{
    config::file::{ConfigError, Source},
    current::Current,
    http::{
        body::{Body, BodyMemory, Held, NoMemory},
        error::MatrixError,
        request::Incoming,
        response::Response,
        router::{BodySize, Matched, Router, SMALL_BODY},
    },
    random,
    source::RequestSource,
    stop::Stop,
    telemetry::metrics::HttpMetrics,
    trace::{self, Span, Tracer},
};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The section `[server]`: limits on what a client can consume.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Seconds for a request's headers to arrive, for a client to read a response, and for an idle connection to stay
    /// open. Default 60.
    pub header_timeout_secs: u64,
    /// Seconds for a request's body to arrive. Default 30.
    pub body_timeout_secs: u64,
    /// Largest body in bytes, for lookups and notifications; other requests accept 64 KiB. Default 1048576.
    pub max_body_bytes: usize,
    /// Limit in bytes on all bodies together, while they arrive and until they are parsed; one source may hold an
    /// eighth. Requests that do not fit are answered with 429 or 503. Default 67108864.
    pub max_buffered_bytes: usize,
    /// Limit on open connections; further ones wait to be accepted. Default 4096.
    pub max_connections: usize,
    /// Seconds that requests in flight have to finish when the service stops. Default 30.
    pub shutdown_grace_secs: u64,
    /// Address ranges of reverse proxies whose `X-Forwarded-For` is trusted. Default none.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            header_timeout_secs: 60,
            body_timeout_secs: 30,
            max_body_bytes: 1024 * 1024,
            max_buffered_bytes: 64 * 1024 * 1024,
            max_connections: 4096,
            shutdown_grace_secs: 30,
            trusted_proxies: Vec::new(),
        }
    }
}

/// The longest configurable time, a day: deadlines are computed from the present, which must not overflow.
const LONGEST_SECS: u64 = 24 * 60 * 60;
/// More than any process can have open.
const MOST_CONNECTIONS: usize = 1_000_000;

impl ServerConfig {
    /// Checks that the types cannot express: values with which nothing would be served.
    #[must_use]
    pub fn problems(&self, source: &Source) -> Vec<ConfigError> {
        let mut problems = Vec::new();
        for (key, secs, least) in [
            ("server.header_timeout_secs", self.header_timeout_secs, 1),
            ("server.body_timeout_secs", self.body_timeout_secs, 1),
            ("server.shutdown_grace_secs", self.shutdown_grace_secs, 0),
        ] {
            if !(least..=LONGEST_SECS).contains(&secs) {
                problems.push(source.error(key, format!("must be {least} to {LONGEST_SECS}")));
            }
        }
        if !(1..=MOST_CONNECTIONS).contains(&self.max_connections) {
            problems.push(source.error("server.max_connections", format!("must be 1 to {MOST_CONNECTIONS}")));
        }
        problems
    }
}

/// Listens on `address`; port 0 picks a free port.
///
/// # Errors
///
/// The address is taken, not local, or malformed; the message contains it.
pub async fn bind(address: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

/// Serves `router` until `stop`, then lets requests in flight finish within the configured grace period. `metrics`
/// counts the requests, and `tracer` creates a span for each.
///
/// # Errors
///
/// Currently none; accepting is retried when file descriptors run out.
pub async fn serve<S: Clone + Send + Sync + 'static>(
    listener: TcpListener,
    router: Router<S>,
    state: impl Into<Current<S>>,
    config: &ServerConfig,
    metrics: Option<HttpMetrics>,
    tracer: Option<Tracer>,
    stop: Stop,
) -> io::Result<()> {
    let state = state.into();
    let memory = BodyMemory::new(config.max_buffered_bytes, config.max_body_bytes);
    let service = Arc::new(Public { router, state, config: config.clone(), metrics, tracer, memory });
    let header_timeout = Duration::from_secs(config.header_timeout_secs);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout).max_buf_size(MAX_BUFFER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADERS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_BUFFER)
        .keep_alive_interval(header_timeout)
        .keep_alive_timeout(header_timeout);
    let builder = Arc::new(builder);
    let connections = Arc::new(Semaphore::new(config.max_connections.clamp(1, Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();

    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = stop.requested() => break,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        let (builder, service, watcher) = (builder.clone(), service.clone(), graceful.watcher());
        let stop = stop.clone();
        tokio::spawn(async move {
            let _permit = permit;
            connection(&builder, service, stream, peer, watcher, header_timeout, stop).await;
        });
    }

    drop(listener);
    let grace = Duration::from_secs(config.shutdown_grace_secs);
    let ending = async {
        graceful.shutdown().await;
        service.router.idle().await;
    };
    if timeout(grace, ending).await.is_err() {
        tracing::warn!("the shutdown grace period expired with requests in flight; abandoning them");
    }
    Ok(())
}

/// Serves on a dedicated thread and runtime, so that responses do not depend on the CPU load of other requests: an
/// orchestrator restarts a process whose liveness probe gets no response. The future completes when serving has ended.
///
/// # Errors
///
/// If the thread cannot be started. The future returns an error if the thread panics.
pub fn serve_apart<S: Clone + Send + Sync + 'static>(
    name: &str,
    listener: TcpListener,
    router: Router<S>,
    state: S,
    config: &ServerConfig,
    stop: Stop,
) -> io::Result<impl Future<Output = io::Result<()>> + use<S>> {
    // A listener is tied to the runtime that created it.
    let (listener, config) = (listener.into_std()?, config.clone());
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let serving = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                serve(listener, router, state, &config, None, None, stop).await
            })
        };
        // The receiver is gone when the process is already exiting.
        drop(ended.send(serving()));
    })?;
    Ok(async { end.await.unwrap_or_else(|_| Err(io::Error::other("the thread panicked"))) })
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, permit)),
        Err(error) => {
            // Out of file descriptors, or a client that left: either way the loop must not spin.
            tracing::warn!(%error, "a connection could not be accepted; continuing in 50 ms");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

async fn connection<S: Clone + Send + Sync + 'static>(
    builder: &auto::Builder<TokioExecutor>,
    service: Arc<Public<S>>,
    stream: TcpStream,
    peer: SocketAddr,
    watcher: hyper_util::server::graceful::Watcher,
    header_timeout: Duration,
    stop: Stop,
) {
    drop(stream.set_nodelay(true));
    let activity = Arc::new(Activity::new());
    let filtered = warp_service(service, peer.ip(), activity.clone());
    let service = TowerToHyperService::new(NoAuthorityForm(filtered));
    let serving = watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    let mut serving = pin!(serving);
    // hyper's own header time-out starts only once it has detected the protocol version, and does not end connections
    // that a client keeps alive by reading slowly or by sending pings.
    let mut patience = header_timeout;
    loop {
        let check = activity.quiet_since() + patience;
        tokio::select! {
            ended = &mut serving => return log_ended(ended),
            // A request of which only the beginning has come must not hold up the stop.
            () = stop.requested(), if patience > STOP_PATIENCE => patience = STOP_PATIENCE,
            () = tokio::time::sleep_until(check.max(Instant::now() + SHORTEST_CHECK)) => {}
        }
        if activity.is_quiet_for(patience) {
            return;
        }
    }
}

/// Bytes that hyper buffers per connection: a request's line and headers, or a response the client does not read.
/// hyper's default of 400 KiB would let strangers claim that much on each of thousands of connections.
const MAX_BUFFER: usize = 64 * 1024;
/// Bytes of the headers of one HTTP/2 request.
const MAX_HEADERS: u32 = 16 * 1024;
/// Requests at once on a connection of HTTP/2. Its compressed headers take many times their bytes when they are read.
const MAX_STREAMS: u32 = 100;
/// Bytes that a client may send on one stream, and on all streams of its connection, before they are read.
const WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// A body that arrives more slowly than this many bytes a second is abandoned ...
const LEAST_RATE: usize = 1024;
/// ... except within this time from its start.
const SLOW_START: Duration = Duration::from_secs(5);
/// The `Retry-After` of a request whose body does not fit into memory. Bodies are parsed within milliseconds.
const WAIT_FOR_MEMORY: Duration = Duration::from_secs(1);

/// How long a connection without a request may last after the request to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// The shortest interval between two idle checks of a connection.
const SHORTEST_CHECK: Duration = Duration::from_millis(100);

/// Whether a connection has requests in flight, and if not, since when.
struct Activity {
    opened: Instant,
    under_way: AtomicUsize,
    /// Milliseconds from `opened` to the end of the last request.
    quiet_since_ms: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { opened: Instant::now(), under_way: AtomicUsize::new(0), quiet_since_ms: AtomicU64::new(0) }
    }

    fn begin(self: &Arc<Self>) -> Busy {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        Busy(self.clone())
    }

    fn quiet_since(&self) -> Instant {
        self.opened + Duration::from_millis(self.quiet_since_ms.load(Ordering::SeqCst))
    }

    fn is_quiet_for(&self, time: Duration) -> bool {
        self.under_way.load(Ordering::SeqCst) == 0 && self.quiet_since().elapsed() >= time
    }
}

/// A request in flight; ends on drop.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let now_ms = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.quiet_since_ms.store(now_ms, Ordering::SeqCst);
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Refuses requests without a path (`CONNECT host:port`), which would make warp panic.
#[derive(Clone)]
struct NoAuthorityForm<T>(T);

impl<T, B> Service<http::Request<B>> for NoAuthorityForm<T>
where
    T: Service<http::Request<B>, Response = warp::reply::Response, Error = std::convert::Infallible>,
    T::Future: Send + 'static,
{
    type Response = T::Response;
    type Error = T::Error;
    type Future = Either<T::Future, Ready<Result<Self::Response, Self::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        if request.uri().path_and_query().is_some() {
            return Either::Left(self.0.call(request));
        }
        let text = "This server is not a proxy";
        let refused = MatrixError::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", text).into_response();
        Either::Right(ready(Ok(warp::Reply::into_response(refused))))
    }
}

fn log_ended(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::trace!(%error, "a client connection ended with an error");
    }
}

/// A public service: its routes, and how its requests are read.
struct Public<S> {
    router: Router<S>,
    state: Current<S>,
    config: ServerConfig,
    metrics: Option<HttpMetrics>,
    tracer: Option<Tracer>,
    memory: Arc<BodyMemory>,
}

/// warp's service for one connection: a single filter that extracts the parts, and the routing table that matches.
fn warp_service<S: Clone + Send + Sync + 'static>(
    public: Arc<Public<S>>,
    peer: IpAddr,
    activity: Arc<Activity>,
) -> impl Service<
    http::Request<hyper::body::Incoming>,
    Response = warp::reply::Response,
    Error = std::convert::Infallible,
    Future: Send,
> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    let filter = warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::body::stream())
        .then(move |method, path: warp::path::FullPath, query, headers, body| {
            let busy = activity.begin();
            let public = public.clone();
            let head = Head { method, path: path.as_str().to_owned(), query, headers, peer };
            async move {
                let _busy = busy;
                public.respond(head, body).await
            }
        });
    warp::service(filter)
}

/// A request whose body has not been read yet.
struct Head {
    method: Method,
    path: String,
    query: String,
    headers: HeaderMap,
    peer: IpAddr,
}

impl<S: Clone + Send + Sync + 'static> Public<S> {
    async fn respond<B: Buf>(&self, head: Head, body: impl Stream<Item = Result<B, warp::Error>>) -> Response {
        let begun = Instant::now();
        let method = head.method.clone();
        let request_id = request_id(&head.headers);
        let (matched, path_params) = self.router.find(&head.method, &head.path);
        let route = self.router.pattern(matched);
        let mut span = self.span(&head, matched, &request_id);
        let answering = self.answer(head, body, matched, path_params, request_id.clone());
        let mut response = trace::under(span.as_ref(), answering).await;
        if let Ok(id) = HeaderValue::from_str(&request_id) {
            response.headers_mut().insert(X_REQUEST_ID, id);
        }
        let status = response.status();
        if let Some(metrics) = &self.metrics {
            let seconds = begun.elapsed().as_secs_f64();
            metrics.answered(route, &method, status.as_u16(), seconds, span.as_ref().map(Span::trace_id));
        }
        if let Some(span) = &mut span {
            span.status(status, 500);
        }
        response
    }

    /// The span of a request, if its trace is sampled.
    fn span(&self, head: &Head, matched: Matched, request_id: &str) -> Option<Span> {
        let route = match matched {
            Matched::Handler(..) | Matched::WrongMethod(_) => Some(self.router.pattern(matched)),
            Matched::Preflight | Matched::Unknown => None,
        };
        let mut span = self.tracer.as_ref()?.request(&head.headers, &head.method, route)?;
        span.set("waypost.request_id", request_id.to_owned());
        Some(span)
    }

    /// Reads the body and dispatches the request.
    async fn answer<B: Buf>(
        &self,
        head: Head,
        body: impl Stream<Item = Result<B, warp::Error>>,
        matched: Matched,
        path_params: Vec<(String, String)>,
        request_id: String,
    ) -> Response {
        let source = source(&head.headers, head.peer, &self.config.trusted_proxies);
        // No request here has a body with GET or HEAD, and the body of a request that is refused anyway does not
        // matter.
        let size = self.router.body_size(matched).filter(|_| !matches!(head.method, Method::GET | Method::HEAD));
        let body = match size {
            Some(size) => self.read(&head.headers, source, size, body).await,
            None => Ok(Body::default()),
        };
        match body {
            Ok(body) => {
                let request = Incoming {
                    source,
                    method: head.method,
                    path: head.path,
                    path_params,
                    query: head.query,
                    headers: head.headers,
                    body,
                    request_id,
                };
                self.router.answer(self.state.get(), matched, request).await
            }
            Err(error) => {
                let mut response = error.into_response();
                self.router.add_common_headers(&mut response);
                response
            }
        }
    }

    /// Reads a body, chunked or not, within its time and size limits.
    async fn read<B: Buf>(
        &self,
        headers: &HeaderMap,
        source: RequestSource,
        size: BodySize,
        body: impl Stream<Item = Result<B, warp::Error>>,
    ) -> Result<Body, MatrixError> {
        let limit = match size {
            BodySize::Small => self.config.max_body_bytes.min(SMALL_BODY),
            BodySize::Large => self.config.max_body_bytes,
        };
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: usize| length > limit) {
            return Err(too_large(limit));
        }
        let mut held = self.memory.hold(source);
        let bytes = collect(body, limit, Duration::from_secs(self.config.body_timeout_secs), &mut held).await?;
        Ok(Body::new(bytes, held))
    }
}

/// Collects a body that arrives within `longest`, and no slower than [`LEAST_RATE`] after [`SLOW_START`].
async fn collect<B: Buf>(
    body: impl Stream<Item = Result<B, warp::Error>>,
    limit: usize,
    longest: Duration,
    held: &mut Held,
) -> Result<Bytes, MatrixError> {
    let mut body = pin!(body);
    let begun = Instant::now();
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    loop {
        let arrived = first.len() + all.len();
        let Ok(next) = timeout_at(begun + due(arrived, longest), body.next()).await else {
            let text = format!("The body did not arrive within {} seconds, or arrived too slowly", longest.as_secs());
            return Err(MatrixError::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", text));
        };
        let Some(chunk) = next else { break };
        let mut chunk = chunk.map_err(|_| MatrixError::bad_request("M_UNKNOWN", "The body was cut off"))?;
        if arrived + chunk.remaining() > limit {
            return Err(too_large(limit));
        }
        held.grow(chunk.remaining()).map_err(no_memory)?;
        let chunk = chunk.copy_to_bytes(chunk.remaining());
        // Most bodies arrive as a single chunk, which need not be copied.
        if first.is_empty() && all.is_empty() {
            first = chunk;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&chunk);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// The deadline for the next chunk, measured from the start of the body, after `arrived` bytes.
fn due(arrived: usize, longest: Duration) -> Duration {
    (SLOW_START + Duration::from_secs((arrived / LEAST_RATE) as u64)).min(longest)
}

/// Refused at once rather than queued: half-read bodies that wait for each other's memory would all time out.
fn no_memory(reason: NoMemory) -> MatrixError {
    let (status, text) = match reason {
        NoMemory::Source => (StatusCode::TOO_MANY_REQUESTS, "Too many large requests from this source at once"),
        NoMemory::All => (StatusCode::SERVICE_UNAVAILABLE, "No memory for another request"),
    };
    MatrixError::new(status, "M_LIMIT_EXCEEDED", text).retry_after(WAIT_FOR_MEMORY)
}

fn too_large(limit: usize) -> MatrixError {
    let text = format!("The body is larger than {limit} bytes");
    MatrixError::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", text)
}

/// The client's own request id if it is well formed, so that logs can be correlated; otherwise a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
    let plain =
        |id: &&str| (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match given.filter(plain) {
        Some(id) => id.to_owned(),
        None => format!("{:016x}", u64::from_le_bytes(random::bytes())),
    }
}

/// The source of a request: the last address in `X-Forwarded-For` that is not a trusted proxy's, if the peer is one.
///
/// If a trusted proxy reports something that cannot be parsed, the source is unknown. It must not be the proxy itself,
/// which may be in a network with more privileges.
fn source(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> RequestSource {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|range| range.contains(address));
    let peer = peer.to_canonical();
    if !is_trusted(&peer) {
        return peer.into();
    }
    let mut source = RequestSource::UNKNOWN;
    for value in headers.get_all("x-forwarded-for").iter().rev() {
        let Ok(value) = value.to_str() else { return RequestSource::UNKNOWN };
        for hop in value.rsplit(',') {
            let Some(address) = hop_address(hop) else { return RequestSource::UNKNOWN };
            source = address.into();
            if !is_trusted(&address) {
                return source;
            }
        }
    }
    source
}

/// An address as proxies write it: bare, with a port, in brackets or in quotation marks.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim().trim_matches('"');
    let address = hop.parse::<IpAddr>().ok();
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(with_port).or_else(in_brackets).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use tokio::sync::watch;

    use crate::http::response::json;

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

    #[test]
    fn a_body_must_arrive_at_a_minimum_rate() {
        let secs = Duration::from_secs;
        assert_eq!(due(0, secs(30)), SLOW_START);
        assert_eq!(due(20 * LEAST_RATE, secs(30)), SLOW_START + secs(20));
        assert_eq!(due(1 << 20, secs(30)), secs(30));
        assert_eq!(due(0, secs(1)), secs(1));
    }

    #[test]
    fn values_with_which_nothing_would_be_served_are_problems() {
        let good = ServerConfig::default();
        assert!(good.problems(&Source::default()).is_empty());
        for (config, expected) in [
            (ServerConfig { header_timeout_secs: 0, ..good.clone() }, "server.header_timeout_secs: must be 1 to 86400"),
            (
                ServerConfig { header_timeout_secs: u64::MAX, ..good.clone() },
                "server.header_timeout_secs: must be 1 to 86400",
            ),
            (ServerConfig { body_timeout_secs: 0, ..good.clone() }, "server.body_timeout_secs: must be 1 to 86400"),
            (
                ServerConfig { shutdown_grace_secs: u64::MAX, ..good.clone() },
                "server.shutdown_grace_secs: must be 0 to 86400",
            ),
            (ServerConfig { max_connections: 0, ..good.clone() }, "server.max_connections: must be 1 to 1000000"),
            (ServerConfig { max_connections: usize::MAX, ..good }, "server.max_connections: must be 1 to 1000000"),
        ] {
            let problems: Vec<_> = config.problems(&Source::default()).iter().map(ToString::to_string).collect();
            assert_eq!(problems, [expected]);
        }
    }

    #[tokio::test]
    async fn a_stop_ends_serving() {
        let (address, stop, served) = start(ServerConfig::default()).await;
        stop.send(true).unwrap();
        served.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    fn forwarded(values: &[&str], peer: &str) -> RequestSource {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let name = HeaderName::from_static("x-forwarded-for");
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_str(value).unwrap());
        }
        source(&headers, peer.parse().unwrap(), &trusted)
    }

    fn known(address: &str) -> RequestSource {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn only_a_trusted_proxy_may_report_the_source() {
        let hops = "1.1.1.1, 203.0.113.7, 10.0.0.9";
        assert_eq!(forwarded(&[hops], "10.0.0.1"), known("203.0.113.7"));
        assert_eq!(forwarded(&[hops], "::ffff:10.0.0.1"), known("203.0.113.7"));
        assert_eq!(forwarded(&[hops], "198.51.100.1"), known("198.51.100.1"));
        // A client in the proxies' own network.
        assert_eq!(forwarded(&["10.0.0.9"], "10.0.0.1"), known("10.0.0.9"));
        // The header may be repeated; the last one is from the nearest proxy.
        assert_eq!(forwarded(&["1.1.1.1", "203.0.113.7", "10.0.0.9"], "10.0.0.1"), known("203.0.113.7"));
    }

    #[test]
    fn a_hop_may_have_a_port_and_brackets() {
        for (hop, address) in [
            ("6.6.6.6:1234", "6.6.6.6"),
            ("\"6.6.6.6\"", "6.6.6.6"),
            ("\"6.6.6.6:1234\"", "6.6.6.6"),
            ("::ffff:6.6.6.6", "6.6.6.6"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:99", "2001:db8::1"),
            ("\"[2001:db8::1]:99\"", "2001:db8::1"),
        ] {
            assert_eq!(forwarded(&[hop], "10.0.0.1"), known(address), "{hop}");
        }
    }

    #[test]
    fn an_unparsable_hop_makes_the_source_unknown() {
        for values in [
            &["nonsense"][..],
            &["unknown"],
            &["_hidden"],
            &[""],
            &["6.6.6.6,"],
            &["6.6.6.6, unknown"],
            &["6.6.6.6", "\u{e9}"],
            &["6.6.6.6:99999"],
            &["[6.6.6.6"],
            &["fe80::1%eth0"],
            &[],
        ] {
            assert_eq!(forwarded(values, "10.0.0.1"), RequestSource::UNKNOWN, "{values:?}");
        }
        // The nearest hop can be parsed.
        assert_eq!(forwarded(&["unknown, 6.6.6.6"], "10.0.0.1"), known("6.6.6.6"));
    }
}
