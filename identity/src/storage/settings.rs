//! Deployment-wide settings: the first pepper, and the check that the storage keys belong to this database.

use crate::domain::sealing::{Sealed, StorageKeys};

use super::{Store, StoreError, in_tx, on_db};

/// The known text that is sealed to recognise the keys.
const KEY_CHECK: &str = "waypost";
/// Selects the values sealed and hashed with the database's own keys.
const KEPT: &str =
    "SELECT s.value, h.value FROM settings s, settings h WHERE s.name = 'seal_check' AND h.name = 'hash_check'";

impl Store {
    /// Whether this database was written with `keys`. A new database adopts them.
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

    /// Like [`Store::belongs_to`], but read-only: none if the database has no keys yet.
    pub(crate) async fn is_of(&self, keys: &StorageKeys) -> Result<Option<bool>, StoreError> {
        let kept: Option<(Vec<u8>, Vec<u8>)> = on_db!(self, pool => sqlx::query_as(KEPT).fetch_optional(pool).await?);
        Ok(kept.map(|(sealed, hash)| fits(keys, &sealed, &hash)))
    }

    /// The newest pepper.
    pub(crate) async fn pepper(&self) -> Result<Option<String>, StoreError> {
        Ok(on_db!(self, pool => {
            sqlx::query_scalar("SELECT pepper FROM peppers ORDER BY created_ms DESC, pepper LIMIT 1")
                .fetch_optional(pool)
                .await?
        }))
    }

    /// Stores `pepper` if there is none yet; if several replicas start at once, one wins. Returns the newest pepper.
    pub(crate) async fn first_pepper(&self, pepper: &str, now_ms: i64) -> Result<String, StoreError> {
        const INSERT: &str =
            "INSERT INTO peppers (pepper, created_ms) SELECT $1, $2 WHERE NOT EXISTS (SELECT 1 FROM peppers)";
        match self {
            // The single writer serialises the statement.
            Self::Sqlite { write, .. } => {
                sqlx::query(INSERT).bind(pepper).bind(now_ms).execute(write).await?;
            }
            // Without the lock, concurrent statements would both see an empty table.
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
