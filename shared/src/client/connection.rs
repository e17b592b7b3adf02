//! One connection: how it is opened, and how a request goes over it.

use std::{
    error::Error as StdError,
    mem,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Uri, header::HOST};
use http_body_util::Full;
use hyper::client::conn::{http1, http2};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::{
    client::legacy::connect::Connection as _,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use tokio::sync::Notify;
use tower_service::Service as _;

use super::connector::{self, Connector};

/// A connection over which nothing has come for this long is asked for a sign of life ...
const PING_AFTER: Duration = Duration::from_secs(30);
/// ... and is dead without one after this.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of an answer's line and headers, which peers that strangers choose may send without end.
const MAX_BUFFER: usize = 16 * 1024;
const MAX_HEADERS: u32 = 16 * 1024;
/// Bytes that a peer may send for one answer, and for all on its connection, before somebody reads them. The answers of
/// push services and homeservers are smaller.
const WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

pub(super) type Body = Full<Bytes>;
type Stream = MaybeHttpsStream<TokioIo<connector::Stream>>;
pub(super) type Http1 = http1::SendRequest<Body>;
pub(super) type Http2 = http2::SendRequest<Body>;
pub(super) type Http2Connection = http2::Connection<Stream, Body, TokioExecutor>;

/// A new connection.
pub(super) enum Opened {
    /// HTTP/2. Somebody has to poll it.
    Multiplexed(Http2, Http2Connection),
    /// HTTP/1.1.
    Single(Http1),
}

/// Connects, and speaks the best protocol that the peer offers. `streams` requests at once are thought to be allowed
/// before the peer says how many.
pub(super) async fn open(
    mut connector: HttpsConnector<Connector>,
    uri: Uri,
    streams: usize,
    warm: bool,
) -> Result<Opened, Box<dyn StdError + Send + Sync>> {
    let stream: Stream = connector.call(uri).await?;
    if stream.connected().is_negotiated_h2() {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).initial_max_send_streams(streams).max_header_list_size(MAX_HEADERS);
        builder.initial_stream_window_size(WINDOW).initial_connection_window_size(CONNECTION_WINDOW);
        builder.keep_alive_interval(PING_AFTER).keep_alive_timeout(PING_TIMEOUT).keep_alive_while_idle(warm);
        let (sender, connection): (Http2, Http2Connection) = builder.handshake(stream).await?;
        return Ok(Opened::Multiplexed(sender, connection));
    }
    let (sender, connection): (Http1, http1::Connection<Stream, Body>) =
        http1::Builder::new().max_buf_size(MAX_BUFFER).handshake(stream).await?;
    // What breaks it is told to who uses it.
    tokio::spawn(async move { drop(connection.await) });
    Ok(Opened::Single(sender))
}

/// What is known of who is at the other end of a connection of HTTP/2.
pub(super) struct Peer {
    /// What it allows at once.
    pub(super) streams: AtomicUsize,
    /// That is to be looked at again.
    pub(super) look: Notify,
}

impl Peer {
    pub(super) fn new(streams: usize) -> Self {
        Self { streams: AtomicUsize::new(streams), look: Notify::new() }
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    pub(super) fn look_again(&self) {
        self.look.notify_one();
    }
}

/// A request that got no answer.
pub(super) struct Unanswered {
    /// The peer surely did nothing about it: it never left, or the peer said so (RFC 9113, section 8.7).
    pub(super) is_untouched: bool,
    pub(super) error: hyper::Error,
}

/// Whether an error of a connection of HTTP/2 says that the peer did nothing about the request: it refused it, or it
/// goes away, names the last request that it may do something about, and this one came after it.
pub(super) fn is_untouched(error: &hyper::Error) -> bool {
    let Some(error) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else {
        // The connection ended while the request waited to be sent.
        return error.is_user();
    };
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// HTTP/1.1 wants the host in a header, and only the path in its first line.
pub(super) fn prepare_for_http1(request: &mut Request<Body>) {
    let uri = mem::take(request.uri_mut());
    if let Some(authority) = uri.authority()
        && !request.headers().contains_key(HOST)
    {
        let default_port = if uri.scheme_str() == Some("http") { 80 } else { 443 };
        let host = match authority.port_u16() {
            Some(port) if port != default_port => HeaderValue::try_from(format!("{}:{port}", authority.host())),
            _ => HeaderValue::try_from(authority.host()),
        };
        if let Ok(host) = host {
            request.headers_mut().insert(HOST, host);
        }
    }
    *request.uri_mut() = uri.path_and_query().cloned().map(Uri::from).unwrap_or_default();
}
