//! State shared by all requests, built once by `serve` and by tests.

use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use url::Url;
use waypost_shared::{
    client::{Outbound, OutboundError},
    clock::{Clock, millis},
    config::secret::{SecretError, SecretString},
    http::rate_limit::Limiter,
    operations::status::HealthProbe,
    owner::{Owner, Owners},
};

use crate::{
    config::{Config, LimitsConfig},
    delivery::{
        email::{Mailer, MailerError},
        hosted_terms::{HostedTerms, HostedTermsError},
        sms::{Sms, SmsSetupError},
        templates::{TemplateError, Templates},
    },
    domain::{
        hashing,
        lookups::Lookups,
        mxid::Mxid,
        next_link,
        phone::Country,
        sealing::{Fingerprint, StorageKeys},
        session::SessionRules,
        signer::Signer,
        signing::SigningKeys,
        terms::Terms,
    },
    federation::Homeservers,
    metrics::Metrics,
    storage::{Store, StoreError},
};

mod address_books;
mod facts;
mod index_loading;
mod opening;
mod token_cache;

use address_books::AddressBooks;
pub(crate) use opening::{OpenError, Opened, open, serve_alone};
pub(crate) use token_cache::{Account, TokenCache};

/// State shared by all requests. A reload builds a new one from the same [`Lasting`] parts; requests in flight keep the
/// one they started with.
pub(crate) struct App {
    // Survives a reload.
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) keys: Arc<StorageKeys>,
    pub(crate) lookups: Arc<Lookups>,
    filling: Arc<Filling>,
    pub(crate) tokens: Arc<TokenCache>,
    pub(crate) address_books: Arc<AddressBooks>,
    pub(crate) metrics: Metrics,
    /// Notified when the database may have a new pepper.
    pub(crate) peppers_changed: Arc<Notify>,
    /// Notified when a row is added to the outbox.
    pub(crate) outbox_filled: Arc<Notify>,
    address_locks: AddressLocks,
    /// Whether the database answered when the status page last asked.
    database: Arc<HealthProbe>,

    // Derived from the configuration.
    pub(crate) config: Config,
    /// The configuration's generation, for the token cache.
    pub(crate) generation: u64,
    pub(crate) signer: Signer,
    pub(crate) terms: Terms,
    pub(crate) hosted_terms: HostedTerms,
    /// The secret that callers of the internal listener present; `None` if none is configured.
    pub(crate) internal_secret: Option<SecretString>,
    pub(crate) homeservers: Homeservers,
    /// Maps a homeserver to its owner, for rate limits and block lists.
    pub(crate) owners: Owners,
    pub(crate) mailer: Mailer,
    pub(crate) sms: Sms,
    /// Countries that text messages may go to (all, if empty), and countries that they may not.
    pub(crate) sms_countries: (Vec<Country>, Vec<Country>),
    pub(crate) templates: Templates,
    pub(crate) next_links: Vec<next_link::Pattern>,
    pub(crate) limits: Arc<Limits>,
    /// The URL at which users reach this server, without a trailing slash.
    pub(crate) base_url: String,
    /// The names that homeservers may use for this server in signed requests: its server name and its public URL
    /// without the scheme.
    pub(crate) own_names: Vec<String>,
}

/// Striped locks: the fingerprint of an address selects one of them.
type AddressLocks = Arc<[Mutex<()>; 64]>;

/// The parts of [`App`] that live as long as the process, across reloads.
#[derive(Clone)]
struct Lasting {
    clock: Clock,
    store: Store,
    keys: Arc<StorageKeys>,
    lookups: Arc<Lookups>,
    filling: Arc<Filling>,
    tokens: Arc<TokenCache>,
    address_books: Arc<AddressBooks>,
    metrics: Metrics,
    peppers_changed: Arc<Notify>,
    outbox_filled: Arc<Notify>,
    address_locks: AddressLocks,
    database: Arc<HealthProbe>,
}

/// Shared by the tasks that fill indexes and the requests that wait for one.
struct Filling {
    /// Held while filling, so that only one fill runs at a time.
    turn: Mutex<()>,
    /// Notified when an index is complete.
    done: watch::Sender<()>,
}

/// Rate limits that are counted in each replica.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) register: Limiter<Option<std::net::IpAddr>>,
    pub(crate) lookup: Limiter<Mxid>,
    pub(crate) bind: Limiter<Mxid>,
    pub(crate) terms: Limiter<Mxid>,
    pub(crate) unbind: Limiter<Option<std::net::IpAddr>>,
    pub(crate) lookup_homeserver: Limiter<Owner>,
    pub(crate) addresses_homeserver: Limiter<Owner>,
}

impl Limits {
    fn new(config: &LimitsConfig) -> Self {
        Self {
            register: config.register_per_source.limiter(),
            lookup: config.lookup_per_account.limiter(),
            bind: config.bind_per_account.limiter(),
            terms: config.terms_per_account.limiter(),
            unbind: config.unbind_per_source.limiter(),
            lookup_homeserver: config.lookup_per_homeserver.limiter(),
            addresses_homeserver: config.addresses_per_homeserver.limiter(),
        }
    }
}

/// Why the server cannot start, or cannot apply a new configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The database or the key files.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file of `internal.secret_file`.
    #[error("internal.secret_file cannot be used")]
    InternalSecret(#[source] SecretError),
    /// Outgoing calls.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// Mail.
    #[error(transparent)]
    Mailer(#[from] MailerError),
    /// Text messages.
    #[error(transparent)]
    Sms(#[from] SmsSetupError),
    /// Templates.
    #[error(transparent)]
    Templates(#[from] TemplateError),
    /// Policies hosted by this server.
    #[error(transparent)]
    HostedTerms(#[from] HostedTermsError),
}

impl From<StoreError> for StartError {
    fn from(error: StoreError) -> Self {
        Self::Open(error.into())
    }
}

impl App {
    /// Opens the database, reads or generates the keys, and sets up everything except the lookup index.
    pub(crate) async fn new(config: Config, clock: Clock, registry: &mut Registry) -> Result<Self, StartError> {
        let Opened { keys, signing_keys, store } = open(&config).await?;
        if store.pepper().await?.is_none() {
            store.first_pepper(&hashing::new_pepper(), clock.now_ms()).await?;
        }
        let lasting = Lasting {
            tokens: Arc::new(TokenCache::new(Duration::from_secs(config.tokens.cache_secs))),
            address_books: Arc::default(),
            metrics: Metrics::register(registry, &clock, config.traces.is_on()),
            lookups: Arc::new(Lookups::new(millis(Duration::from_secs(config.lookup.previous_pepper_secs)))),
            filling: Arc::new(Filling { turn: Mutex::new(()), done: watch::Sender::new(()) }),
            peppers_changed: Arc::default(),
            outbox_filled: Arc::default(),
            address_locks: Arc::new(std::array::from_fn(|_| Mutex::new(()))),
            database: Arc::new(HealthProbe::new(clock.clone())),
            keys: Arc::new(keys),
            clock,
            store,
        };
        let limits = Arc::new(Limits::new(&config.limits));
        Self::configured(lasting, config, signing_keys, limits)
    }

    /// Applies a new configuration. Settings that are read only at startup keep their values; those that were changed
    /// are returned by name, so that the operator can be told. Nothing takes effect before [`App::take_over`].
    ///
    /// # Errors
    ///
    /// [`StartError`]; `self` remains usable.
    pub(crate) fn renewed(&self, mut config: Config) -> Result<(Self, Vec<&'static str>), StartError> {
        let waiting = config.keep_what_a_start_reads(&self.config);
        let signing_keys = opening::signing_keys(&config)?;
        let limits = if config.limits == self.config.limits {
            // A reload must not refill the budgets.
            self.limits.clone()
        } else {
            Arc::new(Limits::new(&config.limits))
        };
        Ok((Self::configured(self.lasting(), config, signing_keys, limits)?, waiting))
    }

    /// To be called once nothing can refuse the new configuration any more, before it replaces the old one.
    pub(crate) fn take_over(&mut self) {
        // Requests may still start under the old configuration until this one replaces it.
        self.generation = self.tokens.begin_anew();
    }

    fn lasting(&self) -> Lasting {
        Lasting {
            clock: self.clock.clone(),
            store: self.store.clone(),
            keys: self.keys.clone(),
            lookups: self.lookups.clone(),
            filling: self.filling.clone(),
            tokens: self.tokens.clone(),
            address_books: self.address_books.clone(),
            metrics: self.metrics.clone(),
            peppers_changed: self.peppers_changed.clone(),
            outbox_filled: self.outbox_filled.clone(),
            address_locks: self.address_locks.clone(),
            database: self.database.clone(),
        }
    }

    fn configured(
        lasting: Lasting,
        config: Config,
        signing_keys: SigningKeys,
        limits: Arc<Limits>,
    ) -> Result<Self, StartError> {
        let internal_secret = config.internal_secret().map_err(StartError::InternalSecret)?;
        let base_url = base_url(config.identity.public_base_url.as_ref(), config.listen.public);
        let mut policies = config.terms.policies.clone();
        let hosted_terms = HostedTerms::load(&mut policies, &base_url)?;
        let outbound = Outbound::new(&config.outbound)?;
        let patterns = config.validation.next_link_allowed.iter();
        let Lasting { clock, store, keys, lookups, filling, tokens, address_books, metrics, .. } = lasting;
        Ok(Self {
            owners: outbound.owners().clone(),
            homeservers: Homeservers::new(&outbound, &config.homeservers.overrides, clock.clone()),
            mailer: Mailer::new(&config, clock.clone())?,
            sms: Sms::new(&config.sms, &outbound, clock.clone())?,
            sms_countries: config.sms.countries(),
            templates: Templates::load(config.email.template_dir.as_deref(), &config.email.default_language)?,
            next_links: patterns.filter_map(|pattern| next_link::Pattern::parse(pattern)).collect(),
            signer: Signer { server_name: config.identity.server_name.clone(), keys: signing_keys },
            terms: Terms(policies),
            hosted_terms,
            internal_secret,
            base_url,
            own_names: own_names(&config),
            generation: 0,
            config,
            limits,
            clock,
            store,
            keys,
            lookups,
            filling,
            tokens,
            address_books,
            metrics,
            peppers_changed: lasting.peppers_changed,
            outbox_filled: lasting.outbox_filled,
            address_locks: lasting.address_locks,
            database: lasting.database,
        })
    }

    /// Locks an address while it is bound, first in the database and then in the index, so that concurrent binds of one
    /// address reach both in the same order.
    pub(crate) async fn lock_address(&self, fingerprint: &Fingerprint) -> MutexGuard<'_, ()> {
        self.address_locks[usize::from(fingerprint[0]) % self.address_locks.len()].lock().await
    }

    /// Lifetime and attempt limit of validation sessions.
    pub(crate) fn session_rules(&self) -> SessionRules {
        let validation = &self.config.validation;
        SessionRules {
            lifetime_ms: i64::try_from(validation.session_lifetime_secs).unwrap_or(i64::MAX).saturating_mul(1000),
            max_attempts: i64::from(validation.max_attempts),
        }
    }
}

/// The URL at which users reach this server, without a trailing slash.
pub(crate) fn base_url(configured: Option<&Url>, public: std::net::SocketAddr) -> String {
    match configured {
        Some(url) => url.as_str().trim_end_matches('/').to_owned(),
        None => format!("http://{public}"),
    }
}

/// Synapse signs for whatever name its users gave for this server, which may include a port and a path.
fn own_names(config: &Config) -> Vec<String> {
    let mut names = vec![config.identity.server_name.clone()];
    if let Some((_, name)) = config.identity.public_base_url.as_ref().and_then(|url| url.as_str().split_once("://")) {
        names.push(name.trim_end_matches('/').to_owned());
    }
    names
}
