//! Associations, and how replicas follow each other's changes.

use futures_util::TryStreamExt as _;
use ruma_common::canonical_json::CanonicalJsonError;
use sqlx::postgres::PgListener;
use waypost_shared::random;

use crate::domain::{
    association::Association,
    invite::PendingInvite,
    sealing::{Fingerprint, Sealed, StorageKeys},
    threepid::{Medium, Threepid},
};

use super::{Store, StoreError, in_tx_for, write_db};

/// The channel on which PostgreSQL tells that associations changed.
const CHANNEL: &str = "waypost_associations";

/// An address and its owner now; none when it was unbound.
#[derive(Debug)]
pub(crate) struct Change {
    /// The address.
    pub(crate) threepid: Threepid,
    /// Whose it is.
    pub(crate) mxid: Option<String>,
}

/// Up to where a replica has seen what others changed: the oldest transaction that had not ended when it looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen(i64);

type Row = (String, Vec<u8>, Option<String>);
type InviteRow = (Vec<u8>, String, String, String, Option<Vec<u8>>, i64);

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

    /// Unbinds an address from `mxid`. Whether it was bound to it. The row stays for a while without an owner, so that
    /// other replicas hear of it.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn unbind(&self, fingerprint: &Fingerprint, mxid: &str, now_ms: i64) -> Result<bool, StoreError> {
        let unbound = write_db!(self, pool => {
            sqlx::query("UPDATE associations SET mxid = NULL, bound_ms = $3 WHERE fingerprint = $1 AND mxid = $2")
                .bind(&fingerprint[..])
                .bind(mxid)
                .bind(now_ms)
                .execute(pool)
                .await?
                .rows_affected()
        });
        Ok(unbound > 0)
    }

    /// Removes up to `most` rows of addresses that were unbound before `before_ms`; how many.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn delete_unbound(&self, before_ms: i64, most: i64) -> Result<u64, StoreError> {
        Ok(write_db!(self, pool => {
            sqlx::query(
                "DELETE FROM associations WHERE mxid IS NULL AND fingerprint IN
                     (SELECT fingerprint FROM associations WHERE mxid IS NULL AND bound_ms < $1 LIMIT $2)",
            )
            .bind(before_ms)
            .bind(most)
            .execute(pool)
            .await?
            .rows_affected()
        }))
    }

    /// Gives every association to `each`, and says up to where changes are contained.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; one address that does not open ends it, because a lookup must not miss anybody silently.
    pub(crate) async fn each_association(
        &self,
        keys: &StorageKeys,
        mut each: impl FnMut(Change),
    ) -> Result<Seen, StoreError> {
        const SELECT: &str = "SELECT medium, address_sealed, mxid FROM associations WHERE mxid IS NOT NULL";
        match self {
            Self::Sqlite { read, .. } => {
                let mut rows = sqlx::query_as(SELECT).fetch(read);
                while let Some(row) = rows.try_next().await? {
                    each(change(keys, row)?);
                }
                Ok(Seen::default())
            }
            Self::Postgres(pool) => {
                let seen = seen(pool).await?;
                let mut rows = sqlx::query_as(SELECT).fetch(pool);
                while let Some(row) = rows.try_next().await? {
                    each(change(keys, row)?);
                }
                Ok(seen)
            }
        }
    }

    /// What changed since `seen`, some of it perhaps for the second time, and up to where that goes.
    ///
    /// A transaction that had not ended at the last look has a number that is not below `seen`, so a late commit is
    /// found however late it is. SQLite has one process, which needs no telling.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn changes_since(
        &self,
        keys: &StorageKeys,
        since: Seen,
    ) -> Result<(Vec<Change>, Seen), StoreError> {
        let Self::Postgres(pool) = self else { return Ok((Vec::new(), since)) };
        let seen = seen(pool).await?;
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT medium, address_sealed, mxid FROM associations WHERE changed >= $1 ORDER BY changed",
        )
        .bind(since.0)
        .fetch_all(pool)
        .await?;
        let changes = rows.into_iter().map(|row| change(keys, row)).collect::<Result<_, _>>()?;
        Ok((changes, seen))
    }

    /// Listens for hints that associations changed; none on SQLite.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn association_hints(&self) -> Result<Option<PgListener>, StoreError> {
        let Self::Postgres(pool) = self else { return Ok(None) };
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(Some(listener))
    }
}

/// Asked before the rows are read: what commits in between is then read twice and not missed.
async fn seen(pool: &sqlx::PgPool) -> Result<Seen, StoreError> {
    let xmin =
        sqlx::query_scalar("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint").fetch_one(pool).await?;
    Ok(Seen(xmin))
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
