//! Read-only inspection of a database, for `doctor`: creates nothing, runs no migration, takes no ownership.

use std::{path::PathBuf, str::FromStr as _};

use sqlx::{
    ConnectOptions as _, Connection as _,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use super::{ACQUIRE_TIMEOUT, Store, StoreError, on_db};

/// The state of the schema, compared with this program's migrations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    /// There are no tables.
    Missing,
    /// The number of migrations that will run at the next start.
    Known(usize),
    /// This migration is unknown: a newer version has upgraded the schema.
    Newer(i64),
    /// This migration failed half-way.
    Broken(i64),
    /// This migration was applied with other content than this program's.
    Foreign(i64),
}

/// What a PostgreSQL server grants its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// As `server_version_num`: 130004 is 13.4.
    pub(crate) version: i32,
    /// The server's clock, in milliseconds since the epoch.
    pub(crate) now_ms: i64,
    /// Whether the user may create tables.
    pub(crate) may_make_tables: bool,
    /// The most connections the user may open: the lowest of the server's, the user's and the database's limits.
    pub(crate) connections: i64,
    /// The server's free connections.
    pub(crate) free: i64,
}

impl Store {
    /// Opens the database at `url` read-only. None for an SQLite database that was not shut down cleanly, which cannot
    /// be read without recovering it first.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`], with the server's own reason.
    pub(crate) async fn inspect(url: &str) -> Result<Option<Self>, StoreError> {
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url)?
                .create_if_missing(false)
                .read_only(true)
                .busy_timeout(ACQUIRE_TIMEOUT)
                .disable_statement_logging();
            let beside = |ending: &str| {
                let mut path = PathBuf::from(options.get_filename());
                path.as_mut_os_string().push(ending);
                path
            };
            let log = beside("-wal").metadata().ok();
            let is_open = beside("-shm").exists() && log.is_some();
            let options = match (is_open, log) {
                // A server has it open, or was killed while it had: the files a reader needs exist.
                (true, _) => options,
                (false, Some(log)) if log.len() > 0 => return Ok(None),
                // An ordinary reader would create those files and leave them behind.
                (false, _) => options.immutable(true),
            };
            let read = SqlitePoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
            let read = read.connect_with(options).await?;
            return Ok(Some(Self::Sqlite { write: read.clone(), read }));
        }
        let options =
            PgConnectOptions::from_str(url)?.application_name("waypost-identity doctor").disable_statement_logging();
        // A pool retries until its time-out and then hides the reason, so one plain connection is tried first.
        options.connect().await?.close().await?;
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
        Ok(Some(Self::Postgres(pool.connect_with(options).await?)))
    }

    /// Compares the schema with this program's migrations.
    pub(crate) async fn tables(&self) -> Result<Tables, StoreError> {
        let lists: i64 = match self {
            Self::Sqlite { read, .. } => {
                sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master WHERE name = '_sqlx_migrations'")
                    .fetch_one(read)
                    .await?
            }
            Self::Postgres(pool) => {
                sqlx::query_scalar("SELECT COUNT(to_regclass('_sqlx_migrations'))").fetch_one(pool).await?
            }
        };
        if lists == 0 {
            return Ok(Tables::Missing);
        }
        let taken: Vec<(i64, bool, Vec<u8>)> = on_db!(self, pool => {
            sqlx::query_as("SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version")
                .fetch_all(pool)
                .await?
        });
        let migrator = self.migrator();
        for (version, success, checksum) in &taken {
            match migrator.iter().find(|known| known.version == *version) {
                None => return Ok(Tables::Newer(*version)),
                Some(_) if !success => return Ok(Tables::Broken(*version)),
                Some(known) if *known.checksum != **checksum => return Ok(Tables::Foreign(*version)),
                Some(_) => {}
            }
        }
        Ok(Tables::Known(migrator.iter().count().saturating_sub(taken.len())))
    }

    /// Queries what a PostgreSQL server grants; `None` for SQLite.
    pub(crate) async fn server(&self) -> Result<Option<Server>, StoreError> {
        let Self::Postgres(pool) = self else { return Ok(None) };
        let (version, now_ms, may_make_tables, most, used, of_user, of_database): (i32, i64, bool, i64, i64, i64, i64) =
            sqlx::query_as(
                // Superusers are exempt from the limits of users and databases.
                "SELECT current_setting('server_version_num')::int,
                        (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
                        COALESCE(has_schema_privilege(current_schema(), 'CREATE'), false),
                        current_setting('max_connections')::bigint
                            - current_setting('superuser_reserved_connections')::bigint,
                        (SELECT COALESCE(SUM(numbackends), 0)::bigint FROM pg_stat_database),
                        CASE WHEN me.rolsuper THEN -1 ELSE me.rolconnlimit::bigint END,
                        CASE WHEN me.rolsuper THEN -1 ELSE db.datconnlimit::bigint END
                   FROM pg_roles me, pg_database db
                  WHERE me.rolname = current_user AND db.datname = current_database()",
            )
            .fetch_one(pool)
            .await?;
        // A negative limit means no limit.
        let limits = [of_user, of_database].into_iter().filter(|limit| *limit >= 0);
        // Our own connection counts as used, but will be free again.
        let free = most.saturating_sub(used).saturating_add(1);
        Ok(Some(Server { version, now_ms, may_make_tables, connections: limits.fold(most, i64::min), free }))
    }
}
