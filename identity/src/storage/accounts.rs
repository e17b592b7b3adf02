//! Accounts, their access tokens, and the terms that they accepted.

use std::collections::BTreeSet;

use crate::domain::{mxid::Mxid, sealing::Fingerprint, terms::PolicyVersion};

use super::{Store, StoreError, in_tx, on_db, stored_mxid, write_db};

/// What an access token stands for.
#[derive(Clone, Debug)]
pub(crate) struct TokenRow {
    /// Its owner.
    pub(crate) mxid: Mxid,
    /// When it was last noted as used, in milliseconds since the epoch.
    pub(crate) used_ms: i64,
}

impl Store {
    /// Gives `mxid` a token, and an account if it has none.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn add_token(&self, mxid: &Mxid, token_hash: &Fingerprint, now_ms: i64) -> Result<(), StoreError> {
        in_tx!(self, tx => {
            sqlx::query("INSERT INTO accounts (mxid, created_ms) VALUES ($1, $2) ON CONFLICT (mxid) DO NOTHING")
                .bind(mxid.as_str())
                .bind(now_ms)
                .execute(&mut *tx)
                .await?;
            sqlx::query("INSERT INTO access_tokens (token_hash, mxid, created_ms, used_ms) VALUES ($1, $2, $3, $3)")
                .bind(&token_hash[..])
                .bind(mxid.as_str())
                .bind(now_ms)
                .execute(&mut *tx)
                .await?;
        });
        Ok(())
    }

    /// What a token stands for, unless it has not been used since `unused_since_ms`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn token(
        &self,
        token_hash: &Fingerprint,
        unused_since_ms: i64,
    ) -> Result<Option<TokenRow>, StoreError> {
        let row: Option<(String, i64)> = on_db!(self, pool => {
            sqlx::query_as("SELECT mxid, used_ms FROM access_tokens WHERE token_hash = $1 AND used_ms >= $2")
                .bind(&token_hash[..])
                .bind(unused_since_ms)
                .fetch_optional(pool)
                .await?
        });
        row.map(|(mxid, used_ms)| Ok(TokenRow { mxid: stored_mxid(&mxid)?, used_ms })).transpose()
    }

    /// Notes that a token was used.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn touch_token(&self, token_hash: &Fingerprint, now_ms: i64) -> Result<(), StoreError> {
        write_db!(self, pool => {
            sqlx::query("UPDATE access_tokens SET used_ms = $2 WHERE token_hash = $1")
                .bind(&token_hash[..])
                .bind(now_ms)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// Ends one token; on PostgreSQL a trigger tells the other replicas. Whether there was one.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn delete_token(&self, token_hash: &Fingerprint) -> Result<bool, StoreError> {
        let deleted = write_db!(self, pool => {
            sqlx::query("DELETE FROM access_tokens WHERE token_hash = $1")
                .bind(&token_hash[..])
                .execute(pool)
                .await?
                .rows_affected()
        });
        Ok(deleted > 0)
    }

    /// Notes that `mxid` accepts these versions of policies, beside those that it accepted before.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn accept_terms(
        &self,
        mxid: &Mxid,
        policies: &[PolicyVersion],
        now_ms: i64,
    ) -> Result<(), StoreError> {
        in_tx!(self, tx => {
            for (policy, version) in policies {
                sqlx::query(
                    "INSERT INTO accepted_terms (mxid, policy, version, accepted_ms) VALUES ($1, $2, $3, $4)
                     ON CONFLICT (mxid, policy, version) DO NOTHING",
                )
                .bind(mxid.as_str())
                .bind(policy)
                .bind(version)
                .bind(now_ms)
                .execute(&mut *tx)
                .await?;
            }
        });
        Ok(())
    }

    /// All versions of policies that `mxid` ever accepted.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn accepted_terms(&self, mxid: &Mxid) -> Result<BTreeSet<PolicyVersion>, StoreError> {
        let rows: Vec<PolicyVersion> = on_db!(self, pool => {
            sqlx::query_as("SELECT policy, version FROM accepted_terms WHERE mxid = $1").bind(mxid.as_str()).fetch_all(pool).await?
        });
        Ok(rows.into_iter().collect())
    }

    /// Removes up to `most` tokens that have not been used since `unused_since_ms`; how many there were.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn delete_unused_tokens(&self, unused_since_ms: i64, most: i64) -> Result<u64, StoreError> {
        Ok(write_db!(self, pool => {
            sqlx::query(
                "DELETE FROM access_tokens WHERE token_hash IN
                     (SELECT token_hash FROM access_tokens WHERE used_ms < $1 LIMIT $2)",
            )
            .bind(unused_since_ms)
            .bind(most)
            .execute(pool)
            .await?
            .rows_affected()
        }))
    }
}
