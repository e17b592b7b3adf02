//! The database: whether `serve` will be able to open it.

use std::{io, path::Path};

use sqlx::Error as SqlError;
use tokio::time::timeout;
use waypost_shared::{clock::Clock, operations::doctor::Finding};

use super::{
    files,
    findings::{Findings, LIMIT, Skew, one, told},
};
use crate::{
    config::Config,
    storage::{
        self, Store, StoreError,
        inspect::{Server, Tables},
    },
};

/// The oldest PostgreSQL with the functions that are used.
const OLDEST: i32 = 13;

/// What was found out about the database.
pub(super) struct Database {
    pub(super) findings: Findings,
    pub(super) is_sqlite: bool,
    /// Whether `serve` will generate missing keys: an SQLite database that does not exist yet.
    pub(super) is_new: bool,
    /// The database, read-only, if it has tables.
    pub(super) store: Option<Store>,
    pub(super) skew: Option<Skew>,
}

/// Checks the database.
pub(super) async fn check(config: &Config) -> Database {
    let url = match config.database_url() {
        Ok(url) => url,
        // The validation of the configuration has just read it.
        Err(error) => return database(false, Finding::Bad(format!("database.url: {error}"))),
    };
    let file = storage::sqlite_file(&url);
    if let Some(file) = &file {
        if let Some(finding) = sqlite_places(file, &config.identity.data_dir) {
            return database(true, finding);
        }
        match file.metadata() {
            Ok(metadata) if metadata.len() > 0 => {}
            _ => {
                let text = format!("{} will be created on first start", file.display());
                return Database { is_new: true, ..database(true, Finding::Good(text)) };
            }
        }
    }
    let is_sqlite = file.is_some();
    let store = match timeout(LIMIT, Store::inspect(&url)).await {
        Ok(Ok(Some(store))) => store,
        Ok(Ok(None)) => {
            let text = "was not closed cleanly, and cannot be read before the next start of the server: start it, then \
                        check again";
            return database(is_sqlite, Finding::Soon(text.to_owned()));
        }
        Ok(Err(error)) => return database(is_sqlite, Finding::Bad(unopened(&error, is_sqlite))),
        Err(_) => {
            let text = "did not answer in time: check the host and port of database.url, and the firewalls in between";
            return database(is_sqlite, Finding::Bad(text.to_owned()));
        }
    };
    let looked = timeout(LIMIT, look(config, &store, is_sqlite)).await;
    let (findings, has_tables, skew) = looked.unwrap_or_else(|_| {
        let text = "was opened, but did not answer in time: check its load and its locks";
        (one("database", Finding::Bad(text.to_owned())), false, None)
    });
    let store = has_tables.then_some(store);
    Database { findings, is_sqlite, is_new: false, store, skew }
}

fn database(is_sqlite: bool, finding: Finding) -> Database {
    Database { findings: one("database", finding), is_sqlite, is_new: false, store: None, skew: None }
}

/// What would prevent SQLite from writing.
fn sqlite_places(file: &Path, data_dir: &Path) -> Option<Finding> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        // `serve` creates the data folder and no other; the check of that folder says whether it can.
        return (folder != data_dir).then(|| {
            let folder = folder.display();
            Finding::Bad(format!(
                "the folder {folder} of database.url does not exist: create it, owned by the service's user"
            ))
        });
    }
    let may = files::may_write(folder).map_err(|error| (folder, error));
    let may =
        may.and_then(|()| if file.exists() { files::may_change(file).map_err(|error| (file, error)) } else { Ok(()) });
    may.err().map(|(place, error)| {
        let place = place.display();
        Finding::Bad(format!("{place} is not writable ({error}): make the service's user its owner"))
    })
}

/// Queries an open database; the second value says whether it has tables that can be read.
async fn look(config: &Config, store: &Store, is_sqlite: bool) -> (Findings, bool, Option<Skew>) {
    let asked_ms = Clock::System.now_ms();
    let server = match store.server().await {
        Ok(server) => server,
        Err(error) => return (one("database", Finding::Bad(unopened(&error, is_sqlite))), false, None),
    };
    let answered_ms = Clock::System.now_ms();
    let skew = server.map(|server| {
        // Its clock was read some time between the query and the answer.
        let ours = asked_ms.midpoint(answered_ms);
        ("the database".to_owned(), server.now_ms.saturating_sub(ours))
    });
    let mut findings = Findings::new();
    let tables = match store.tables().await {
        Ok(tables) => tables,
        Err(error) => return (one("database", Finding::Bad(unopened(&error, is_sqlite))), false, skew),
    };
    findings.push(("database".to_owned(), standing(tables, server)));
    if let Some(server) = server {
        findings.push(("database connections".to_owned(), connections(server, config.database.max_connections)));
    }
    (findings, matches!(tables, Tables::Known(_)), skew)
}

fn standing(tables: Tables, server: Option<Server>) -> Finding {
    let name = match server {
        Some(server) if server.version < OLDEST * 10_000 => {
            return Finding::Bad(format!(
                "this is PostgreSQL {}, and at least {OLDEST} is required: upgrade it",
                server.version / 10_000
            ));
        }
        Some(server) => format!("PostgreSQL {}", server.version / 10_000),
        None => "SQLite".to_owned(),
    };
    let mays = server.is_none_or(|server| server.may_make_tables);
    match tables {
        Tables::Missing | Tables::Known(1..) if !mays => Finding::Bad(format!(
            "{name} does not let the user of database.url create tables: make it the owner of the database, or GRANT \
             CREATE ON SCHEMA public to it"
        )),
        Tables::Missing => Finding::Good(format!("{name} is open, and the first start will create the tables")),
        Tables::Known(0) => Finding::Good(format!("{name} is open, and its tables are up to date")),
        Tables::Known(steps) => Finding::Good(format!(
            "{name} is open, and the next start will bring its tables up to date ({steps} steps): back it up first"
        )),
        Tables::Newer(version) => Finding::Bad(format!(
            "its tables are of a newer version of this program (step {version}): run that version, or restore the \
             backup from before the upgrade"
        )),
        Tables::Broken(version) => Finding::Bad(format!(
            "an upgrade of its tables was interrupted (step {version}): restore the backup from before the upgrade, \
             and start again"
        )),
        Tables::Foreign(version) => Finding::Bad(format!(
            "its tables are not from this program (step {version} differs): is database.url right? If so, run the \
             version that last used it"
        )),
    }
}

fn connections(server: Server, wanted: u32) -> Finding {
    let Server { connections, free, .. } = server;
    let wanted = i64::from(wanted);
    if connections < wanted {
        return Finding::Bad(format!(
            "the server grants {connections}, and database.max_connections is {wanted}, for each replica: lower it, or \
             raise max_connections of PostgreSQL or the limit of its user or database (CONNECTION LIMIT)"
        ));
    }
    if free < wanted {
        return Finding::Soon(format!(
            "{free} are free now, and database.max_connections is {wanted}; those of running replicas count as used"
        ));
    }
    Finding::Good(format!("the server grants {connections}, {free} are free, and each replica may take {wanted}"))
}

/// Why the database cannot be opened, and what to change. Without the URL, which may contain a password.
fn unopened(error: &StoreError, is_sqlite: bool) -> String {
    let StoreError::Database(sql) = error else { return told(error) };
    let advice = match sql {
        _ if is_sqlite => "is it an SQLite database, and undamaged? If not, restore it from your backup",
        SqlError::Database(error) => advice(error.code().as_deref().unwrap_or_default()),
        SqlError::Io(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                "nobody listens there: check the host and port of database.url, and that PostgreSQL is running and \
                 listening there (listen_addresses)"
            }
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                "there is no such socket for this user: check the host of database.url, and that PostgreSQL is running"
            }
            _ => "the host of database.url is unknown or unreachable: check its spelling, DNS and firewalls",
        },
        SqlError::Tls(_) => {
            "TLS failed: check `sslmode` and `sslrootcert` in database.url, and the server's certificate"
        }
        SqlError::Configuration(_) => "database.url is invalid: check its spelling",
        _ => "check the log of PostgreSQL",
    };
    format!("{advice} ({sql})")
}

/// What to change for an SQLSTATE.
fn advice(code: &str) -> &'static str {
    match code {
        "28P01" => "PostgreSQL rejects the password: check user and password in database.url",
        "28000" => "PostgreSQL does not let this user in: check the user in database.url, and pg_hba.conf",
        "3D000" => "there is no such database: create it with CREATE DATABASE, or check the name in database.url",
        "53300" => "PostgreSQL has no connections left: raise its max_connections, or lower those of its clients",
        "57P03" => "PostgreSQL is starting or stopping: wait, then check again",
        "42501" => "the user of database.url may not read the tables: make it their owner",
        _ => "check the log of PostgreSQL",
    }
}

/// Whether there is a pepper.
pub(super) async fn pepper(store: &Store) -> Finding {
    match timeout(LIMIT, store.pepper()).await {
        Ok(Ok(Some(_))) => Finding::Good("is there".to_owned()),
        Ok(Ok(None)) => Finding::Good("will be generated on first start".to_owned()),
        Ok(Err(error)) => Finding::Bad(format!("cannot be read ({}): {}", told(&error), advice("42501"))),
        Err(_) => Finding::Bad("was not read in time: check the load of the database".to_owned()),
    }
}
