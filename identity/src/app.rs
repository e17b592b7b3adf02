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
        sms::{Sms, SmsSetupError},
        templates::{TemplateError, Templates},
    },
    domain::{
        hashing, next_link,
        peppered::Lookups,
        phone::Country,
        sealing::{Fingerprint, StorageKeyError, StorageKeys},
        session::SessionRules,
        signing::{InvalidSigningKey, SigningKey, SigningKeys},
        terms::Terms,
    },
    federation::Homeservers,
    metrics::Metrics,
    storage::{self, Store, StoreError},
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
    pub(crate) signing_keys: SigningKeys,
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
    pub(crate) sms: Sms,
    /// Where text messages may go (everywhere if it is empty), and where they may not.
    pub(crate) sms_countries: (Vec<Country>, Vec<Country>),
    pub(crate) templates: Templates,
    pub(crate) next_links: Vec<next_link::Pattern>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    /// As people reach the server, without a final slash.
    pub(crate) base_url: String,
    /// What homeservers may call this server in what they sign: its name, and the address that people reach it by.
    pub(crate) own_names: Vec<String>,
    /// Told when something was put into the outbox.
    pub(crate) outbox_filled: Notify,
    binding: [Mutex<()>; 64],
}

/// Budgets that each replica counts for itself.
#[derive(Debug)]
pub(crate) struct Limits {
    pub(crate) register: Limiter<std::net::IpAddr>,
    pub(crate) lookup: Limiter<Arc<str>>,
    pub(crate) bind: Limiter<Arc<str>>,
    pub(crate) unbind: Limiter<std::net::IpAddr>,
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
            bind: limiter(config.limits.bind_per_account),
            unbind: limiter(config.limits.unbind_per_source),
            lookup_homeserver: limiter(config.limits.lookup_per_homeserver),
            addresses: limiter(config.limits.addresses_per_account),
            addresses_homeserver: limiter(config.limits.addresses_per_homeserver),
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
            tokens: TokenCache::new(Duration::from_secs(config.tokens.cache_secs)),
            terms: Terms(policies),
            hosted_terms,
            internal_secret,
            base_url,
            own_names: own_names(&config),
            metrics: Metrics::register(registry, &clock),
            lookups: Lookups::new(millis(Duration::from_secs(config.lookup.previous_pepper_secs))),
            filled: watch::Sender::new(()),
            filling: Mutex::new(()),
            peppers_changed: Notify::new(),
            outbox_filled: Notify::new(),
            binding: std::array::from_fn(|_| Mutex::new(())),
            config,
            clock,
            store,
            keys,
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

/// The database, and the keys that belong to it.
pub(crate) struct Opened {
    pub(crate) keys: StorageKeys,
    pub(crate) signing_keys: SigningKeys,
    pub(crate) store: Store,
}

/// Opens the database, and reads or makes its keys: all that a command needs which does not serve.
///
/// # Errors
///
/// [`StartError`].
pub(crate) async fn open(config: &Config) -> Result<Opened, StartError> {
    make_data_dir(config)?;
    let url = config
        .database_url()
        .map_err(|error| StartError::File { path: "database.url_file".to_owned(), source: io::Error::other(error) })?;
    // Keys are made for a new database only: for one that is there, they were lost, and others are no help.
    let is_new = prepare_database_file(&url)?;
    let storage_key = read_or_make(&config.storage_key_file(), is_new, StorageKeys::generate)?;
    let keys = StorageKeys::parse(&storage_key.text)
        .map_err(|source| StartError::StorageKey { path: storage_key.path.clone(), source })?;
    let signing_keys = read_or_make(&config.signing_key_file(), is_new, SigningKey::generate)?;
    let signing_keys = SigningKeys::parse(&signing_keys.text)
        .map_err(|source| StartError::SigningKey { path: signing_keys.path, source })?;
    let store = Store::open(&url, config.database.max_connections).await?;
    if !store.belongs_to(&keys).await? {
        return Err(StartError::OtherStorageKey(storage_key.path));
    }
    Ok(Opened { keys, signing_keys, store })
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

/// Synapse signs for the server by the name that its users gave it, which may have a port and a path.
fn own_names(config: &Config) -> Vec<String> {
    let mut names = vec![config.identity.server_name.clone()];
    if let Some((_, name)) = config.identity.public_base_url.as_ref().and_then(|url| url.as_str().split_once("://")) {
        names.push(name.trim_end_matches('/').to_owned());
    }
    names
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

/// Holds an SQLite database for this process: a second server on it would follow the first one's changes late, and both
/// would do the work of the one writer. Commands may work on it meanwhile.
///
/// # Errors
///
/// [`StartError::Served`] when another process serves it.
pub(crate) fn serve_alone(config: &Config) -> Result<Option<fs::File>, StartError> {
    make_data_dir(config)?;
    let Some(mut path) = config.database_url().ok().as_deref().and_then(storage::sqlite_file) else { return Ok(None) };
    path.as_mut_os_string().push(".lock");
    let failed = |source| StartError::File { path: path.display().to_string(), source };
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Err(StartError::Served),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Whether an SQLite file is not there yet or is empty; then makes it, for nobody else to read. Its journal files get
/// the same permissions.
fn prepare_database_file(url: &str) -> Result<bool, StartError> {
    let Some(path) = storage::sqlite_file(url) else { return Ok(false) };
    let failed = |source| StartError::File { path: path.display().to_string(), source };
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
    Ok(file.metadata().map_err(failed)?.len() == 0)
}

struct KeyText {
    path: String,
    text: zeroize::Zeroizing<String>,
}

/// Reads a key file; makes it if it is not there, the operator did not name it, and the database is new.
fn read_or_make(file: &KeyFile, is_new: bool, make: fn() -> zeroize::Zeroizing<String>) -> Result<KeyText, StartError> {
    let path = file.path.display().to_string();
    let failed = |source| StartError::File { path: path.clone(), source };
    let text = match fs::read_to_string(&file.path) {
        Ok(text) => text.into(),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.configured && is_new => {
            let text = make();
            write_new(&file.path, text.as_bytes()).map_err(failed)?;
            tracing::info!(file = %path, "made a new key: back it up");
            text
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.configured => {
            return Err(StartError::LostKey(path));
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
