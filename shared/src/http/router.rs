//! The routing table.
//!
//! Path, method, query and headers are matched before a byte of the body is read. Nothing rejects after that, so an
//! invalid body gives 400 and never 404.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, LazyLock},
    time::Duration,
};

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_MAX_AGE, ALLOW, CACHE_CONTROL, X_CONTENT_TYPE_OPTIONS,
    },
};
use serde_json::Map;
use tokio::sync::Semaphore;

use crate::{
    error::Chain,
    http::{
        error::MatrixError,
        rate_limit::Limiter,
        request::Incoming,
        response::{Response, internal_error, json},
    },
    trace,
};

/// The size limit of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodySize {
    /// Up to [`SMALL_BODY`], enough for the parameters of any ordinary request.
    Small,
    /// Up to `server.max_body_bytes`, for lists and whole events.
    Large,
}

/// Bytes of a body, unless its route is known to need more. The cost of a stranger's body grows with its size.
pub const SMALL_BODY: usize = 64 * 1024;

/// More handlers than ever run at once, since connections and their streams are limited.
const MAX_RUNNING: u32 = 1 << 24;

type BoxedFuture = Pin<Box<dyn Future<Output = Response> + Send>>;
type Handler<S> = Box<dyn Fn(S, Incoming) -> BoxedFuture + Send + Sync>;

/// The methods of one path.
struct Endpoint<S> {
    pattern: &'static str,
    handlers: Vec<(Method, BodySize, Handler<S>)>,
}

/// A routing table: one line per endpoint.
///
/// Handlers are plain functions `async fn(S, Incoming) -> Result<Response, E>`. The router takes care of 404 and 405
/// (`M_UNRECOGNIZED`), OPTIONS, CORS headers on every response, and panics (the client gets a 500, the service keeps
/// running).
pub struct Router<S> {
    paths: matchit::Router<usize>,
    endpoints: Vec<Endpoint<S>>,
    /// Whether pages from other origins may read the responses.
    cors: bool,
    /// Handlers that run have a permit each.
    running: Arc<Semaphore>,
}

impl<S> fmt::Debug for Router<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.endpoints.iter().map(|endpoint| endpoint.pattern)).finish()
    }
}

impl<S> Default for Router<S> {
    fn default() -> Self {
        Self {
            paths: matchit::Router::new(),
            endpoints: Vec::new(),
            cors: true,
            running: Arc::new(Semaphore::new(MAX_RUNNING as usize)),
        }
    }
}

/// The result of matching a request's line and headers, before its body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matched {
    /// An endpoint, and the index of the handler within it.
    Handler(usize, usize),
    /// A known path that does not support the method.
    WrongMethod(usize),
    /// OPTIONS, a browser's preflight for a cross-origin request. Answered for unknown paths too, so that the page
    /// gets to see the 404 itself.
    Preflight,
    /// An unknown path.
    Unknown,
}

impl<S: Clone + Send + Sync + 'static> Router<S> {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Omits the CORS headers, so that pages from other origins cannot read the responses: for private listeners that
    /// an operator's browser can reach.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.cors = false;
        self
    }

    /// Adds a GET endpoint. It also serves HEAD, so a handler with side effects must check the method.
    #[must_use]
    pub fn get<F, Fut, E>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(S, Incoming) -> Fut + Send + Sync + Copy + 'static,
        Fut: Future<Output = Result<Response, E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
        for<'a> MatrixError: From<&'a E>,
    {
        self.add(Method::HEAD, path, BodySize::Small, boxed(handler)).add(
            Method::GET,
            path,
            BodySize::Small,
            boxed(handler),
        )
    }

    /// Adds a POST endpoint for bodies of up to [`SMALL_BODY`] bytes.
    #[must_use]
    pub fn post<F, Fut, E>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(S, Incoming) -> Fut + Send + Sync + Copy + 'static,
        Fut: Future<Output = Result<Response, E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
        for<'a> MatrixError: From<&'a E>,
    {
        self.add(Method::POST, path, BodySize::Small, boxed(handler))
    }

    /// Adds a POST endpoint for bodies of up to `server.max_body_bytes` bytes.
    #[must_use]
    pub fn post_large<F, Fut, E>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(S, Incoming) -> Fut + Send + Sync + Copy + 'static,
        Fut: Future<Output = Result<Response, E>> + Send + 'static,
        E: std::error::Error + Send + 'static,
        for<'a> MatrixError: From<&'a E>,
    {
        self.add(Method::POST, path, BodySize::Large, boxed(handler))
    }

    /// # Panics
    ///
    /// If two patterns conflict: a bug in the routing table that shows at the first start.
    fn add(mut self, method: Method, path: &'static str, size: BodySize, handler: Handler<S>) -> Self {
        let known = self.endpoints.iter().position(|endpoint| endpoint.pattern == path);
        let index = known.unwrap_or_else(|| {
            let index = self.endpoints.len();
            self.paths.insert(path, index).expect("no two routes have conflicting patterns");
            self.endpoints.push(Endpoint { pattern: path, handlers: Vec::new() });
            index
        });
        self.endpoints[index].handlers.push((method, size, handler));
        self
    }

    /// Finds the endpoint and the path parameters.
    #[must_use]
    pub fn find(&self, method: &Method, path: &str) -> (Matched, Vec<(String, String)>) {
        if method == Method::OPTIONS && self.cors {
            return (Matched::Preflight, Vec::new());
        }
        let Ok(found) = self.paths.at(path) else { return (Matched::Unknown, Vec::new()) };
        let endpoint = *found.value;
        let handlers = &self.endpoints[endpoint].handlers;
        match handlers.iter().position(|(known, ..)| known == method) {
            None => (Matched::WrongMethod(endpoint), Vec::new()),
            Some(handler) => {
                let params = found.params.iter().map(|(name, value)| (name.to_owned(), decoded(value)));
                (Matched::Handler(endpoint, handler), params.collect())
            }
        }
    }

    /// The pattern that matched, for metrics: strangers choose paths, and every label value costs memory.
    #[must_use]
    pub fn pattern(&self, matched: Matched) -> &'static str {
        match matched {
            Matched::Handler(endpoint, _) | Matched::WrongMethod(endpoint) => self.endpoints[endpoint].pattern,
            Matched::Preflight => "preflight",
            Matched::Unknown => "unknown",
        }
    }

    /// The size limit of the request's body; `None` if nothing would read it.
    #[must_use]
    pub fn body_size(&self, matched: Matched) -> Option<BodySize> {
        match matched {
            Matched::Handler(endpoint, handler) => Some(self.endpoints[endpoint].handlers[handler].1),
            Matched::WrongMethod(_) | Matched::Preflight | Matched::Unknown => None,
        }
    }

    /// Answers a request whose body has been read.
    pub async fn answer(&self, state: S, matched: Matched, request: Incoming) -> Response {
        let mut response = match matched {
            Matched::Handler(endpoint, handler) => {
                let (_, _, handler) = &self.endpoints[endpoint].handlers[handler];
                // In a task of its own, which runs to completion even if the client disconnects: a bind in the
                // database must reach the index, and a push accepted by a provider must be remembered.
                let (running, answer) = (self.running.clone(), handler(state, request));
                let answer = trace::carried(async move {
                    let _permit = running.acquire_owned().await;
                    answer.await
                });
                tokio::spawn(answer).await.unwrap_or_else(|_| internal_error())
            }
            Matched::WrongMethod(endpoint) => self.wrong_method(endpoint),
            Matched::Preflight => json(&Map::new()),
            Matched::Unknown => {
                MatrixError::new(StatusCode::NOT_FOUND, "M_UNRECOGNIZED", "No such endpoint").into_response()
            }
        };
        self.add_common_headers(&mut response);
        response
    }

    /// Waits until no handler runs any more, those of clients that have disconnected included.
    pub async fn idle(&self) {
        drop(self.running.acquire_many(MAX_RUNNING).await);
    }

    /// Adds the headers that every response has.
    pub fn add_common_headers(&self, response: &mut Response) {
        if self.cors {
            add_cors_headers(response.headers_mut());
        }
        let headers = response.headers_mut();
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        // Nearly every response says something about a person, and none is worth keeping.
        headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    }

    fn wrong_method(&self, endpoint: usize) -> Response {
        let allowed: Vec<_> = self.endpoints[endpoint].handlers.iter().map(|(method, ..)| method.as_str()).collect();
        let allowed = allowed.join(", ");
        let text = format!("This endpoint takes {allowed}");
        let mut response = MatrixError::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", text).into_response();
        if let Ok(allowed) = HeaderValue::from_str(&allowed) {
            response.headers_mut().insert(ALLOW, allowed);
        }
        response
    }
}

fn decoded(segment: &str) -> String {
    percent_encoding::percent_decode_str(segment).decode_utf8_lossy().into_owned()
}

fn boxed<S, F, Fut, E>(handler: F) -> Handler<S>
where
    F: Fn(S, Incoming) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Response, E>> + Send + 'static,
    E: std::error::Error + Send + 'static,
    for<'a> MatrixError: From<&'a E>,
{
    Box::new(move |state, request| {
        let request_id = request.request_id.clone();
        let answer = handler(state, request);
        Box::pin(async move {
            match answer.await {
                Ok(response) => response,
                Err(error) => failed(&error, &request_id),
            }
        })
    })
}

/// Lines about temporary failures: a burst, and the time until one more.
static LOGGED: LazyLock<Limiter<()>> = LazyLock::new(|| Limiter::new(100, Duration::from_secs(1)));

/// Converts a failure into its response and logs it, here and nowhere else: our own faults as errors with all causes,
/// failures of servers we depend on as warnings, the client's mistakes at debug level.
fn failed<E>(error: &E, request_id: &str) -> Response
where
    E: std::error::Error + 'static,
    for<'a> MatrixError: From<&'a E>,
{
    let answer = MatrixError::from(error);
    let (status, errcode) = (answer.status.as_u16(), answer.errcode);
    match status {
        // Strangers can make homeservers fail that are their own.
        501.. if LOGGED.check(&()).is_err() => {}
        500 => tracing::error!(request_id, status, errcode, error = %Chain(error), "request failed"),
        501.. => tracing::warn!(request_id, status, errcode, error = %Chain(error), "request failed temporarily"),
        _ => tracing::debug!(request_id, status, errcode, "request refused"),
    }
    answer.into_response()
}

/// CORS headers on every response, as the specification requires (Client-Server API, "Web browser clients").
fn add_cors_headers(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS"));
    // For browsers, `*` does not cover Authorization.
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("X-Requested-With, Content-Type, Authorization"),
    );
    headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;

    use super::*;
    use crate::{http::body::Body, source::RequestSource};

    async fn echo(_state: (), request: Incoming) -> Result<Response, MatrixError> {
        Ok(json(&request.path_params))
    }

    async fn breaks(_state: (), _request: Incoming) -> Result<Response, MatrixError> {
        panic!("broken on purpose")
    }

    fn router() -> Router<()> {
        Router::new().get("/key/{keyId}", echo).post("/lookup", echo).post("/breaks", breaks)
    }

    async fn call(method: Method, path: &str) -> Response {
        answer_of(&router(), method, path).await
    }

    async fn answer_of(router: &Router<()>, method: Method, path: &str) -> Response {
        let (matched, path_params) = router.find(&method, path);
        let request = Incoming {
            method,
            path: path.to_owned(),
            path_params,
            query: String::new(),
            headers: HeaderMap::new(),
            body: Body::default(),
            source: RequestSource::UNKNOWN,
            request_id: "test".to_owned(),
        };
        router.answer((), matched, request).await
    }

    fn errcode(response: &Response) -> String {
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        body["errcode"].as_str().unwrap().to_owned()
    }

    #[tokio::test]
    async fn an_unknown_path_and_a_wrong_method_are_unrecognized() {
        for (method, path, status) in [
            (Method::GET, "/nothing", 404),
            (Method::POST, "/lookup/", 404),
            (Method::GET, "/lookup", 405),
            (Method::DELETE, "/key/a", 405),
        ] {
            let response = call(method, path).await;
            assert_eq!((response.status().as_u16(), errcode(&response).as_str()), (status, "M_UNRECOGNIZED"));
            assert_eq!(response.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        }
        assert_eq!(call(Method::GET, "/lookup").await.headers()[ALLOW], "POST");
    }

    #[tokio::test]
    async fn a_preflight_needs_no_token_and_no_known_path() {
        let response = call(Method::OPTIONS, "/nothing").await;
        assert_eq!(response.status(), 200);
        assert!(response.headers()[ACCESS_CONTROL_ALLOW_HEADERS].to_str().unwrap().contains("Authorization"));
    }

    #[tokio::test]
    async fn pages_of_other_origins_cannot_read_private_responses() {
        let router = router().private();
        for (method, path, status) in
            [(Method::GET, "/key/a", 200), (Method::GET, "/nothing", 404), (Method::OPTIONS, "/key/a", 405)]
        {
            let response = answer_of(&router, method, path).await;
            assert_eq!(response.status().as_u16(), status);
            assert!(!response.headers().keys().any(|name| name.as_str().starts_with("access-control-")));
        }
    }

    #[tokio::test]
    async fn path_parameters_are_decoded() {
        let response = call(Method::GET, "/key/ed25519%3A0").await;
        assert_eq!(response.body(), r#"[["keyId","ed25519:0"]]"#);
        let response = call(Method::GET, "/key/a=b&c+d").await;
        assert_eq!(response.body(), r#"[["keyId","a=b&c+d"]]"#);
    }

    #[tokio::test]
    async fn a_panic_is_answered() {
        let response = call(Method::POST, "/breaks").await;
        assert_eq!((response.status().as_u16(), errcode(&response).as_str()), (500, "M_UNKNOWN"));
    }
}
