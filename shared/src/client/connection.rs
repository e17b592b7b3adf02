//! A single connection: opening it, and sending requests over it.

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

/// A connection that has received nothing for this long is pinged ...
const PING_AFTER: Duration = Duration::from_secs(30);
/// ... and considered dead if there is no response within this.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Limit in bytes on a response's status line and headers: strangers choose the peers, which may send without end.
const MAX_BUFFER: usize = 16 * 1024;
const MAX_HEADERS: u32 = 16 * 1024;
/// Bytes that a peer may send for one response, and for all responses on its connection, before they are read.
/// Responses of push services and homeservers are smaller.
const WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;

pub(super) type Body = Full<Bytes>;
type Stream = MaybeHttpsStream<TokioIo<connector::Stream>>;
pub(super) type Http1 = http1::SendRequest<Body>;
pub(super) type Http2 = http2::SendRequest<Body>;
pub(super) type Http2Connection = http2::Connection<Stream, Body, TokioExecutor>;

/// A freshly opened connection.
pub(super) enum Opened {
    /// HTTP/2. The connection must be polled.
    Multiplexed(Http2, Http2Connection),
    /// HTTP/1.1.
    Single(Http1),
}

/// Connects using the best protocol that the peer offers. Until the peer has announced its limit, `streams` concurrent
/// requests are assumed to be allowed.
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
    // Errors surface to the request that uses the connection.
    tokio::spawn(async move { drop(connection.await) });
    Ok(Opened::Single(sender))
}

/// What is known about the peer of an HTTP/2 connection.
pub(super) struct Peer {
    /// The number of concurrent requests the peer allows.
    pub(super) streams: AtomicUsize,
    /// Notified when that number should be refreshed.
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

/// A request that got no response.
pub(super) struct Unanswered {
    /// The peer certainly did not process it: it was never sent, or the peer said so (RFC 9113, section 8.7).
    pub(super) is_untouched: bool,
    pub(super) error: hyper::Error,
}

/// Whether an HTTP/2 error says that the peer did not process the request: either the peer refused the stream, or it
/// sent a GOAWAY whose last stream precedes this one.
pub(super) fn is_untouched(error: &hyper::Error) -> bool {
    let Some(error) = error.source().and_then(|source| source.downcast_ref::<h2::Error>()) else {
        // The connection ended while the request was waiting to be sent.
        return error.is_user();
    };
    error.is_remote() && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// HTTP/1.1 takes the host in a header, and only the path in the request line.
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
