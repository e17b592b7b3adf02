//! Peppers: the one in force, those before it, and one that is to come.

use crate::domain::lookups::Pepper;

use super::{Store, StoreError, on_db, write_db};

impl Store {
    /// All peppers, the oldest first.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
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

    /// Adds `pepper`, unless the newest one is handed out from later than `newest_ms` on. Whether it was added: of
    /// several replicas that try at once, one adds its own.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn add_pepper(&self, pepper: &Pepper, newest_ms: i64) -> Result<bool, StoreError> {
        const INSERT: &str = "INSERT INTO peppers (pepper, created_ms, active_ms) SELECT $1, $2, $3
              WHERE NOT EXISTS (SELECT 1 FROM peppers WHERE COALESCE(active_ms, created_ms) > $4)";
        let added = match self {
            // One writer at a time: the statement is alone.
            Self::Sqlite { write, .. } => {
                let insert = sqlx::query(INSERT).bind(&pepper.text).bind(pepper.created_ms).bind(pepper.active_ms);
                insert.bind(newest_ms).execute(write).await?.rows_affected()
            }
            // Two such statements at once would not see each other's pepper.
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

    /// Removes peppers that are older than one that has been handed out since `active_ms`; how many.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
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
