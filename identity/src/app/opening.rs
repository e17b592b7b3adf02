//! Opening the database and the key files: generated on first start, and an SQLite database locked for one server.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    config::{Config, KeyFile},
    domain::{
        sealing::{StorageKeyError, StorageKeys},
        signing::{InvalidSigningKey, SigningKey, SigningKeys},
    },
    storage::{self, Store, StoreError},
};

/// Why the database or the key files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// A key file, a secret's file or the data folder cannot be read or written.
    #[error("{path} cannot be used")]
    File {
        /// The file, or the configuration key that names it.
        path: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The storage keys cannot be read.
    #[error("{path} cannot be used")]
    StorageKey {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: StorageKeyError,
    },
    /// The signing keys cannot be read.
    #[error("{path} cannot be used")]
    SigningKey {
        /// The file.
        path: String,
        /// What is wrong with it.
        source: InvalidSigningKey,
    },
    /// The storage keys belong to another database.
    #[error(
        "the storage keys in {0} are not those that this database was written with; put the right file back \
         (without it the addresses in the database cannot be read)"
    )]
    OtherStorageKey(String),
    /// Another server is using this SQLite database.
    #[error("another process is serving this SQLite database; several replicas need PostgreSQL")]
    Served,
    /// A key file that was generated with the database is missing.
    #[error("{0} is missing, and the database was written with it; put it back from your backup")]
    LostKey(String),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The database, and the keys that belong to it.
pub(crate) struct Opened {
    pub(crate) keys: StorageKeys,
    pub(crate) signing_keys: SigningKeys,
    pub(crate) store: Store,
}

/// Opens the database, and reads or generates its keys: all that commands other than `serve` need.
pub(crate) async fn open(config: &Config) -> Result<Opened, OpenError> {
    make_data_dir(config)?;
    let url = config
        .database_url()
        .map_err(|error| OpenError::File { path: "database.url_file".to_owned(), source: io::Error::other(error) })?;
    // Keys are generated for a new database only: those of an existing one have been lost, and new ones would be no
    // help.
    let is_new = prepare_database_file(&url)?;
    let storage_key = read_or_make(&config.storage_key_file(), is_new, StorageKeys::generate)?;
    let keys = StorageKeys::parse(&storage_key.text)
        .map_err(|source| OpenError::StorageKey { path: storage_key.path.clone(), source })?;
    let signing_keys = parsed(read_or_make(&config.signing_key_file(), is_new, SigningKey::generate)?)?;
    let store = Store::open(&url, config.database.max_connections).await?;
    if !store.belongs_to(&keys).await? {
        return Err(OpenError::OtherStorageKey(storage_key.path));
    }
    Ok(Opened { keys, signing_keys, store })
}

/// Reads the signing keys again, for a reload.
pub(super) fn signing_keys(config: &Config) -> Result<SigningKeys, OpenError> {
    parsed(read_or_make(&config.signing_key_file(), false, SigningKey::generate)?)
}

fn parsed(file: KeyText) -> Result<SigningKeys, OpenError> {
    SigningKeys::parse(&file.text).map_err(|source| OpenError::SigningKey { path: file.path, source })
}

/// Creates the data folder, for its owner only, since it has keys in it.
fn make_data_dir(config: &Config) -> Result<(), OpenError> {
    let dir = &config.identity.data_dir;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| OpenError::File { path: dir.display().to_string(), source })
}

/// Locks an SQLite database for this process: a second server would see the first one's changes late, and both would
/// run jobs that only one may run. Commands may use the database at the same time.
///
/// # Errors
///
/// [`OpenError::Served`] if another process is serving it.
pub(crate) fn serve_alone(config: &Config) -> Result<Option<fs::File>, OpenError> {
    make_data_dir(config)?;
    let Some(mut path) = config.database_url().ok().as_deref().and_then(storage::sqlite_file) else { return Ok(None) };
    path.as_mut_os_string().push(".lock");
    let failed = |source| OpenError::File { path: path.display().to_string(), source };
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Err(OpenError::Served),
        Err(fs::TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Whether an SQLite file is missing or empty; creates it, readable by its owner only. SQLite gives its journal files
/// the same permissions.
fn prepare_database_file(url: &str) -> Result<bool, OpenError> {
    let Some(path) = storage::sqlite_file(url) else { return Ok(false) };
    let failed = |source| OpenError::File { path: path.display().to_string(), source };
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
    Ok(file.metadata().map_err(failed)?.len() == 0)
}

struct KeyText {
    path: String,
    text: zeroize::Zeroizing<String>,
}

/// Reads a key file; generates it if it is missing, the operator did not configure it, and the database is new.
fn read_or_make(file: &KeyFile, is_new: bool, make: fn() -> zeroize::Zeroizing<String>) -> Result<KeyText, OpenError> {
    let path = file.path.display().to_string();
    let failed = |source| OpenError::File { path: path.clone(), source };
    let text = match fs::read_to_string(&file.path) {
        Ok(text) => text.into(),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.configured && is_new => {
            let text = make();
            write_new(&file.path, text.as_bytes()).map_err(failed)?;
            tracing::info!(file = %path, "generated a new key: back it up");
            text
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.configured => {
            return Err(OpenError::LostKey(path));
        }
        Err(error) => return Err(failed(error)),
    };
    Ok(KeyText { path, text })
}

/// Creates a file atomically, readable by its owner only.
fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut unfinished = PathBuf::from(path);
    unfinished.as_mut_os_string().push(".new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&unfinished, path)
}
