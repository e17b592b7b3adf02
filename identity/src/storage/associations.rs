//! Associations, and how replicas follow each other's changes.

use futures_util::TryStreamExt as _;
use ruma_common::canonical_json::CanonicalJsonError;
use tokio::sync::mpsc;
use waypost_shared::random;

use crate::domain::{
    association::Association,
    invite::PendingInvite,
    sealing::{Sealed, StorageKeys},
    threepid::{Medium, Threepid},
};

use super::{Store, StoreError, in_tx_for, on_db};

/// Rows that are handed on at once when all are read.
const BATCH: usize = 4096;

/// An address and its owner now; none when it was unbound.
#[derive(Debug)]
pub(crate) struct Change {
    /// The address.
    pub(crate) threepid: Threepid,
    /// Whose it is.
    pub(crate) mxid: Option<String>,
}

/// Up to where a replica has seen what others changed. On PostgreSQL the oldest transaction that had not ended when it
/// looked; on SQLite the number of the next change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(i64);

type Row = (String, Vec<u8>, Option<String>);
type InviteRow = (Vec<u8>, String, String, String, Option<Vec<u8>>, i64);

/// An association as it is stored. Opening it is work for another thread than the one that reads.
#[derive(Debug)]
pub(crate) struct StoredAssociation(Row);

impl StoredAssociation {
    /// Opens the address.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) fn open(self, keys: &StorageKeys) -> Result<Change, StoreError> {
        change(keys, self.0)
    }
}

impl Store {
    /// Binds an address to a Matrix id, whoever had it before, takes the invites that waited for it, and puts what
    /// `letter` makes of them into the outbox for the user's homeserver.
    ///
    /// One transaction: an invite is returned by exactly one bind, a bind that fails takes none, and no bind is without
    /// its letter.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn bind(
        &self,
        keys: &StorageKeys,
        association: &Association,
        letter: impl FnOnce(&[PendingInvite]) -> Result<String, CanonicalJsonError>,
    ) -> Result<Vec<PendingInvite>, StoreError> {
        let threepid = &association.threepid;
        let fingerprint = keys.fingerprint(threepid);
        Ok(in_tx_for!(self, &fingerprint, tx => {
            sqlx::query(
                "INSERT INTO associations (fingerprint, medium, address_sealed, mxid, bound_ms)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (fingerprint) DO UPDATE
                    SET address_sealed = excluded.address_sealed, mxid = excluded.mxid, bound_ms = excluded.bound_ms",
            )
            .bind(&fingerprint[..])
            .bind(threepid.medium().as_str())
            .bind(keys.seal(Sealed::Association, threepid.address()))
            .bind(&association.mxid)
            .bind(association.bound_ms)
            .execute(&mut *tx)
            .await?;
            let rows: Vec<InviteRow> = sqlx::query_as(
                "DELETE FROM invites WHERE fingerprint = $1 AND expires_ms > $2
                 RETURNING token_sealed, room_id, sender, key_id, ephemeral_key, created_ms",
            )
            .bind(&fingerprint[..])
            .bind(association.bound_ms)
            .fetch_all(&mut *tx)
            .await?;
            for (_, _, _, _, ephemeral_key, _) in &rows {
                sqlx::query("UPDATE ephemeral_keys SET expires_ms = NULL WHERE public_key = $1")
                    .bind(ephemeral_key)
                    .execute(&mut *tx)
                    .await?;
            }
            let invites = taken(keys, rows)?;
            sqlx::query("INSERT INTO outbox (id, mxid, payload_sealed, since_ms, due_ms) VALUES ($1, $2, $3, $4, $4)")
                .bind(random::token())
                .bind(&association.mxid)
                .bind(keys.seal(Sealed::Outbox, &letter(&invites)?))
                .bind(association.bound_ms)
                .execute(&mut *tx)
                .await?;
            invites
        }))
    }

    /// How many addresses belong to somebody.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn count_associations(&self) -> Result<usize, StoreError> {
        let count: i64 = on_db!(self, pool => {
            sqlx::query_scalar("SELECT COUNT(*) FROM associations WHERE mxid IS NOT NULL").fetch_one(pool).await?
        });
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// Gives all associations to `to`, and says up to where changes are contained. Ends early when nobody takes them.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn all_associations(&self, to: mpsc::Sender<Vec<StoredAssociation>>) -> Result<Seen, StoreError> {
        const SELECT: &str = "SELECT medium, address_sealed, mxid FROM associations WHERE mxid IS NOT NULL";
        let seen = self.seen().await?;
        let mut batch = Vec::with_capacity(BATCH);
        on_db!(self, pool => {
            let mut rows = sqlx::query_as::<_, Row>(SELECT).fetch(pool);
            while let Some(row) = rows.try_next().await? {
                batch.push(StoredAssociation(row));
                if batch.len() == BATCH {
                    let full = std::mem::replace(&mut batch, Vec::with_capacity(BATCH));
                    if to.send(full).await.is_err() {
                        return Ok(seen);
                    }
                }
            }
        });
        drop(to.send(batch).await);
        Ok(seen)
    }

    /// What changed since `since`, some of it perhaps for the second time, and up to where that goes.
    ///
    /// On PostgreSQL a transaction that had not ended at the last look has a number that is not below `since`, so a
    /// late commit is found however late it is.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn changes_since(
        &self,
        keys: &StorageKeys,
        since: Seen,
    ) -> Result<(Vec<Change>, Seen), StoreError> {
        let seen = self.seen().await?;
        let rows: Vec<Row> = on_db!(self, pool => {
            sqlx::query_as(
                "SELECT medium, address_sealed, mxid FROM associations WHERE changed >= $1 ORDER BY changed",
            )
            .bind(since.0)
            .fetch_all(pool)
            .await?
        });
        let changes = rows.into_iter().map(|row| change(keys, row)).collect::<Result<_, _>>()?;
        Ok((changes, seen))
    }

    /// Asked before the rows are read: what commits in between is then read twice and not missed.
    async fn seen(&self) -> Result<Seen, StoreError> {
        let number = match self {
            Self::Sqlite { read, .. } => {
                sqlx::query_scalar("SELECT number + 1 FROM association_changes").fetch_one(read).await?
            }
            Self::Postgres(pool) => {
                let oldest = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint";
                sqlx::query_scalar(oldest).fetch_one(pool).await?
            }
        };
        Ok(Seen(number))
    }
}

fn change(keys: &StorageKeys, (medium, address_sealed, mxid): Row) -> Result<Change, StoreError> {
    let medium = Medium::parse(&medium).ok_or(StoreError::Nonsense("medium"))?;
    let address = keys.open(Sealed::Association, &address_sealed)?;
    Ok(Change { threepid: Threepid::stored(medium, address), mxid })
}

/// The invites of rows, the oldest first.
fn taken(keys: &StorageKeys, mut rows: Vec<InviteRow>) -> Result<Vec<PendingInvite>, StoreError> {
    rows.sort_by_key(|(.., created_ms)| *created_ms);
    let invites = rows.into_iter().map(|(token_sealed, room_id, sender, key_id, _, _)| {
        let token = keys.open(Sealed::InviteToken, &token_sealed)?;
        Ok(PendingInvite { token, room_id, sender, key_id })
    });
    invites.collect()
}
