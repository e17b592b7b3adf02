//! All metrics of this service, in one place. None has a label that a stranger chooses.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use waypost_shared::metrics::HttpMetrics;

/// How a mail or a text message ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MailLabels {
    outcome: &'static str,
}

/// What is counted.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Requests by route, method and status.
    pub(crate) http: HttpMetrics,
    mails: Family<MailLabels, Counter>,
    sms: Family<MailLabels, Counter>,
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
            sms: Family::default(),
            looked_up: Counter::default(),
            found: Counter::default(),
            associations: Gauge::default(),
            binds: Counter::default(),
        };
        registry.register("mails", "Mails by how they ended", metrics.mails.clone());
        registry.register("sms", "Text messages by how they ended", metrics.sms.clone());
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

    /// Counts a text message.
    pub(crate) fn sms(&self, sent: bool) {
        let outcome = if sent { "sent" } else { "failed" };
        self.sms.get_or_create(&MailLabels { outcome }).inc();
    }
}
