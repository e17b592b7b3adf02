//! Metrics for Prometheus: HTTP requests, reloads, and the exposition text.

use std::fmt;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder},
    metrics::{
        MetricType, TypedMetric, counter::Counter, exemplar::HistogramWithExemplars, family::Family,
        histogram::Histogram,
    },
    registry::Registry,
};

use crate::trace::{TraceId, known_method};

/// The labels of a request. The route is its pattern, so strangers cannot create new label values.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    route: &'static str,
}

/// The trace of one of the observations in a bucket.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Exemplar {
    trace_id: String,
}

/// A histogram of durations. With traces enabled each bucket refers to one of them (OpenMetrics, "Exemplars"), at the
/// cost of one more lock.
#[derive(Clone, Debug)]
pub enum Seconds {
    /// Without traces.
    Plain(Histogram),
    /// With traces.
    Traced(HistogramWithExemplars<Exemplar>),
}

impl Seconds {
    /// A histogram with these bucket bounds, in seconds.
    #[must_use]
    pub fn new(buckets: &[f64], with_traces: bool) -> Self {
        let buckets = buckets.iter().copied();
        if with_traces {
            Self::Traced(HistogramWithExemplars::new(buckets))
        } else {
            Self::Plain(Histogram::new(buckets))
        }
    }

    /// Records a duration, and the trace it belongs to.
    pub fn observe(&self, seconds: f64, trace: Option<TraceId>) {
        match self {
            Self::Plain(histogram) => histogram.observe(seconds),
            Self::Traced(histogram) => {
                histogram.observe(seconds, trace.map(|trace| Exemplar { trace_id: trace.to_string() }), None);
            }
        }
    }
}

impl TypedMetric for Seconds {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Seconds {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Plain(histogram) => histogram.encode(encoder),
            Self::Traced(histogram) => histogram.encode(encoder),
        }
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

/// Counts requests and measures their duration.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Seconds, fn() -> Seconds>,
}

/// From a lookup answered from memory (half a millisecond) to a push that waited for its provider (25 s).
const DURATIONS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0];

fn durations() -> Seconds {
    Seconds::new(&DURATIONS, false)
}

fn traced_durations() -> Seconds {
    Seconds::new(&DURATIONS, true)
}

impl HttpMetrics {
    /// Registers `http_requests_total` and `http_request_seconds`, the latter with exemplars if `with_traces`.
    #[must_use]
    pub fn register(registry: &mut Registry, with_traces: bool) -> Self {
        let seconds = if with_traces { traced_durations as fn() -> Seconds } else { durations };
        let metrics = Self { requests: Family::default(), seconds: Family::new_with_constructor(seconds) };
        registry.register("http_requests", "Requests answered, by route, method and status", metrics.requests.clone());
        registry.register(
            "http_request_seconds",
            "Time from a request's headers to its response, in seconds",
            metrics.seconds.clone(),
        );
        metrics
    }

    /// Records one response, and the trace of its request.
    pub fn answered(
        &self,
        route: &'static str,
        method: &http::Method,
        status: u16,
        seconds: f64,
        trace: Option<TraceId>,
    ) {
        let method = known_method(method).unwrap_or("other");
        self.requests.get_or_create(&Answered { route, method, status }).inc();
        self.seconds.get_or_create(&Route { route }).observe(seconds, trace);
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reloaded {
    outcome: &'static str,
}

/// Counts configuration reloads.
#[derive(Clone, Debug)]
pub struct ReloadMetrics(Family<Reloaded, Counter>);

impl ReloadMetrics {
    /// Registers `configuration_reloads_total`.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self(Family::default());
        let help = "Configuration reloads, by outcome";
        registry.register("configuration_reloads", help, metrics.0.clone());
        // Both exist from the start, so that an alert sees the first refusal.
        for outcome in ["taken", "refused"] {
            drop(metrics.0.get_or_create(&Reloaded { outcome }));
        }
        metrics
    }

    /// Counts one reload.
    pub fn reloaded(&self, taken: bool) {
        let outcome = if taken { "taken" } else { "refused" };
        self.0.get_or_create(&Reloaded { outcome }).inc();
    }
}

/// All metrics as OpenMetrics text.
#[must_use]
pub fn text(registry: &Registry) -> String {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, registry) {
        Ok(()) => text,
        Err(error) => {
            tracing::error!(%error, "metrics could not be encoded; the scrape gets an empty response");
            String::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traced_request_is_the_exemplar_of_its_bucket() {
        for with_traces in [true, false] {
            let mut registry = Registry::default();
            let metrics = HttpMetrics::register(&mut registry, with_traces);
            let trace = TraceId::from(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
            for (seconds, trace) in [(0.2, Some(trace)), (0.003, None)] {
                metrics.answered("/lookup", &http::Method::POST, 200, seconds, trace);
            }
            let text = text(&registry);
            let bucket = "http_request_seconds_bucket{le=\"0.25\",route=\"/lookup\"} 2";
            let exemplar = if with_traces { format!(" # {{trace_id=\"{trace}\"}} 0.2") } else { String::new() };
            let line = format!("{bucket}{exemplar}");
            assert!(text.lines().any(|known| known == line), "{line} not in {text}");
            assert_eq!(text.matches("trace_id").count(), usize::from(with_traces));
        }
    }
}
