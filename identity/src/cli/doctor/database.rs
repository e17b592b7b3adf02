//! The database: whether the start will open it.

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

/// The oldest PostgreSQL that has the functions it is asked for.
const OLDEST: i32 = 13;

/// What is known of the database.
pub(super) struct Database {
    pub(super) findings: Findings,
    pub(super) is_sqlite: bool,
    /// Whether the start will make keys that are not there: an SQLite database that is not there yet.
    pub(super) is_new: bool,
    /// The database, for reading, if it has tables.
    pub(super) store: Option<Store>,
    pub(super) skew: Option<Skew>,
}

/// Looks at the database.
pub(super) async fn check(config: &Config) -> Database {
    let url = match config.database_url() {
        Ok(url) => url,
        // The check of the configuration has read it a moment ago.
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
                let text = format!("{} will be made at the first start", file.display());
                return Database { is_new: true, ..database(true, Finding::Good(text)) };
            }
        }
    }
    let is_sqlite = file.is_some();
    let store = match timeout(LIMIT, Store::inspect(&url)).await {
        Ok(Ok(Some(store))) => store,
        Ok(Ok(None)) => {
            let text = "was not closed, and is read only after the next start of the server: start it, then ask again";
            return database(is_sqlite, Finding::Soon(text.to_owned()));
        }
        Ok(Err(error)) => return database(is_sqlite, Finding::Bad(unopened(&error, is_sqlite))),
        Err(_) => {
            let text =
                "gave no answer in time: look at the host and port of database.url, and at the firewalls on the way";
            return database(is_sqlite, Finding::Bad(text.to_owned()));
        }
    };
    let looked = timeout(LIMIT, look(config, &store, is_sqlite)).await;
    let (findings, has_tables, skew) = looked.unwrap_or_else(|_| {
        let text = "was opened, and gave no answer in time: look at its load, and at its locks";
        (one("database", Finding::Bad(text.to_owned())), false, None)
    });
    let store = has_tables.then_some(store);
    Database { findings, is_sqlite, is_new: false, store, skew }
}

fn database(is_sqlite: bool, finding: Finding) -> Database {
    Database { findings: one("database", finding), is_sqlite, is_new: false, store: None, skew: None }
}

/// What would keep SQLite from writing.
fn sqlite_places(file: &Path, data_dir: &Path) -> Option<Finding> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        // The start makes the data folder, and no other; whether it can is said of that folder.
        return (folder != data_dir).then(|| {
            let folder = folder.display();
            Finding::Bad(format!("the folder {folder} of database.url is not there: make it, for the user who serves"))
        });
    }
    let may = files::may_write(folder).map_err(|error| (folder, error));
    let may =
        may.and_then(|()| if file.exists() { files::may_change(file).map_err(|error| (file, error)) } else { Ok(()) });
    may.err().map(|(place, error)| {
        let place = place.display();
        Finding::Bad(format!("{place} cannot be written to ({error}): make it belong to the user who serves"))
    })
}

/// Asks an open database; whether it has tables to be read.
async fn look(config: &Config, store: &Store, is_sqlite: bool) -> (Findings, bool, Option<Skew>) {
    let asked_ms = Clock::System.now_ms();
    let server = match store.server().await {
        Ok(server) => server,
        Err(error) => return (one("database", Finding::Bad(unopened(&error, is_sqlite))), false, None),
    };
    let answered_ms = Clock::System.now_ms();
    let skew = server.map(|server| {
        // Its clock was read somewhere between the question and the answer.
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
                "this is PostgreSQL {}, and {OLDEST} is the oldest that will do: update it",
                server.version / 10_000
            ));
        }
        Some(server) => format!("PostgreSQL {}", server.version / 10_000),
        None => "SQLite".to_owned(),
    };
    let mays = server.is_none_or(|server| server.may_make_tables);
    match tables {
        Tables::Missing | Tables::Known(1..) if !mays => Finding::Bad(format!(
            "{name} does not let the user of database.url make tables: make it the owner of the database, or GRANT \
             CREATE ON SCHEMA public to it"
        )),
        Tables::Missing => Finding::Good(format!("{name} is open, and the first start will make the tables")),
        Tables::Known(0) => Finding::Good(format!("{name} is open, and its tables are up to date")),
        Tables::Known(steps) => Finding::Good(format!(
            "{name} is open, and the next start will bring its tables up to date ({steps} steps): back it up before"
        )),
        Tables::Newer(version) => Finding::Bad(format!(
            "its tables are of a newer version of this program (step {version}): run that version, or restore the \
             backup from before the update"
        )),
        Tables::Broken(version) => Finding::Bad(format!(
            "an update of its tables broke off (step {version}): restore the backup from before the update, and start \
             again"
        )),
        Tables::Foreign(version) => Finding::Bad(format!(
            "its tables are not this program's (step {version} differs): is database.url right? If so, run the version \
             that it was last used with"
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
            "{free} are free now, and database.max_connections is {wanted}; those of running replicas are among the \
             used ones"
        ));
    }
    Finding::Good(format!("the server grants {connections}, {free} are free, and each replica may take {wanted}"))
}

/// Why the database is not to be had, and what to change. Without the URL, which may hold a password.
fn unopened(error: &StoreError, is_sqlite: bool) -> String {
    let StoreError::Database(sql) = error else { return told(error) };
    let advice = match sql {
        _ if is_sqlite => "is it an SQLite database, and whole? If not, restore it from your backup",
        SqlError::Database(error) => advice(error.code().as_deref().unwrap_or_default()),
        SqlError::Io(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => {
                "nobody listens there: look at the host and port of database.url, and whether PostgreSQL runs and \
                 listens there (listen_addresses)"
            }
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => {
                "there is no such socket for this user: look at the host of database.url, and whether PostgreSQL runs"
            }
            _ => "the host of database.url is not known or not reached: look at its spelling, at DNS and at firewalls",
        },
        SqlError::Tls(_) => {
            "TLS failed: look at `sslmode` and `sslrootcert` in database.url, and at the server's certificate"
        }
        SqlError::Configuration(_) => "database.url is not understood: look at its spelling",
        _ => "look at the log of PostgreSQL",
    };
    format!("{advice} ({sql})")
}

/// What to change for an SQLSTATE.
fn advice(code: &str) -> &'static str {
    match code {
        "28P01" => "PostgreSQL does not take the password: look at user and password in database.url",
        "28000" => "PostgreSQL does not let this user in: look at the user in database.url, and at pg_hba.conf",
        "3D000" => "there is no such database: make it with CREATE DATABASE, or look at the name in database.url",
        "53300" => "PostgreSQL has no connection left: raise its max_connections, or lower those of its users",
        "57P03" => "PostgreSQL starts or stops just now: wait, then ask again",
        "42501" => "the user of database.url may not read the tables: make it their owner",
        _ => "look at the log of PostgreSQL",
    }
}

/// Whether there is a pepper.
pub(super) async fn pepper(store: &Store) -> Finding {
    match timeout(LIMIT, store.pepper()).await {
        Ok(Ok(Some(_))) => Finding::Good("is there".to_owned()),
        Ok(Ok(None)) => Finding::Good("will be made at the first start".to_owned()),
        Ok(Err(error)) => Finding::Bad(format!("cannot be read ({}): {}", told(&error), advice("42501"))),
        Err(_) => Finding::Bad("was not read in time: look at the database's load".to_owned()),
    }
}
