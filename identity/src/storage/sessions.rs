//! Validation sessions.

use crate::domain::{
    sealing::{Fingerprint, Sealed, StorageKeys},
    session::Session,
    threepid::{Medium, Threepid},
};

use super::{Store, StoreError, fixed, in_tx, on_db, write_db};

/// A request for a token, as it is stored.
#[derive(Debug)]
pub(crate) struct TokenRequest<'a> {
    /// The id that a new session gets.
    pub(crate) new_sid: &'a str,
    /// The address to prove.
    pub(crate) threepid: &'a Threepid,
    /// What stands for the client's secret.
    pub(crate) client_secret_hash: Fingerprint,
    /// The client's count: the same one never sends twice.
    pub(crate) send_attempt: i64,
    /// Where the person goes afterwards.
    pub(crate) next_link: Option<&'a str>,
    /// The time.
    pub(crate) now_ms: i64,
    /// Until when this request sends its message: if nothing is heard of it by then, it never will be.
    pub(crate) sending_until_ms: i64,
    /// Sessions that were proven, or else asked for, before this are no more.
    pub(crate) expired_ms: i64,
    /// Tries at a session's token; one whose tries are used up is no more when the client asks again.
    pub(crate) max_attempts: i64,
}

/// What became of a request for a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// The session's id.
    pub(crate) sid: String,
    /// Whether this request is the one to send a message: no other with its `send_attempt` was before it.
    pub(crate) send: bool,
}

type Row = (String, String, Vec<u8>, Vec<u8>, Option<Vec<u8>>, i64, i64, Option<i64>);

impl Store {
    /// The session for an address and a secret if it was asked for with this `send_attempt` or a later one, so that
    /// there is nothing to send; unless whoever was to send this very one died over it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn sent_session(
        &self,
        keys: &StorageKeys,
        request: &TokenRequest<'_>,
    ) -> Result<Option<String>, StoreError> {
        Ok(on_db!(self, pool => {
            sqlx::query_scalar(
                "SELECT sid FROM validation_sessions
                  WHERE fingerprint = $1 AND client_secret_hash = $2
                    AND (send_attempt > $3 OR (send_attempt = $3 AND (sending_until_ms IS NULL OR sending_until_ms > $5)))
                    AND COALESCE(validated_ms, requested_ms) >= $4",
            )
            .bind(&keys.fingerprint(request.threepid)[..])
            .bind(&request.client_secret_hash[..])
            .bind(request.send_attempt)
            .bind(request.expired_ms)
            .bind(request.now_ms)
            .fetch_optional(pool)
            .await?
        }))
    }

    /// Makes the session or takes the one that there is, and says whether to send.
    ///
    /// One transaction: of several requests with one `send_attempt`, exactly one is told to send. It has to say that it
    /// did ([`Store::message_sent`]) or did not ([`Store::unclaim_send`]).
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn claim_send(
        &self,
        keys: &StorageKeys,
        request: &TokenRequest<'_>,
    ) -> Result<Claimed, StoreError> {
        let fingerprint = keys.fingerprint(request.threepid);
        let address_sealed = keys.seal(Sealed::Session, request.threepid.address());
        let next_link_sealed = request.next_link.map(|link| keys.seal(Sealed::NextLink, link));
        Ok(in_tx!(self, tx => {
            sqlx::query(
                "DELETE FROM validation_sessions
                  WHERE fingerprint = $1 AND client_secret_hash = $2
                    AND (COALESCE(validated_ms, requested_ms) < $3
                         OR (validated_ms IS NULL AND attempts >= $4 AND send_attempt < $5))",
            )
            .bind(&fingerprint[..])
            .bind(&request.client_secret_hash[..])
            .bind(request.expired_ms)
            .bind(request.max_attempts)
            .bind(request.send_attempt)
            .execute(&mut *tx)
            .await?;
            let claimed: Option<String> = sqlx::query_scalar(
                "INSERT INTO validation_sessions
                     (sid, medium, fingerprint, address_sealed, client_secret_hash, next_link_sealed, send_attempt,
                      requested_ms, sending_until_ms)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
                 ON CONFLICT (fingerprint, client_secret_hash) DO UPDATE
                    SET send_attempt = excluded.send_attempt, requested_ms = excluded.requested_ms,
                        next_link_sealed = excluded.next_link_sealed, sending_until_ms = excluded.sending_until_ms
                  WHERE validation_sessions.send_attempt < excluded.send_attempt
                     OR (validation_sessions.send_attempt = excluded.send_attempt
                         AND validation_sessions.sending_until_ms <= excluded.requested_ms)
                 RETURNING sid",
            )
            .bind(request.new_sid)
            .bind(request.threepid.medium().as_str())
            .bind(&fingerprint[..])
            .bind(&address_sealed)
            .bind(&request.client_secret_hash[..])
            .bind(&next_link_sealed)
            .bind(request.send_attempt)
            .bind(request.now_ms)
            .bind(request.sending_until_ms)
            .fetch_optional(&mut *tx)
            .await?;
            match claimed {
                Some(sid) => Claimed { sid, send: true },
                None => {
                    let sid = sqlx::query_scalar(
                        "SELECT sid FROM validation_sessions WHERE fingerprint = $1 AND client_secret_hash = $2",
                    )
                    .bind(&fingerprint[..])
                    .bind(&request.client_secret_hash[..])
                    .fetch_one(&mut *tx)
                    .await?;
                    Claimed { sid, send: false }
                }
            }
        }))
    }

    /// Notes that the message of a claim went out, so that its `send_attempt` never sends again.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn message_sent(&self, sid: &str, send_attempt: i64) -> Result<(), StoreError> {
        write_db!(self, pool => {
            sqlx::query("UPDATE validation_sessions SET sending_until_ms = NULL WHERE sid = $1 AND send_attempt = $2")
                .bind(sid)
                .bind(send_attempt)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// Takes back a claim whose message could not be sent, so that the same `send_attempt` may try again.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn unclaim_send(&self, sid: &str, send_attempt: i64) -> Result<(), StoreError> {
        write_db!(self, pool => {
            sqlx::query(
                "UPDATE validation_sessions SET send_attempt = $3, sending_until_ms = NULL
                  WHERE sid = $1 AND send_attempt = $2",
            )
            .bind(sid)
            .bind(send_attempt)
            .bind(send_attempt.saturating_sub(1))
            .execute(pool)
            .await?;
        });
        Ok(())
    }

    /// The session with this id, whatever its state.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn session(&self, keys: &StorageKeys, sid: &str) -> Result<Option<Session>, StoreError> {
        let row: Option<Row> = on_db!(self, pool => {
            sqlx::query_as(
                "SELECT sid, medium, address_sealed, client_secret_hash, next_link_sealed, attempts, requested_ms, validated_ms
                   FROM validation_sessions WHERE sid = $1",
            )
            .bind(sid)
            .fetch_optional(pool)
            .await?
        });
        row.map(|row| session(keys, row)).transpose()
    }

    /// Counts a try at a session's token; false when all of them are used up. A session that is validated has nothing
    /// left to guess, so it is not counted.
    ///
    /// One statement, so that of any number of tries at once no more than `max_attempts` are let through.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn take_attempt(&self, sid: &str, max_attempts: i64) -> Result<bool, StoreError> {
        let taken = write_db!(self, pool => {
            sqlx::query(
                "UPDATE validation_sessions
                    SET attempts = CASE WHEN validated_ms IS NULL THEN attempts + 1 ELSE attempts END
                  WHERE sid = $1 AND (validated_ms IS NOT NULL OR attempts < $2)",
            )
            .bind(sid)
            .bind(max_attempts)
            .execute(pool)
            .await?
            .rows_affected()
        });
        Ok(taken > 0)
    }

    /// Notes that the token was submitted; a second time changes nothing.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn validate_session(&self, sid: &str, now_ms: i64) -> Result<(), StoreError> {
        write_db!(self, pool => {
            sqlx::query("UPDATE validation_sessions SET validated_ms = $2 WHERE sid = $1 AND validated_ms IS NULL")
                .bind(sid)
                .bind(now_ms)
                .execute(pool)
                .await?;
        });
        Ok(())
    }

    /// Removes up to `most` sessions that are older than `expired_ms` by request and by validation; how many.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn delete_expired_sessions(&self, expired_ms: i64, most: i64) -> Result<u64, StoreError> {
        Ok(write_db!(self, pool => {
            sqlx::query(
                "DELETE FROM validation_sessions WHERE sid IN
                     (SELECT sid FROM validation_sessions
                       WHERE requested_ms < $1 AND (validated_ms IS NULL OR validated_ms < $1) LIMIT $2)",
            )
            .bind(expired_ms)
            .bind(most)
            .execute(pool)
            .await?
            .rows_affected()
        }))
    }
}

fn session(keys: &StorageKeys, row: Row) -> Result<Session, StoreError> {
    let (sid, medium, address_sealed, client_secret_hash, next_link_sealed, attempts, requested_ms, validated_ms) = row;
    let medium = Medium::parse(&medium).ok_or(StoreError::Corrupt("medium"))?;
    let address = keys.open(Sealed::Session, &address_sealed)?;
    let next_link = next_link_sealed.map(|sealed| keys.open(Sealed::NextLink, &sealed)).transpose()?;
    Ok(Session {
        sid,
        threepid: Threepid::stored(medium, address),
        client_secret_hash: fixed(client_secret_hash, "client secret hash")?,
        attempts,
        next_link,
        requested_ms,
        validated_ms,
    })
}
