//! All metrics of this service, in one place. None has a label that a stranger chooses.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use waypost_shared::metrics::HttpMetrics;

/// How a mail ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MailLabels {
    outcome: &'static str,
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
    /// Peppers that are no longer answered.
    Peppers,
}

impl Rows {
    fn name(self) -> &'static str {
        match self {
            Self::Sessions => "validation_sessions",
            Self::Tokens => "access_tokens",
            Self::Budgets => "rate_limits",
            Self::Unbound => "associations",
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
    mails: Family<MailLabels, Counter>,
    removed: Family<RowsLabels, Counter>,
    /// Addresses that were looked up.
    pub(crate) looked_up: Counter,
    /// Of them, those that were found.
    pub(crate) found: Counter,
    /// Associations in the index.
    pub(crate) associations: Gauge,
    /// Bindings made.
    pub(crate) binds: Counter,
}

impl Metrics {
    /// Registers all of them, with the prefix `waypost_identity_`.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("waypost_identity");
        let metrics = Self {
            http: HttpMetrics::register(registry),
            mails: Family::default(),
            removed: Family::default(),
            looked_up: Counter::default(),
            found: Counter::default(),
            associations: Gauge::default(),
            binds: Counter::default(),
        };
        registry.register("mails", "Mails by how they ended", metrics.mails.clone());
        registry.register("rows_removed", "Rows that were over and were removed", metrics.removed.clone());
        registry.register("addresses_looked_up", "Addresses in lookups", metrics.looked_up.clone());
        registry.register("addresses_found", "Addresses in lookups that were found", metrics.found.clone());
        registry.register("associations", "Associations in the lookup index", metrics.associations.clone());
        registry.register("binds", "Bindings made", metrics.binds.clone());
        metrics
    }

    /// Counts a mail.
    pub(crate) fn mail(&self, sent: bool) {
        let outcome = if sent { "sent" } else { "failed" };
        self.mails.get_or_create(&MailLabels { outcome }).inc();
    }

    /// Counts rows that were removed; returns how many.
    pub(crate) fn removed(&self, rows: Rows, count: u64) -> u64 {
        self.removed.get_or_create(&RowsLabels { table: rows.name() }).inc_by(count);
        count
    }
}
