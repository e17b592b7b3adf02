//! All metrics of the gateway: names, labels and help texts.

use std::sync::{Arc, OnceLock};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use waypost_shared::{
    clock::Clock,
    telemetry::{
        metrics::{HttpMetrics, ReloadMetrics, Seconds},
        otlp::TraceMetrics,
        process,
    },
    trace::TraceId,
};

use crate::outcome::{Ended, Outcome};

/// The app and provider labels of pushes that no entry matches: anybody can send any `app_id`, so it must not become a
/// label.
const UNMATCHED: &str = "unmatched";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PushLabels {
    /// The app's `id` as configured, which may be a pattern; never an `app_id` from a request.
    app: String,
    provider: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ProviderLabels {
    app: String,
    provider: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct AppLabels {
    app: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LimitLabels {
    limit: &'static str,
}

/// The rate limit that a request exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// That of the sender's address.
    Source,
    /// That of an app that it pushes to.
    App,
    /// That of a pushkey that it pushes to.
    Pushkey,
    /// That of a push server that strangers chose.
    Server,
}

impl Limit {
    const ALL: [Self; 4] = [Self::Source, Self::App, Self::Pushkey, Self::Server];

    fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::App => "app",
            Self::Pushkey => "pushkey",
            Self::Server => "server",
        }
    }
}

/// The registered metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Requests from homeservers.
    pub(crate) http: HttpMetrics,
    /// Reloads of the configuration.
    pub(crate) reloads: ReloadMetrics,
    /// Spans of traces.
    pub(crate) traces: TraceMetrics,
    pushes: Family<PushLabels, Counter>,
    seconds: Family<ProviderLabels, Seconds, fn() -> Seconds>,
    certificates: Family<ProviderLabels, Gauge>,
    holding: Family<AppLabels, Gauge>,
    limited: Family<LimitLabels, Counter>,
    /// 1 while Redis is reachable, else 0; unset unless replicas share state.
    pub(crate) shared_memory_up: Arc<OnceLock<Gauge>>,
}

/// Histogram buckets in seconds: from a nearby provider (5 ms) to one that used up the whole attempt.
const ATTEMPTS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0];

fn attempts() -> Seconds {
    Seconds::new(&ATTEMPTS, false)
}

fn traced_attempts() -> Seconds {
    Seconds::new(&ATTEMPTS, true)
}

impl Metrics {
    /// Registers all metrics with the prefix `waypost_push_gateway_`, and those of the process. With traces, histograms
    /// carry trace ids as exemplars.
    pub(crate) fn register(registry: &mut Registry, clock: &Clock, with_traces: bool) -> Self {
        process::register(registry, clock);
        let registry = registry.sub_registry_with_prefix("waypost_push_gateway");
        let metrics = Self {
            http: HttpMetrics::register(registry, with_traces),
            reloads: ReloadMetrics::register(registry),
            traces: TraceMetrics::register(registry),
            pushes: Family::default(),
            seconds: Family::new_with_constructor(if with_traces {
                traced_attempts as fn() -> Seconds
            } else {
                attempts
            }),
            certificates: Family::default(),
            holding: Family::default(),
            limited: Family::default(),
            shared_memory_up: Arc::default(),
        };
        registry.register("pushes", "Pushes by app, provider and how they ended", metrics.pushes.clone());
        registry.register("push_attempt_seconds", "Seconds that one call to a provider took", metrics.seconds.clone());
        let help = "1 while rejections are held because too many of an app's pushkeys are reported dead";
        registry.register("rejections_held", help, metrics.holding.clone());
        registry.register(
            "limited_requests",
            "Requests answered 429, by the rate limit they exceeded",
            metrics.limited.clone(),
        );
        registry.register(
            "certificate_expiry_seconds",
            "When an app's client certificate expires, in seconds since the epoch",
            metrics.certificates.clone(),
        );
        metrics
    }

    /// Sets when apps' certificates expire (app, provider, milliseconds since the epoch), and drops all other apps.
    pub(crate) fn certificates_expire(&self, certificates: &[(String, &'static str, i64)]) {
        self.certificates.clear();
        for (app, provider, at_ms) in certificates {
            let labels = ProviderLabels { app: app.clone(), provider };
            self.certificates.get_or_create(&labels).set(at_ms / 1000);
        }
    }

    /// Registers the gauge for Redis, which exists only where replicas share state.
    pub(crate) fn register_shared_memory(&self, registry: &mut Registry) -> Gauge {
        let registry = registry.sub_registry_with_prefix("waypost_push_gateway");
        let up = Gauge::default();
        registry.register(
            "shared_memory_up",
            "1 while Redis is reachable, 0 while each replica relies on its own memory",
            up.clone(),
        );
        self.shared_memory_up.get_or_init(|| up).clone()
    }

    /// The counters of requests that exceeded a rate limit.
    pub(crate) fn of_limits(&self) -> LimitMetrics {
        LimitMetrics(Limit::ALL.map(|limit| self.limited.get_or_create_owned(&LimitLabels { limit: limit.label() })))
    }

    /// The metrics of one app, looked up once instead of on each push. All start at 0, so that a dashboard shows an app
    /// before its first push.
    pub(crate) fn of_app(&self, app: &str, provider: &'static str) -> AppMetrics {
        let counter = |outcome| self.pushes.get_or_create_owned(&PushLabels { app: app.to_owned(), provider, outcome });
        AppMetrics {
            delivered: counter("delivered"),
            gone: counter("gone"),
            busy: counter("busy"),
            refused: counter("refused"),
            suppressed: counter("suppressed"),
            dropped: counter("dropped"),
            seconds: self.seconds.get_or_create_owned(&ProviderLabels { app: app.to_owned(), provider }),
            holding: self.holding.get_or_create_owned(&AppLabels { app: app.to_owned() }),
        }
    }

    /// The metrics of pushes that no entry matches.
    pub(crate) fn of_unmatched(&self) -> AppMetrics {
        self.of_app(UNMATCHED, UNMATCHED)
    }
}

/// The metrics of one app.
#[derive(Clone, Debug)]
pub(crate) struct AppMetrics {
    delivered: Counter,
    gone: Counter,
    busy: Counter,
    refused: Counter,
    suppressed: Counter,
    dropped: Counter,
    seconds: Seconds,
    holding: Gauge,
}

impl AppMetrics {
    /// Counts a push by how it ended.
    pub(crate) fn count(&self, ended: &Ended) {
        let counter = match ended {
            Ended::With(Outcome::Delivered) => &self.delivered,
            Ended::With(Outcome::Gone) => &self.gone,
            Ended::With(Outcome::Busy { .. }) => &self.busy,
            Ended::With(Outcome::Refused(_)) => &self.refused,
            Ended::Suppressed => &self.suppressed,
            Ended::Dropped => &self.dropped,
        };
        counter.inc();
    }

    /// Observes the duration of a call to the provider, with its trace as the exemplar.
    pub(crate) fn attempt_took(&self, seconds: f64, trace: Option<TraceId>) {
        self.seconds.observe(seconds, trace);
    }

    /// Sets whether the app's rejections are held.
    pub(crate) fn set_held(&self, is_held: bool) {
        self.holding.set(i64::from(is_held));
    }
}

/// Counts requests that exceeded a rate limit.
#[derive(Clone, Debug)]
pub(crate) struct LimitMetrics([Counter; 4]);

impl LimitMetrics {
    /// Counts a request that exceeded `limit`.
    pub(crate) fn over(&self, limit: Limit) {
        self.0[limit as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ending_has_its_own_counter() {
        let mut registry = Registry::default();
        let app = Metrics::register(&mut registry, &Clock::System, false).of_app("org.example.*", "apns");
        let ends = [
            ("delivered", Outcome::Delivered.into()),
            ("gone", Outcome::Gone.into()),
            ("busy", Outcome::unreachable().into()),
            ("refused", Outcome::refused_push("").into()),
            ("suppressed", Ended::Suppressed),
            ("dropped", Ended::Dropped),
        ];
        for (times, (_, ended)) in ends.iter().enumerate() {
            for _ in 0..=times {
                app.count(ended);
            }
        }
        let text = waypost_shared::telemetry::metrics::text(&registry);
        for (times, (label, _)) in ends.iter().enumerate() {
            let labels = format!("app=\"org.example.*\",provider=\"apns\",outcome=\"{label}\"");
            let line = format!("pushes_total{{{labels}}} {}\n", times + 1);
            assert!(text.contains(&line), "{line} not in {text}");
        }
    }
}
