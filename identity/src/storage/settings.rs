//! Settings of the whole deployment: the pepper, and whether the storage keys belong to this database.

use crate::domain::sealing::{Sealed, StorageKeys};

use super::{Store, StoreError, in_tx, on_db};

/// What is sealed to recognise the keys by.
const KEY_CHECK: &str = "waypost";
/// What was sealed and hashed with the keys that the database belongs to.
const KEPT: &str =
    "SELECT s.value, h.value FROM settings s, settings h WHERE s.name = 'seal_check' AND h.name = 'hash_check'";

impl Store {
    /// Whether `keys` are those that this database was written with. A new database takes them as its own.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`]. Wrong keys are `Ok(false)`.
    pub(crate) async fn belongs_to(&self, keys: &StorageKeys) -> Result<bool, StoreError> {
        let mine = [("seal_check", keys.seal(Sealed::KeyCheck, KEY_CHECK)), ("hash_check", keys.check_hash().to_vec())];
        let (sealed, hash): (Vec<u8>, Vec<u8>) = in_tx!(self, tx => {
            for (name, value) in &mine {
                sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING")
                    .bind(*name)
                    .bind(value)
                    .execute(&mut *tx)
                    .await?;
            }
            sqlx::query_as(KEPT).fetch_one(&mut *tx).await?
        });
        Ok(fits(keys, &sealed, &hash))
    }

    /// Like [`Store::belongs_to`], and takes nothing: none for a database that has no keys yet.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn is_of(&self, keys: &StorageKeys) -> Result<Option<bool>, StoreError> {
        let kept: Option<(Vec<u8>, Vec<u8>)> = on_db!(self, pool => sqlx::query_as(KEPT).fetch_optional(pool).await?);
        Ok(kept.map(|(sealed, hash)| fits(keys, &sealed, &hash)))
    }

    /// The pepper in force: the newest one.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn pepper(&self) -> Result<Option<String>, StoreError> {
        Ok(on_db!(self, pool => {
            sqlx::query_scalar("SELECT pepper FROM peppers ORDER BY created_ms DESC, pepper LIMIT 1")
                .fetch_optional(pool)
                .await?
        }))
    }

    /// Takes `pepper` into force if there is none yet; of several replicas that start at once, one wins.
    /// Returns the one in force.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn first_pepper(&self, pepper: &str, now_ms: i64) -> Result<String, StoreError> {
        const INSERT: &str =
            "INSERT INTO peppers (pepper, created_ms) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM peppers)";
        match self {
            // One writer: the statement is alone.
            Self::Sqlite { write, .. } => {
                sqlx::query(INSERT).bind(pepper).bind(now_ms).execute(write).await?;
            }
            // Two such statements at once would both see an empty table.
            Self::Postgres(pool) => {
                let mut tx = pool.begin().await?;
                sqlx::query("LOCK TABLE peppers IN EXCLUSIVE MODE").execute(&mut *tx).await?;
                sqlx::query(INSERT).bind(pepper).bind(now_ms).execute(&mut *tx).await?;
                tx.commit().await?;
            }
        }
        self.pepper().await?.ok_or(StoreError::Corrupt("pepper"))
    }
}

fn fits(keys: &StorageKeys, sealed: &[u8], hash: &[u8]) -> bool {
    hash == keys.check_hash() && keys.open(Sealed::KeyCheck, sealed).is_ok_and(|text| text == KEY_CHECK)
}
