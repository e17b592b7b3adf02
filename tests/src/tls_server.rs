//! An HTTPS server that records requests and gives prepared answers.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ::http::{HeaderMap, Method, StatusCode, Version};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::fault::{Fault, Faults};
use crate::record::Record;

/// Concurrent requests per connection: FCM's limit.
const STREAMS: u32 = 100;

/// A received request.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path, as sent.
    pub path: String,
    /// The query without its question mark, as sent; empty if there is none.
    pub query: String,
    /// The headers; names in lower case.
    pub headers: HeaderMap,
    /// The requested host: the Host header, or HTTP/2's `:authority`.
    pub host: String,
    /// The whole body.
    pub body: Bytes,
    /// HTTP/1.1 or HTTP/2.
    pub version: Version,
    /// The server name (SNI) of the TLS handshake; None if the client connected to an IP address.
    pub sni: Option<String>,
    /// Whether the client presented a valid certificate.
    pub client_certificate: bool,
}

impl Request {
    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON; `Null` if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// A query parameter, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }
}

/// A prepared answer.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A status, headers and a body.
    Reply {
        /// The status.
        status: StatusCode,
        /// Headers besides the content type.
        headers: Vec<(&'static str, String)>,
        /// The body.
        body: Bytes,
    },
    /// Never answer.
    Hang,
    /// Close the connection (HTTP/1.1) or reset the stream (HTTP/2).
    Reset,
    /// Give this answer after a delay.
    Late(Duration, Box<Answer>),
}

impl Answer {
    /// A JSON answer.
    pub fn json(status: u16, value: &Value) -> Self {
        Self::text(status, &value.to_string()).header("content-type", "application/json")
    }

    /// An answer with this body.
    pub fn text(status: u16, body: &str) -> Self {
        Self::bytes(status, body.to_owned())
    }

    /// An answer with this binary body.
    pub fn bytes(status: u16, body: impl Into<Bytes>) -> Self {
        Self::Reply { status: StatusCode::from_u16(status).unwrap(), headers: Vec::new(), body: body.into() }
    }

    /// An answer without a body.
    pub fn empty(status: u16) -> Self {
        Self::text(status, "")
    }

    /// The same answer with one more header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Reply { headers, .. } = &mut self {
            headers.push((name, value.to_owned()));
        }
        self
    }

    /// Whether it has a success status.
    pub fn is_success(&self) -> bool {
        match self {
            Self::Reply { status, .. } => status.is_success(),
            Self::Late(_, answer) => answer.is_success(),
            Self::Hang | Self::Reset => false,
        }
    }
}

/// Decides the answer to a request.
pub type Handler = Arc<dyn Fn(Request) -> BoxFuture<'static, Answer> + Send + Sync>;

/// A running server. On drop it stops and closes its connections.
#[derive(Debug)]
pub struct TlsServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Every request, in order of arrival.
    pub requests: Arc<Record<Request>>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

/// State shared by all connections of a server.
#[derive(Debug)]
struct Shared {
    faults: Faults,
    /// Connections accepted so far, including failed ones.
    connections: AtomicU32,
    /// Concurrent requests per connection.
    streams: AtomicU32,
    /// Changes to close all open connections.
    cut: watch::Sender<()>,
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TlsServer {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start<F, Fut>(config: Arc<rustls::ServerConfig>, handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), config, handler).await
    }

    /// Listens on this address.
    ///
    /// # Panics
    ///
    /// If it cannot bind: ports below 1024 may need privileges.
    pub async fn start_on<F, Fut>(address: SocketAddr, config: Arc<rustls::ServerConfig>, handler: F) -> Self
    where
        F: Fn(Request) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap_or_else(|err| {
            panic!("cannot listen on {address}: {err}. As root: sysctl net.ipv4.ip_unprivileged_port_start=443")
        });
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Record::default());
        let shared = Arc::new(Shared {
            faults: Faults::default(),
            connections: AtomicU32::new(0),
            streams: AtomicU32::new(STREAMS),
            cut: watch::Sender::new(()),
        });
        let handler: Handler = Arc::new(move |request| handler(request).boxed());
        let connection = Connection { handler, requests: Arc::clone(&requests), shared: Arc::clone(&shared) };
        let task = tokio::spawn(accept(listener, TlsAcceptor::from(config), connection));
        Self { address, requests, shared, task }
    }

    /// Injected connection failures.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// The number of connections accepted so far.
    pub fn connections(&self) -> u32 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Sets the limit of concurrent requests for new connections.
    pub fn allow_streams(&self, streams: u32) {
        self.shared.streams.store(streams, Ordering::SeqCst);
    }

    /// Closes all open connections.
    pub fn cut(&self) {
        self.shared.cut.send_replace(());
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

/// Per-connection context.
#[derive(Clone)]
struct Connection {
    handler: Handler,
    requests: Arc<Record<Request>>,
    shared: Arc<Shared>,
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, connection: Connection) {
    // Dropped with this task, which aborts every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                connection.shared.connections.fetch_add(1, Ordering::SeqCst);
                let mut cut = connection.shared.cut.subscribe();
                let serving = serve(stream, tls.clone(), connection.clone());
                connections.spawn(async move {
                    tokio::select! {
                        () = serving => {}
                        _ = cut.changed() => {}
                    }
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

/// Serves one connection. A failed handshake ends it silently: tests check the client's side.
async fn serve(stream: TcpStream, tls: TlsAcceptor, connection: Connection) {
    let _ = stream.set_nodelay(true);
    let Connection { handler, requests, shared } = connection;
    let fault = shared.faults.next();
    let tls = match &fault {
        Some(Fault::Silence) => pending().await,
        Some(Fault::Certificate(config)) => TlsAcceptor::from(Arc::clone(config)),
        _ => tls,
    };
    let Ok(stream) = tls.accept(stream).await else { return };
    match &fault {
        None => {}
        Some(Fault::CutBefore) => return,
        Some(fault) => {
            // Ends when the client disconnects.
            let _ = shared.faults.play(fault, stream).await;
            return;
        }
    }
    let session = stream.get_ref().1;
    let sni = session.server_name().map(str::to_owned);
    let client_certificate = session.peer_certificates().is_some();
    let service = service_fn(move |request: ::http::Request<Incoming>| {
        let handler = Arc::clone(&handler);
        let requests = Arc::clone(&requests);
        let sni = sni.clone();
        async move {
            let request = read(request, sni, client_certificate).await?;
            requests.push(request.clone());
            reply(handler(request).await).await
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http2().max_concurrent_streams(shared.streams.load(Ordering::SeqCst));
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn read(
    request: ::http::Request<Incoming>,
    sni: Option<String>,
    client_certificate: bool,
) -> Result<Request, io::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let host = match parts.uri.authority() {
        Some(authority) => authority.to_string(),
        None => parts.headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default().to_owned(),
    };
    Ok(Request {
        method: parts.method,
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        host,
        body,
        version: parts.version,
        sni,
        client_certificate,
    })
}

async fn reply(answer: Answer) -> Result<::http::Response<Full<Bytes>>, io::Error> {
    let answer = match answer {
        Answer::Late(delay, answer) => {
            tokio::time::sleep(delay).await;
            *answer
        }
        answer => answer,
    };
    match answer {
        Answer::Reply { status, headers, body } => {
            let mut response = ::http::Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            response.body(Full::new(body)).map_err(io::Error::other)
        }
        Answer::Hang => {
            pending::<()>().await;
            Err(io::Error::other("never reached"))
        }
        Answer::Reset | Answer::Late(..) => Err(io::Error::other("reset, as programmed")),
    }
}
