//! Budgets that all replicas share: mails, SMS, tries at a token.

use std::time::Duration;

use waypost_shared::{clock::millis, http::rate_limit::Rate};

use crate::domain::sealing::Fingerprint;

use super::{Store, StoreError, write_db};

impl Store {
    /// Takes one from a budget of this rate, or says how long to wait.
    ///
    /// One statement of the generic cell rate algorithm: a row holds when the budget will be full again, and one is
    /// taken by moving that time on.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn take(
        &self,
        bucket: &'static str,
        key: &Fingerprint,
        rate: Rate,
        now_ms: i64,
    ) -> Result<Result<(), Duration>, StoreError> {
        let per = rate.refill();
        if rate.burst == 0 || per.is_zero() {
            return Ok(Ok(()));
        }
        // Rows count whole milliseconds; an interval of none would be no limit.
        let per_ms = millis(per).max(1);
        // The budget is empty when it is as far from full as its whole burst takes.
        let latest_ms = now_ms.saturating_add(per_ms.saturating_mul(i64::from(rate.burst) - 1));
        let taken: Option<i64> = write_db!(self, pool => {
            sqlx::query_scalar(
                "INSERT INTO rate_limits (bucket, key, full_ms) VALUES ($1, $2, $3 + $4)
                 ON CONFLICT (bucket, key) DO UPDATE
                    SET full_ms = CASE WHEN rate_limits.full_ms > $3 THEN rate_limits.full_ms ELSE $3 END + $4
                  WHERE rate_limits.full_ms <= $5
                 RETURNING full_ms",
            )
            .bind(bucket)
            .bind(&key[..])
            .bind(now_ms)
            .bind(per_ms)
            .bind(latest_ms)
            .fetch_optional(pool)
            .await?
        });
        if taken.is_some() {
            return Ok(Ok(()));
        }
        let full_ms: Option<i64> = write_db!(self, pool => {
            sqlx::query_scalar("SELECT full_ms FROM rate_limits WHERE bucket = $1 AND key = $2")
                .bind(bucket)
                .bind(&key[..])
                .fetch_optional(pool)
                .await?
        });
        let wait_ms = full_ms.unwrap_or(now_ms).saturating_sub(latest_ms).max(1);
        Ok(Err(Duration::from_millis(u64::try_from(wait_ms).unwrap_or(1))))
    }

    /// Removes up to `most` budgets that are full again; how many.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn delete_full_budgets(&self, now_ms: i64, most: i64) -> Result<u64, StoreError> {
        Ok(write_db!(self, pool => {
            sqlx::query(
                // Once more outside: a budget that is taken from meanwhile must stay.
                "DELETE FROM rate_limits WHERE full_ms < $1 AND (bucket, key) IN
                     (SELECT bucket, key FROM rate_limits WHERE full_ms < $1 LIMIT $2)",
            )
            .bind(now_ms)
            .bind(most)
            .execute(pool)
            .await?
            .rows_affected()
        }))
    }
}
