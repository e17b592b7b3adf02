//! Validation sessions.

use crate::domain::{
    mxid::Mxid,
    sealing::{Fingerprint, Sealed, StorageKeys},
    session::Session,
    threepid::{Medium, Threepid},
};

use super::{Store, StoreError, fixed, in_tx, on_db, stored_mxid, write_db};

/// A request for a validation token. Times are in milliseconds since the epoch.
#[derive(Debug)]
pub(crate) struct TokenRequest<'a> {
    /// The id for the session if it has to be created.
    pub(crate) new_sid: &'a str,
    /// The address to validate.
    pub(crate) threepid: &'a Threepid,
    /// The fingerprint of the client secret.
    pub(crate) client_secret_hash: Fingerprint,
    /// The client's counter: the same value never sends twice.
    pub(crate) send_attempt: i64,
    /// Where to redirect the user afterwards.
    pub(crate) next_link: Option<&'a str>,
    /// The user who asks; `None` without an account.
    pub(crate) requester: Option<&'a Mxid>,
    /// The current time.
    pub(crate) now_ms: i64,
    /// The deadline for sending the message. If no outcome is recorded by then, the request counts as crashed.
    pub(crate) sending_until_ms: i64,
    /// Sessions validated (or if not validated, requested) before this time have expired.
    pub(crate) expired_ms: i64,
    /// Attempts per session. One with no attempts left is replaced when the client requests another token.
    pub(crate) max_attempts: i64,
}

/// The outcome of a request for a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claimed {
    /// The session's id.
    pub(crate) sid: String,
    /// Whether this request must send the message: it is the first with its `send_attempt`.
    pub(crate) send: bool,
}

type Row = (String, String, Vec<u8>, Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>, i64, i64, Option<i64>);

impl Store {
    /// The id of the session for an address and secret if there is nothing to send, because it was already requested
    /// with this `send_attempt` or a later one. None if the request that was to send this one crashed.
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

    /// Creates or updates the session, and decides whether this request sends the message.
    ///
    /// One transaction: of several requests with the same `send_attempt`, exactly one gets to send. It must then
    /// report success ([`Store::message_sent`]) or failure ([`Store::unclaim_send`]).
    pub(crate) async fn claim_send(
        &self,
        keys: &StorageKeys,
        request: &TokenRequest<'_>,
    ) -> Result<Claimed, StoreError> {
        let fingerprint = keys.fingerprint(request.threepid);
        let address_sealed = keys.seal(Sealed::Session, request.threepid.address());
        let next_link_sealed = request.next_link.map(|link| keys.seal(Sealed::NextLink, link));
        let requester_sealed = request.requester.map(|mxid| keys.seal(Sealed::Requester, mxid.as_str()));
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
                      requested_ms, sending_until_ms, requester_sealed)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
                 ON CONFLICT (fingerprint, client_secret_hash) DO UPDATE
                    SET send_attempt = excluded.send_attempt, requested_ms = excluded.requested_ms,
                        next_link_sealed = excluded.next_link_sealed, sending_until_ms = excluded.sending_until_ms,
                        requester_sealed = excluded.requester_sealed
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
            .bind(&requester_sealed)
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

    /// Records that the message of a claim was sent, so that its `send_attempt` never sends again.
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

    /// Releases a claim whose message could not be sent, so that the same `send_attempt` may try again.
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
    pub(crate) async fn session(&self, keys: &StorageKeys, sid: &str) -> Result<Option<Session>, StoreError> {
        let row: Option<Row> = on_db!(self, pool => {
            sqlx::query_as(
                "SELECT sid, medium, address_sealed, client_secret_hash, next_link_sealed, requester_sealed, attempts,
                        requested_ms, validated_ms
                   FROM validation_sessions WHERE sid = $1",
            )
            .bind(sid)
            .fetch_optional(pool)
            .await?
        });
        row.map(|row| session(keys, row)).transpose()
    }

    /// Counts an attempt at a session's token; returns how many that makes, or `None` if none are left. A validated
    /// session has nothing left to guess, so its attempts are not counted.
    ///
    /// A single statement, so that at most `max_attempts` of any number of concurrent attempts are allowed.
    pub(crate) async fn take_attempt(&self, sid: &str, max_attempts: i64) -> Result<Option<i64>, StoreError> {
        Ok(write_db!(self, pool => {
            sqlx::query_scalar(
                "UPDATE validation_sessions
                    SET attempts = CASE WHEN validated_ms IS NULL THEN attempts + 1 ELSE attempts END
                  WHERE sid = $1 AND (validated_ms IS NOT NULL OR attempts < $2)
                 RETURNING attempts",
            )
            .bind(sid)
            .bind(max_attempts)
            .fetch_optional(pool)
            .await?
        }))
    }

    /// Marks the session as validated. Idempotent: the first time is kept.
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

    /// Deletes up to `most` sessions both requested and (if at all) validated before `expired_ms`; returns how many.
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
    let (
        sid,
        medium,
        address_sealed,
        secret_hash,
        next_link_sealed,
        requester_sealed,
        attempts,
        requested_ms,
        validated_ms,
    ) = row;
    let medium = Medium::parse(&medium).ok_or(StoreError::Corrupt("medium"))?;
    let address = keys.open(Sealed::Session, &address_sealed)?;
    let next_link = next_link_sealed.map(|sealed| keys.open(Sealed::NextLink, &sealed)).transpose()?;
    let requester = requester_sealed.map(|sealed| keys.open(Sealed::Requester, &sealed)).transpose()?;
    Ok(Session {
        sid,
        threepid: Threepid::stored(medium, address),
        client_secret_hash: fixed(secret_hash, "client secret hash")?,
        attempts,
        next_link,
        requester: requester.map(|mxid| stored_mxid(&mxid)).transpose()?,
        requested_ms,
        validated_ms,
    })
}
