//! The database: rows in and out, one file for each group of tables.
//!
//! One SQL for both databases: `$1` parameters, `ON CONFLICT`, `RETURNING`, BIGINT, TEXT, BLOB or BYTEA. Where they
//! differ, the method says so in a `match`.

use std::{
    path::{Path, PathBuf},
    str::FromStr as _,
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, PgPool, SqlSafeStr as _, SqlitePool,
    migrate::{Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use waypost_shared::trace::{self, Kind, Span};

use crate::domain::{mxid::Mxid, sealing::Fingerprint};

pub(crate) mod accounts;
pub(crate) mod associations;
pub(crate) mod erasure;
pub(crate) mod inspect;
pub(crate) mod invites;
pub(crate) mod notifications;
pub(crate) mod outbox;
pub(crate) mod peppers;
pub(crate) mod rate_limits;
pub(crate) mod sessions;
pub(crate) mod settings;

/// How long a statement waits for a connection before the request fails.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

/// Version, name and SQL of each file in `migrations/sqlite`. A list and not `sqlx::migrate!`: the macro builds sqlx and
/// SQLite a second time, for itself. A test holds the lists to the folders.
const SQLITE_MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "first", include_str!("../../migrations/sqlite/0001_first.sql")),
    (3, "invites", include_str!("../../migrations/sqlite/0003_invites.sql")),
    (4, "peppers", include_str!("../../migrations/sqlite/0004_peppers.sql")),
    (5, "sending", include_str!("../../migrations/sqlite/0005_sending.sql")),
];

/// The same for `migrations/postgres`.
const POSTGRES_MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "first", include_str!("../../migrations/postgres/0001_first.sql")),
    (3, "invites", include_str!("../../migrations/postgres/0003_invites.sql")),
    (4, "peppers", include_str!("../../migrations/postgres/0004_peppers.sql")),
    (5, "sending", include_str!("../../migrations/postgres/0005_sending.sql")),
];

/// A database, with its pools of connections. Copies share them.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    /// The embedded default.
    Sqlite {
        /// Several readers.
        read: SqlitePool,
        /// One writer: SQLite has no more, and waiting in a queue here is fairer than its busy loop.
        write: SqlitePool,
    },
    /// For several replicas.
    Postgres(PgPool),
}

/// What went wrong with stored data.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The tables could not be brought up to date.
    #[error("the database's tables could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A sealed value does not open.
    #[error("a stored value cannot be read")]
    Sealed(#[from] crate::domain::sealing::CannotOpen),
    /// A row holds what this program never writes.
    #[error("a stored {0} is corrupt")]
    Corrupt(&'static str),
}

/// Runs a block that only reads with the pool of whichever database it is.
macro_rules! on_db {
    ($store:expr, $pool:ident => $body:expr) => {
        match $store {
            $crate::storage::Store::Sqlite { read: $pool, .. } => $body,
            $crate::storage::Store::Postgres($pool) => $body,
        }
    };
}

/// Runs one statement that writes.
macro_rules! write_db {
    ($store:expr, $pool:ident => $body:expr) => {
        match $store {
            $crate::storage::Store::Sqlite { write: $pool, .. } => $body,
            $crate::storage::Store::Postgres($pool) => $body,
        }
    };
}

/// Runs a block in one transaction and commits it; an error that leaves the block rolls back.
///
/// SQLite begins IMMEDIATE: of 400 concurrent transactions that read and then wrote, a plain BEGIN failed 321.
macro_rules! in_tx {
    ($store:expr, $tx:ident => $body:expr) => {
        match $store {
            $crate::storage::Store::Sqlite { write, .. } => {
                let _span = $crate::storage::span("sqlite");
                let mut $tx = write.begin_with("BEGIN IMMEDIATE").await?;
                let done = $body;
                $tx.commit().await?;
                done
            }
            $crate::storage::Store::Postgres(pool) => {
                let _span = $crate::storage::span("postgresql");
                let mut $tx = pool.begin().await?;
                let done = $body;
                $tx.commit().await?;
                done
            }
        }
    };
}

/// Like `in_tx!`, and alone among all such blocks for the same fingerprint, so that a block which reads one table and
/// writes another cannot cross one that does it the other way round.
macro_rules! in_tx_for {
    ($store:expr, $fingerprint:expr, $tx:ident => $body:expr) => {
        match $store {
            // One writer, so it is alone.
            $crate::storage::Store::Sqlite { write, .. } => {
                let _span = $crate::storage::span("sqlite");
                let mut $tx = write.begin_with("BEGIN IMMEDIATE").await?;
                let done = $body;
                $tx.commit().await?;
                done
            }
            $crate::storage::Store::Postgres(pool) => {
                let _span = $crate::storage::span("postgresql");
                let mut $tx = pool.begin().await?;
                sqlx::query("SELECT pg_advisory_xact_lock($1)")
                    .bind($crate::storage::lock_number($fingerprint))
                    .execute(&mut *$tx)
                    .await?;
                let done = $body;
                $tx.commit().await?;
                done
            }
        }
    };
}

pub(crate) use {in_tx, in_tx_for, on_db, write_db};

/// The span of a transaction, from the wait for its connection to its end; none if no trace is worked for. It says
/// nothing of the rows.
fn span(system: &'static str) -> Option<Span> {
    let mut span = trace::child(Kind::Client, "transaction")?;
    span.set("db.system.name", system);
    Some(span)
}

/// The number of the lock for a fingerprint. Two that share one wait for each other now and then.
fn lock_number(fingerprint: &Fingerprint) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&fingerprint[..8]);
    i64::from_le_bytes(first)
}

impl Store {
    /// Opens the database that `url` names (`sqlite:FILE` or `postgres://…`) and brings its tables up to date.
    /// Several replicas may do so at once: a lock of the database's lets one go first.
    ///
    /// # Errors
    ///
    /// [`StoreError`]: it is not there, or refuses us, or its tables are newer than this program.
    pub(crate) async fn open(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let store = if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url)?
                .create_if_missing(true)
                .foreign_keys(true)
                .journal_mode(SqliteJournalMode::Wal)
                // What was answered must survive a power cut.
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(ACQUIRE_TIMEOUT)
                // What was removed must not stay readable in free parts of the file.
                .pragma("secure_delete", "ON")
                .disable_statement_logging();
            let pool =
                |connections| SqlitePoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT);
            // The writer first: it creates the file.
            let write = pool(1).connect_with(options.clone()).await?;
            Self::Sqlite { read: pool(max_connections).connect_lazy_with(options), write }
        } else {
            let options =
                PgConnectOptions::from_str(url)?.application_name("waypost-identity").disable_statement_logging();
            let pool = PgPoolOptions::new().max_connections(max_connections).acquire_timeout(ACQUIRE_TIMEOUT);
            Self::Postgres(pool.connect_with(options).await?)
        };
        store.migrate().await?;
        Ok(store)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite { write, .. } => self.migrator().run(write).await?,
            Self::Postgres(pool) => {
                self.migrator().run(pool).await?;
                // After a restore from a dump the numbers are another cluster's and may be ahead of this one's, so that
                // each look for changes would read those rows again. The trigger gives them a number of today.
                sqlx::query(
                    "UPDATE associations SET bound_ms = bound_ms
                      WHERE changed > pg_snapshot_xmax(pg_current_snapshot())::text::bigint",
                )
                .execute(pool)
                .await?;
            }
        }
        Ok(())
    }

    /// The migrations of this database.
    fn migrator(&self) -> Migrator {
        let files = match self {
            Self::Sqlite { .. } => SQLITE_MIGRATIONS,
            Self::Postgres(_) => POSTGRES_MIGRATIONS,
        };
        let migrations = files.iter().map(|(version, name, sql)| {
            Migration::new(*version, (*name).into(), MigrationType::Simple, (*sql).into_sql_str(), false)
        });
        Migrator::with_migrations(migrations.collect())
    }

    /// Whether the database answers at all.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn answers(&self) -> Result<(), StoreError> {
        on_db!(self, pool => {
            sqlx::query("SELECT 1").execute(pool).await?;
        });
        Ok(())
    }

    /// Ends all connections, so that nothing is cut off in the middle.
    pub(crate) async fn close(&self) {
        match self {
            Self::Sqlite { read, write } => {
                read.close().await;
                write.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// The URL of an SQLite file; a `?` or `%` in its path must not be read as part of the URL.
pub(crate) fn sqlite_url(file: &Path) -> String {
    format!("sqlite:{}", file.display().to_string().replace('%', "%25").replace('?', "%3F"))
}

/// The file that an SQLite URL names; none for PostgreSQL.
pub(crate) fn sqlite_file(url: &str) -> Option<PathBuf> {
    url.starts_with("sqlite:")
        .then(|| SqliteConnectOptions::from_str(url).ok())?
        .map(|options| options.get_filename().to_owned())
}

/// A Matrix id out of a row.
fn stored_mxid(text: &str) -> Result<Mxid, StoreError> {
    Mxid::stored(text).map_err(|_| StoreError::Corrupt("Matrix id"))
}

/// A fixed-size hash out of a row.
fn fixed<const N: usize>(bytes: Vec<u8>, what: &'static str) -> Result<[u8; N], StoreError> {
    bytes.try_into().map_err(|_| StoreError::Corrupt(what))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;

    use super::*;

    #[test]
    fn every_migration_file_is_in_its_list() {
        for (folder, listed) in [("sqlite", SQLITE_MIGRATIONS), ("postgres", POSTGRES_MIGRATIONS)] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(folder);
            let files = fs::read_dir(&folder).unwrap().map(|entry| {
                let path = entry.unwrap().path();
                (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
            });
            let mut files: Vec<_> = files.collect();
            files.sort();
            let listed =
                listed.iter().map(|(version, name, sql)| (format!("{version:04}_{name}.sql"), (*sql).to_owned()));
            assert_eq!(files, listed.collect::<Vec<_>>());
        }
    }
}
