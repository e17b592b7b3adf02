//! Serving HTTP: an accept loop of our own under warp's service.
//!
//! warp's own server has no timer (a half-sent header stays open for ever), no NODELAY, no limit on connections, and
//! panics on a taken port; hyper-util's builder under `warp::service` has them.

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
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use ipnet::IpNet;
use serde::Deserialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout},
};
use tower_service::Service;
use warp::Filter as _;

use crate::{
    config_file::{ConfigError, Source},
    current::Current,
    http::{Incoming, Matched, Response, Router},
    matrix_error::MatrixError,
    metrics::HttpMetrics,
    random,
    traces::{self, Span, Tracer},
};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The section `[server]`: what a client may take of this process.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Seconds for a request's headers to arrive, for an answer to be taken, and for an idle connection to stay.
    /// Default 60.
    pub header_timeout_secs: u64,
    /// Seconds for a request's body to arrive. Default 30.
    pub body_timeout_secs: u64,
    /// Bytes of a body at the most. Default 1048576.
    pub max_body_bytes: usize,
    /// Bytes of all bodies together at the most; requests that have no room wait. Default 67108864.
    pub max_buffered_bytes: usize,
    /// Open connections at the most; further ones wait to be accepted. Default 4096.
    pub max_connections: usize,
    /// Seconds that requests in flight get to end when the service stops. Default 30.
    pub shutdown_grace_secs: u64,
    /// Address ranges of reverse proxies whose `X-Forwarded-For` is believed. Default none.
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

/// Seconds of the longest time in the configuration, a day: times are added to the present, which must not overflow.
const LONGEST_SECS: u64 = 24 * 60 * 60;
/// No process has more files open than this.
const MOST_CONNECTIONS: usize = 1_000_000;

impl ServerConfig {
    /// What the types cannot tell: values with which nothing would be served.
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

/// A request to stop, seen by everyone who holds a copy.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A stop that is requested by hand: send `true`.
    #[must_use]
    pub fn manual() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// A stop that SIGTERM and SIGINT request.
    ///
    /// # Errors
    ///
    /// When the signals cannot be listened to.
    pub fn on_signals() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let (sender, stop) = Self::manual();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping");
            sender.send_replace(true);
            // Keep the channel open: whoever asks later must still hear it.
            sender.closed().await;
        });
        Ok(stop)
    }

    /// Waits for the request to stop. A sender that is gone will never ask, so that counts as asked.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        drop(receiver.wait_for(|stop| *stop).await);
    }
}

/// Listens on `address`; port 0 takes a free one.
///
/// # Errors
///
/// With the address in the text: it is taken, not ours, or not an address.
pub async fn bind(address: &str) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

/// Serves `router` until `stop`, then lets requests in flight end within the configured grace. `metrics` count its
/// requests, and `tracer` makes a span of each.
///
/// # Errors
///
/// None today; accepting is tried again when the system is short of file descriptors.
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
    let room = Room::new(config);
    let service = Arc::new(Public { router, state, config: config.clone(), metrics, tracer, room });
    let header_timeout = Duration::from_secs(config.header_timeout_secs);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(250)
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
        tokio::spawn(async move {
            let _permit = permit;
            connection(&builder, service, stream, peer, watcher, header_timeout).await;
        });
    }

    drop(listener);
    let grace = Duration::from_secs(config.shutdown_grace_secs);
    if timeout(grace, graceful.shutdown()).await.is_err() {
        tracing::warn!("requests were still in flight when the grace for stopping ended");
    }
    Ok(())
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
            tracing::warn!(%error, "a connection could not be accepted");
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
) {
    drop(stream.set_nodelay(true));
    let activity = Arc::new(Activity::new());
    let filtered = warp_service(service, peer.ip(), activity.clone());
    let service = TowerToHyperService::new(NoAuthorityForm(filtered));
    let serving = watcher.watch(builder.serve_connection(TokioIo::new(stream), service).into_owned());
    let mut serving = pin!(serving);
    // hyper's own header time-out begins when it knows the protocol's version, and ends nothing that a client keeps
    // alive by reading slowly or by pings.
    loop {
        let check = activity.quiet_since() + header_timeout;
        tokio::select! {
            ended = &mut serving => return log_ended(ended),
            () = tokio::time::sleep_until(check.max(Instant::now() + SHORTEST_CHECK)) => {}
        }
        if activity.is_quiet_for(header_timeout) {
            return;
        }
    }
}

/// How often a connection is looked at, at the most.
const SHORTEST_CHECK: Duration = Duration::from_millis(100);

/// Whether a connection has requests under way, and since when it has none.
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

/// One request under way, until it is dropped.
struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let now_ms = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.quiet_since_ms.store(now_ms, Ordering::SeqCst);
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Refuses requests without a path (`CONNECT host:port`), at which warp panics.
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
        let text = "This server is no proxy";
        let refused = MatrixError::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", text).into_response();
        Either::Right(ready(Ok(warp::Reply::into_response(refused))))
    }
}

fn log_ended(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        tracing::trace!(%error, "a connection ended");
    }
}

/// One public service: its routes, and how its requests are read.
struct Public<S> {
    router: Router<S>,
    state: Current<S>,
    config: ServerConfig,
    metrics: Option<HttpMetrics>,
    tracer: Option<Tracer>,
    room: Room,
}

/// Room for bodies. Without it, connections times streams times the largest body would be the memory that strangers
/// can take.
struct Room {
    kib: Semaphore,
    largest_kib: u32,
}

impl Room {
    fn new(config: &ServerConfig) -> Self {
        let kib = |bytes: usize| u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let largest_kib = kib(config.max_body_bytes);
        // One body must always fit.
        let all = kib(config.max_buffered_bytes).max(largest_kib) as usize;
        Self { kib: Semaphore::new(all.min(Semaphore::MAX_PERMITS)), largest_kib }
    }

    /// Waits until there is room for a body of `announced` bytes, or of the largest size when nothing is announced.
    async fn take(&self, announced: Option<usize>) -> Option<SemaphorePermit<'_>> {
        let kib = announced.map_or(self.largest_kib, |bytes| u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX));
        self.kib.acquire_many(kib.min(self.largest_kib)).await.ok()
    }
}

/// warp's service for one connection: one filter that extracts, and the table that matches.
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

/// A request before its body is read.
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
        let mut response = traces::under(span.as_ref(), answering).await;
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

    /// The span of a request, if its trace is recorded.
    fn span(&self, head: &Head, matched: Matched, request_id: &str) -> Option<Span> {
        let route = match matched {
            Matched::Handler(..) | Matched::WrongMethod(_) => Some(self.router.pattern(matched)),
            Matched::Preflight | Matched::Unknown => None,
        };
        let mut span = self.tracer.as_ref()?.request(&head.headers, &head.method, route)?;
        span.set("waypost.request_id", request_id.to_owned());
        Some(span)
    }

    /// Reads a request's body and has it answered.
    async fn answer<B: Buf>(
        &self,
        head: Head,
        body: impl Stream<Item = Result<B, warp::Error>>,
        matched: Matched,
        path_params: Vec<(String, String)>,
        request_id: String,
    ) -> Response {
        let body = match matched {
            Matched::Handler(..) => self.read(&head.method, &head.headers, body).await,
            // Whatever came with it does not matter.
            Matched::WrongMethod(_) | Matched::Preflight | Matched::Unknown => Ok((Bytes::new(), None)),
        };
        match body {
            // The room is given back when the answer is there.
            Ok((body, _room)) => {
                let request = Incoming {
                    source: source(&head.headers, head.peer, &self.config.trusted_proxies),
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

    /// Reads the body within its limits of time and size, chunked or not.
    async fn read<B: Buf>(
        &self,
        method: &Method,
        headers: &HeaderMap,
        body: impl Stream<Item = Result<B, warp::Error>>,
    ) -> Result<(Bytes, Option<SemaphorePermit<'_>>), MatrixError> {
        let limit = self.config.max_body_bytes;
        let announced = headers.get(http::header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: usize| length > limit) {
            return Err(too_large(limit));
        }
        // HTTP/2 need not announce a body, so only GET and HEAD are known to have none.
        let announced = announced.or_else(|| matches!(*method, Method::GET | Method::HEAD).then_some(0));
        let wait = Duration::from_secs(self.config.body_timeout_secs);
        let read = async {
            let room = self.room.take(announced).await;
            Ok((collect(body, limit).await?, room))
        };
        timeout(wait, read).await.unwrap_or_else(|_| {
            let text = format!("The body did not arrive within {} seconds", wait.as_secs());
            Err(MatrixError::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", text))
        })
    }
}

async fn collect<B: Buf>(body: impl Stream<Item = Result<B, warp::Error>>, limit: usize) -> Result<Bytes, MatrixError> {
    let mut body = pin!(body);
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(chunk) = body.next().await {
        let mut chunk = chunk.map_err(|_| MatrixError::bad_request("M_UNKNOWN", "The body broke off"))?;
        let chunk = chunk.copy_to_bytes(chunk.remaining());
        if first.len() + all.len() + chunk.len() > limit {
            return Err(too_large(limit));
        }
        // Most bodies are one chunk, and one chunk need not be copied.
        if first.is_empty() && all.is_empty() {
            first = chunk;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&chunk);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

fn too_large(limit: usize) -> MatrixError {
    let text = format!("The body is larger than {limit} bytes");
    MatrixError::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", text)
}

/// The caller's own request id if it looks like one, so that logs can be joined; else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
    let plain =
        |id: &&str| (1..=64).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    match given.filter(plain) {
        Some(id) => id.to_owned(),
        None => format!("{:016x}", u64::from_le_bytes(random::bytes())),
    }
}

/// Who sent a request: the last address of `X-Forwarded-For` that no trusted proxy has, if the peer is one.
fn source(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|range| range.contains(address));
    let peer = peer.to_canonical();
    if !is_trusted(&peer) {
        return peer;
    }
    let mut source = peer;
    let forwarded: Vec<_> = headers
        .get_all("x-forwarded-for")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .collect();
    for hop in forwarded.iter().rev() {
        let Ok(hop) = hop.trim().parse::<IpAddr>() else { break };
        source = hop.to_canonical();
        if !is_trusted(&source) {
            break;
        }
    }
    source
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::http::json;

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
    async fn clients_that_are_slow_with_their_headers_are_cut() {
        let config = ServerConfig { header_timeout_secs: 1, ..ServerConfig::default() };
        let (address, _stop, _served) = start(config).await;
        for begun in ["", "P", "POST /length HTTP/1.1\r\nHos"] {
            // Reading ends only because the server cut the connection.
            drop(exchange(address, begun).await);
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_take_its_answers_is_cut() {
        let config = ServerConfig { header_timeout_secs: 1, ..ServerConfig::default() };
        let (address, _stop, _served) = start(config).await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"POST /length HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n".repeat(1000);
        // Writing fails only because the server cut the connection.
        while stream.write_all(&request).await.is_ok() {}
    }

    #[tokio::test]
    async fn a_request_without_a_path_is_refused() {
        let (address, _stop, _served) = start(ServerConfig::default()).await;
        let answer = exchange(address, "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    }

    #[tokio::test]
    async fn bodies_wait_for_room_and_all_get_it() {
        let config = ServerConfig { max_body_bytes: 2048, max_buffered_bytes: 1024, ..ServerConfig::default() };
        let (address, _stop, _served) = start(config).await;
        let body = "a".repeat(2048);
        let request =
            format!("POST /length HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2048\r\n\r\n{body}");
        let answers = futures_util::future::join_all((0..20).map(|_| exchange(address, &request))).await;
        assert!(answers.iter().all(|answer| answer.ends_with("2048")), "{answers:?}");
    }

    #[test]
    fn values_with_which_nothing_is_served_are_problems() {
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

    #[test]
    fn only_a_trusted_proxy_may_say_who_sent_a_request() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let forwarded = |value: &str| {
            HeaderMap::from_iter([(HeaderName::from_static("x-forwarded-for"), HeaderValue::from_str(value).unwrap())])
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let headers = forwarded("1.1.1.1, 203.0.113.7, 10.0.0.9");
        assert_eq!(source(&headers, ip("10.0.0.1"), &trusted), ip("203.0.113.7"));
        assert_eq!(source(&headers, ip("::ffff:10.0.0.1"), &trusted), ip("203.0.113.7"));
        assert_eq!(source(&headers, ip("198.51.100.1"), &trusted), ip("198.51.100.1"));
        assert_eq!(source(&forwarded("nonsense"), ip("10.0.0.1"), &trusted), ip("10.0.0.1"));
    }
}
