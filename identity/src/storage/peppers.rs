//! Peppers: the current one, its predecessors, and the next one.

use crate::domain::lookups::Pepper;

use super::{Store, StoreError, on_db, write_db};

impl Store {
    /// All peppers, oldest first.
    pub(crate) async fn peppers(&self) -> Result<Vec<Pepper>, StoreError> {
        let rows: Vec<(String, i64, i64)> = on_db!(self, pool => {
            sqlx::query_as(
                "SELECT pepper, created_ms, COALESCE(active_ms, created_ms) FROM peppers
                  ORDER BY COALESCE(active_ms, created_ms), created_ms, pepper",
            )
            .fetch_all(pool)
            .await?
        });
        Ok(rows.into_iter().map(|(text, created_ms, active_ms)| Pepper { text, created_ms, active_ms }).collect())
    }

    /// Adds `pepper`, unless there is one that becomes active after `newest_ms`. Returns whether it was added: if
    /// several replicas try at once, only one succeeds.
    pub(crate) async fn add_pepper(&self, pepper: &Pepper, newest_ms: i64) -> Result<bool, StoreError> {
        const INSERT: &str = "INSERT INTO peppers (pepper, created_ms, active_ms) SELECT $1, $2, $3
              WHERE NOT EXISTS (SELECT 1 FROM peppers WHERE COALESCE(active_ms, created_ms) > $4)";
        let added = match self {
            // The single writer serialises the statement.
            Self::Sqlite { write, .. } => {
                let insert = sqlx::query(INSERT).bind(&pepper.text).bind(pepper.created_ms).bind(pepper.active_ms);
                insert.bind(newest_ms).execute(write).await?.rows_affected()
            }
            // Without the lock, concurrent statements would not see each other's pepper.
            Self::Postgres(pool) => {
                let mut tx = pool.begin().await?;
                sqlx::query("LOCK TABLE peppers IN EXCLUSIVE MODE").execute(&mut *tx).await?;
                let insert = sqlx::query(INSERT).bind(&pepper.text).bind(pepper.created_ms).bind(pepper.active_ms);
                let added = insert.bind(newest_ms).execute(&mut *tx).await?.rows_affected();
                tx.commit().await?;
                added
            }
        };
        Ok(added > 0)
    }

    /// Deletes all peppers older than the newest one that became active by `active_ms`; returns how many.
    pub(crate) async fn delete_old_peppers(&self, active_ms: i64) -> Result<u64, StoreError> {
        Ok(write_db!(self, pool => {
            sqlx::query(
                "DELETE FROM peppers WHERE COALESCE(active_ms, created_ms) <
                     (SELECT MAX(COALESCE(active_ms, created_ms)) FROM peppers
                       WHERE COALESCE(active_ms, created_ms) <= $1)",
            )
            .bind(active_ms)
            .execute(pool)
            .await?
            .rows_affected()
        }))
    }
}
