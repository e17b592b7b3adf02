//! Everything that requests share, built once, by `serve` and by tests.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use prometheus_client::registry::Registry;
use tokio::sync::{Mutex, MutexGuard};
use url::Url;
use waypost_shared::{
    clock::Clock,
    http_client::{Outbound, OutboundError},
    rate_limit::Limiter,
};

use crate::{
    auth::TokenCache,
    config::{Config, KeyFile},
    delivery::{
        email::{Mailer, MailerError},
        sms::{Sms, SmsSetupError},
        templates::{TemplateError, Templates},
    },
    domain::{
        hashing,
        lookup_index::LookupIndex,
        next_link,
        phone::Country,
        sealing::{Fingerprint, StorageKeyError, StorageKeys},
        session::SessionRules,
        signing::{InvalidSigningKey, SigningKey},
        terms::Terms,
    },
    federation::Homeservers,
    metrics::Metrics,
    storage::{Store, StoreError, associations::Seen},
};

/// The server's state; copies are cheap.
pub(crate) type App = Arc<AppState>;

/// See [`App`].
pub(crate) struct AppState {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) store: Store,
    pub(crate) keys: StorageKeys,
    pub(crate) signing_key: SigningKey,
    pub(crate) pepper: String,
    pub(crate) index: LookupIndex,
    pub(crate) tokens: TokenCache,
    pub(crate) terms: Terms,
    pub(crate) homeservers: Homeservers,
    pub(crate) mailer: Mailer,
    pub(crate) sms: Sms,
    /// Where text messages may go (everywhere if it is empty), and where they may not.
    pub(crate) sms_countries: (Vec<Country>, Vec<Country>),
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
    /// Text messages.
    #[error("{0}")]
    Sms(#[from] SmsSetupError),
    /// Templates.
    #[error("{0}")]
    Templates(#[from] TemplateError),
}

impl AppState {
    /// Opens the database, reads or makes the keys, and sets up everything but the index.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub(crate) async fn build(config: Config, clock: Clock, registry: &mut Registry) -> Result<Self, StartError> {
        make_data_dir(&config)?;
        let storage_key = read_or_make(&config.storage_key_file(), StorageKeys::generate)?;
        let keys = StorageKeys::parse(&storage_key.text)
            .map_err(|source| StartError::StorageKey { path: storage_key.path.clone(), source })?;
        let signing_key = read_or_make(&config.signing_key_file(), SigningKey::generate)?;
        let signing_key = SigningKey::parse(&signing_key.text)
            .map_err(|source| StartError::SigningKey { path: signing_key.path, source })?;

        let url = config.database_url().map_err(|error| StartError::File {
            path: "database.url_file".to_owned(),
            source: io::Error::other(error),
        })?;
        let store = Store::open(&url, config.database.max_connections).await?;
        if !store.belongs_to(&keys).await? {
            return Err(StartError::OtherStorageKey(storage_key.path));
        }
        let pepper = match store.pepper().await? {
            Some(pepper) => pepper,
            None => store.first_pepper(&hashing::new_pepper(), clock.now_ms()).await?,
        };

        let outbound = Outbound::new(&config.outbound)?;
        let limits = Limits {
            register: limiter(config.limits.register_per_source),
            lookup: limiter(config.limits.lookup_per_account),
        };
        Ok(Self {
            homeservers: Homeservers::new(&outbound, &config.homeservers.overrides, clock.clone()),
            mailer: Mailer::new(&config)?,
            sms: Sms::new(&config.sms, &outbound)?,
            sms_countries: config.sms.countries(),
            templates: Templates::load(config.email.template_dir.as_deref(), &config.email.default_language)?,
            next_links: config
                .validation
                .next_link_allowed
                .iter()
                .filter_map(|p| next_link::Pattern::parse(p))
                .collect(),
            tokens: TokenCache::new(std::time::Duration::from_secs(config.tokens.cache_secs)),
            terms: Terms(config.terms.policies.clone()),
            base_url: base_url(config.identity.public_base_url.as_ref(), config.listen.public),
            metrics: Metrics::register(registry),
            index: LookupIndex::new(),
            binding: std::array::from_fn(|_| Mutex::new(())),
            config,
            clock,
            store,
            keys,
            signing_key,
            pepper,
            limits,
        })
    }

    /// Fills the index with all associations.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn load_index(&self) -> Result<Seen, StoreError> {
        let seen = self
            .store
            .each_association(&self.keys, |change| {
                if let Some(mxid) = &change.mxid {
                    self.index.insert(&hashing::lookup_hash(&change.threepid, &self.pepper), mxid);
                }
            })
            .await?;
        self.count_associations();
        Ok(seen)
    }

    /// Brings the metric up to date with the index.
    pub(crate) fn count_associations(&self) {
        self.metrics.associations.set(i64::try_from(self.index.len()).unwrap_or(i64::MAX));
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
