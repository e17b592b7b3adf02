//! Rate limits shared by all replicas: mails, text messages, attempts at a token.

use std::time::Duration;

use waypost_shared::{clock::millis, http::rate_limit::Rate};

use crate::domain::sealing::Fingerprint;

use super::{Store, StoreError, write_db};

impl Store {
    /// Takes one token from the bucket of `key`, or returns how long to wait.
    ///
    /// The generic cell rate algorithm in one statement: a row holds the time at which the bucket will be full again,
    /// and taking a token moves that time forward.
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
        // Rows store whole milliseconds; an interval of 0 would mean no limit.
        let per_ms = millis(per).max(1);
        // The bucket is empty when refilling it takes as long as its whole burst.
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

    /// Deletes up to `most` buckets that are full again; returns how many.
    pub(crate) async fn delete_full_budgets(&self, now_ms: i64, most: i64) -> Result<u64, StoreError> {
        Ok(write_db!(self, pool => {
            sqlx::query(
                // The condition is repeated outside the subquery: a bucket that is used meanwhile must stay.
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
