//! The database layer: one file per group of tables.
//!
//! Both databases share the same SQL: `$1` parameters, `ON CONFLICT`, `RETURNING`, BIGINT, TEXT, BLOB or BYTEA. Where
//! they differ, the method has a `match`.

use std::{
    path::{Path, PathBuf},
    str::FromStr as _,
    time::Duration,
};

use sqlx::{
    ConnectOptions as _, PgPool, Postgres, SqlSafeStr as _, Sqlite, SqlitePool, Transaction,
    migrate::{Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use waypost_shared::trace::{self, Kind, Span};

use crate::domain::{mxid::Mxid, sealing::Fingerprint};

pub(crate) mod accounts;
pub(crate) mod address_books;
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

/// Version, name and SQL of each file in `migrations/sqlite`. A list instead of `sqlx::migrate!`, which compiles sqlx
/// and SQLite a second time for the macro. A test compares the lists with the folders.
const SQLITE_MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "first", include_str!("../../migrations/sqlite/0001_first.sql")),
    (3, "invites", include_str!("../../migrations/sqlite/0003_invites.sql")),
    (4, "peppers", include_str!("../../migrations/sqlite/0004_peppers.sql")),
    (5, "sending", include_str!("../../migrations/sqlite/0005_sending.sql")),
    (6, "address_books", include_str!("../../migrations/sqlite/0006_address_books.sql")),
    (7, "requester", include_str!("../../migrations/sqlite/0007_requester.sql")),
];

/// The same for `migrations/postgres`.
const POSTGRES_MIGRATIONS: &[(i64, &str, &str)] = &[
    (1, "first", include_str!("../../migrations/postgres/0001_first.sql")),
    (3, "invites", include_str!("../../migrations/postgres/0003_invites.sql")),
    (4, "peppers", include_str!("../../migrations/postgres/0004_peppers.sql")),
    (5, "sending", include_str!("../../migrations/postgres/0005_sending.sql")),
    (6, "address_books", include_str!("../../migrations/postgres/0006_address_books.sql")),
    (7, "requester", include_str!("../../migrations/postgres/0007_requester.sql")),
];

/// A database with its connection pools. Clones share them.
#[derive(Clone, Debug)]
pub(crate) enum Store {
    /// The embedded default.
    Sqlite {
        /// Connections that only read.
        read: SqlitePool,
        /// The single writer: SQLite allows only one, and queueing here is fairer than its busy loop.
        write: SqlitePool,
    },
    /// For several replicas.
    Postgres(PgPool),
}

/// A failure of the database or its data.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// A query or the connection failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// A migration failed.
    #[error("the database's tables could not be brought up to date")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A sealed value cannot be opened.
    #[error("a stored value cannot be read")]
    Sealed(#[from] crate::domain::sealing::CannotOpen),
    /// A row contains a value that this program never writes.
    #[error("a stored {0} is corrupt")]
    Corrupt(&'static str),
}

/// Runs a read-only block with the pool of either database.
macro_rules! on_db {
    ($store:expr, $pool:ident => $body:expr) => {
        match $store {
            $crate::storage::Store::Sqlite { read: $pool, .. } => $body,
            $crate::storage::Store::Postgres($pool) => $body,
        }
    };
}

/// Runs a single writing statement with the pool of either database.
macro_rules! write_db {
    ($store:expr, $pool:ident => $body:expr) => {
        match $store {
            $crate::storage::Store::Sqlite { write: $pool, .. } => $body,
            $crate::storage::Store::Postgres($pool) => $body,
        }
    };
}

/// Runs a block in a transaction and commits it; an early return from the block rolls back.
///
/// On SQLite it begins with `BEGIN IMMEDIATE`: with a plain `BEGIN`, 321 of 400 concurrent read-then-write transactions
/// failed.
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

/// Like `in_tx!`, but serialised with all such blocks for the same fingerprint. Two blocks that each read the table the
/// other one writes therefore cannot miss each other's rows.
macro_rules! in_tx_for {
    ($store:expr, $fingerprint:expr, $tx:ident => $body:expr) => {
        match $store {
            // The single writer serialises all transactions.
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

/// Runs a block in a transaction that has begun.
macro_rules! in_begun {
    ($begun:expr, $tx:ident => $body:expr) => {
        match $begun {
            $crate::storage::Begun::Sqlite($tx) => $body,
            $crate::storage::Begun::Postgres($tx) => $body,
        }
    };
}

pub(crate) use {in_begun, in_tx, in_tx_for, on_db, write_db};

/// A transaction whose end the caller decides; rolled back on drop.
#[derive(Debug)]
pub(crate) enum Begun {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Begun {
    async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }
}

/// The span of a transaction, from the wait for its connection to its end; none outside a trace. It carries nothing
/// about the rows.
fn span(system: &'static str) -> Option<Span> {
    let mut span = trace::child(Kind::Client, "transaction")?;
    span.set("db.system.name", system);
    Some(span)
}

/// The advisory lock of a fingerprint. A collision only makes unrelated transactions wait for each other.
fn lock_number(fingerprint: &Fingerprint) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&fingerprint[..8]);
    i64::from_le_bytes(first)
}

impl Store {
    /// Opens the database at `url` (`sqlite:FILE` or `postgres://…`) and runs pending migrations. Several replicas may
    /// do so at once: a database lock lets one go first.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the database is unreachable or refuses access, or if its schema is newer than this program.
    pub(crate) async fn open(url: &str, max_connections: u32) -> Result<Self, StoreError> {
        let store = if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url)?
                .create_if_missing(true)
                .foreign_keys(true)
                .journal_mode(SqliteJournalMode::Wal)
                // Changes that a client was told of must survive a power cut.
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(ACQUIRE_TIMEOUT)
                // Deleted data must not remain readable in free pages of the file.
                .pragma("secure_delete", "ON")
                .disable_statement_logging();
            let pool =
                |connections| SqlitePoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE_TIMEOUT);
            // The writer connects first, since it creates the file.
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
                // After a restore from a dump, the transaction numbers come from another cluster and may be ahead of
                // this one's, so every poll for changes would read those rows again. The trigger assigns them a current
                // number.
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

    /// Begins a transaction as `in_tx_for!` does, with its span.
    async fn begin_for(&self, fingerprint: &Fingerprint) -> Result<(Begun, Option<Span>), StoreError> {
        match self {
            Self::Sqlite { write, .. } => {
                let span = span("sqlite");
                Ok((Begun::Sqlite(write.begin_with("BEGIN IMMEDIATE").await?), span))
            }
            Self::Postgres(pool) => {
                let span = span("postgresql");
                let mut tx = pool.begin().await?;
                let lock = "SELECT pg_advisory_xact_lock($1)";
                sqlx::query(lock).bind(lock_number(fingerprint)).execute(&mut *tx).await?;
                Ok((Begun::Postgres(tx), span))
            }
        }
    }

    /// Checks that the database answers.
    pub(crate) async fn answers(&self) -> Result<(), StoreError> {
        on_db!(self, pool => {
            sqlx::query("SELECT 1").execute(pool).await?;
        });
        Ok(())
    }

    /// Closes all connections, waiting for running statements.
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

/// The URL of an SQLite file. Escapes `?` and `%` in the path, which have a meaning in the URL.
pub(crate) fn sqlite_url(file: &Path) -> String {
    format!("sqlite:{}", file.display().to_string().replace('%', "%25").replace('?', "%3F"))
}

/// The file of an SQLite URL; none for PostgreSQL.
pub(crate) fn sqlite_file(url: &str) -> Option<PathBuf> {
    url.starts_with("sqlite:")
        .then(|| SqliteConnectOptions::from_str(url).ok())?
        .map(|options| options.get_filename().to_owned())
}

/// Reads a Matrix id from a row.
fn stored_mxid(text: &str) -> Result<Mxid, StoreError> {
    Mxid::stored(text).map_err(|_| StoreError::Corrupt("Matrix id"))
}

/// Reads a fixed-size value, such as a hash, from a row.
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
