//! The HTTP server: an accept loop of our own around warp's service.
//!
//! warp's own server lacks a header time-out (a half-sent request stays open for ever), TCP_NODELAY and a connection
//! limit, and panics if the port is taken; hyper-util's builder around `warp::service` provides all of these.

mod activity;
mod config;
mod connection;
mod exchange;
mod forwarded;
mod peers;
mod reading;
#[cfg(test)]
mod tests;

use std::{io, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    time::timeout,
};

pub use self::config::ServerConfig;
use self::{
    connection::{accept, connection},
    exchange::Public,
    peers::Peers,
};
use crate::{
    current::Current,
    http::{body::BodyMemory, router::Router},
    stop::Stop,
    telemetry::metrics::HttpMetrics,
    trace::Tracer,
};

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
    let peers = Peers::new(config.max_connections, &config.trusted_proxies);
    let graceful = GracefulShutdown::new();

    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = stop.requested() => break,
        };
        let Some((stream, peer, permit)) = accepted else { continue };
        let Some(place) = peers.enter(peer.ip()) else {
            tracing::debug!("a connection was closed: its peer has used up its share of server.max_connections");
            continue;
        };
        let (builder, service, watcher) = (builder.clone(), service.clone(), graceful.watcher());
        let stop = stop.clone();
        tokio::spawn(async move {
            let _permits = (permit, place);
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
