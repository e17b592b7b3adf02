//! Showing, unbinding and erasing what is stored about an address or a user.

use crate::domain::{
    association::Association,
    mxid::Mxid,
    sealing::{Sealed, StorageKeys},
    threepid::{Medium, Threepid},
};

use super::{Store, StoreError, in_tx, on_db, stored_mxid, write_db};

/// The number of rows erased for a user, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Erased {
    /// Addresses bound to the user.
    pub(crate) associations: u64,
    /// Validation sessions of these addresses. Sessions are not linked to a Matrix id, so those of other addresses
    /// remain until they expire.
    pub(crate) validation_sessions: u64,
    /// Access tokens.
    pub(crate) access_tokens: u64,
    /// Policy versions the user accepted.
    pub(crate) accepted_terms: u64,
    /// The account: one or none.
    pub(crate) accounts: u64,
    /// The addresses that the user has looked up: one row or none.
    pub(crate) address_books: u64,
    /// Rate limit counters of the user and of these addresses.
    pub(crate) budgets: u64,
    /// Invites the user sent that are still pending.
    pub(crate) invites: u64,
    /// Ephemeral keys of these invites.
    pub(crate) ephemeral_keys: u64,
    /// Outbox rows: calls not yet delivered to the user's homeserver.
    pub(crate) outbox: u64,
}

impl Store {
    /// The association of an address.
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

    /// A user's associations, oldest first.
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

    /// Unbinds an address from `mxid`, or from its owner if that is none. Returns whether it was bound.
    ///
    /// The row stays as a tombstone, without its owner, so that other replicas learn of the change.
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

    /// Erases everything stored about a user, in one transaction. Their tokens become invalid on all replicas.
    ///
    /// The rows of their addresses stay as tombstones, without their owner, so that other replicas learn of the change.
    /// On SQLite no erased data remains in the database's files, unless a long read kept the WAL in use.
    pub(crate) async fn erase(&self, keys: &StorageKeys, mxid: &Mxid, now_ms: i64) -> Result<Erased, StoreError> {
        let budget = keys.budget_hash(mxid.as_str());
        let erased = in_tx!(self, tx => {
            let mut erased = Erased::default();
            // The order matters: sessions are found through the addresses, and tokens and policies refer to the
            // account.
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
            erased.address_books = sqlx::query("DELETE FROM address_books WHERE account = $1")
                .bind(&budget[..])
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
            // The WAL still contains the old pages.
            sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(write).await?;
        }
        Ok(erased)
    }

    /// Deletes up to `most` tombstones of addresses unbound before `unbound_ms`; returns how many.
    pub(crate) async fn delete_unbound(&self, unbound_ms: i64, most: i64) -> Result<u64, StoreError> {
        Ok(write_db!(self, pool => {
            // The conditions are repeated outside the subquery: a row that is bound meanwhile must stay.
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
