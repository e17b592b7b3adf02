//! The outbox: onbind calls not yet delivered to homeservers. A row is written in the transaction of its bind and
//! leased by the replica that delivers it.

use crate::domain::mxid::Mxid;

use super::{Store, StoreError, on_db, stored_mxid, write_db};

/// A leased row.
#[derive(Debug)]
pub(crate) struct OutboxRow {
    /// The row's id.
    pub(crate) id: String,
    /// The user whose homeserver receives the call.
    pub(crate) mxid: Mxid,
    /// The body of the call, sealed.
    pub(crate) payload_sealed: Vec<u8>,
    /// When it was queued or revived, in milliseconds since the epoch.
    pub(crate) since_ms: i64,
    /// Delivery attempts, including this one.
    pub(crate) attempts: i64,
}

/// A row whose delivery was abandoned.
#[derive(Debug)]
pub(crate) struct DeadLetter {
    /// The row's id.
    pub(crate) id: String,
    /// The user whose homeserver should have received the call.
    pub(crate) mxid: Mxid,
    /// Delivery attempts.
    pub(crate) attempts: i64,
    /// Why the last attempt failed.
    pub(crate) failure: String,
    /// When it was abandoned, in milliseconds since the epoch.
    pub(crate) dead_ms: i64,
}

/// The number of rows by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OutboxCounts {
    /// Waiting for delivery.
    pub(crate) waiting: i64,
    /// Dead letters.
    pub(crate) dead: i64,
}

type LeasedRow = (String, String, Vec<u8>, i64, i64);
type DeadRow = (String, String, i64, Option<String>, i64);

impl Store {
    /// Leases up to `most` due rows until `until_ms`: no other replica gets them before then. Skips rows for the
    /// homeservers in `but_for`.
    pub(crate) async fn lease_outbox_rows(
        &self,
        now_ms: i64,
        until_ms: i64,
        most: i64,
        but_for: &[String],
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let rows: Vec<LeasedRow> = match self {
            // The single writer serialises the statement.
            Self::Sqlite { write, .. } => {
                sqlx::query_as(
                    "UPDATE outbox SET due_ms = $2, attempts = attempts + 1 WHERE id IN
                         (SELECT id FROM outbox WHERE dead_ms IS NULL AND due_ms <= $1
                             AND substr(mxid, instr(mxid, ':') + 1) NOT IN (SELECT value FROM json_each($4))
                           ORDER BY due_ms LIMIT $3)
                     RETURNING id, mxid, payload_sealed, since_ms, attempts",
                )
                .bind(now_ms)
                .bind(until_ms)
                .bind(most)
                .bind(json(but_for))
                .fetch_all(write)
                .await?
            }
            // Replicas leasing at the same time skip each other's rows instead of waiting for them.
            Self::Postgres(pool) => {
                sqlx::query_as(
                    "UPDATE outbox SET due_ms = $2, attempts = attempts + 1 WHERE id IN
                         (SELECT id FROM outbox WHERE dead_ms IS NULL AND due_ms <= $1
                             AND substr(mxid, strpos(mxid, ':') + 1) <> ALL ($4)
                           ORDER BY due_ms LIMIT $3 FOR UPDATE SKIP LOCKED)
                     RETURNING id, mxid, payload_sealed, since_ms, attempts",
                )
                .bind(now_ms)
                .bind(until_ms)
                .bind(most)
                .bind(but_for)
                .fetch_all(pool)
                .await?
            }
        };
        let rows = rows.into_iter().map(|(id, mxid, payload_sealed, since_ms, attempts)| {
            Ok(OutboxRow { id, mxid: stored_mxid(&mxid)?, payload_sealed, since_ms, attempts })
        });
        rows.collect()
    }

    /// When the next row is due, ignoring those for the homeservers in `but_for`.
    pub(crate) async fn next_outbox_due(&self, but_for: &[String]) -> Result<Option<i64>, StoreError> {
        Ok(match self {
            Self::Sqlite { read, .. } => {
                sqlx::query_scalar(
                    "SELECT due_ms FROM outbox WHERE dead_ms IS NULL
                        AND substr(mxid, instr(mxid, ':') + 1) NOT IN (SELECT value FROM json_each($1))
                      ORDER BY due_ms LIMIT 1",
                )
                .bind(json(but_for))
                .fetch_optional(read)
                .await?
            }
            Self::Postgres(pool) => {
                sqlx::query_scalar(
                    "SELECT due_ms FROM outbox WHERE dead_ms IS NULL
                        AND substr(mxid, strpos(mxid, ':') + 1) <> ALL ($1)
                      ORDER BY due_ms LIMIT 1",
                )
                .bind(but_for)
                .fetch_optional(pool)
                .await?
            }
        })
    }

    /// Deletes a delivered row.
    pub(crate) async fn outbox_row_delivered(&self, id: &str) -> Result<(), StoreError> {
        write_db!(self, pool => {
            sqlx::query("DELETE FROM outbox WHERE id = $1").bind(id).execute(pool).await?;
        });
        Ok(())
    }

    /// Records a failed attempt; the row is due again at `due_ms`.
    pub(crate) async fn outbox_row_failed(&self, id: &str, failure: &str, due_ms: i64) -> Result<(), StoreError> {
        write_db!(self, pool => {
            sqlx::query("UPDATE outbox SET failure = $2, due_ms = $3 WHERE id = $1")
                .bind(id)
                .bind(failure)
                .bind(due_ms)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// Returns a leased row without an attempt; it is due again at `due_ms`.
    pub(crate) async fn outbox_row_postponed(&self, id: &str, due_ms: i64) -> Result<(), StoreError> {
        write_db!(self, pool => {
            sqlx::query("UPDATE outbox SET attempts = attempts - 1, due_ms = $2 WHERE id = $1")
                .bind(id)
                .bind(due_ms)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// Turns a row into a dead letter.
    pub(crate) async fn outbox_row_given_up(&self, id: &str, failure: &str, now_ms: i64) -> Result<(), StoreError> {
        write_db!(self, pool => {
            sqlx::query("UPDATE outbox SET failure = $2, dead_ms = $3 WHERE id = $1")
                .bind(id)
                .bind(failure)
                .bind(now_ms)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// Counts the rows by state.
    pub(crate) async fn outbox_counts(&self) -> Result<OutboxCounts, StoreError> {
        let (all, dead): (i64, i64) = on_db!(self, pool => {
            sqlx::query_as("SELECT COUNT(*), COUNT(dead_ms) FROM outbox").fetch_one(pool).await?
        });
        Ok(OutboxCounts { waiting: all.saturating_sub(dead), dead })
    }

    /// All dead letters, oldest first.
    pub(crate) async fn dead_letters(&self) -> Result<Vec<DeadLetter>, StoreError> {
        let rows: Vec<DeadRow> = on_db!(self, pool => {
            sqlx::query_as(
                "SELECT id, mxid, attempts, failure, dead_ms FROM outbox WHERE dead_ms IS NOT NULL ORDER BY dead_ms",
            )
            .fetch_all(pool)
            .await?
        });
        let rows = rows.into_iter().map(|(id, mxid, attempts, failure, dead_ms)| {
            Ok(DeadLetter { id, mxid: stored_mxid(&mxid)?, attempts, failure: failure.unwrap_or_default(), dead_ms })
        });
        rows.collect()
    }

    /// Revives the dead letter `id`, or all of them if that is none: they are due at once, as if new. Returns how many.
    pub(crate) async fn revive_dead_letters(&self, id: Option<&str>, now_ms: i64) -> Result<u64, StoreError> {
        const REVIVE: &str = "UPDATE outbox SET dead_ms = NULL, since_ms = $1, due_ms = $1, attempts = 0
              WHERE dead_ms IS NOT NULL AND (id = $2 OR $2 = '')";
        // No row has an empty id, so it can stand for all.
        Ok(write_db!(self, pool => {
            sqlx::query(REVIVE).bind(now_ms).bind(id.unwrap_or_default()).execute(pool).await?.rows_affected()
        }))
    }

    /// Deletes up to `most` letters that died before `before_ms`; returns how many.
    pub(crate) async fn delete_dead_letters(&self, before_ms: i64, most: i64) -> Result<u64, StoreError> {
        Ok(write_db!(self, pool => {
            sqlx::query("DELETE FROM outbox WHERE id IN (SELECT id FROM outbox WHERE dead_ms < $1 LIMIT $2)")
                .bind(before_ms)
                .bind(most)
                .execute(pool)
                .await?
                .rows_affected()
        }))
    }
}

/// A list as JSON, since SQLite has no arrays.
fn json(list: &[String]) -> String {
    serde_json::Value::from(list).to_string()
}
