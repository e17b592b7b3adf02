//! Accounts, their access tokens, and the terms they accepted.

use std::collections::BTreeSet;

use crate::domain::{mxid::Mxid, sealing::Fingerprint, terms::PolicyVersion};

use super::{Store, StoreError, fixed, in_tx, on_db, stored_mxid, write_db};

/// Tokens that one user may have: more than devices and sessions of clients.
const MOST_TOKENS: i64 = 50;

/// A stored access token.
#[derive(Clone, Debug)]
pub(crate) struct TokenRow {
    /// The user it belongs to.
    pub(crate) mxid: Mxid,
    /// When its last use was recorded, in milliseconds since the epoch.
    pub(crate) used_ms: i64,
}

impl Store {
    /// Adds a token for `mxid`, and an account if there is none yet. Of more than [`MOST_TOKENS`] the oldest are deleted,
    /// whose hashes are returned; on PostgreSQL a trigger notifies the other replicas.
    pub(crate) async fn add_token(
        &self,
        mxid: &Mxid,
        token_hash: &Fingerprint,
        now_ms: i64,
    ) -> Result<Vec<Fingerprint>, StoreError> {
        let deleted: Vec<Vec<u8>> = in_tx!(self, tx => {
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
            sqlx::query_scalar(
                "DELETE FROM access_tokens WHERE mxid = $1 AND token_hash IN
                     (SELECT token_hash FROM access_tokens WHERE mxid = $1 AND token_hash <> $2
                       ORDER BY used_ms DESC, created_ms DESC LIMIT 1000 OFFSET $3)
                 RETURNING token_hash",
            )
            .bind(mxid.as_str())
            .bind(&token_hash[..])
            .bind(MOST_TOKENS - 1)
            .fetch_all(&mut *tx)
            .await?
        });
        deleted.into_iter().map(|hash| fixed(hash, "token hash")).collect()
    }

    /// Finds a token, unless its last use was before `unused_since_ms`.
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

    /// Records the use of a token.
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

    /// Deletes a token; on PostgreSQL a trigger notifies the other replicas. Returns whether it existed.
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

    /// Records that `mxid` accepts these policy versions, in addition to earlier ones.
    pub(crate) async fn accept_terms(
        &self,
        mxid: &Mxid,
        policies: &BTreeSet<PolicyVersion>,
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

    /// All policy versions that `mxid` ever accepted.
    pub(crate) async fn accepted_terms(&self, mxid: &Mxid) -> Result<BTreeSet<PolicyVersion>, StoreError> {
        let rows: Vec<PolicyVersion> = on_db!(self, pool => {
            sqlx::query_as("SELECT policy, version FROM accepted_terms WHERE mxid = $1").bind(mxid.as_str()).fetch_all(pool).await?
        });
        Ok(rows.into_iter().collect())
    }

    /// Deletes up to `most` tokens last used before `unused_since_ms`; returns how many.
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
