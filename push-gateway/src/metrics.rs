//! All metrics of the gateway: their names, their labels, and what is counted where.

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

/// The app and provider of pushes that no configured app takes: an `app_id` is anybody's choice, and no label.
const UNMATCHED: &str = "unmatched";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PushLabels {
    /// The app's `id` as configured, which may be a pattern; never an `app_id` that a request names.
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

/// Which budget a request was over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// That of who sent it.
    Source,
    /// That of an app that it is for.
    App,
    /// That of a pushkey that it is for.
    Pushkey,
}

impl Limit {
    const ALL: [Self; 3] = [Self::Source, Self::App, Self::Pushkey];

    fn label(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::App => "app",
            Self::Pushkey => "pushkey",
        }
    }
}

/// The registered metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Requests of homeservers.
    pub(crate) http: HttpMetrics,
    /// Readings of the configuration.
    pub(crate) reloads: ReloadMetrics,
    /// Spans of traces.
    pub(crate) traces: TraceMetrics,
    pushes: Family<PushLabels, Counter>,
    seconds: Family<ProviderLabels, Seconds, fn() -> Seconds>,
    certificates: Family<ProviderLabels, Gauge>,
    holding: Family<AppLabels, Gauge>,
    limited: Family<LimitLabels, Counter>,
    /// 1 while Redis is reachable; set where replicas share something.
    pub(crate) shared_memory_up: Arc<OnceLock<Gauge>>,
}

/// From a provider next door (5 ms) to one that used up an attempt.
const ATTEMPTS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0];

fn attempts() -> Seconds {
    Seconds::new(&ATTEMPTS, false)
}

fn traced_attempts() -> Seconds {
    Seconds::new(&ATTEMPTS, true)
}

impl Metrics {
    /// Registers all of them, with the prefix `waypost_push_gateway_`, and those of the process. Those of times name
    /// traces if there are any.
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
        registry.register("push_attempt_seconds", "Seconds that one call of a provider took", metrics.seconds.clone());
        let help = "1 while so many of an app's pushkeys are called dead that none is rejected";
        registry.register("rejections_held", help, metrics.holding.clone());
        registry.register(
            "limited_requests",
            "Requests answered 429, by the budget they were over",
            metrics.limited.clone(),
        );
        registry.register(
            "certificate_expiry_seconds",
            "When an app's client certificate expires, in seconds since the epoch",
            metrics.certificates.clone(),
        );
        metrics
    }

    /// Tells when the certificates of apps expire (app, provider, milliseconds since the epoch): of these and no others.
    pub(crate) fn certificates_expire(&self, certificates: &[(String, &'static str, i64)]) {
        self.certificates.clear();
        for (app, provider, at_ms) in certificates {
            let labels = ProviderLabels { app: app.clone(), provider };
            self.certificates.get_or_create(&labels).set(at_ms / 1000);
        }
    }

    /// Whether replicas can reach what they share. Registered only where they share something.
    pub(crate) fn register_shared_memory(&self, registry: &mut Registry) -> Gauge {
        let registry = registry.sub_registry_with_prefix("waypost_push_gateway");
        let up = Gauge::default();
        registry.register(
            "shared_memory_up",
            "1 while Redis is reachable, 0 while each replica is on its own",
            up.clone(),
        );
        self.shared_memory_up.get_or_init(|| up).clone()
    }

    /// The counters of requests that are over a budget, by budget.
    pub(crate) fn of_limits(&self) -> LimitMetrics {
        LimitMetrics(Limit::ALL.map(|limit| self.limited.get_or_create_owned(&LimitLabels { limit: limit.label() })))
    }

    /// The counters of one app, looked up once instead of with each push. All start at 0, so that a dashboard shows
    /// an app before its first push.
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

    /// The counters of pushes that no configured app takes.
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
    /// Counts a push. Each push ends in exactly one way.
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

    /// Measures a call of the provider, which `trace` tells more about.
    pub(crate) fn attempt_took(&self, seconds: f64, trace: Option<TraceId>) {
        self.seconds.observe(seconds, trace);
    }

    /// Sets whether the app's dead pushkeys are held.
    pub(crate) fn set_held(&self, is_held: bool) {
        self.holding.set(i64::from(is_held));
    }
}

/// Counts requests that are over a budget.
#[derive(Clone, Debug)]
pub(crate) struct LimitMetrics([Counter; 3]);

impl LimitMetrics {
    /// Counts a request.
    pub(crate) fn over(&self, limit: Limit) {
        self.0[limit as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_own_counter() {
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
