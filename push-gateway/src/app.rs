//! What all requests share: the configured apps and the memory of past pushes. Built once.

use std::{fmt, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use waypost_shared::{
    clock::Clock,
    config_file::{ConfigError, Loaded},
    http_client::{Outbound, OutboundError},
    otlp::TracesError,
    rate_limit::{Limiter, RequestSource},
    status::{Dependency, Expiry, Facts, HealthProbe, State},
    telemetry::LogLevel,
};

use crate::{
    certificate::{Standing, Validity},
    config::{
        ApnsConfig, ApnsCredentials, AppConfig, Config, Content, FcmCredentials, FcmProfile, LimitsConfig,
        NotifyConfig, ProviderConfig, PushType, Rate,
    },
    deliveries::{Deliveries, Fingerprint, Replicas, Target},
    error::ApiError,
    glob::{ByGlob, Glob},
    hold::Hold,
    in_flight::InFlight,
    metrics::{AppMetrics, Limit, LimitMetrics, Metrics},
    notification::Device,
    provider::{Provider, TeamTokens},
    redis::Redis,
    upstream::Upstream,
};

/// How often an unknown app is logged: so many times at once, then once in each interval. Strangers choose the names.
const UNKNOWN_APPS_LOGGED: (u32, Duration) = (10, Duration::from_secs(60));

/// How often it is logged that an app has too many pushes under way.
const ONE_LINE_EACH: Duration = Duration::from_secs(60);

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A mistake that the operator can mend in the configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate file or the resolver's configuration.
    #[error("calls to other servers cannot be set up")]
    Outbound(#[from] OutboundError),
    /// The way to the collector.
    #[error("traces cannot be set up")]
    Traces(#[from] TracesError),
}

/// The gateway with its configuration. Reading that again makes another one, with the same memory and metrics.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: NotifyConfig,
    pub(crate) deliveries: Arc<Deliveries>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) metrics: Metrics,
    /// Counts the pushes that no entry takes.
    pub(crate) unmatched: AppMetrics,
    /// Lets a line through to the log for a push that no entry takes.
    pub(crate) unknown_apps: Limiter<()>,
    entries: ByGlob<Entry>,
    /// A line for each app, for people.
    lines: Vec<String>,
    clock: Clock,
    team_tokens: TeamTokens,
    /// All of the configuration, to compare another one with.
    pub(crate) whole: Config,
}

/// One configured app.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As configured: this, and no `app_id` of a request, is what logs and metrics name.
    pub(crate) id: String,
    pub(crate) content: Content,
    pub(crate) provider: Provider,
    /// Whether its dead pushkeys can be believed.
    pub(crate) hold: Arc<Hold>,
    /// The pushes that are under way.
    pub(crate) in_flight: Arc<InFlight>,
    /// Lets a line through to the log when there are too many.
    pub(crate) told_full: Limiter<()>,
    pub(crate) metrics: AppMetrics,
    /// When the app's client certificate is valid, if it has one.
    pub(crate) certificate: Option<Validity>,
    /// Whether its push service did what it was last asked to.
    pub(crate) probe: Arc<HealthProbe>,
    /// What a push for it takes a little of.
    budget: Arc<Limiter<()>>,
}

/// The budgets that are looked at before any work.
#[derive(Debug)]
pub(crate) struct Limits {
    sources: Limiter<Option<IpAddr>>,
    pushkeys: Limiter<Fingerprint>,
    metrics: LimitMetrics,
}

impl Limits {
    fn new(config: &LimitsConfig, metrics: LimitMetrics) -> Self {
        Self { sources: limiter(config.per_source), pushkeys: limiter(config.per_pushkey), metrics }
    }

    /// Takes a request from its source's budget.
    pub(crate) fn request_from(&self, source: RequestSource) -> Result<(), ApiError> {
        self.within(Limit::Source, self.sources.check(&source.key()))
    }

    /// Takes a push from its app's and its pushkey's budgets.
    pub(crate) fn push_to(&self, entry: Option<&Entry>, target: Target<'_>) -> Result<(), ApiError> {
        if let Some(entry) = entry {
            self.within(Limit::App, entry.budget.check(&()))?;
        }
        self.within(Limit::Pushkey, self.pushkeys.check(&target.fingerprint()))
    }

    fn within(&self, limit: Limit, checked: Result<(), Duration>) -> Result<(), ApiError> {
        checked.map_err(|retry_after| {
            self.metrics.over(limit);
            ApiError::RateLimited { retry_after }
        })
    }
}

fn limiter<K: std::hash::Hash + Eq + Clone>(rate: Rate) -> Limiter<K> {
    Limiter::new(rate.burst, rate.refill())
}

impl App {
    /// Checks the configuration and sets up each app's provider; connects nowhere yet.
    pub(crate) fn new(loaded: &Loaded<Config>, registry: &mut Registry, clock: Clock) -> Result<Arc<Self>, StartError> {
        let Loaded { config, source } = loaded;
        let apps = config.validate(source)?;
        let outbound = Outbound::new(&config.outbound)?;
        let metrics = Metrics::register(registry, &clock, config.traces.is_on());
        let replicas = config.seen.replicas(source)?.map(|replicas| {
            let up = metrics.register_shared_memory(registry);
            let redis = Redis::new(replicas.address, outbound.clone(), up);
            (Replicas::new(redis, &config.seen, config.notify.budget()), replicas.secret)
        });
        let deliveries = Arc::new(Deliveries::new(&config.seen, clock.clone(), replicas));
        Self::configured(loaded, apps, outbound, Parts { clock, metrics, deliveries, before: None })
    }

    /// The same gateway with another configuration, whose keys that only a start reads are passed over: those are
    /// named, so that the operator can be told.
    ///
    /// # Errors
    ///
    /// [`StartError`]; this one stays good.
    pub(crate) fn renewed(&self, mut loaded: Loaded<Config>) -> Result<(Arc<Self>, Vec<&'static str>), StartError> {
        let waiting = loaded.config.keep_what_a_start_reads(&self.whole);
        let apps = loaded.config.validate(&loaded.source)?;
        let outbound = Outbound::new(&loaded.config.outbound)?;
        let (clock, metrics, deliveries) = (self.clock.clone(), self.metrics.clone(), self.deliveries.clone());
        let renewed =
            Self::configured(&loaded, apps, outbound, Parts { clock, metrics, deliveries, before: Some(self) })?;
        self.deliveries.set_budget(renewed.config.budget());
        Ok((renewed, waiting))
    }

    fn configured(
        loaded: &Loaded<Config>,
        apps: Vec<AppConfig>,
        outbound: Outbound,
        parts: Parts<'_>,
    ) -> Result<Arc<Self>, StartError> {
        let Parts { clock, metrics, deliveries, before } = parts;
        let config = &loaded.config;
        let upstream = Upstream::new(outbound, clock.clone());
        // Apple punishes those who make new tokens too often.
        let mut team_tokens = before.map_or_else(TeamTokens::default, |before| before.team_tokens.clone());
        let (mut entries, mut errors, mut lines, mut expiries) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for app in apps {
            lines.push(line(&app));
            let AppConfig { position, id, content, max_in_flight, provider } = app;
            let name = provider.name();
            let certificate = certificate(&provider).and_then(Validity::from_pem);
            if let Some(validity) = certificate {
                warn_of_certificate(&id, validity.at(clock.now_ms()));
                expiries.push((id.clone(), name, validity.not_after_ms));
            }
            match Provider::new(provider, max_in_flight, &upstream, &mut team_tokens) {
                Ok(provider) => {
                    let metrics = metrics.of_app(&id, name);
                    let entry = Entry {
                        content,
                        provider,
                        hold: hold(before, config, &id, &metrics, &clock),
                        in_flight: in_flight(before, &id, max_in_flight),
                        told_full: Limiter::new(1, ONE_LINE_EACH),
                        metrics,
                        certificate,
                        probe: probe(before, &id, &clock),
                        budget: budget(before, config, &id),
                        id: id.clone(),
                    };
                    entries.push((id, entry));
                }
                Err(error) => errors.push(certificate_error(loaded, position, &error)),
            }
        }
        if !errors.is_empty() {
            return Err(ConfigError::merge(errors).into());
        }
        // The hold of an app that is left out, or whose rules are others, is over.
        for before in before.into_iter().flat_map(|before| before.entries.iter()) {
            let now = entries.iter().find(|(id, _)| *id == before.id);
            before.metrics.set_held(now.is_some_and(|(_, entry)| entry.hold.is_on()));
        }
        metrics.certificates_expire(&expiries);
        Ok(Arc::new(Self {
            config: config.notify.clone(),
            deliveries,
            limits: limits(before, config, &metrics),
            unmatched: metrics.of_unmatched(),
            metrics,
            unknown_apps: Limiter::new(UNKNOWN_APPS_LOGGED.0, UNKNOWN_APPS_LOGGED.1),
            entries: ByGlob::new(entries),
            lines,
            clock,
            team_tokens,
            whole: config.clone(),
        }))
    }

    /// The secret files of the configuration: when one of them is another one, the configuration is read again.
    pub(crate) fn secret_files(&self) -> Vec<PathBuf> {
        self.whole.secret_files()
    }

    /// What is logged.
    pub(crate) fn log_level(&self) -> LogLevel {
        self.whole.log.level
    }

    /// All of the configuration.
    pub(crate) fn whole(&self) -> &Config {
        &self.whole
    }

    /// The entry for an `app_id`: the exact one, else the longest pattern that matches.
    pub(crate) fn entry(&self, app_id: &str) -> Option<&Entry> {
        self.entries.find(app_id)
    }

    /// Where a push goes that `entry`, if there is one, sends.
    pub(crate) fn target<'d>(&self, entry: Option<&Entry>, device: &'d Device) -> Target<'d> {
        let endpoint = entry.map_or("", |entry| entry.provider.endpoint(device));
        self.deliveries.target(&device.app_id, &device.pushkey, endpoint)
    }

    /// All configured apps, by their ids.
    pub(crate) fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|entry| &entry.id);
        entries
    }

    /// What the status page shows beside the metrics.
    pub(crate) fn facts(&self) -> Facts {
        let entries = self.entries();
        let of_entry = |entry: &&Entry| {
            let what = if entry.hold.is_on() { "dead pushkeys are held" } else { entry.provider.title() };
            entry.probe.dependency(&entry.id, entry.provider.name(), what)
        };
        let shared = self.metrics.shared_memory_up.get().map(|up| Dependency {
            name: "shared memory".to_owned(),
            kind: "redis",
            state: if up.get() == 1 { State::Up } else { State::Down },
            detail: "what was delivered and what is dead".to_owned(),
            since_ms: None,
        });
        let expiry = |entry: &&Entry| {
            let name = format!("certificate of {}", entry.id);
            entry.certificate.map(|validity| Expiry {
                name,
                at_ms: Some(validity.not_after_ms),
                since_ms: Some(validity.not_before_ms),
            })
        };
        Facts {
            dependencies: shared.into_iter().chain(entries.iter().map(of_entry)).collect(),
            expiries: entries.iter().filter_map(expiry).collect(),
        }
    }

    /// Whether an app is pushed to by UnifiedPush, so that others may discover this gateway.
    pub(crate) fn has_unifiedpush(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.provider, Provider::UnifiedPush(_)))
    }

    /// What `check-config` says.
    pub(crate) fn summary(&self, config: &Config) -> String {
        let mut text = format!(
            "The configuration is good.\npublic      {}\noperations  {}\n",
            config.listen.public, config.listen.operations
        );
        if config.seen.redis_url.is_some() || config.seen.redis_url_file.is_some() {
            text.push_str("memory      shared with other replicas in Redis\n");
        }
        match self.lines.len() {
            0 => text.push_str("apps        none: add an [[apps]] entry for each app that is to be pushed to"),
            count => text.push_str(&format!("apps        {count}\n{}", self.lines.join("\n"))),
        }
        text
    }
}

/// What a gateway is made of beside its configuration.
struct Parts<'a> {
    clock: Clock,
    metrics: Metrics,
    deliveries: Arc<Deliveries>,
    /// The gateway whose place it takes.
    before: Option<&'a App>,
}

/// What is known of the deaths of an app's pushkeys; a new configuration does not make them believable.
fn hold(before: Option<&App>, config: &Config, id: &str, metrics: &AppMetrics, clock: &Clock) -> Arc<Hold> {
    let same = before.filter(|before| same(&before.whole.hold, &config.hold));
    let new = || Arc::new(Hold::new(id, &config.hold, metrics.clone(), clock.clone()));
    known(same, id).map_or_else(new, |entry| entry.hold.clone())
}

/// What is known of an app's push service.
fn probe(before: Option<&App>, id: &str, clock: &Clock) -> Arc<HealthProbe> {
    known(before, id).map_or_else(|| Arc::new(HealthProbe::new(clock.clone())), |entry| entry.probe.clone())
}

/// An app's pushes that are under way: each reading of the configuration would let in as many again.
fn in_flight(before: Option<&App>, id: &str, most: usize) -> Arc<InFlight> {
    let same = known(before, id).filter(|entry| entry.in_flight.most() == most);
    same.map_or_else(|| Arc::new(InFlight::new(most)), |entry| entry.in_flight.clone())
}

/// An app's budget as it is used up.
fn budget(before: Option<&App>, config: &Config, id: &str) -> Arc<Limiter<()>> {
    let same = before.filter(|before| same(&before.whole.limits, &config.limits));
    known(same, id).map_or_else(|| Arc::new(limiter(config.limits.per_app)), |entry| entry.budget.clone())
}

/// The same app in the configuration before.
fn known<'a>(before: Option<&'a App>, id: &str) -> Option<&'a Entry> {
    before?.entries.iter().find(|entry| entry.id == id)
}

/// The budgets as they are used up; nobody gets new ones by a new configuration, unless it changes them.
fn limits(before: Option<&App>, config: &Config, metrics: &Metrics) -> Arc<Limits> {
    let known = before.filter(|before| same(&before.whole.limits, &config.limits));
    known.map_or_else(|| Arc::new(Limits::new(&config.limits, metrics.of_limits())), |before| before.limits.clone())
}

/// Whether two parts of configurations say the same.
fn same(one: &impl fmt::Debug, other: &impl fmt::Debug) -> bool {
    format!("{one:?}") == format!("{other:?}")
}

/// The chain of certificates that an app shows, if it does.
fn certificate(provider: &ProviderConfig) -> Option<&str> {
    match provider {
        ProviderConfig::Apns(ApnsConfig { credentials: ApnsCredentials::Certificate { chain, .. }, .. }) => Some(chain),
        ProviderConfig::Apns(_)
        | ProviderConfig::Fcm(_)
        | ProviderConfig::WebPush(_)
        | ProviderConfig::UnifiedPush(_) => None,
    }
}

fn warn_of_certificate(app: &str, standing: Standing) {
    match standing {
        Standing::NotYetValid => {
            tracing::error!(app, "the app's certificate is not valid yet: check it and this machine's clock");
        }
        Standing::Expired => tracing::error!(app, "the app's certificate has expired: renew it, or set key_file"),
        Standing::ExpiresSoon { days } => {
            tracing::warn!(app, days, "the app's certificate expires soon: renew it, or set key_file");
        }
        Standing::Valid { .. } => {}
    }
}

fn certificate_error(loaded: &Loaded<Config>, position: usize, error: &OutboundError) -> ConfigError {
    loaded.source.error(&format!("apps.{position}.certificate_file"), error)
}

/// An app and where its pushes go, without anything secret.
fn line(app: &AppConfig) -> String {
    let provider = match &app.provider {
        ProviderConfig::Apns(apns) => {
            let credentials = match &apns.credentials {
                ApnsCredentials::Token { key_id, team_id, .. } => format!("key {key_id} of team {team_id}"),
                ApnsCredentials::Certificate { .. } => "a certificate".to_owned(),
            };
            let kind = match apns.push_type {
                PushType::Alert => "alerts",
                PushType::Background => "background pushes",
                PushType::Voip => "calls",
            };
            format!("APNs at {}, {kind} for {}, with {credentials}", apns.endpoint, apns.topic)
        }
        ProviderConfig::Fcm(fcm) => {
            let credentials = match &fcm.credentials {
                FcmCredentials::ServiceAccount { email, .. } => email.as_str(),
                FcmCredentials::WorkloadIdentity { .. } => "the machine's own identity",
            };
            let profile = match fcm.profile {
                FcmProfile::Sygnal => "",
                FcmProfile::FluffyChat => ", for FluffyChat",
            };
            format!("FCM at {}, project {}, as {credentials}{profile}", fcm.endpoint, fcm.project_id)
        }
        ProviderConfig::WebPush(webpush) => {
            format!("web push to {}, as {}", hosts(&webpush.allowed_endpoints), webpush.vapid_contact)
        }
        ProviderConfig::UnifiedPush(unifiedpush) => {
            let contact = unifiedpush.vapid.as_ref().map(|(_, contact)| format!(", as {contact}"));
            format!("UnifiedPush to {}{}", hosts(&unifiedpush.allowed_endpoints), contact.unwrap_or_default())
        }
    };
    let content = match app.content {
        Content::IdsOnly => "ids only",
        Content::Full => "full contents",
    };
    format!("  {}  {provider}; {content}", app.id)
}

fn hosts(allowed: &[Glob]) -> String {
    match allowed.len() {
        0 => "any public host".to_owned(),
        count => format!("hosts that match one of {count} patterns"),
    }
}
