//! The data folder and the key files.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access, statvfs};
use tokio::time::timeout;
use waypost_shared::operations::doctor::Finding;
use zeroize::Zeroizing;

use super::findings::{Findings, LIMIT, one, told};
use crate::{
    config::{Config, EmailTransport, KeyFile},
    domain::{sealing::StorageKeys, signing::SigningKeys},
    storage::Store,
};

/// Free bytes below which a disk is nearly full ...
const LITTLE_SPACE: u64 = 512 * 1024 * 1024;
/// ... and full.
const NO_SPACE: u64 = 32 * 1024 * 1024;

/// The folder for the database and generated keys: it must be writable, or possible to create.
pub(super) fn data_folder(config: &Config, is_sqlite: bool) -> Findings {
    let folder = &config.identity.data_dir;
    let is_written = is_sqlite || (config.email.transport == EmailTransport::Folder && config.email.folder.is_none());
    let mut findings = one("data folder", folder_finding(folder, is_written));
    if is_written && let Some(finding) = disk(folder) {
        findings.push(("disk".to_owned(), finding));
    }
    findings
}

fn folder_finding(folder: &Path, is_written: bool) -> Finding {
    let shown = folder.display();
    let is_there = folder.is_dir();
    let nearest = nearest(folder);
    if !nearest.is_dir() {
        let file = nearest.display();
        return Finding::Bad(format!(
            "{shown} cannot be created, because {file} is a file: set identity.data_dir to a folder"
        ));
    }
    match may_write(&nearest) {
        Ok(()) if is_there => Finding::Good(format!("{shown} is writable")),
        Ok(()) => Finding::Good(format!("{shown} will be created on first start")),
        Err(_) if is_there && !is_written => Finding::Good(format!("{shown} exists")),
        Err(error) => Finding::Bad(format!(
            "{} is not writable ({error}): make the service's user its owner, mount it for writing, or set \
             identity.data_dir to another folder",
            nearest.display()
        )),
    }
}

/// The folder itself, or its nearest existing ancestor.
pub(super) fn nearest(folder: &Path) -> PathBuf {
    let mut above = folder.ancestors().map(|path| if path.as_os_str().is_empty() { Path::new(".") } else { path });
    above.find(|path| path.exists()).unwrap_or(Path::new("/")).to_owned()
}

/// Whether this user may create files in a folder, as far as can be told without creating one.
pub(super) fn may_write(folder: &Path) -> io::Result<()> {
    Ok(access(folder, Access::WRITE_OK | Access::EXEC_OK)?)
}

/// Whether this user may change a file.
pub(super) fn may_change(file: &Path) -> io::Result<()> {
    Ok(access(file, Access::READ_OK | Access::WRITE_OK)?)
}

/// `None` if the system does not say how much is free.
fn disk(folder: &Path) -> Option<Finding> {
    let disk = statvfs(nearest(folder).as_path()).ok()?;
    let free = disk.f_bavail.saturating_mul(disk.f_frsize);
    let text = format!("{} MB are free for {}", free / 1_000_000, folder.display());
    Some(match free {
        0..NO_SPACE => Finding::Bad(format!("{text}: free some space, or move identity.data_dir to a larger disk")),
        NO_SPACE..LITTLE_SPACE => Finding::Soon(format!("{text}: free some space")),
        _ => Finding::Good(text),
    })
}

/// The storage keys: present, private, valid, and those that the database was written with.
pub(super) async fn storage_keys(config: &Config, is_new: bool, store: Option<&Store>) -> Findings {
    let file = config.storage_key_file();
    let path = file.path.display();
    let text = match read(&file, is_new, "storage") {
        Ok(text) => text,
        Err(finding) => return one("storage keys", finding),
    };
    let mut findings = Vec::new();
    findings.extend(open_to_others(&file.path).map(|finding| ("storage keys".to_owned(), finding)));
    let keys = match StorageKeys::parse(&text) {
        Ok(keys) => keys,
        Err(error) => {
            let text = format!("{path}: {error}: put the right file there, from your backup");
            findings.push(("storage keys".to_owned(), Finding::Bad(text)));
            return findings;
        }
    };
    let finding = match store {
        None => Finding::Good(format!("{path} is valid")),
        Some(store) => match timeout(LIMIT, store.is_of(&keys)).await {
            Err(_) => Finding::Bad("were not compared with the database's in time: check its load".to_owned()),
            Ok(Ok(Some(true))) => Finding::Good(format!("{path} is what the database was written with")),
            Ok(Ok(None)) => Finding::Good(format!("{path} will be what the database is written with")),
            Ok(Ok(Some(false))) => Finding::Bad(format!(
                "{path} is not what the database was written with: put the right file back, from your backup (without \
                 it the addresses in the database cannot be read)"
            )),
            Ok(Err(error)) => Finding::Bad(format!(
                "cannot be compared with the database's ({}): let the user of database.url read the table `settings`",
                told(&error)
            )),
        },
    };
    findings.push(("storage keys".to_owned(), finding));
    findings
}

/// The signing keys, if they are usable, and the finding about them.
pub(super) struct Signing {
    pub(super) keys: Option<SigningKeys>,
    pub(super) finding: Finding,
}

/// The signing key: present, private and valid.
pub(super) fn signing_keys(config: &Config, is_new: bool) -> Signing {
    let file = config.signing_key_file();
    let path = file.path.display();
    let text = match read(&file, is_new, "signing") {
        Ok(text) => text,
        Err(finding) => return Signing { keys: None, finding },
    };
    match SigningKeys::parse(&text) {
        Err(error) => {
            let finding = Finding::Bad(format!("{path}: {error}: fix the line, or put the file back from your backup"));
            Signing { keys: None, finding }
        }
        Ok(keys) => {
            let finding = open_to_others(&file.path).unwrap_or_else(|| {
                let first = keys.first();
                Finding::Good(format!("{path}: {} signs, its public key is {}", first.key_id(), first.public_key()))
            });
            Signing { keys: Some(keys), finding }
        }
    }
}

/// Reads a key file, by the rules of `serve`: a missing one is generated for a new database, unless it was configured.
fn read(file: &KeyFile, is_new: bool, kind: &str) -> Result<Zeroizing<String>, Finding> {
    let path = file.path.display();
    match fs::read_to_string(&file.path) {
        Ok(text) => Ok(text.into()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Finding::Bad(format!(
            "{path} cannot be read ({error}): it must be a file that the service's user may read"
        ))),
        Err(_) if file.configured => Err(Finding::Bad(format!(
            "{path} does not exist: put it back from your backup, or generate it with `waypost-identity keys {kind}` \
             if the database is new"
        ))),
        Err(_) if is_new => Err(Finding::Good(format!(
            "{path} will be generated on first start: back it up then, apart from the database"
        ))),
        Err(_) => Err(Finding::Bad(format!(
            "{path} is missing, and the database was written with it: put it back from your backup"
        ))),
    }
}

/// Reports a key file that every user of the machine may read or change.
fn open_to_others(path: &Path) -> Option<Finding> {
    let mode = fs::metadata(path).ok()?.permissions().mode();
    (mode & 0o006 != 0).then(|| {
        Finding::Bad(format!(
            "{} is open to every user of this machine (mode {:03o}): chmod 600, or 640 for a group",
            path.display(),
            mode & 0o777
        ))
    })
}
