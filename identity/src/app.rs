//! Everything that requests share, built once, by `serve` and by tests.

use std::{io, ops::Deref, sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use url::Url;
use waypost_shared::{
    clock::{Clock, millis},
    http_client::{Outbound, OutboundError},
    owner::{Owner, Owners},
    rate_limit::Limiter,
    secret::SecretString,
    status::HealthProbe,
};

use crate::{
    auth::TokenCache,
    config::{Config, LimitsConfig},
    delivery::{
        email::{Mailer, MailerError},
        hosted_terms::{HostedTerms, HostedTermsError},
        sms::{Sms, SmsSetupError},
        templates::{TemplateError, Templates},
    },
    domain::{
        hashing, next_link,
        peppered::Lookups,
        phone::Country,
        sealing::{Fingerprint, StorageKeyError, StorageKeys},
        session::SessionRules,
        signing::{InvalidSigningKey, SigningKeys},
        terms::Terms,
    },
    federation::Homeservers,
    metrics::Metrics,
    storage::{Store, StoreError},
};

mod facts;
mod lookups;
mod opening;

pub(crate) use opening::{Opened, open, serve_alone};

/// The server's state; copies are cheap. Reading the configuration again makes another one: who works with this goes on
/// with it.
pub(crate) type App = Arc<AppState>;

/// See [`App`]: what follows from the configuration. Beside it what lasts, to which this derefs.
pub(crate) struct AppState {
    lasting: Arc<Lasting>,
    /// How many configurations there were before this one.
    pub(crate) number: u64,
    pub(crate) config: Config,
    pub(crate) signing_keys: SigningKeys,
    pub(crate) terms: Terms,
    pub(crate) hosted_terms: HostedTerms,
    /// What callers of the internal listener have to know; none: there is no such listener.
    pub(crate) internal_secret: Option<SecretString>,
    pub(crate) homeservers: Homeservers,
    /// Tells apart whose the homeservers are, for budgets and block lists.
    pub(crate) owners: Owners,
    pub(crate) mailer: Mailer,
    pub(crate) sms: Sms,
    /// Where text messages may go (everywhere if it is empty), and where they may not.
    pub(crate) sms_countries: (Vec<Country>, Vec<Country>),
    pub(crate) templates: Templates,
    pub(crate) next_links: Vec<next_link::Pattern>,
    pub(crate) limits: Arc<Limits>,
    /// As people reach the server, without a final slash.
    pub(crate) base_url: String,
    /// What homeservers may call this server in what they sign: its name, and the address that people reach it by.
    pub(crate) own_names: Vec<String>,
}

/// What lives as long as the process, whatever the configuration becomes.
pub(crate) struct Lasting {
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) keys: StorageKeys,
    pub(crate) lookups: Lookups,
    /// Told when an index is complete.
    filled: watch::Sender<()>,
    /// Held while indexes are filled: one after the other.
    filling: Mutex<()>,
    /// Told when there may be a new pepper in the database.
    pub(crate) peppers_changed: Notify,
    pub(crate) tokens: TokenCache,
    pub(crate) metrics: Metrics,
    /// Told when something was put into the outbox.
    pub(crate) outbox_filled: Notify,
    binding: [Mutex<()>; 64],
    /// Whether the database answered when the status page last asked.
    database: HealthProbe,
}

impl Deref for AppState {
    type Target = Lasting;

    fn deref(&self) -> &Lasting {
        &self.lasting
    }
}

/// Budgets that each replica counts for itself.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) register: Limiter<Option<std::net::IpAddr>>,
    pub(crate) lookup: Limiter<Arc<str>>,
    pub(crate) bind: Limiter<Arc<str>>,
    pub(crate) unbind: Limiter<Option<std::net::IpAddr>>,
    pub(crate) lookup_homeserver: Limiter<Owner>,
    pub(crate) addresses: Limiter<Arc<str>>,
    pub(crate) addresses_homeserver: Limiter<Owner>,
}

impl Limits {
    fn new(config: &LimitsConfig) -> Self {
        Self {
            register: config.register_per_source.limiter(),
            lookup: config.lookup_per_account.limiter(),
            bind: config.bind_per_account.limiter(),
            unbind: config.unbind_per_source.limiter(),
            lookup_homeserver: config.lookup_per_homeserver.limiter(),
            addresses: config.addresses_per_account.limiter(),
            addresses_homeserver: config.addresses_per_homeserver.limiter(),
        }
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A key file or the data folder.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The storage keys.
    #[error("{path}: {source}")]
    StorageKey {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: StorageKeyError,
    },
    /// The signing keys.
    #[error("{path}: {source}")]
    SigningKey {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: InvalidSigningKey,
    },
    /// The storage keys are another database's.
    #[error(
        "the storage keys in {0} are not those that this database was written with; put the right file back \
         (without it the addresses in the database cannot be read)"
    )]
    OtherStorageKey(String),
    /// There is a server on it already.
    #[error("another process serves this SQLite database; several replicas need PostgreSQL")]
    Served,
    /// A key file that was made with the database is gone.
    #[error("{0} is missing, and the database was written with it; put it back from your backup")]
    LostKey(String),
    /// The database.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Outgoing calls.
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    /// Mail.
    #[error("{0}")]
    Mailer(#[from] MailerError),
    /// Text messages.
    #[error("{0}")]
    Sms(#[from] SmsSetupError),
    /// Templates.
    #[error("{0}")]
    Templates(#[from] TemplateError),
    /// Policies that this server shows itself.
    #[error("{0}")]
    HostedTerms(#[from] HostedTermsError),
}

impl AppState {
    /// Opens the database, reads or makes the keys, and sets up everything but the index.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub(crate) async fn build(config: Config, clock: Clock, registry: &mut Registry) -> Result<Self, StartError> {
        let Opened { keys, signing_keys, store } = open(&config).await?;
        if store.pepper().await?.is_none() {
            store.first_pepper(&hashing::new_pepper(), clock.now_ms()).await?;
        }
        let lasting = Lasting {
            tokens: TokenCache::new(Duration::from_secs(config.tokens.cache_secs)),
            metrics: Metrics::register(registry, &clock, config.traces.is_on()),
            lookups: Lookups::new(millis(Duration::from_secs(config.lookup.previous_pepper_secs))),
            filled: watch::Sender::new(()),
            filling: Mutex::new(()),
            peppers_changed: Notify::new(),
            outbox_filled: Notify::new(),
            binding: std::array::from_fn(|_| Mutex::new(())),
            database: HealthProbe::new(clock.clone()),
            clock,
            store,
            keys,
        };
        let limits = Arc::new(Limits::new(&config.limits));
        Self::configured(Arc::new(lasting), config, signing_keys, limits)
    }

    /// The same server with another configuration, whose keys that only a start reads are passed over: those are named,
    /// so that the operator can be told.
    ///
    /// # Errors
    ///
    /// [`StartError`]; this state stays good.
    pub(crate) fn renewed(&self, mut config: Config) -> Result<(Self, Vec<&'static str>), StartError> {
        let waiting = config.keep_what_a_start_reads(&self.config);
        let signing_keys = opening::signing_keys(&config)?;
        let limits = if config.limits == self.config.limits {
            // Nobody gets a new budget by it.
            self.limits.clone()
        } else {
            Arc::new(Limits::new(&config.limits))
        };
        let mut renewed = Self::configured(self.lasting.clone(), config, signing_keys, limits)?;
        // Requests may begin under this configuration until the other one is in its place.
        renewed.number = self.tokens.begin_anew();
        Ok((renewed, waiting))
    }

    fn configured(
        lasting: Arc<Lasting>,
        config: Config,
        signing_keys: SigningKeys,
        limits: Arc<Limits>,
    ) -> Result<Self, StartError> {
        let internal_secret = config.internal_secret().map_err(|error| StartError::File {
            path: "internal.secret_file".to_owned(),
            source: io::Error::other(error),
        })?;
        let base_url = base_url(config.identity.public_base_url.as_ref(), config.listen.public);
        let mut policies = config.terms.policies.clone();
        let hosted_terms = HostedTerms::load(&mut policies, &base_url)?;
        let outbound = Outbound::new(&config.outbound)?;
        let patterns = config.validation.next_link_allowed.iter();
        Ok(Self {
            owners: config.outbound.owners(),
            homeservers: Homeservers::new(&outbound, &config.homeservers.overrides, lasting.clock.clone()),
            mailer: Mailer::new(&config, lasting.clock.clone())?,
            sms: Sms::new(&config.sms, &outbound, lasting.clock.clone())?,
            sms_countries: config.sms.countries(),
            templates: Templates::load(config.email.template_dir.as_deref(), &config.email.default_language)?,
            next_links: patterns.filter_map(|pattern| next_link::Pattern::parse(pattern)).collect(),
            terms: Terms(policies),
            hosted_terms,
            internal_secret,
            base_url,
            own_names: own_names(&config),
            number: 0,
            lasting,
            config,
            signing_keys,
            limits,
        })
    }

    /// Held while an address is bound in the database and then in the index, so that two binds of one address reach
    /// both in the same order.
    pub(crate) async fn binding(&self, fingerprint: &Fingerprint) -> MutexGuard<'_, ()> {
        self.binding[usize::from(fingerprint[0]) % self.binding.len()].lock().await
    }

    /// How long validation sessions live.
    pub(crate) fn session_rules(&self) -> SessionRules {
        let validation = &self.config.validation;
        SessionRules {
            lifetime_ms: i64::try_from(validation.session_lifetime_secs).unwrap_or(i64::MAX).saturating_mul(1000),
            max_attempts: i64::from(validation.max_attempts),
        }
    }
}

/// The address that people reach the server by, without a final slash.
pub(crate) fn base_url(configured: Option<&Url>, public: std::net::SocketAddr) -> String {
    match configured {
        Some(url) => url.as_str().trim_end_matches('/').to_owned(),
        None => format!("http://{public}"),
    }
}

/// Synapse signs for the server by the name that its users gave it, which may have a port and a path.
fn own_names(config: &Config) -> Vec<String> {
    let mut names = vec![config.identity.server_name.clone()];
    if let Some((_, name)) = config.identity.public_base_url.as_ref().and_then(|url| url.as_str().split_once("://")) {
        names.push(name.trim_end_matches('/').to_owned());
    }
    names
}
