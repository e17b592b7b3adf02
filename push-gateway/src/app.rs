//! State shared by all requests: the configured apps and the record of past deliveries. Rebuilt on each reload.

use std::{net::IpAddr, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use waypost_shared::{
    client::{Outbound, OutboundError},
    clock::Clock,
    config::file::{ConfigError, Loaded},
    http::rate_limit::Limiter,
    operations::status::{Dependency, Expiry, Facts, HealthProbe, State},
    owner::Owner,
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
    holds::Holds,
    in_flight::InFlight,
    metrics::{AppMetrics, Limit, LimitMetrics, Metrics},
    notification::Device,
    provider::{Provider, TeamTokens},
    redis::Redis,
    upstream::Upstream,
};

/// Rate limit for logging unknown apps (burst, then one line per interval): anybody can send any `app_id`.
const UNKNOWN_APPS_LOGGED: (u32, Duration) = (10, Duration::from_secs(60));

/// Lines about refused pushes of one app: a burst, and the time until one more.
const REFUSALS_LOGGED: (u32, Duration) = (50, Duration::from_secs(2));
/// The shortest time between two log lines about one app's in-flight cap.
const ONE_LINE_EACH: Duration = Duration::from_secs(60);

/// Why the gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A mistake in the configuration, which the operator can fix.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A certificate file, or the resolver's configuration.
    #[error("cannot set up outgoing connections")]
    Outbound(#[from] OutboundError),
    /// The connection to the trace collector.
    #[error("cannot set up traces")]
    Traces(#[from] TracesError),
}

/// The gateway under one configuration. A reload builds a new `App` that keeps the deliveries and metrics; requests
/// already running keep the one they started with.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: NotifyConfig,
    pub(crate) deliveries: Arc<Deliveries>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) metrics: Metrics,
    /// Counts pushes whose `app_id` no entry matches.
    pub(crate) unmatched: AppMetrics,
    /// Limits log lines about unknown apps.
    pub(crate) unknown_apps: Limiter<()>,
    entries: ByGlob<Entry>,
    clock: Clock,
    team_tokens: TeamTokens,
    /// The whole configuration: a reload compares the new one with it.
    pub(crate) whole: Config,
}

/// One configured app.
#[derive(Debug)]
pub(crate) struct Entry {
    /// The id as configured. Logs and metrics name this, never the `app_id` of a request.
    pub(crate) id: String,
    pub(crate) content: Content,
    /// This entry's line in the output of `check-config`.
    line: String,
    pub(crate) provider: Provider,
    /// Decides whether reports of dead pushkeys are believed.
    pub(crate) hold: Arc<Holds>,
    pub(crate) in_flight: Arc<InFlight>,
    /// Limits log lines about the in-flight cap.
    pub(crate) told_full: Limiter<()>,
    /// Limits the lines about refused pushes, which strangers can cause.
    pub(crate) told_refused: Limiter<()>,
    pub(crate) metrics: AppMetrics,
    /// Validity of the app's client certificate, if it uses one.
    pub(crate) certificate: Option<Validity>,
    /// Health of its push service, judged by the latest answer.
    pub(crate) probe: Arc<HealthProbe>,
    /// This app's rate limit.
    budget: Arc<Limiter<()>>,
}

/// The rate limits that are checked before any work is done.
#[derive(Debug)]
pub(crate) struct Limits {
    sources: Limiter<Option<IpAddr>>,
    pushkeys: Limiter<Fingerprint>,
    servers: Limiter<Owner>,
    metrics: LimitMetrics,
}

impl Limits {
    fn new(config: &LimitsConfig, metrics: LimitMetrics) -> Self {
        Self {
            sources: config.per_source.limiter(),
            pushkeys: config.per_pushkey.limiter(),
            servers: config.per_server.limiter(),
            metrics,
        }
    }

    /// Charges a request to its source's limit, as one push.
    pub(crate) fn request_from(&self, source: RequestSource) -> Result<(), ApiError> {
        self.within(Limit::Source, self.sources.check(&source.key()))
    }

    /// Charges the pushes of a request to its source's limit, apart from the one that [`Limits::request_from`] has
    /// charged.
    pub(crate) fn pushes_from(&self, source: RequestSource, devices: usize) -> Result<(), ApiError> {
        let more = u32::try_from(devices.saturating_sub(1)).unwrap_or(u32::MAX);
        self.within(Limit::Source, self.sources.check_many(&source.key(), more))
    }

    /// Charges a push to the limits of its app and its pushkey.
    pub(crate) fn push_to(&self, entry: Option<&Entry>, target: Target<'_>) -> Result<(), ApiError> {
        if let Some(entry) = entry {
            self.within(Limit::App, entry.budget.check(&()))?;
        }
        self.within(Limit::Pushkey, self.pushkeys.check(&target.fingerprint()))
    }

    /// Charges a push to the limit of the owner of its push server, which a stranger chose.
    ///
    /// # Errors
    ///
    /// The time until another one is allowed.
    pub(crate) fn push_to_server(&self, owner: &Owner) -> Result<(), Duration> {
        self.servers.check(owner).inspect_err(|_| self.metrics.over(Limit::Server))
    }

    fn within(&self, limit: Limit, checked: Result<(), Duration>) -> Result<(), ApiError> {
        checked.map_err(|retry_after| {
            self.metrics.over(limit);
            ApiError::RateLimited { retry_after }
        })
    }
}

impl Entry {
    /// Carries over runtime state from `before`, the same app under the old configuration `was`: every part whose own
    /// settings are unchanged in `now`. A reload must neither double the in-flight cap nor forget a hold.
    fn carry_over(&mut self, before: &Self, was: &Config, now: &Config) {
        self.probe = before.probe.clone();
        if was.hold == now.hold && before.hold.is_by_server() == self.hold.is_by_server() {
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
    /// Validates the configuration and builds each app's provider; opens no connections yet.
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
        let app = Self::assembled(config, parts);
        app.show_certificates();
        Ok(app)
    }

    /// Builds the gateway for a new configuration, and returns with it the names of changed keys that take effect only
    /// after a restart. Nothing takes effect before [`App::take_over`].
    pub(crate) fn renewed(&self, mut loaded: Loaded<Config>) -> Result<(Arc<Self>, Vec<&'static str>), StartError> {
        let waiting = loaded.config.keep_what_a_start_reads(&self.whole);
        let config = &loaded.config;
        let providers = config.validate(&loaded.source)?;
        let upstream = Upstream::new(Outbound::new(&config.outbound)?, self.clock.clone());
        // Apple throttles providers that create new tokens too often.
        let mut team_tokens = self.team_tokens.clone();
        let mut entries = entries(&loaded, providers, &upstream, &mut team_tokens, &self.metrics)?;
        for before in self.entries.iter() {
            let now = entries.iter_mut().find(|entry| entry.id == before.id);
            if let Some(now) = now {
                now.carry_over(before, &self.whole, config);
            }
        }
        // A reload must not refill anybody's budget unless it changes the limits.
        let limits = if config.limits == self.whole.limits {
            self.limits.clone()
        } else {
            Arc::new(Limits::new(&config.limits, self.metrics.of_limits()))
        };
        let (metrics, deliveries) = (self.metrics.clone(), self.deliveries.clone());
        let parts = Parts { entries, team_tokens, clock: upstream.clock, metrics, deliveries, limits };
        Ok((Self::assembled(config, parts), waiting))
    }

    /// Makes this configuration the one that metrics and the memory of pushes follow. To be called once nothing can
    /// refuse it any more, before it replaces `before`.
    pub(crate) fn take_over(&self, before: &Self) {
        for entry in before.entries.iter() {
            // A hold does not survive the removal of its app or a change of its rules.
            let now = self.entries.iter().find(|now| now.id == entry.id);
            entry.metrics.set_held(now.is_some_and(|now| now.hold.is_on()));
        }
        self.deliveries.set_budget(self.config.budget());
        self.show_certificates();
    }

    /// Warns of client certificates that expire soon, and shows when they do.
    pub(crate) fn show_certificates(&self) {
        let mut expiries = Vec::new();
        for entry in self.entries.iter() {
            if let Some(validity) = entry.certificate {
                warn_of_certificate(&entry.id, validity.at(self.clock.now_ms()));
                expiries.push((entry.id.clone(), entry.provider.name(), validity.not_after_ms));
            }
        }
        self.metrics.certificates_expire(&expiries);
    }

    fn assembled(config: &Config, parts: Parts) -> Arc<Self> {
        let Parts { entries, team_tokens, clock, metrics, deliveries, limits } = parts;
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

    /// The configured log level.
    pub(crate) fn log_level(&self) -> LogLevel {
        self.whole.log.level
    }

    /// The whole configuration.
    pub(crate) fn whole(&self) -> &Config {
        &self.whole
    }

    /// The entry for an `app_id`: an exact match, else the longest matching pattern.
    pub(crate) fn entry(&self, app_id: &str) -> Option<&Entry> {
        self.entries.find(app_id)
    }

    /// The destination of a push to `device` through `entry`.
    pub(crate) fn target<'d>(&self, entry: Option<&Entry>, device: &'d Device) -> Target<'d> {
        let endpoint = entry.map_or("", |entry| entry.provider.endpoint(device));
        self.deliveries.target(&device.app_id, &device.pushkey, endpoint)
    }

    /// All configured apps, sorted by id.
    pub(crate) fn entries(&self) -> Vec<&Entry> {
        let mut entries: Vec<_> = self.entries.iter().collect();
        entries.sort_by_key(|entry| &entry.id);
        entries
    }

    /// What the status page shows besides the metrics.
    pub(crate) fn facts(&self) -> Facts {
        let entries = self.entries();
        let of_entry = |entry: &&Entry| {
            let what = if entry.hold.is_on() { "rejections are held" } else { entry.provider.title() };
            entry.probe.dependency(&entry.id, entry.provider.name(), what)
        };
        let shared = self.metrics.shared_memory_up.get().map(|up| Dependency {
            name: "shared memory".to_owned(),
            kind: "redis",
            state: if up.get() == 1 { State::Up } else { State::Down },
            detail: "deliveries and dead pushkeys".to_owned(),
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

    /// Whether any app uses UnifiedPush, in which case clients may discover this gateway.
    pub(crate) fn has_unifiedpush(&self) -> bool {
        self.entries.iter().any(|entry| matches!(entry.provider, Provider::UnifiedPush(_)))
    }

    /// The output of `check-config`.
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
            0 => text.push_str("apps        none: add an [[apps]] entry for each app to push to"),
            count => text.push_str(&format!("apps        {count}\n{}", lines.join("\n"))),
        }
        text
    }
}

/// The parts of an [`App`] besides its configuration.
struct Parts {
    entries: Vec<Entry>,
    team_tokens: TeamTokens,
    clock: Clock,
    metrics: Metrics,
    deliveries: Arc<Deliveries>,
    limits: Arc<Limits>,
}

/// Builds the entry of each app with fresh state.
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
                    hold: Arc::new(Holds::new(
                        &app.id,
                        &config.hold,
                        metrics.clone(),
                        clock.clone(),
                        provider.lets_strangers_choose(),
                    )),
                    provider,
                    in_flight: Arc::new(InFlight::new(app.max_in_flight)),
                    told_full: Limiter::new(1, ONE_LINE_EACH),
                    told_refused: Limiter::new(REFUSALS_LOGGED.0, REFUSALS_LOGGED.1),
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

/// The client certificate chain of an app that authenticates with one, as PEM.
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
            tracing::error!(app, "the app's certificate is not valid yet; check it and this machine's clock");
        }
        Standing::Expired => tracing::error!(app, "the app's certificate has expired; renew it, or use key_file"),
        Standing::ExpiresSoon { days } => {
            tracing::warn!(app, days, "the app's certificate expires soon; renew it, or use key_file");
        }
        Standing::Valid { .. } => {}
    }
}

/// Describes an app and where its pushes go, without secrets.
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
                FcmCredentials::WorkloadIdentity { .. } => "this machine's identity",
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
        count => format!("hosts matching one of {count} patterns"),
    }
}
