//! Behaviour tests run on both SQLite and PostgreSQL, each on a fresh database.

use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

/// Which database the identity server runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    /// A file in the server's data folder.
    Sqlite,
    /// The throwaway cluster that `tests/run` starts.
    Postgres,
}

impl Database {
    /// Creates a fresh database, and returns its `database.url`.
    ///
    /// # Panics
    ///
    /// If PostgreSQL is needed but not running: that is a failure, never a reason to skip a test.
    pub async fn fresh_url(self) -> String {
        match self {
            // Empty means a file in the data folder, which is new for each server.
            Self::Sqlite => String::new(),
            Self::Postgres => fresh_postgres().await,
        }
    }
}

async fn fresh_postgres() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let admin = std::env::var("WAYPOST_TEST_POSTGRES_URL")
        .expect("WAYPOST_TEST_POSTGRES_URL is not set: run ./tests/run, which starts a PostgreSQL");
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // Each test may run in a process of its own, and process ids are reused.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let name = format!("waypost_{}_{number}_{}", std::process::id(), now.as_nanos());
    let mut connection = PgConnection::connect(&admin).await.expect("PostgreSQL answers");
    // template0 allows no connections, and CREATE DATABASE fails while somebody is connected to the template.
    let statement = format!("CREATE DATABASE {name} TEMPLATE template0");
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.expect("a database can be made");
    let _ = connection.close().await;
    with_database(&admin, &name)
}

/// `url` with its database replaced by `name`.
fn with_database(url: &str, name: &str) -> String {
    let (address, query) = match url.split_once('?') {
        Some((address, query)) => (address, format!("?{query}")),
        None => (url, String::new()),
    };
    let (server, _) = address.rsplit_once('/').expect("the URL names a database");
    format!("{server}/{name}{query}")
}

/// Expands each function into two tests: one on SQLite, one on PostgreSQL.
///
/// ```text
/// on_each_database! {
///     async fn ping_answers(database: Database) { … }
/// }
/// ```
#[macro_export]
macro_rules! on_each_database {
    ($(
        $(#[$attribute:meta])*
        async fn $name:ident($database:ident: Database) $body:block
    )*) => {$(
        $(#[$attribute])*
        mod $name {
            use super::*;

            async fn run($database: $crate::database::Database) $body

            #[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite() {
                run($crate::database::Database::Sqlite).await;
            }

            #[::tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres() {
                run($crate::database::Database::Postgres).await;
            }
        }
    )*};
}
