//! One request and its response.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Buf;
use futures_util::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use tokio::time::Instant;
use tower_service::Service;
use warp::Filter as _;

use super::{activity::Activity, config::ServerConfig, forwarded, reading};
use crate::{
    current::Current,
    http::{
        body::{Body, BodyMemory},
        error::MatrixError,
        request::Incoming,
        response::Response,
        router::{BodySize, Matched, Router, SMALL_BODY},
    },
    random,
    source::RequestSource,
    telemetry::metrics::HttpMetrics,
    trace::{self, Span, Tracer},
};

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A public service: its routes, and how its requests are read.
pub(super) struct Public<S> {
    pub(super) router: Router<S>,
    pub(super) state: Current<S>,
    pub(super) config: ServerConfig,
    pub(super) metrics: Option<HttpMetrics>,
    pub(super) tracer: Option<Tracer>,
    pub(super) memory: Arc<BodyMemory>,
}

/// warp's service for one connection: a single filter that extracts the parts, and the routing table that matches.
pub(super) fn warp_service<S: Clone + Send + Sync + 'static>(
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
        // A stranger must not decide which requests are recorded.
        let nothing = HeaderMap::new();
        let trusted = forwarded::is_trusted(head.peer, &self.config.trusted_proxies);
        let context = if trusted { &head.headers } else { &nothing };
        let mut span = self.tracer.as_ref()?.request(context, &head.method, route)?;
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
        let source = forwarded::source(&head.headers, head.peer, &self.config.trusted_proxies);
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
        let longest = Duration::from_secs(self.config.body_timeout_secs);
        reading::read(body, headers, limit, longest, self.memory.hold(source)).await
    }
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
