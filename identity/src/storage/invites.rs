//! Pending invites, which wait for their address to be bound, and their ephemeral keys.

use crate::domain::{
    mxid::Mxid,
    sealing::{Fingerprint, Sealed, StorageKeys},
    threepid::Threepid,
};

use super::{Store, StoreError, fixed, in_tx, in_tx_for, on_db, stored_mxid, write_db};

/// An invite to store. Times are in milliseconds since the epoch.
#[derive(Debug)]
pub(crate) struct NewInvite<'a> {
    /// Identifies the invite in the room.
    pub(crate) token: &'a str,
    /// The invited address.
    pub(crate) threepid: &'a Threepid,
    /// The room.
    pub(crate) room_id: &'a str,
    /// The inviting user.
    pub(crate) sender: &'a Mxid,
    /// The id of the signing key whose public key is put into the room.
    pub(crate) key_id: &'a str,
    /// The public key generated for this invite.
    pub(crate) ephemeral_key: [u8; 32],
    /// The current time.
    pub(crate) now_ms: i64,
    /// When it expires.
    pub(crate) expires_ms: i64,
}

/// The sender of an invite and its ephemeral key, if known.
#[derive(Debug)]
pub(crate) struct InviteTerms {
    /// The inviting user.
    pub(crate) sender: Mxid,
    /// The public key generated for the invite.
    pub(crate) ephemeral_key: Option<[u8; 32]>,
}

/// An invite, as listed for operators. Times are in milliseconds since the epoch.
#[derive(Debug)]
pub(crate) struct ListedInvite {
    /// Identifies the invite in the room.
    pub(crate) token: String,
    /// The invited address.
    pub(crate) address: String,
    /// The room.
    pub(crate) room_id: String,
    /// The inviting user.
    pub(crate) sender: Mxid,
    /// When it was stored.
    pub(crate) created_ms: i64,
    /// When it expires.
    pub(crate) expires_ms: i64,
}

type ListedRow = (Vec<u8>, Vec<u8>, String, String, i64, i64);

impl Store {
    /// The owner of an address.
    pub(crate) async fn owner(&self, fingerprint: &Fingerprint) -> Result<Option<Mxid>, StoreError> {
        let owner: Option<Option<String>> = on_db!(self, pool => {
            sqlx::query_scalar("SELECT mxid FROM associations WHERE fingerprint = $1")
                .bind(&fingerprint[..])
                .fetch_optional(pool)
                .await?
        });
        owner.flatten().as_deref().map(stored_mxid).transpose()
    }

    /// Stores an invite and its key, unless the address is already bound: then the owner is returned.
    ///
    /// One transaction, serialised per address: a bind either comes later and takes the invite, or came earlier and is
    /// seen here.
    pub(crate) async fn add_invite(
        &self,
        keys: &StorageKeys,
        invite: &NewInvite<'_>,
    ) -> Result<Option<Mxid>, StoreError> {
        let fingerprint = keys.fingerprint(invite.threepid);
        let owner: Option<String> = in_tx_for!(self, &fingerprint, tx => {
            let owner: Option<Option<String>> = sqlx::query_scalar("SELECT mxid FROM associations WHERE fingerprint = $1")
                .bind(&fingerprint[..])
                .fetch_optional(&mut *tx)
                .await?;
            let owner = owner.flatten();
            if owner.is_none() {
                sqlx::query(
                    "INSERT INTO invites
                         (token_hash, token_sealed, medium, fingerprint, address_sealed, room_id, sender, key_id,
                          ephemeral_key, created_ms, expires_ms)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                )
                .bind(&keys.invite_token_hash(invite.token)[..])
                .bind(keys.seal(Sealed::InviteToken, invite.token))
                .bind(invite.threepid.medium().as_str())
                .bind(&fingerprint[..])
                .bind(keys.seal(Sealed::InviteAddress, invite.threepid.address()))
                .bind(invite.room_id)
                .bind(invite.sender.as_str())
                .bind(invite.key_id)
                .bind(&invite.ephemeral_key[..])
                .bind(invite.now_ms)
                .bind(invite.expires_ms)
                .execute(&mut *tx)
                .await?;
                sqlx::query("INSERT INTO ephemeral_keys (public_key, expires_ms) VALUES ($1, $2)")
                    .bind(&invite.ephemeral_key[..])
                    .bind(invite.expires_ms)
                    .execute(&mut *tx)
                    .await?;
            }
            owner
        });
        owner.as_deref().map(stored_mxid).transpose()
    }

    /// The terms of the invite with this token, if it is still pending.
    pub(crate) async fn invite(
        &self,
        keys: &StorageKeys,
        token: &str,
        now_ms: i64,
    ) -> Result<Option<InviteTerms>, StoreError> {
        let row: Option<(String, Option<Vec<u8>>)> = on_db!(self, pool => {
            sqlx::query_as("SELECT sender, ephemeral_key FROM invites WHERE token_hash = $1 AND expires_ms > $2")
                .bind(&keys.invite_token_hash(token)[..])
                .bind(now_ms)
                .fetch_optional(pool)
                .await?
        });
        row.map(|(sender, ephemeral_key)| {
            let ephemeral_key = ephemeral_key.map(|key| fixed(key, "ephemeral key")).transpose()?;
            Ok(InviteTerms { sender: stored_mxid(&sender)?, ephemeral_key })
        })
        .transpose()
    }

    /// Revokes an invite and its key. Returns whether it existed.
    pub(crate) async fn revoke_invite(&self, keys: &StorageKeys, token: &str) -> Result<bool, StoreError> {
        let token_hash = keys.invite_token_hash(token);
        let deleted = in_tx!(self, tx => {
            sqlx::query(
                "DELETE FROM ephemeral_keys WHERE public_key IN (SELECT ephemeral_key FROM invites WHERE token_hash = $1)",
            )
            .bind(&token_hash[..])
            .execute(&mut *tx)
            .await?;
            sqlx::query("DELETE FROM invites WHERE token_hash = $1")
                .bind(&token_hash[..])
                .execute(&mut *tx)
                .await?
                .rows_affected()
        });
        Ok(deleted > 0)
    }

    /// Revokes all invites stored before `before_ms`; returns how many.
    pub(crate) async fn revoke_invites_before(&self, before_ms: i64) -> Result<u64, StoreError> {
        Ok(in_tx!(self, tx => {
            sqlx::query(
                "DELETE FROM ephemeral_keys WHERE public_key IN (SELECT ephemeral_key FROM invites WHERE created_ms < $1)",
            )
            .bind(before_ms)
            .execute(&mut *tx)
            .await?;
            sqlx::query("DELETE FROM invites WHERE created_ms < $1")
                .bind(before_ms)
                .execute(&mut *tx)
                .await?
                .rows_affected()
        }))
    }

    /// All pending invites, oldest first.
    pub(crate) async fn invites(&self, keys: &StorageKeys, now_ms: i64) -> Result<Vec<ListedInvite>, StoreError> {
        let rows: Vec<ListedRow> = on_db!(self, pool => {
            sqlx::query_as(
                "SELECT token_sealed, address_sealed, room_id, sender, created_ms, expires_ms
                   FROM invites WHERE expires_ms > $1 ORDER BY created_ms",
            )
            .bind(now_ms)
            .fetch_all(pool)
            .await?
        });
        rows.into_iter()
            .map(|(token_sealed, address_sealed, room_id, sender, created_ms, expires_ms)| {
                let token = keys.open(Sealed::InviteToken, &token_sealed)?;
                let address = keys.open(Sealed::InviteAddress, &address_sealed)?;
                Ok(ListedInvite { token, address, room_id, sender: stored_mxid(&sender)?, created_ms, expires_ms })
            })
            .collect()
    }

    /// Whether `public_key` is the ephemeral key of an invite that is pending or was taken.
    pub(crate) async fn is_ephemeral_key(&self, public_key: &[u8; 32], now_ms: i64) -> Result<bool, StoreError> {
        let found: Option<i64> = on_db!(self, pool => {
            sqlx::query_scalar(
                "SELECT CAST(1 AS BIGINT) FROM ephemeral_keys
                  WHERE public_key = $1 AND (expires_ms IS NULL OR expires_ms > $2)",
            )
            .bind(&public_key[..])
            .bind(now_ms)
            .fetch_optional(pool)
            .await?
        });
        Ok(found.is_some())
    }

    /// Deletes up to `most` expired invites and as many expired keys; returns the total.
    pub(crate) async fn delete_expired_invites(&self, now_ms: i64, most: i64) -> Result<u64, StoreError> {
        let invites = write_db!(self, pool => {
            sqlx::query(
                "DELETE FROM invites WHERE token_hash IN
                     (SELECT token_hash FROM invites WHERE expires_ms <= $1 LIMIT $2)",
            )
            .bind(now_ms)
            .bind(most)
            .execute(pool)
            .await?
            .rows_affected()
        });
        let keys = write_db!(self, pool => {
            sqlx::query(
                "DELETE FROM ephemeral_keys WHERE public_key IN
                     (SELECT public_key FROM ephemeral_keys WHERE expires_ms <= $1 LIMIT $2)",
            )
            .bind(now_ms)
            .bind(most)
            .execute(pool)
            .await?
            .rows_affected()
        });
        Ok(invites + keys)
    }
}
