//! What all requests share: the configured apps and the memory of past pushes. Built once.

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use waypost_shared::{
    client::{Outbound, OutboundError},
    clock::Clock,
    config::file::{ConfigError, Loaded},
    http::rate_limit::Limiter,
    operations::status::{Dependency, Expiry, Facts, HealthProbe, State},
    source::RequestSource,
    telemetry::{logs::LogLevel, otlp::TracesError},
};

use crate::{
    certificate::{Standing, Validity},
    config::{
        ApnsCredentials, AppConfig, Config, Content, FcmCredentials, FcmProfile, LimitsConfig, NotifyConfig,
        ProviderConfig, PushType,
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
    /// What it is, for people.
    line: String,
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
    /// This app's rate limit.
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
        Self { sources: config.per_source.limiter(), pushkeys: config.per_pushkey.limiter(), metrics }
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

impl Entry {
    /// Goes on with what `before`, the same app under the configuration `was`, has learned and counted: all of it whose
    /// own settings are the same in `now`. A reload must neither let in a second set of pushes nor forget a hold.
    fn carry_over(&mut self, before: &Self, was: &Config, now: &Config) {
        self.probe = before.probe.clone();
        if was.hold == now.hold {
            self.hold = before.hold.clone();
        }
        if before.in_flight.most() == self.in_flight.most() {
            self.in_flight = before.in_flight.clone();
        }
        if was.limits.per_app == now.limits.per_app {
            self.budget = before.budget.clone();
        }
    }
}

impl App {
    /// Checks the configuration and sets up each app's provider; connects nowhere yet.
    pub(crate) fn new(loaded: &Loaded<Config>, registry: &mut Registry, clock: Clock) -> Result<Arc<Self>, StartError> {
        let Loaded { config, source } = loaded;
        let providers = config.validate(source)?;
        let outbound = Outbound::new(&config.outbound)?;
        let metrics = Metrics::register(registry, &clock, config.traces.is_on());
        let replicas = config.seen.replicas(source)?.map(|replicas| {
            let up = metrics.register_shared_memory(registry);
            let redis = Redis::new(replicas.address, outbound.clone(), up);
            (Replicas::new(redis, &config.seen, config.notify.budget()), replicas.secret)
        });
        let deliveries = Arc::new(Deliveries::new(&config.seen, clock.clone(), replicas));
        let (upstream, mut team_tokens) = (Upstream::new(outbound, clock), TeamTokens::default());
        let entries = entries(loaded, providers, &upstream, &mut team_tokens, &metrics)?;
        let limits = Arc::new(Limits::new(&config.limits, metrics.of_limits()));
        let parts = Parts { entries, team_tokens, clock: upstream.clock, metrics, deliveries, limits };
        Ok(Self::assembled(config, parts))
    }

    /// The same gateway with another configuration, whose keys that only a start reads are passed over: those are
    /// named, so that the operator can be told.
    ///
    /// # Errors
    ///
    /// [`StartError`]; this one stays good.
    pub(crate) fn renewed(&self, mut loaded: Loaded<Config>) -> Result<(Arc<Self>, Vec<&'static str>), StartError> {
        let waiting = loaded.config.keep_what_a_start_reads(&self.whole);
        let config = &loaded.config;
        let providers = config.validate(&loaded.source)?;
        let upstream = Upstream::new(Outbound::new(&config.outbound)?, self.clock.clone());
        // Apple punishes those who make new tokens too often.
        let mut team_tokens = self.team_tokens.clone();
        let mut entries = entries(&loaded, providers, &upstream, &mut team_tokens, &self.metrics)?;
        for before in self.entries.iter() {
            let now = entries.iter_mut().find(|entry| entry.id == before.id);
            // The hold of an app that is left out, or whose rules are others, is over.
            let mut is_held = false;
            if let Some(now) = now {
                now.carry_over(before, &self.whole, config);
                is_held = now.hold.is_on();
            }
            before.metrics.set_held(is_held);
        }
        // Nobody gets a new budget by a reload, unless it changes the limits.
        let limits = if config.limits == self.whole.limits {
            self.limits.clone()
        } else {
            Arc::new(Limits::new(&config.limits, self.metrics.of_limits()))
        };
        let (metrics, deliveries) = (self.metrics.clone(), self.deliveries.clone());
        let parts = Parts { entries, team_tokens, clock: upstream.clock, metrics, deliveries, limits };
        let renewed = Self::assembled(config, parts);
        self.deliveries.set_budget(renewed.config.budget());
        Ok((renewed, waiting))
    }

    fn assembled(config: &Config, parts: Parts) -> Arc<Self> {
        let Parts { entries, team_tokens, clock, metrics, deliveries, limits } = parts;
        let mut expiries = Vec::new();
        for entry in &entries {
            if let Some(validity) = entry.certificate {
                warn_of_certificate(&entry.id, validity.at(clock.now_ms()));
                expiries.push((entry.id.clone(), entry.provider.name(), validity.not_after_ms));
            }
        }
        metrics.certificates_expire(&expiries);
        Arc::new(Self {
            config: config.notify.clone(),
            deliveries,
            limits,
            unmatched: metrics.of_unmatched(),
            metrics,
            unknown_apps: Limiter::new(UNKNOWN_APPS_LOGGED.0, UNKNOWN_APPS_LOGGED.1),
            entries: ByGlob::new(entries.into_iter().map(|entry| (entry.id.clone(), entry))),
            clock,
            team_tokens,
            whole: config.clone(),
        })
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
        let entry = |app: &AppConfig| self.entries.iter().find(|entry| entry.id == app.id);
        let lines: Vec<_> = config.apps.iter().filter_map(entry).map(|entry| entry.line.as_str()).collect();
        match lines.len() {
            0 => text.push_str("apps        none: add an [[apps]] entry for each app that is to be pushed to"),
            count => text.push_str(&format!("apps        {count}\n{}", lines.join("\n"))),
        }
        text
    }
}

/// What a gateway is made of beside its configuration.
struct Parts {
    entries: Vec<Entry>,
    team_tokens: TeamTokens,
    clock: Clock,
    metrics: Metrics,
    deliveries: Arc<Deliveries>,
    limits: Arc<Limits>,
}

/// An entry for each app, as at a start.
fn entries(
    loaded: &Loaded<Config>,
    providers: Vec<ProviderConfig>,
    upstream: &Upstream,
    team_tokens: &mut TeamTokens,
    metrics: &Metrics,
) -> Result<Vec<Entry>, StartError> {
    let Loaded { config, source } = loaded;
    let clock = &upstream.clock;
    let (mut entries, mut errors) = (Vec::new(), Vec::new());
    for (position, (app, provider)) in config.apps.iter().zip(providers).enumerate() {
        let (name, line) = (provider.name(), line(app, &provider));
        let certificate = certificate(&provider).and_then(Validity::from_pem);
        match Provider::new(provider, app.max_in_flight, upstream, team_tokens) {
            Ok(provider) => {
                let metrics = metrics.of_app(&app.id, name);
                entries.push(Entry {
                    id: app.id.clone(),
                    content: app.content,
                    line,
                    provider,
                    hold: Arc::new(Hold::new(&app.id, &config.hold, metrics.clone(), clock.clone())),
                    in_flight: Arc::new(InFlight::new(app.max_in_flight)),
                    told_full: Limiter::new(1, ONE_LINE_EACH),
                    metrics,
                    certificate,
                    probe: Arc::new(HealthProbe::new(clock.clone())),
                    budget: Arc::new(config.limits.per_app.limiter()),
                });
            }
            Err(error) => errors.push(source.error(&format!("apps.{position}.apns.certificate_file"), error)),
        }
    }
    if errors.is_empty() { Ok(entries) } else { Err(ConfigError::merge(errors).into()) }
}

/// The chain of certificates that an app shows, if it does.
fn certificate(provider: &ProviderConfig) -> Option<&str> {
    match provider {
        ProviderConfig::Apns(_, ApnsCredentials::Certificate { chain, .. }) => Some(chain),
        ProviderConfig::Apns(_, ApnsCredentials::Token(_))
        | ProviderConfig::Fcm(..)
        | ProviderConfig::WebPush(..)
        | ProviderConfig::UnifiedPush(..) => None,
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

/// An app and where its pushes go, without anything secret.
fn line(app: &AppConfig, provider: &ProviderConfig) -> String {
    let provider = match provider {
        ProviderConfig::Apns(apns, credentials) => {
            let credentials = match credentials {
                ApnsCredentials::Token(_) => format!("key {} of team {}", apns.key_id, apns.team_id),
                ApnsCredentials::Certificate { .. } => "a certificate".to_owned(),
            };
            let kind = match apns.push_type() {
                PushType::Alert => "alerts",
                PushType::Background => "background pushes",
                PushType::Voip => "calls",
            };
            format!("APNs at {}, {kind} for {}, with {credentials}", apns.endpoint, apns.topic)
        }
        ProviderConfig::Fcm(fcm, credentials) => {
            let credentials = match credentials {
                FcmCredentials::ServiceAccount { email, .. } => email.as_str(),
                FcmCredentials::WorkloadIdentity { .. } => "the machine's own identity",
            };
            let profile = match fcm.profile {
                FcmProfile::Sygnal => "",
                FcmProfile::FluffyChat => ", for FluffyChat",
            };
            format!("FCM at {}, project {}, as {credentials}{profile}", fcm.endpoint, fcm.project_id)
        }
        ProviderConfig::WebPush(webpush, _) => {
            format!("web push to {}, as {}", hosts(&webpush.allowed_endpoints), webpush.vapid_contact)
        }
        ProviderConfig::UnifiedPush(unifiedpush, key) => {
            let contact = key.as_ref().map(|_| format!(", as {}", unifiedpush.vapid_contact));
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
