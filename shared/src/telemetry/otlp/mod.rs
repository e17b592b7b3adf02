//! Exports finished spans to a collector. The OpenTelemetry SDK batches and retries, our own HTTP client sends.
//!
//! The SDK's batch processor runs in a thread of its own and never waits for queue space, so a slow or unreachable
//! collector does not slow down requests. Spans it drops or cannot deliver are counted here, because the SDK only logs
//! them.
//!
//! Sources: OpenTelemetry Specification, "Trace SDK"; OpenTelemetry Protocol Specification, "OTLP/HTTP".

mod config;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderMap, Request, Response, StatusCode};
use opentelemetry::{Context, trace::TracerProvider as _};
use opentelemetry_http::{Bytes, HttpError};
use opentelemetry_otlp::{ExporterBuildError, Protocol, RetryPolicy, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, Span as SdkSpan, SpanData, SpanExporter as _,
        SpanProcessor,
    },
};
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use prost::Message as _;
use tokio::runtime::Handle;

pub use self::config::TracesConfig;
use self::config::{Settings, environment};
use crate::{
    client::{CallLimits, HttpClient, Outbound, OutboundConfig, OutboundError, Reach},
    clock::Clock,
    config::file::{ConfigError, Source},
    current::Current,
    error::Chain,
    trace::Tracer,
};

/// How many bytes of a collector's response are read.
const MAX_ANSWER: usize = 64 * 1024;
/// More than the largest queue, so no further span fits.
const CLOSED: u64 = u64::MAX;

/// Counts spans by outcome.
#[derive(Clone, Debug)]
pub struct TraceMetrics {
    /// Accepted by the collector.
    exported: Counter,
    /// Rejected by the collector, or not delivered.
    refused: Counter,
    /// The queue was full, or the service had stopped.
    dropped: Counter,
}

impl TraceMetrics {
    /// Registers `spans_total`. All outcomes start at 0, so that an alert sees the first one.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let spans = Family::<[(&str, &str); 1], Counter>::default();
        registry.register("spans", "Spans, by outcome", spans.clone());
        let counter = |outcome| spans.get_or_create_owned(&[("outcome", outcome)]);
        Self { exported: counter("exported"), refused: counter("refused"), dropped: counter("dropped") }
    }
}

/// Why the export could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TracesError {
    /// A key or a variable is invalid.
    #[error(transparent)]
    Setting(#[from] ConfigError),
    /// The client for the collector cannot be built.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// The SDK rejects the settings.
    #[error(transparent)]
    Exporter(#[from] ExporterBuildError),
}

fn settings(config: &TracesConfig) -> Result<Option<Settings>, ConfigError> {
    config.settings(&environment).map_err(|problem| problem.at(&Source::default()))
}

/// The connection to the collector, as currently configured.
#[derive(Debug)]
struct Link {
    client: HttpClient,
    headers: HeaderMap,
    limits: CallLimits,
}

impl Link {
    fn new(settings: &Settings, outbound: &OutboundConfig) -> Result<Self, OutboundError> {
        let client = Outbound::new(outbound)?.client(Reach::Anywhere);
        let limits = CallLimits { timeout: settings.call_timeout, max_body: MAX_ANSWER };
        Ok(Self { client, headers: settings.headers.clone(), limits })
    }
}

/// The running export of spans. Clones share it.
#[derive(Clone, Debug)]
pub struct Exporter {
    tracer: Tracer,
    queue: Queue,
    link: Current<Arc<Link>>,
}

impl Exporter {
    /// Starts exporting the spans of `service` if the configuration or the environment names a collector. Requires a
    /// tokio runtime.
    ///
    /// # Errors
    ///
    /// [`TracesError`]; an unreachable collector is not an error.
    pub fn start(
        config: &TracesConfig,
        outbound: &OutboundConfig,
        service: &'static str,
        metrics: TraceMetrics,
        clock: Clock,
    ) -> Result<Option<Self>, TracesError> {
        let Some(settings) = settings(config)? else { return Ok(None) };
        Self::build(settings, outbound, service, metrics, clock).map(Some)
    }

    fn build(
        settings: Settings,
        outbound: &OutboundConfig,
        service: &'static str,
        metrics: TraceMetrics,
        clock: Clock,
    ) -> Result<Self, TracesError> {
        let link = Current::new(Arc::new(Link::new(&settings, outbound)?));
        let books = Arc::new(Books::new(metrics));
        let carrier = Carrier { runtime: Handle::current(), link: link.clone(), books: books.clone() };
        let mut otlp = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(carrier)
            .with_endpoint(settings.endpoint.to_string())
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(settings.export_timeout)
            .with_retry_policy(
                RetryPolicy::recommended()
                    .with_initial_delay(Duration::from_secs(1))
                    .with_max_delay(Duration::from_secs(4))
                    .with_max_jitter(Duration::from_millis(500)),
            )
            .build()?;
        let resource = Resource::builder_empty().with_attributes(settings.resource(service)).build();
        otlp.set_resource(&resource);
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(settings.queue_size)
            .with_max_export_batch_size(settings.batch_size)
            .with_scheduled_delay(settings.delay)
            .build();
        let batches = BatchSpanProcessor::new(Counted { otlp, books: books.clone() }, batches);
        let queue = Queue { batches: Arc::new(batches), books, room: settings.queue_size as u64 };
        let provider = SdkTracerProvider::builder()
            .with_sampler(settings.sampler)
            .with_resource(resource)
            .with_span_processor(queue.clone())
            .build();
        Ok(Self { tracer: Tracer::new(provider.tracer("waypost"), clock), queue, link })
    }

    /// The tracer that feeds this exporter.
    #[must_use]
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Applies what the secret files and `[outbound]` contain now. The rest of `config` stays as it was at start-up.
    ///
    /// # Errors
    ///
    /// [`TracesError`]; the previous settings stay in effect.
    pub fn renew(&self, config: &TracesConfig, outbound: &OutboundConfig) -> Result<(), TracesError> {
        if let Some(settings) = settings(config)? {
            self.link.set(Arc::new(Link::new(&settings, outbound)?));
        }
        Ok(())
    }

    /// Exports the remaining spans, within the time limit of one call. Spans that are still left, or that end later,
    /// are dropped.
    pub async fn stop(&self) {
        if self.queue.books.is_stopping.swap(true, Ordering::SeqCst) {
            return;
        }
        let (batches, limit) = (self.queue.batches.clone(), self.link.get().limits.timeout);
        let stopped = tokio::task::spawn_blocking(move || batches.shutdown_with_timeout(limit)).await;
        let dropped = self.queue.books.waiting.swap(CLOSED, Ordering::SeqCst);
        self.queue.books.metrics.dropped.inc_by(dropped);
        if !matches!(stopped, Ok(Ok(()))) {
            tracing::warn!(dropped, "the trace collector did not accept the last spans in time; dropping them");
        }
    }
}

/// State shared by the parts of the export.
#[derive(Debug)]
struct Books {
    metrics: TraceMetrics,
    /// Spans queued or being exported, or [`CLOSED`].
    waiting: AtomicU64,
    /// Spans that the collector rejected in its latest response.
    rejected: AtomicU64,
    /// Whether the latest call failed: an outage is logged once, not for every batch.
    is_away: AtomicBool,
    is_stopping: AtomicBool,
}

impl Books {
    fn new(metrics: TraceMetrics) -> Self {
        let (waiting, rejected) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { metrics, waiting, rejected, is_away: AtomicBool::new(false), is_stopping: AtomicBool::new(false) }
    }

    fn mark_up(&self) {
        if self.is_away.swap(false, Ordering::SeqCst) {
            tracing::info!("the trace collector accepts spans again");
        }
    }

    fn mark_away(&self, reason: &str) {
        if !self.is_away.swap(true, Ordering::SeqCst) {
            tracing::warn!(
                reason,
                "the trace collector does not accept spans; retrying, and dropping spans once the queue is full"
            );
        }
    }
}

/// The batch processor behind a counter. Its own queue has the same capacity, so it never drops what was admitted
/// here.
#[derive(Clone, Debug)]
struct Queue {
    batches: Arc<BatchSpanProcessor>,
    books: Arc<Books>,
    room: u64,
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut SdkSpan, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        let take = |waiting| (waiting < self.room).then(|| waiting + 1);
        match self.books.waiting.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => self.batches.on_end(span),
            Err(_) => drop(self.books.metrics.dropped.inc()),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    /// [`Exporter::stop`] shuts the processor down, which does not block a worker when the last tracer is dropped.
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

/// The OTLP exporter, and the accounting of each batch.
#[derive(Debug)]
struct Counted {
    otlp: opentelemetry_otlp::SpanExporter,
    books: Arc<Books>,
}

impl opentelemetry_sdk::trace::SpanExporter for Counted {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len() as u64;
        let exported = self.otlp.export(batch).await;
        let refused = if exported.is_ok() { self.books.rejected.load(Ordering::SeqCst).min(count) } else { count };
        self.books.metrics.refused.inc_by(refused);
        self.books.metrics.exported.inc_by(count - refused);
        self.books.waiting.fetch_sub(count, Ordering::SeqCst);
        exported
    }
}

/// Adapts our own client for the exporter, so that there is only one way out of the process.
#[derive(Debug)]
struct Carrier {
    runtime: Handle,
    link: Current<Arc<Link>>,
    books: Arc<Books>,
}

#[async_trait]
impl opentelemetry_http::HttpClient for Carrier {
    async fn send_bytes(&self, mut request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let link = self.link.get();
        for (name, value) in &link.headers {
            request.headers_mut().insert(name, value.clone());
        }
        // Called on the batch processor's own thread, whereas our client needs the runtime.
        let sent = self.runtime.spawn(async move { link.client.send(request, link.limits).await }).await?;
        match &sent {
            Ok(answer) if answer.status().is_success() => {
                self.books.rejected.store(rejected(answer.body()), Ordering::SeqCst);
                self.books.mark_up();
                return Ok(sent?);
            }
            Ok(answer) => self.books.mark_away(&format!("HTTP {}", answer.status())),
            Err(error) => self.books.mark_away(&Chain(error).to_string()),
        }
        if self.books.is_stopping.load(Ordering::SeqCst) {
            // The exporter does not know about shutdown; a status that it does not retry ends its attempts.
            let mut last = Response::default();
            *last.status_mut() = StatusCode::BAD_REQUEST;
            return Ok(last);
        }
        Ok(sent?)
    }
}

/// The number of spans that the collector rejected from a batch it accepted.
fn rejected(answer: &[u8]) -> u64 {
    let answer = ExportTraceServiceResponse::decode(answer).unwrap_or_default();
    answer.partial_success.and_then(|partial| u64::try_from(partial.rejected_spans).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
