//! Traces: what each request did and how long it took, told to a collector of the operator's own.
//!
//! A span is made of constants, of what the operator configured, of numbers and of the names of hosts. What a request
//! says (addresses, tokens, pushkeys, ids, paths, queries) is in none. Without `[traces]` there are no spans, and
//! nothing here allocates or locks.
//!
//! Sources: OpenTelemetry Specification, "Trace SDK" (parent-based sampling); OpenTelemetry Semantic Conventions, "HTTP
//! spans", without `url.path`, `url.query` and `url.full`, which hold secrets here.

mod config;
mod exporter;
mod ids;
mod otlp;

use std::{borrow::Cow, fmt, mem, sync::Arc, time::Duration};

use http::{HeaderMap, Method, Request, StatusCode};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout},
};

use self::{
    exporter::{Exporter, Link, MOST_WAITING},
    ids::{Parent, SpanId},
    otlp::Resource,
};
use crate::{
    clock::Clock,
    current::Current,
    http::known_method,
    http_client::{Outbound, OutboundConfig, OutboundError, Reach},
    random,
    serve::Stop,
};

pub use self::{config::TracesConfig, ids::TraceId};

tokio::task_local! {
    /// The span that the running task works for.
    static CURRENT: Option<Context>;
}

/// What became of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    /// The collector has it.
    Exported,
    /// The collector was away, or did not want it.
    Refused,
    /// Too many were waiting.
    Dropped,
}

impl Ended {
    const ALL: [Self; 3] = [Self::Exported, Self::Refused, Self::Dropped];

    fn label(self) -> &'static str {
        match self {
            Self::Exported => "exported",
            Self::Refused => "refused",
            Self::Dropped => "dropped",
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct SpanLabels {
    outcome: &'static str,
}

/// Counts what became of spans.
#[derive(Clone, Debug)]
pub struct TraceMetrics([Counter; 3]);

impl TraceMetrics {
    /// Registers `spans_total`. All outcomes start at 0, so that an alert sees the first one.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let spans = Family::<SpanLabels, Counter>::default();
        registry.register("spans", "Spans of traces by what became of them", spans.clone());
        Self(Ended::ALL.map(|ended| spans.get_or_create_owned(&SpanLabels { outcome: ended.label() })))
    }

    fn ended(&self, ended: Ended, count: u64) {
        self.0[ended as usize].inc_by(count);
    }
}

/// Traces cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A key's value cannot be used; which, and why.
    #[error("{0}: {1}")]
    Setting(String, String),
    /// The client for the collector.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
}

/// Makes spans, and sends them to the collector. Copies share both.
#[derive(Clone, Debug)]
pub struct Tracer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    sample_ratio: f64,
    clock: Clock,
    queue: mpsc::Sender<Finished>,
    metrics: TraceMetrics,
    link: Current<Arc<Link>>,
    exporting: Mutex<Option<(watch::Sender<bool>, JoinHandle<()>)>>,
}

impl Tracer {
    /// Begins to send the spans of `service`, if the configuration names a collector. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`TracesError`]; that the collector is away is none.
    pub fn start(
        config: &TracesConfig,
        outbound: &OutboundConfig,
        service: &'static str,
        metrics: TraceMetrics,
        clock: Clock,
    ) -> Result<Option<Self>, TracesError> {
        let Some(link) = link(config, outbound)? else { return Ok(None) };
        let link = Current::new(Arc::new(link));
        let (sender, queue) = mpsc::channel(MOST_WAITING);
        let (ask_to_stop, stop) = Stop::manual();
        let exporter = Exporter {
            queue,
            link: link.clone(),
            resource: Resource { service, instance: format!("{:032x}", u128::from_le_bytes(random::bytes())) },
            metrics: metrics.clone(),
            clock: clock.clone(),
            stop,
            is_away: false,
        };
        let exporting = Mutex::new(Some((ask_to_stop, tokio::spawn(exporter.run()))));
        let sample_ratio = config.sample_ratio;
        Ok(Some(Self(Arc::new(Inner { sample_ratio, clock, queue: sender, metrics, link, exporting }))))
    }

    /// Goes on with what the secret files and `[outbound]` say now. The rest of `config` is that of the start.
    ///
    /// # Errors
    ///
    /// [`TracesError`]; then all stays as it was.
    pub fn renew(&self, config: &TracesConfig, outbound: &OutboundConfig) -> Result<(), TracesError> {
        if let Some(link) = link(config, outbound)? {
            self.0.link.set(Arc::new(link));
        }
        Ok(())
    }

    /// Sends what is left, for as long as one call may take. Spans that end later are dropped.
    pub async fn stop(&self) {
        let exporting = self.0.exporting.lock().take();
        let Some((ask_to_stop, mut exporting)) = exporting else { return };
        ask_to_stop.send_replace(true);
        if timeout(self.0.link.get().timeout, &mut exporting).await.is_err() {
            exporting.abort();
            tracing::warn!("the collector did not take the last traces in time");
        }
    }

    /// The span of a request that came with `headers`; none if its trace is not to be recorded.
    pub(crate) fn request(&self, headers: &HeaderMap, method: &Method, route: Option<&'static str>) -> Option<Span> {
        let parent = Parent::of(headers);
        let (trace, is_sampled) = match parent {
            Some(parent) => (parent.trace, parent.is_sampled),
            None => {
                let trace = TraceId::random();
                (trace, trace.is_within(self.0.sample_ratio))
            }
        };
        if !is_sampled {
            return None;
        }
        let begun = Instant::now();
        let zero = Zero { at: begun, unix_ns: self.0.clock.now_ns() };
        let context = Context { tracer: self.clone(), trace, span: SpanId::random(), zero };
        // What strangers made up is no method (Semantic Conventions: `HTTP` in the name, `_OTHER` beside it).
        let method = known_method(method);
        let name = match route {
            Some(route) => Cow::Owned(format!("{} {route}", method.unwrap_or("HTTP"))),
            None => Cow::Borrowed(method.unwrap_or("HTTP")),
        };
        let mut span = Span {
            context,
            parent: parent.map(|parent| parent.span),
            kind: Kind::Server,
            name,
            begun,
            attributes: vec![("http.request.method", method.unwrap_or("_OTHER").into())],
            failed: false,
        };
        if let Some(route) = route {
            span.set("http.route", route);
        }
        Some(span)
    }

    fn finished(&self, span: Finished) {
        if self.0.queue.try_send(span).is_err() {
            self.0.metrics.ended(Ended::Dropped, 1);
        }
    }
}

fn link(config: &TracesConfig, outbound: &OutboundConfig) -> Result<Option<Link>, TracesError> {
    let setting = |(key, problem)| TracesError::Setting(key, problem);
    let Some(uri) = config.uri().map_err(setting)? else { return Ok(None) };
    let headers = config.header_map().map_err(setting)?;
    let client = Outbound::new(outbound)?.client(Reach::Anywhere);
    Ok(Some(Link { client, uri, headers, timeout: Duration::from_secs(config.timeout_secs) }))
}

/// Which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// None: work of our own.
    Internal,
    /// A request that was answered.
    Server,
    /// A request that was made.
    Client,
}

/// What an attribute says. Only what the operator configured, constants, numbers and hosts may be put into one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(Cow<'static, str>),
    /// A number.
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(Cow::Borrowed(text))
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(Cow::Owned(text))
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}

/// A place in a trace, under which further spans may come.
#[derive(Clone, Debug)]
struct Context {
    tracer: Tracer,
    trace: TraceId,
    span: SpanId,
    zero: Zero,
}

/// When a trace began here, by both clocks: later times are measured from it, so that none goes backwards.
#[derive(Clone, Copy, Debug)]
struct Zero {
    at: Instant,
    unix_ns: u64,
}

impl Zero {
    /// A time in nanoseconds since the epoch.
    fn unix_ns(self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.at).as_nanos();
        self.unix_ns.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// A piece of work that is under way. It ends when this is dropped.
pub struct Span {
    context: Context,
    parent: Option<SpanId>,
    kind: Kind,
    name: Cow<'static, str>,
    begun: Instant,
    attributes: Vec<(&'static str, Value)>,
    failed: bool,
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Span").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Span {
    /// Adds an attribute. See [`Value`] for what may be in one.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.attributes.push((key, value.into()));
    }

    /// Says that the work failed, and in one word why.
    pub fn fail(&mut self, error: impl Into<Value>) {
        self.failed = true;
        self.set("error.type", error);
    }

    /// Says how a request was answered. From `failed` on (500 for who answers, 400 for who asks) it is a failure.
    pub(crate) fn status(&mut self, status: StatusCode, failed: u16) {
        self.set("http.response.status_code", i64::from(status.as_u16()));
        if status.as_u16() >= failed {
            self.fail(status.as_str().to_owned());
        }
    }

    /// The trace that it is in.
    #[must_use]
    pub fn trace_id(&self) -> TraceId {
        self.context.trace
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        let zero = self.context.zero;
        self.context.tracer.finished(Finished {
            trace: self.context.trace,
            span: self.context.span,
            parent: self.parent,
            kind: self.kind,
            name: mem::take(&mut self.name),
            begun_ns: zero.unix_ns(self.begun),
            ended_ns: zero.unix_ns(Instant::now()),
            attributes: mem::take(&mut self.attributes),
            failed: self.failed,
        });
    }
}

/// A span that has ended.
#[derive(Debug)]
struct Finished {
    trace: TraceId,
    span: SpanId,
    parent: Option<SpanId>,
    kind: Kind,
    name: Cow<'static, str>,
    begun_ns: u64,
    ended_ns: u64,
    attributes: Vec<(&'static str, Value)>,
    failed: bool,
}

/// Begins a span below the one that the task works for; none if there is none. Its name tells the kind of work, and
/// nothing about the request.
#[must_use]
pub fn child(kind: Kind, name: &'static str) -> Option<Span> {
    let Context { tracer, trace, span, zero } = current()?;
    let context = Context { tracer, trace, span: SpanId::random(), zero };
    let begun = Instant::now();
    let (name, attributes) = (Cow::Borrowed(name), Vec::new());
    Some(Span { context, parent: Some(span), kind, name, begun, attributes, failed: false })
}

/// Begins the span of a call of another server; none if no span is being worked for. It names the server's host: the
/// path and the query are secrets.
pub(crate) fn call<B>(request: &Request<B>) -> Option<Span> {
    let method = known_method(request.method());
    let mut span = child(Kind::Client, method.unwrap_or("HTTP"))?;
    span.set("http.request.method", method.unwrap_or("_OTHER"));
    if let Some(host) = request.uri().host() {
        span.set("server.address", host.to_owned());
    }
    Some(span)
}

/// Does `work` for `span`, so that what it begins is below that one.
pub fn under<F: Future>(span: Option<&Span>, work: F) -> impl Future<Output = F::Output> + use<F> {
    CURRENT.scope(span.map(|span| span.context.clone()), work)
}

/// `work` for the span that this task works for, though in a task of its own.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> + use<F> {
    CURRENT.scope(current(), work)
}

/// The trace that the task works for.
#[must_use]
pub fn current_trace() -> Option<TraceId> {
    CURRENT.try_with(|context| context.as_ref().map(|context| context.trace)).ok().flatten()
}

fn current() -> Option<Context> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

#[cfg(test)]
mod tests;
