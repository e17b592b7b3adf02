//! What is stored about one address or one person: to be shown, removed, erased.

use crate::domain::{
    association::Association,
    mxid::Mxid,
    sealing::{Sealed, StorageKeys},
    threepid::{Medium, Threepid},
};

use super::{Store, StoreError, in_tx, on_db, stored_mxid, write_db};

/// What was removed about a person, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Erased {
    /// Addresses that belonged to them.
    pub(crate) associations: u64,
    /// Sessions in which somebody proved one of these addresses. A session is not linked to a Matrix id, so those of
    /// other addresses stay until they expire.
    pub(crate) validation_sessions: u64,
    /// Access tokens.
    pub(crate) access_tokens: u64,
    /// Policies that they accepted.
    pub(crate) accepted_terms: u64,
    /// Their account: one or none.
    pub(crate) accounts: u64,
    /// Budgets that they used up in part.
    pub(crate) budgets: u64,
    /// Invites that they sent and that nobody took yet.
    pub(crate) invites: u64,
    /// Keys of these invites.
    pub(crate) ephemeral_keys: u64,
    /// Calls of their homeserver that had not arrived.
    pub(crate) outbox: u64,
}

impl Store {
    /// Whose an address is, and since when.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn association(
        &self,
        keys: &StorageKeys,
        threepid: &Threepid,
    ) -> Result<Option<Association>, StoreError> {
        let row: Option<(String, i64)> = on_db!(self, pool => {
            sqlx::query_as("SELECT mxid, bound_ms FROM associations WHERE fingerprint = $1 AND mxid IS NOT NULL")
                .bind(&keys.fingerprint(threepid)[..])
                .fetch_optional(pool)
                .await?
        });
        row.map(|(mxid, bound_ms)| Ok(Association { threepid: threepid.clone(), mxid: stored_mxid(&mxid)?, bound_ms }))
            .transpose()
    }

    /// The addresses that belong to somebody, the oldest first.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn associations_of(
        &self,
        keys: &StorageKeys,
        mxid: &Mxid,
    ) -> Result<Vec<Association>, StoreError> {
        let rows: Vec<(String, Vec<u8>, i64)> = on_db!(self, pool => {
            sqlx::query_as(
                "SELECT medium, address_sealed, bound_ms FROM associations WHERE mxid = $1 ORDER BY bound_ms",
            )
            .bind(mxid.as_str())
            .fetch_all(pool)
            .await?
        });
        rows.into_iter()
            .map(|(medium, address_sealed, bound_ms)| {
                let medium = Medium::parse(&medium).ok_or(StoreError::Corrupt("medium"))?;
                let address = keys.open(Sealed::Association, &address_sealed)?;
                Ok(Association { threepid: Threepid::stored(medium, address), mxid: mxid.clone(), bound_ms })
            })
            .collect()
    }

    /// Takes an address from `mxid`, or from whomever it belongs to when that is left out. Whether it was theirs.
    ///
    /// The row stays for a moment, without its owner, so that other replicas learn of it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn remove_association(
        &self,
        keys: &StorageKeys,
        threepid: &Threepid,
        mxid: Option<&Mxid>,
        now_ms: i64,
    ) -> Result<bool, StoreError> {
        let removed = write_db!(self, pool => {
            sqlx::query(
                "UPDATE associations SET mxid = NULL, bound_ms = $3
                  WHERE fingerprint = $1 AND mxid IS NOT NULL AND mxid = COALESCE($2, mxid)",
            )
            .bind(&keys.fingerprint(threepid)[..])
            .bind(mxid.map(Mxid::as_str))
            .bind(now_ms)
            .execute(pool)
            .await?
            .rows_affected()
        });
        Ok(removed > 0)
    }

    /// Removes all that is stored about somebody, in one transaction. Their tokens end at all replicas.
    ///
    /// The rows of their addresses stay for a moment, without their owner, so that other replicas learn of it. On
    /// SQLite nothing of what was removed is left in the database's files, unless a long read kept its log in use.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn erase(&self, keys: &StorageKeys, mxid: &Mxid, now_ms: i64) -> Result<Erased, StoreError> {
        let budget = keys.budget_hash(mxid.as_str());
        let erased = in_tx!(self, tx => {
            let mut erased = Erased::default();
            // In this order: the addresses tell the sessions, and the account is what tokens and policies refer to.
            let mut address_budgets = 0;
            for (sql, rows) in [
                (
                    "DELETE FROM rate_limits WHERE key IN (SELECT fingerprint FROM associations WHERE mxid = $1)",
                    &mut address_budgets,
                ),
                (
                    "DELETE FROM validation_sessions
                      WHERE fingerprint IN (SELECT fingerprint FROM associations WHERE mxid = $1)",
                    &mut erased.validation_sessions,
                ),
                (
                    "DELETE FROM ephemeral_keys
                      WHERE public_key IN (SELECT ephemeral_key FROM invites WHERE sender = $1)",
                    &mut erased.ephemeral_keys,
                ),
                ("DELETE FROM invites WHERE sender = $1", &mut erased.invites),
                ("DELETE FROM outbox WHERE mxid = $1", &mut erased.outbox),
                ("DELETE FROM access_tokens WHERE mxid = $1", &mut erased.access_tokens),
                ("DELETE FROM accepted_terms WHERE mxid = $1", &mut erased.accepted_terms),
                ("DELETE FROM accounts WHERE mxid = $1", &mut erased.accounts),
            ] {
                *rows = sqlx::query(sql).bind(mxid.as_str()).execute(&mut *tx).await?.rows_affected();
            }
            erased.associations = sqlx::query("UPDATE associations SET mxid = NULL, bound_ms = $2 WHERE mxid = $1")
                .bind(mxid.as_str())
                .bind(now_ms)
                .execute(&mut *tx)
                .await?
                .rows_affected();
            erased.budgets = address_budgets + sqlx::query("DELETE FROM rate_limits WHERE key = $1")
                .bind(&budget[..])
                .execute(&mut *tx)
                .await?
                .rows_affected();
            erased
        });
        if let Self::Sqlite { write, .. } = self {
            // The log holds pages as they were before.
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(write).await?;
        }
        Ok(erased)
    }

    /// Removes up to `most` addresses that were unbound before `unbound_ms`; how many.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn delete_unbound(&self, unbound_ms: i64, most: i64) -> Result<u64, StoreError> {
        Ok(write_db!(self, pool => {
            // Once more outside: a row that is bound meanwhile must stay.
            sqlx::query(
                "DELETE FROM associations WHERE mxid IS NULL AND bound_ms < $1 AND fingerprint IN
                     (SELECT fingerprint FROM associations WHERE mxid IS NULL AND bound_ms < $1 LIMIT $2)",
            )
            .bind(unbound_ms)
            .bind(most)
            .execute(pool)
            .await?
            .rows_affected()
        }))
    }
}
