//! Accepting connections, and ending those that are idle.

use std::{
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::{Either, Ready, ready};
use http::StatusCode;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Instant,
};
use tower_service::Service;

use super::{
    activity::Activity,
    exchange::{Public, warp_service},
};
use crate::{http::error::MatrixError, stop::Stop};

/// The next connection, as soon as the limit allows one.
pub(super) async fn accept(
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

/// Serves a connection until it ends, or has been idle for too long.
pub(super) async fn connection<S: Clone + Send + Sync + 'static>(
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

/// How long a connection without a request may last after the request to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(1);
/// The shortest interval between two idle checks of a connection.
const SHORTEST_CHECK: Duration = Duration::from_millis(100);

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
