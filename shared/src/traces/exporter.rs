//! Takes finished spans to the collector, many at a time. Nobody waits for it: what finds no room is dropped and
//! counted.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri,
    header::{CONTENT_TYPE, USER_AGENT},
};
use tokio::{sync::mpsc, time::sleep};

use super::{
    Ended, Finished, TraceMetrics,
    otlp::{self, Resource},
};
use crate::{
    clock::Clock,
    current::Current,
    http::causes,
    http_client::{CallLimits, HttpClient, HttpClientError},
    retry::{Backoff, parse_retry_after},
    serve::Stop,
};

/// Spans that wait at the most.
pub(super) const MOST_WAITING: usize = 2048;
/// Spans in one call at the most.
const MOST_IN_BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const GATHER_FOR: Duration = Duration::from_secs(1);
/// How often a batch is sent before it is given up.
const MOST_TRIES: u32 = 4;
/// Waits between them.
const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(5) };
/// No collector makes us wait longer: others' spans are waiting behind these.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 * 1024;

/// The way to the collector, as it is configured now.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: HttpClient,
    pub(super) uri: Uri,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
}

/// See [`Exporter::run`].
#[derive(Debug)]
pub(super) struct Exporter {
    pub(super) queue: mpsc::Receiver<Finished>,
    pub(super) link: Current<Arc<Link>>,
    pub(super) resource: Resource,
    pub(super) metrics: TraceMetrics,
    pub(super) clock: Clock,
    pub(super) stop: Stop,
    /// Whether the last call failed, which is logged once and not with each batch.
    pub(super) is_away: bool,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
enum Untaken {
    #[error("no answer")]
    Unreachable(#[from] HttpClientError),
    #[error("the collector is busy ({0})")]
    Busy(StatusCode, Option<Duration>),
    #[error("the collector refuses ({0})")]
    Refused(StatusCode),
}

impl Exporter {
    /// Sends spans until the stop, and then all that are left.
    pub(super) async fn run(mut self) {
        loop {
            let batch = self.gather().await;
            if batch.is_empty() {
                return;
            }
            self.send(&batch).await;
        }
    }

    /// Waits for spans; none are left when there are none.
    async fn gather(&mut self) -> Vec<Finished> {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            _ = self.queue.recv_many(&mut batch, MOST_IN_BATCH) => {}
            () = self.stop.requested() => self.queue.close(),
        }
        let full = async {
            loop {
                let room = MOST_IN_BATCH.saturating_sub(batch.len());
                if room == 0 || self.queue.recv_many(&mut batch, room).await == 0 {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            () = full => {}
            () = self.stop.requested() => {}
            () = sleep(GATHER_FOR) => {}
        }
        batch
    }

    /// Sends a batch, again and again while there is hope and no stop.
    async fn send(&mut self, batch: &[Finished]) {
        let body = otlp::body(&self.resource, batch);
        let count = u64::try_from(batch.len()).unwrap_or_default();
        for tried in 0..MOST_TRIES {
            let untaken = match self.call(body.clone()).await {
                Ok(rejected) => {
                    self.is_there();
                    let rejected = rejected.min(count);
                    self.metrics.ended(Ended::Refused, rejected);
                    self.metrics.ended(Ended::Exported, count - rejected);
                    return;
                }
                Err(untaken) => untaken,
            };
            self.is_not(&untaken);
            let wait = match untaken {
                Untaken::Refused(_) => break,
                Untaken::Unreachable(_) | Untaken::Busy(_, None) => BACKOFF.delay(tried),
                Untaken::Busy(_, Some(wait)) => BACKOFF.delay(tried).max(wait.min(LONGEST_WAIT)),
            };
            if tried + 1 == MOST_TRIES {
                break;
            }
            tokio::select! {
                () = sleep(wait) => {}
                () = self.stop.requested() => break,
            }
        }
        self.metrics.ended(Ended::Refused, count);
    }

    /// One call: how many of the spans the collector refuses.
    async fn call(&self, body: Bytes) -> Result<u64, Untaken> {
        let link = self.link.get();
        let mut request = Request::new(body);
        *request.method_mut() = Method::POST;
        *request.uri_mut() = link.uri.clone();
        *request.headers_mut() = link.headers.clone();
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request
            .headers_mut()
            .insert(USER_AGENT, HeaderValue::from_static(concat!("Waypost/", env!("CARGO_PKG_VERSION"))));
        let answer = link.client.send(request, CallLimits { timeout: link.timeout, max_body: MAX_ANSWER }).await?;
        match answer.status() {
            status if status.is_success() => Ok(otlp::rejected(answer.body())),
            // Source: OpenTelemetry Protocol Specification, "Retryable Response Codes".
            status if matches!(status.as_u16(), 429 | 502 | 503 | 504) => {
                Err(Untaken::Busy(status, parse_retry_after(answer.headers(), self.clock.now_ms())))
            }
            status => Err(Untaken::Refused(status)),
        }
    }

    fn is_there(&mut self) {
        if std::mem::take(&mut self.is_away) {
            tracing::info!("the collector takes traces again");
        }
    }

    fn is_not(&mut self, untaken: &Untaken) {
        if !std::mem::replace(&mut self.is_away, true) {
            let causes = causes(untaken);
            tracing::warn!(error = %untaken, causes, "the collector does not take traces; nothing else waits for it");
        }
    }
}
