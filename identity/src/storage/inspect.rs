//! Looking at a database without changing it, for `doctor`: nothing is made, brought up to date or taken.

use std::{path::PathBuf, str::FromStr as _};

use sqlx::{
    ConnectOptions as _, Connection as _,
    postgres::{PgConnectOptions, PgPoolOptions},
    sqlite::{SqliteConnectOptions, SqlitePoolOptions},
};

use super::{ACQUIRE_TIMEOUT, Store, StoreError, on_db};

/// How the tables stand to this program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    /// There are none.
    Missing,
    /// The start will take so many steps to bring them up to date.
    Known(usize),
    /// A step that this program does not know was taken: they are a newer one's.
    Newer(i64),
    /// A step broke off half-way.
    Broken(i64),
    /// A step was taken that differs from this program's.
    Foreign(i64),
}

/// What a PostgreSQL server grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    /// As `server_version_num`: 130004 is 13.4.
    pub(crate) version: i32,
    /// Its clock, in milliseconds since the epoch.
    pub(crate) now_ms: i64,
    /// Whether the user may make tables.
    pub(crate) may_make_tables: bool,
    /// Connections that the user may have at the most: the server's limit, the user's and the database's.
    pub(crate) connections: i64,
    /// Of the server's connections, those that are free.
    pub(crate) free: i64,
}

impl Store {
    /// Opens the database that `url` names for reading. None for an SQLite database that was left in the middle of
    /// something, which cannot be read without bringing it in order first.
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
                // A server has it open, or left it so: what a reader needs is there.
                (true, _) => options,
                (false, Some(log)) if log.len() > 0 => return Ok(None),
                // A plain reader would make what it needs, and leave it there.
                (false, _) => options.immutable(true),
            };
            let read = SqlitePoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
            let read = read.connect_with(options).await?;
            return Ok(Some(Self::Sqlite { write: read.clone(), read }));
        }
        let options =
            PgConnectOptions::from_str(url)?.application_name("waypost-identity doctor").disable_statement_logging();
        // A pool tries until its time is used up, and then does not say why.
        options.connect().await?.close().await?;
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(ACQUIRE_TIMEOUT);
        Ok(Some(Self::Postgres(pool.connect_with(options).await?)))
    }

    /// How the tables stand to this program.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
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

    /// What a PostgreSQL server grants; none for SQLite.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn server(&self) -> Result<Option<Server>, StoreError> {
        let Self::Postgres(pool) = self else { return Ok(None) };
        let (version, now_ms, may_make_tables, most, used, of_user, of_database): (i32, i64, bool, i64, i64, i64, i64) =
            sqlx::query_as(
                // Limits of users and databases are not for superusers.
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
        // Below 0 is no limit.
        let limits = [of_user, of_database].into_iter().filter(|limit| *limit >= 0);
        // This connection is one of those that are used, and will be free.
        let free = most.saturating_sub(used).saturating_add(1);
        Ok(Some(Server { version, now_ms, may_make_tables, connections: limits.fold(most, i64::min), free }))
    }
}
