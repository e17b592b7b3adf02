//! All metrics of this service. No label has a value that a client can choose.

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

/// The outcome of an email or a text message.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct MailLabels {
    outcome: &'static str,
}

/// The outcome of a call to a homeserver (onbind).
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OnbindLabels {
    outcome: &'static str,
}

/// Whose users look up addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// A homeserver that the operator has named.
    Named,
    /// Any other homeserver.
    Stranger,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallerLabels {
    caller: &'static str,
}

impl Caller {
    const ALL: [Self; 2] = [Self::Named, Self::Stranger];

    fn labels(self) -> CallerLabels {
        let caller = match self {
            Self::Named => "named",
            Self::Stranger => "stranger",
        };
        CallerLabels { caller }
    }
}

/// The outcome of one attempt to notify a homeserver of a binding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Onbind {
    /// The homeserver accepted it.
    Delivered,
    /// It failed and will be retried.
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

/// Rows that are deleted once they have expired.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Expired validation sessions.
    Sessions,
    /// Access tokens that expired without use.
    Tokens,
    /// Rate-limit budgets that are full again.
    Budgets,
    /// Tombstones of unbound addresses.
    Unbound,
    /// Expired invites.
    Invites,
    /// Calls to homeservers that were given up long ago.
    Outbox,
    /// Peppers that are no longer accepted.
    Peppers,
    /// Address books that have not changed for long.
    AddressBooks,
}

impl Rows {
    const ALL: [Self; 8] = [
        Self::Sessions,
        Self::Tokens,
        Self::Budgets,
        Self::Unbound,
        Self::Invites,
        Self::Outbox,
        Self::Peppers,
        Self::AddressBooks,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Sessions => "validation_sessions",
            Self::Tokens => "access_tokens",
            Self::Budgets => "rate_limits",
            Self::Unbound => "associations",
            Self::Invites => "invites",
            Self::Outbox => "outbox",
            Self::Peppers => "peppers",
            Self::AddressBooks => "address_books",
        }
    }
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RowsLabels {
    table: &'static str,
}

/// The metrics.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    /// Requests by route, method and status.
    pub(crate) http: HttpMetrics,
    /// Configuration reloads.
    pub(crate) reloads: ReloadMetrics,
    /// Trace spans.
    pub(crate) traces: TraceMetrics,
    mails: Family<MailLabels, Counter>,
    sms: Family<MailLabels, Counter>,
    removed: Family<RowsLabels, Counter>,
    looked_up: Counter,
    found: Counter,
    first_looked_up: Family<CallerLabels, Counter>,
    first_found: Family<CallerLabels, Counter>,
    lookups_refused: Family<CallerLabels, Counter>,
    /// Associations in the index.
    pub(crate) associations: Gauge,
    /// Bindings made.
    pub(crate) binds: Counter,
    /// Bindings removed.
    pub(crate) unbinds: Counter,
    /// Invites stored.
    pub(crate) invites: Counter,
    /// Pending calls to homeservers.
    pub(crate) outbox_waiting: Gauge,
    /// Calls to homeservers that were given up.
    pub(crate) outbox_dead: Gauge,
    onbinds: Family<OnbindLabels, Counter>,
}

impl Metrics {
    /// Registers the metrics of the process, and those of this service with the prefix `waypost_identity_`. With
    /// `with_traces`, request metrics have exemplars.
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
            first_looked_up: Family::default(),
            first_found: Family::default(),
            lookups_refused: Family::default(),
            associations: Gauge::default(),
            binds: Counter::default(),
            unbinds: Counter::default(),
            invites: Counter::default(),
            outbox_waiting: Gauge::default(),
            outbox_dead: Gauge::default(),
            onbinds: Family::default(),
        };
        metrics.start_at_zero();
        registry.register("mails", "Emails by outcome", metrics.mails.clone());
        registry.register("sms", "Text messages by outcome", metrics.sms.clone());
        registry.register("rows_removed", "Expired rows deleted", metrics.removed.clone());
        registry.register("addresses_looked_up", "Addresses looked up", metrics.looked_up.clone());
        registry.register("addresses_found", "Addresses looked up and found", metrics.found.clone());
        registry.register(
            "addresses_first_looked_up",
            "Addresses that an account looked up for the first time",
            metrics.first_looked_up.clone(),
        );
        registry.register(
            "addresses_first_found",
            "Addresses found by lookups that had new ones, at most as many as were new",
            metrics.first_found.clone(),
        );
        registry.register(
            "lookups_refused",
            "Lookups refused because a budget of new addresses was used up",
            metrics.lookups_refused.clone(),
        );
        registry.register("associations", "Associations in the lookup index", metrics.associations.clone());
        registry.register("binds", "Bindings made", metrics.binds.clone());
        registry.register("unbinds", "Bindings removed", metrics.unbinds.clone());
        registry.register("invites", "Invites stored", metrics.invites.clone());
        registry.register("outbox_waiting", "Pending calls to homeservers", metrics.outbox_waiting.clone());
        registry.register("outbox_dead", "Calls to homeservers that were given up", metrics.outbox_dead.clone());
        registry.register("onbinds", "Attempts to notify a homeserver of a binding", metrics.onbinds.clone());
        metrics
    }

    /// Creates every counter whose labels are known. A counter that first appears with its first failure would hide it:
    /// Prometheus sees an increase only from an earlier sample.
    fn start_at_zero(&self) {
        for outcome in ["sent", "failed"] {
            drop(self.mails.get_or_create(&MailLabels { outcome }));
            drop(self.sms.get_or_create(&MailLabels { outcome }));
        }
        for caller in Caller::ALL {
            for family in [&self.first_looked_up, &self.first_found, &self.lookups_refused] {
                drop(family.get_or_create(&caller.labels()));
            }
        }
        for outcome in Onbind::ALL {
            drop(self.onbinds.get_or_create(&OnbindLabels { outcome: outcome.label() }));
        }
        for rows in Rows::ALL {
            drop(self.removed.get_or_create(&RowsLabels { table: rows.name() }));
        }
    }

    /// Counts an attempt to notify a homeserver of a binding.
    pub(crate) fn onbind(&self, outcome: Onbind) {
        self.onbinds.get_or_create(&OnbindLabels { outcome: outcome.label() }).inc();
    }

    /// Counts the addresses of a lookup, and those that were found.
    pub(crate) fn looked_up(&self, addresses: usize, found: usize) {
        self.looked_up.inc_by(addresses as u64);
        self.found.inc_by(found as u64);
    }

    /// Counts `new` addresses of a lookup that its account asked for, for the first time. `found` is of the whole
    /// lookup, so it is an upper bound of what was found of them.
    pub(crate) fn looked_up_first(&self, caller: Caller, new: u32, found: usize) {
        let new = u64::from(new);
        self.first_looked_up.get_or_create(&caller.labels()).inc_by(new);
        self.first_found.get_or_create(&caller.labels()).inc_by(new.min(found as u64));
    }

    /// Counts a lookup that was refused because a budget of new addresses was used up.
    pub(crate) fn lookup_refused(&self, caller: Caller) {
        self.lookups_refused.get_or_create(&caller.labels()).inc();
    }

    /// Counts an email.
    pub(crate) fn mail(&self, sent: bool) {
        let outcome = if sent { "sent" } else { "failed" };
        self.mails.get_or_create(&MailLabels { outcome }).inc();
    }

    /// Counts a text message.
    pub(crate) fn sms(&self, sent: bool) {
        let outcome = if sent { "sent" } else { "failed" };
        self.sms.get_or_create(&MailLabels { outcome }).inc();
    }

    /// Counts deleted rows; returns `count`.
    pub(crate) fn removed(&self, rows: Rows, count: u64) -> u64 {
        self.removed.get_or_create(&RowsLabels { table: rows.name() }).inc_by(count);
        count
    }
}
