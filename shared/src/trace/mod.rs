//! Spans: what each request did and how long it took. `otlp` exports them to a collector.
//!
//! A span contains only constants, configured names, numbers and host names. No request data (addresses, tokens,
//! pushkeys, ids, paths, queries) goes into a span, except the caller's own `traceparent` and `tracestate`. Without a
//! collector there are no spans, and nothing here allocates or locks.
//!
//! Sources: W3C Trace Context; OpenTelemetry Semantic Conventions, "HTTP spans", without `url.path`, `url.query` and
//! `url.full`, which contain secrets here.

use std::{
    borrow::Cow,
    fmt,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderName, Method, Request, StatusCode};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{Span as _, SpanBuilder, SpanContext, Status, TraceContextExt as _, Tracer as _},
};
use opentelemetry_sdk::{
    propagation::TraceContextPropagator,
    trace::{SdkTracer, Span as SdkSpan},
};

use crate::clock::Clock;

pub use opentelemetry::{
    Value,
    trace::{SpanKind as Kind, TraceId},
};

/// The longest `tracestate` that is kept, the minimum W3C Trace Context requires: every span has a copy.
const MAX_TRACESTATE: usize = 512;

tokio::task_local! {
    /// The span that the current task works under.
    static CURRENT: Option<Place>;
}

/// Starts spans for requests.
#[derive(Clone, Debug)]
pub struct Tracer {
    sdk: SdkTracer,
    clock: Clock,
}

impl Tracer {
    /// A tracer that sends finished spans to the processors of `sdk`.
    #[must_use]
    pub fn new(sdk: SdkTracer, clock: Clock) -> Self {
        Self { sdk, clock }
    }

    /// Starts the span of a request with these headers; `None` if its trace is not sampled.
    pub(crate) fn request(&self, headers: &HeaderMap, method: &Method, route: Option<&'static str>) -> Option<Span> {
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Caller::of(headers));
        let origin = Origin { at: Instant::now(), time: UNIX_EPOCH + Duration::from_nanos(self.clock.now_ns()) };
        // Semantic Conventions: an unknown method is `HTTP` in the span name and `_OTHER` in the attribute.
        let method = known_method(method);
        let name = match route {
            Some(route) => Cow::Owned(format!("{} {route}", method.unwrap_or("HTTP"))),
            None => Cow::Borrowed(method.unwrap_or("HTTP")),
        };
        let mut span = Span::start(self, origin, Kind::Server, name, &parent)?;
        span.set("http.request.method", method.unwrap_or("_OTHER"));
        if let Some(route) = route {
            span.set("http.route", route);
        }
        Some(span)
    }
}

/// The trace headers of a request.
struct Caller<'a> {
    parent: Option<&'a str>,
    state: String,
}

impl<'a> Caller<'a> {
    fn of(headers: &'a HeaderMap) -> Self {
        let texts = |name| headers.get_all(HeaderName::from_static(name)).iter().map(|value| value.to_str().ok());
        let mut parents = texts("traceparent");
        let parent = match (parents.next(), parents.next()) {
            (Some(parent), None) => parent,
            // Several `traceparent` headers are ambiguous.
            _ => None,
        };
        let state = texts("tracestate").flatten().collect::<Vec<_>>().join(",");
        Self { parent, state }
    }
}

impl Extractor for Caller<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => self.parent,
            "tracestate" => Some(self.state.as_str()).filter(|state| (1..=MAX_TRACESTATE).contains(&state.len())),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

/// A position in a trace under which further spans can start.
#[derive(Clone)]
struct Place {
    tracer: Tracer,
    context: SpanContext,
    origin: Origin,
}

/// The start of a trace in this process, on both clocks. Later times are measured relative to it, so that no span ends
/// before it starts and no child outlives its parent when the system clock is adjusted.
#[derive(Clone, Copy)]
struct Origin {
    at: Instant,
    time: SystemTime,
}

impl Origin {
    fn now(self) -> SystemTime {
        self.time + self.at.elapsed()
    }
}

/// A unit of work in progress. It ends when this is dropped.
pub struct Span {
    sdk: SdkSpan,
    place: Place,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span").field("trace_id", &self.trace_id()).finish_non_exhaustive()
    }
}

impl Span {
    fn start(tracer: &Tracer, origin: Origin, kind: Kind, name: Cow<'static, str>, parent: &Context) -> Option<Self> {
        let builder = SpanBuilder::from_name(name).with_kind(kind).with_start_time(origin.now());
        let sdk = tracer.sdk.build_with_context(builder, parent);
        if !sdk.is_recording() {
            return None;
        }
        let place = Place { tracer: tracer.clone(), context: sdk.span_context().clone(), origin };
        Some(Self { sdk, place })
    }

    /// Adds an attribute: a constant, a configured name, a number or a host. Nothing else may go into a span.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.sdk.set_attribute(KeyValue::new(key, value));
    }

    /// Marks the work as failed, with a one-word reason.
    pub fn fail(&mut self, error: impl Into<Value>) {
        self.sdk.set_status(Status::error(""));
        self.set("error.type", error);
    }

    /// Records the response status. Statuses from `failed` upwards (500 for a server, 400 for a client) count as
    /// failures.
    pub(crate) fn status(&mut self, status: StatusCode, failed: u16) {
        self.set("http.response.status_code", i64::from(status.as_u16()));
        if status.as_u16() >= failed {
            self.fail(status.as_str().to_owned());
        }
    }

    /// The trace it belongs to.
    #[must_use]
    pub fn trace_id(&self) -> TraceId {
        self.place.context.trace_id()
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        self.sdk.end_with_timestamp(self.place.origin.now());
    }
}

/// Starts a child of the current task's span; `None` without one. `name` says what kind of work it is, and nothing
/// about the request.
#[must_use]
pub fn child(kind: Kind, name: &'static str) -> Option<Span> {
    let Place { tracer, context, origin } = current()?;
    Span::start(&tracer, origin, kind, name.into(), &Context::new().with_remote_span_context(context))
}

/// Starts the span of a call to another server; `None` without a current span. It records only the server's host,
/// because the path and the query are secret.
pub(crate) fn call<B>(request: &Request<B>) -> Option<Span> {
    let method = known_method(request.method());
    let mut span = child(Kind::Client, method.unwrap_or("HTTP"))?;
    span.set("http.request.method", method.unwrap_or("_OTHER"));
    if let Some(host) = request.uri().host() {
        span.set("server.address", host.to_owned());
    }
    Some(span)
}

/// Runs `work` under `span`, so that spans it starts become children of it.
pub fn under<F: Future>(span: Option<&Span>, work: F) -> impl Future<Output = F::Output> + use<F> {
    CURRENT.scope(span.map(|span| span.place.clone()), work)
}

/// Carries the current span along with `work`, for spawning it as a task.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> + use<F> {
    CURRENT.scope(current(), work)
}

/// The trace of the current task.
#[must_use]
pub fn current_trace() -> Option<TraceId> {
    CURRENT.try_with(|place| place.as_ref().map(|place| place.context.trace_id())).ok().flatten()
}

fn current() -> Option<Place> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// The name of a standard method; `None` for an invented one, since every distinct name in metrics and traces costs
/// memory.
#[must_use]
pub fn known_method(method: &Method) -> Option<&'static str> {
    Some(match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
