//! Rate limits shared by all replicas: mails, text messages, attempts at a token.

use std::time::Duration;

use waypost_shared::{clock::millis, http::rate_limit::Rate};

use crate::domain::sealing::Fingerprint;

use super::{Store, StoreError, in_tx, write_db};

/// A charge against a rate limit that all replicas share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Charge {
    /// The name of the limit.
    pub(crate) bucket: &'static str,
    /// Whose budget it is.
    pub(crate) key: Fingerprint,
    /// The limit.
    pub(crate) rate: Rate,
    /// Tokens to take. More than the burst counts as a full burst, since it could never be met.
    pub(crate) count: u32,
}

impl Charge {
    /// The charge of one token.
    pub(crate) fn one(bucket: &'static str, key: Fingerprint, rate: Rate) -> Self {
        Self { bucket, key, rate, count: 1 }
    }

    /// The interval of one token, and of all that are charged, in milliseconds; `None` if there is no limit.
    fn intervals_ms(&self) -> Option<(i64, i64)> {
        let per = self.rate.refill();
        if self.rate.burst == 0 || per.is_zero() || self.count == 0 {
            return None;
        }
        // Rows store whole milliseconds; an interval of 0 would mean no limit.
        let per_ms = millis(per).max(1);
        Some((per_ms, per_ms.saturating_mul(i64::from(self.count.min(self.rate.burst)))))
    }
}

impl Store {
    /// Makes all charges, or none of them if one of the budgets is too low: then returns how long to wait for that one.
    /// All callers must name their limits in the same order, so that none wait for each other.
    ///
    /// The generic cell rate algorithm: a row holds the time at which the bucket will be full again, and taking tokens
    /// moves that time forward.
    pub(crate) async fn take_all(&self, charges: &[Charge], now_ms: i64) -> Result<Result<(), Duration>, StoreError> {
        in_tx!(self, tx => {
            for charge in charges {
                let Some((per_ms, cost_ms)) = charge.intervals_ms() else { continue };
                // A full bucket is empty when refilling it takes as long as its whole burst.
                let empty_ms = now_ms.saturating_add(per_ms.saturating_mul(i64::from(charge.rate.burst)));
                let latest_ms = empty_ms.saturating_sub(cost_ms);
                let taken: Option<i64> = sqlx::query_scalar(
                    "INSERT INTO rate_limits (bucket, key, full_ms) VALUES ($1, $2, $3 + $4)
                     ON CONFLICT (bucket, key) DO UPDATE
                        SET full_ms = CASE WHEN rate_limits.full_ms > $3 THEN rate_limits.full_ms ELSE $3 END + $4
                      WHERE rate_limits.full_ms <= $5
                     RETURNING full_ms",
                )
                .bind(charge.bucket)
                .bind(&charge.key[..])
                .bind(now_ms)
                .bind(cost_ms)
                .bind(latest_ms)
                .fetch_optional(&mut *tx)
                .await?;
                if taken.is_some() {
                    continue;
                }
                let full_ms: Option<i64> =
                    sqlx::query_scalar("SELECT full_ms FROM rate_limits WHERE bucket = $1 AND key = $2")
                        .bind(charge.bucket)
                        .bind(&charge.key[..])
                        .fetch_optional(&mut *tx)
                        .await?;
                tx.rollback().await?;
                let wait_ms = full_ms.unwrap_or(now_ms).saturating_sub(latest_ms).max(1);
                return Ok(Err(Duration::from_millis(u64::try_from(wait_ms).unwrap_or(1))));
            }
        });
        Ok(Ok(()))
    }

    /// Undoes charges whose purpose was not achieved, such as a mail that could not be sent.
    pub(crate) async fn give_back(&self, charges: &[Charge]) -> Result<(), StoreError> {
        in_tx!(self, tx => {
            for charge in charges {
                let Some((_, cost_ms)) = charge.intervals_ms() else { continue };
                sqlx::query("UPDATE rate_limits SET full_ms = full_ms - $3 WHERE bucket = $1 AND key = $2")
                    .bind(charge.bucket)
                    .bind(&charge.key[..])
                    .bind(cost_ms)
                    .execute(&mut *tx)
                    .await?;
            }
        });
        Ok(())
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
