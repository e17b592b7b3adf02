//! What Prometheus reads: how requests were answered, and the text of all metrics.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
    registry::Registry,
};

/// The labels of an answered request. The route is its pattern, so strangers cannot make new label values.
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

/// Counts requests and measures how long they took.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    requests: Family<Answered, Counter>,
    seconds: Family<Route, Histogram, fn() -> Histogram>,
}

/// From a lookup that memory answers (half a millisecond) to a push that waited for its provider (25 s).
fn duration_histogram() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0])
}

impl HttpMetrics {
    /// Registers `http_requests_total` and `http_request_seconds`.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(duration_histogram as fn() -> Histogram),
        };
        registry.register("http_requests", "Requests answered, by route, method and status", metrics.requests.clone());
        registry.register(
            "http_request_seconds",
            "Seconds from a request's headers to its answer",
            metrics.seconds.clone(),
        );
        metrics
    }

    /// Counts one answer.
    pub fn answered(&self, route: &'static str, method: &http::Method, status: u16, seconds: f64) {
        let method = match method.as_str() {
            "GET" => "GET",
            "HEAD" => "HEAD",
            "POST" => "POST",
            "PUT" => "PUT",
            "DELETE" => "DELETE",
            "OPTIONS" => "OPTIONS",
            _ => "other",
        };
        self.requests.get_or_create(&Answered { route, method, status }).inc();
        self.seconds.get_or_create(&Route { route }).observe(seconds);
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reloaded {
    outcome: &'static str,
}

/// Counts how often the configuration was read again.
#[derive(Clone, Debug)]
pub struct ReloadMetrics(Family<Reloaded, Counter>);

impl ReloadMetrics {
    /// Registers `configuration_reloads_total`.
    #[must_use]
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self(Family::default());
        let help = "How often the configuration was read again, and whether it was taken or refused";
        registry.register("configuration_reloads", help, metrics.0.clone());
        // Both from the start, so that an alert sees the first refusal.
        for outcome in ["taken", "refused"] {
            drop(metrics.0.get_or_create(&Reloaded { outcome }));
        }
        metrics
    }

    /// Counts one reading.
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
            tracing::error!(%error, "metrics could not be written");
            String::new()
        }
    }
}
