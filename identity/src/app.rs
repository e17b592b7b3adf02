//! Everything that requests share, built once, by `serve` and by tests.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, MutexGuard, Notify, watch};
use url::Url;
use waypost_shared::{
    clock::{Clock, millis},
    http_client::{Outbound, OutboundError},
    rate_limit::Limiter,
    secret::SecretString,
};

use crate::{
    auth::TokenCache,
    config::{Config, KeyFile},
    delivery::{
        email::{Mailer, MailerError},
        hosted_terms::{HostedTerms, HostedTermsError},
        templates::{TemplateError, Templates},
    },
    domain::{
        hashing, next_link,
        peppered::Lookups,
        sealing::{Fingerprint, StorageKeyError, StorageKeys},
        session::SessionRules,
        signing::{InvalidSigningKey, SigningKey},
        terms::Terms,
    },
    federation::Homeservers,
    metrics::Metrics,
    storage::{Store, StoreError},
};

mod lookups;

/// The server's state; copies are cheap.
pub(crate) type App = Arc<AppState>;

/// See [`App`].
pub(crate) struct AppState {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) keys: StorageKeys,
    pub(crate) signing_key: SigningKey,
    pub(crate) lookups: Lookups,
    /// Told when an index is complete.
    filled: watch::Sender<()>,
    /// Held while indexes are filled: one after the other.
    filling: Mutex<()>,
    /// Told when there may be a new pepper in the database.
    pub(crate) peppers_changed: Notify,
    pub(crate) tokens: TokenCache,
    pub(crate) terms: Terms,
    pub(crate) hosted_terms: HostedTerms,
    /// What callers of the internal listener have to know; none: there is no such listener.
    pub(crate) internal_secret: Option<SecretString>,
    pub(crate) homeservers: Homeservers,
    pub(crate) mailer: Mailer,
    pub(crate) templates: Templates,
    pub(crate) next_links: Vec<next_link::Pattern>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    /// As people reach the server, without a final slash.
    pub(crate) base_url: String,
    binding: [Mutex<()>; 64],
}

/// Budgets that each replica counts for itself.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) register: Limiter<std::net::IpAddr>,
    pub(crate) lookup: Limiter<Arc<str>>,
    pub(crate) lookup_homeserver: Limiter<Arc<str>>,
    pub(crate) addresses: Limiter<Arc<str>>,
    pub(crate) addresses_homeserver: Limiter<Arc<str>>,
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
    /// The signing key.
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
    /// The database.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// Outgoing calls.
    #[error("{0}")]
    Outbound(#[from] OutboundError),
    /// Mail.
    #[error("{0}")]
    Mailer(#[from] MailerError),
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
        let (store, keys) = open_database(&config).await?;
        let signing_key = read_or_make(&config.signing_key_file(), SigningKey::generate)?;
        let signing_key = SigningKey::parse(&signing_key.text)
            .map_err(|source| StartError::SigningKey { path: signing_key.path, source })?;
        if store.pepper().await?.is_none() {
            store.first_pepper(&hashing::new_pepper(), clock.now_ms()).await?;
        }
        let internal_secret = config.internal_secret().map_err(|error| StartError::File {
            path: "internal.secret_file".to_owned(),
            source: io::Error::other(error),
        })?;
        let base_url = base_url(config.identity.public_base_url.as_ref(), config.listen.public);
        let mut policies = config.terms.policies.clone();
        let hosted_terms = HostedTerms::load(&mut policies, &base_url)?;

        let outbound = Outbound::new(&config.outbound)?;
        let limits = Limits {
            register: limiter(config.limits.register_per_source),
            lookup: limiter(config.limits.lookup_per_account),
            lookup_homeserver: limiter(config.limits.lookup_per_homeserver),
            addresses: limiter(config.limits.addresses_per_account),
            addresses_homeserver: limiter(config.limits.addresses_per_homeserver),
        };
        Ok(Self {
            homeservers: Homeservers::new(&outbound, &config.homeservers.overrides, clock.clone()),
            mailer: Mailer::new(&config)?,
            templates: Templates::load(config.email.template_dir.as_deref())?,
            next_links: config
                .validation
                .next_link_allowed
                .iter()
                .filter_map(|p| next_link::Pattern::parse(p))
                .collect(),
            tokens: TokenCache::new(Duration::from_secs(config.tokens.cache_secs)),
            terms: Terms(policies),
            hosted_terms,
            internal_secret,
            base_url,
            metrics: Metrics::register(registry),
            lookups: Lookups::new(millis(Duration::from_secs(config.lookup.previous_pepper_secs))),
            filled: watch::Sender::new(()),
            filling: Mutex::new(()),
            peppers_changed: Notify::new(),
            binding: std::array::from_fn(|_| Mutex::new(())),
            config,
            clock,
            store,
            keys,
            signing_key,
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

/// Opens the database and reads or makes the keys that its rows are sealed with.
///
/// # Errors
///
/// [`StartError`].
pub(crate) async fn open_database(config: &Config) -> Result<(Store, StorageKeys), StartError> {
    make_data_dir(config)?;
    let storage_key = read_or_make(&config.storage_key_file(), StorageKeys::generate)?;
    let keys = StorageKeys::parse(&storage_key.text)
        .map_err(|source| StartError::StorageKey { path: storage_key.path.clone(), source })?;
    let url = config
        .database_url()
        .map_err(|error| StartError::File { path: "database.url_file".to_owned(), source: io::Error::other(error) })?;
    let store = Store::open(&url, config.database.max_connections).await?;
    if !store.belongs_to(&keys).await? {
        return Err(StartError::OtherStorageKey(storage_key.path));
    }
    Ok((store, keys))
}

fn limiter<K: std::hash::Hash + Eq + Clone>(rate: crate::config::Rate) -> Limiter<K> {
    let budget = rate.budget();
    Limiter::new(budget.burst, budget.per)
}

fn base_url(configured: Option<&Url>, public: std::net::SocketAddr) -> String {
    match configured {
        Some(url) => url.as_str().trim_end_matches('/').to_owned(),
        None => format!("http://{public}"),
    }
}

/// The folder of keys is nobody else's to read.
fn make_data_dir(config: &Config) -> Result<(), StartError> {
    let dir = &config.identity.data_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| StartError::File { path: dir.display().to_string(), source })
}

struct KeyText {
    path: String,
    text: zeroize::Zeroizing<String>,
}

/// Reads a key file; makes it if it is not there and the operator did not name it.
fn read_or_make(file: &KeyFile, make: fn() -> zeroize::Zeroizing<String>) -> Result<KeyText, StartError> {
    let path = file.path.display().to_string();
    let failed = |source| StartError::File { path: path.clone(), source };
    let text = match fs::read_to_string(&file.path) {
        Ok(text) => text.into(),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.configured => {
            let text = make();
            write_new(&file.path, text.as_bytes()).map_err(failed)?;
            tracing::info!(file = %path, "made a new key: back it up");
            text
        }
        Err(error) => return Err(failed(error)),
    };
    Ok(KeyText { path, text })
}

/// Writes a file that was not there, completely or not at all, readable by its owner alone.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut unfinished = PathBuf::from(path);
    unfinished.as_mut_os_string().push(".new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}
