//! The database and the files beside it: opened, made at the first start, and held for one server.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    config::{Config, KeyFile},
    domain::{
        sealing::StorageKeys,
        signing::{SigningKey, SigningKeys},
    },
    storage::{self, Store},
};

use super::StartError;

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
    let signing_keys = parsed(read_or_make(&config.signing_key_file(), is_new, SigningKey::generate)?)?;
    let store = Store::open(&url, config.database.max_connections).await?;
    if !store.belongs_to(&keys).await? {
        return Err(StartError::OtherStorageKey(storage_key.path));
    }
    Ok(Opened { keys, signing_keys, store })
}

/// Reads the signing keys once more.
///
/// # Errors
///
/// [`StartError`].
pub(super) fn signing_keys(config: &Config) -> Result<SigningKeys, StartError> {
    parsed(read_or_make(&config.signing_key_file(), false, SigningKey::generate)?)
}

fn parsed(file: KeyText) -> Result<SigningKeys, StartError> {
    SigningKeys::parse(&file.text).map_err(|source| StartError::SigningKey { path: file.path, source })
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
