//! All metrics of this service, in one place. None has a label that a stranger chooses.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use waypost_shared::{
    clock::Clock,
    telemetry::{
        metrics::{HttpMetrics, ReloadMetrics},
        otlp::TraceMetrics,
        process,
    },
};

/// How a mail or a text message ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MailLabels {
    outcome: &'static str,
}

/// How a call of a homeserver (onbind) ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OnbindLabels {
    outcome: &'static str,
}

/// What became of one try to tell a homeserver of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onbind {
    /// It was taken.
    Delivered,
    /// It failed and will be tried again.
    Failed,
    /// It failed and was given up.
    Dead,
}

impl Onbind {
    const ALL: [Self; 3] = [Self::Delivered, Self::Failed, Self::Dead];

    fn label(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Dead => "dead",
        }
    }
}

/// What is removed when it is over.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Validation sessions that expired.
    Sessions,
    /// Access tokens that were not used for long.
    Tokens,
    /// Budgets that are full again.
    Budgets,
    /// Addresses that were unbound.
    Unbound,
    /// Invites that nobody took in time.
    Invites,
    /// Calls of homeservers that were given up long ago.
    Outbox,
    /// Peppers that are no longer answered.
    Peppers,
}

impl Rows {
    const ALL: [Self; 7] =
        [Self::Sessions, Self::Tokens, Self::Budgets, Self::Unbound, Self::Invites, Self::Outbox, Self::Peppers];

    fn name(self) -> &'static str {
        match self {
            Self::Sessions => "validation_sessions",
            Self::Tokens => "access_tokens",
            Self::Budgets => "rate_limits",
            Self::Unbound => "associations",
            Self::Invites => "invites",
            Self::Outbox => "outbox",
            Self::Peppers => "peppers",
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RowsLabels {
    table: &'static str,
}

/// What is counted.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Requests by route, method and status.
    pub(crate) http: HttpMetrics,
    /// Readings of the configuration.
    pub(crate) reloads: ReloadMetrics,
    /// Spans of traces.
    pub(crate) traces: TraceMetrics,
    mails: Family<MailLabels, Counter>,
    sms: Family<MailLabels, Counter>,
    removed: Family<RowsLabels, Counter>,
    /// Addresses that were looked up.
    pub(crate) looked_up: Counter,
    /// Of them, those that were found.
    pub(crate) found: Counter,
    /// Associations in the index.
    pub(crate) associations: Gauge,
    /// Bindings made.
    pub(crate) binds: Counter,
    /// Bindings removed.
    pub(crate) unbinds: Counter,
    /// Invites stored.
    pub(crate) invites: Counter,
    /// Calls of homeservers that wait.
    pub(crate) outbox_waiting: Gauge,
    /// Calls of homeservers that were given up.
    pub(crate) outbox_dead: Gauge,
    onbinds: Family<OnbindLabels, Counter>,
}

impl Metrics {
    /// Registers all of them, with the prefix `waypost_identity_`, and those of the process. Those of requests name
    /// traces if there are any.
    pub(crate) fn register(registry: &mut Registry, clock: &Clock, with_traces: bool) -> Self {
        process::register(registry, clock);
        let registry = registry.sub_registry_with_prefix("waypost_identity");
        let metrics = Self {
            http: HttpMetrics::register(registry, with_traces),
            reloads: ReloadMetrics::register(registry),
            traces: TraceMetrics::register(registry),
            mails: Family::default(),
            sms: Family::default(),
            removed: Family::default(),
            looked_up: Counter::default(),
            found: Counter::default(),
            associations: Gauge::default(),
            binds: Counter::default(),
            unbinds: Counter::default(),
            invites: Counter::default(),
            outbox_waiting: Gauge::default(),
            outbox_dead: Gauge::default(),
            onbinds: Family::default(),
        };
        metrics.start_at_zero();
        registry.register("mails", "Mails by how they ended", metrics.mails.clone());
        registry.register("sms", "Text messages by how they ended", metrics.sms.clone());
        registry.register("rows_removed", "Rows that were over and were removed", metrics.removed.clone());
        registry.register("addresses_looked_up", "Addresses in lookups", metrics.looked_up.clone());
        registry.register("addresses_found", "Addresses in lookups that were found", metrics.found.clone());
        registry.register("associations", "Associations in the lookup index", metrics.associations.clone());
        registry.register("binds", "Bindings made", metrics.binds.clone());
        registry.register("unbinds", "Bindings removed", metrics.unbinds.clone());
        registry.register("invites", "Invites stored", metrics.invites.clone());
        registry.register("outbox_waiting", "Calls of homeservers that wait", metrics.outbox_waiting.clone());
        registry.register("outbox_dead", "Calls of homeservers that were given up", metrics.outbox_dead.clone());
        registry.register("onbinds", "Tries to tell a homeserver of a binding", metrics.onbinds.clone());
        metrics
    }

    /// Makes every counter whose labels are known. One that came into being with its first failure would hide it:
    /// Prometheus sees an increase only from a number that was there before.
    fn start_at_zero(&self) {
        for outcome in ["sent", "failed"] {
            drop(self.mails.get_or_create(&MailLabels { outcome }));
            drop(self.sms.get_or_create(&MailLabels { outcome }));
        }
        for outcome in Onbind::ALL {
            drop(self.onbinds.get_or_create(&OnbindLabels { outcome: outcome.label() }));
        }
        for rows in Rows::ALL {
            drop(self.removed.get_or_create(&RowsLabels { table: rows.name() }));
        }
    }

    /// Counts a try to tell a homeserver of a binding.
    pub(crate) fn onbind(&self, outcome: Onbind) {
        self.onbinds.get_or_create(&OnbindLabels { outcome: outcome.label() }).inc();
    }

    /// Counts a mail.
    pub(crate) fn mail(&self, sent: bool) {
        let outcome = if sent { "sent" } else { "failed" };
        self.mails.get_or_create(&MailLabels { outcome }).inc();
    }

    /// Counts a text message.
    pub(crate) fn sms(&self, sent: bool) {
        let outcome = if sent { "sent" } else { "failed" };
        self.sms.get_or_create(&MailLabels { outcome }).inc();
    }

    /// Counts rows that were removed; returns how many.
    pub(crate) fn removed(&self, rows: Rows, count: u64) -> u64 {
        self.removed.get_or_create(&RowsLabels { table: rows.name() }).inc_by(count);
        count
    }
}
