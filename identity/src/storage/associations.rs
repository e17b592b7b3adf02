//! Associations, and the change feed by which replicas follow each other.

use futures_util::{TryStreamExt as _, stream::TryChunksError};
use sqlx::{PgPool, SqlitePool};
use tokio::sync::mpsc;
use waypost_shared::{hex, random, trace::Span};

use crate::domain::{
    association::Association,
    invite::PendingInvite,
    mxid::Mxid,
    sealing::{Sealed, StorageKeys},
    threepid::{Medium, Threepid},
};

use super::{Begun, Store, StoreError, in_begun, on_db, stored_mxid};

/// Rows per batch when all associations are read.
const BATCH: u16 = 4096;

/// The current owner of an address.
#[derive(Debug)]
pub(crate) struct Change {
    /// The address.
    pub(crate) threepid: Threepid,
    /// The owner; none if the address was unbound.
    pub(crate) mxid: Option<Mxid>,
}

/// A replica's position in the change feed. On PostgreSQL the oldest transaction still running at the last poll; on
/// SQLite the number of the next change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ChangeCursor(i64);

type Row = (String, Vec<u8>, Option<String>);
type InviteRow = (Vec<u8>, String, String, String, Option<Vec<u8>>, i64);

/// A bind that has begun; see [`Store::begin_bind`].
#[derive(Debug)]
pub(crate) struct Binding {
    tx: Begun,
    mxid: Mxid,
    bound_ms: i64,
    /// The invites that it takes.
    pub(crate) invites: Vec<PendingInvite>,
    _span: Option<Span>,
}

impl Binding {
    /// Puts `onbind`, the call that informs the user's homeserver, into the outbox, and makes the bind take effect.
    /// Returns the invites that it took.
    pub(crate) async fn commit(mut self, keys: &StorageKeys, onbind: &str) -> Result<Vec<PendingInvite>, StoreError> {
        in_begun!(&mut self.tx, tx => {
            sqlx::query("INSERT INTO outbox (id, mxid, payload_sealed, since_ms, due_ms) VALUES ($1, $2, $3, $4, $4)")
                .bind(random::token())
                .bind(self.mxid.as_str())
                .bind(keys.seal(Sealed::Outbox, onbind))
                .bind(self.bound_ms)
                .execute(&mut **tx)
                .await?;
        });
        self.tx.commit().await?;
        Ok(self.invites)
    }
}

/// A batch of stored associations, still sealed: opening them takes CPU time and belongs on another thread than the one
/// that reads.
#[derive(Debug)]
pub(crate) enum StoredAssociations {
    /// One row each.
    Rows(Vec<Row>),
    /// All in one text, separated by NUL, since a Matrix id may contain any other character. Each consists of the first
    /// letter of the medium, the sealed address in hexadecimal, and the Matrix id.
    Joined(String),
}

impl StoredAssociations {
    /// Opens the addresses. Fails if a single one cannot be opened.
    pub(crate) fn open(self, keys: &StorageKeys) -> Result<Vec<Change>, StoreError> {
        match self {
            Self::Rows(rows) => rows.into_iter().map(|row| change(keys, row)).collect(),
            Self::Joined(rows) => rows.split('\0').map(|row| from_text(keys, row)).collect(),
        }
    }
}

fn from_text(keys: &StorageKeys, row: &str) -> Result<Change, StoreError> {
    let corrupt = || StoreError::Corrupt("association");
    let (medium, rest) = row.split_at_checked(1).ok_or_else(corrupt)?;
    let medium = [Medium::Email, Medium::Msisdn].into_iter().find(|known| known.as_str().starts_with(medium));
    let (sealed, mxid) = rest.split_at(rest.find('@').ok_or_else(corrupt)?);
    let address = keys.open(Sealed::Association, &hex::decode(sealed).ok_or_else(corrupt)?)?;
    let threepid = Threepid::stored(medium.ok_or_else(corrupt)?, address);
    Ok(Change { threepid, mxid: Some(stored_mxid(mxid)?) })
}

impl Store {
    /// Begins to bind an address to a Matrix id, replacing any previous owner, and takes the invites waiting for it. The
    /// bind ends with [`Binding::commit`]; without it, nothing has happened.
    ///
    /// One transaction: an invite is taken by exactly one bind, a bind that fails takes none, and every bind has its
    /// outbox row. No other bind or invite of this address gets in between.
    pub(crate) async fn begin_bind(
        &self,
        keys: &StorageKeys,
        association: &Association,
    ) -> Result<Binding, StoreError> {
        let threepid = &association.threepid;
        let fingerprint = keys.fingerprint(threepid);
        let (mut tx, span) = self.begin_for(&fingerprint).await?;
        let rows: Vec<InviteRow> = in_begun!(&mut tx, tx => {
            sqlx::query(
                "INSERT INTO associations (fingerprint, medium, address_sealed, mxid, bound_ms)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (fingerprint) DO UPDATE
                    SET address_sealed = excluded.address_sealed, mxid = excluded.mxid, bound_ms = excluded.bound_ms",
            )
            .bind(&fingerprint[..])
            .bind(threepid.medium().as_str())
            .bind(keys.seal(Sealed::Association, threepid.address()))
            .bind(association.mxid.as_str())
            .bind(association.bound_ms)
            .execute(&mut **tx)
            .await?;
            let rows: Vec<InviteRow> = sqlx::query_as(
                "DELETE FROM invites WHERE fingerprint = $1 AND expires_ms > $2
                 RETURNING token_sealed, room_id, sender, key_id, ephemeral_key, created_ms",
            )
            .bind(&fingerprint[..])
            .bind(association.bound_ms)
            .fetch_all(&mut **tx)
            .await?;
            for (_, _, _, _, ephemeral_key, _) in &rows {
                sqlx::query("UPDATE ephemeral_keys SET expires_ms = NULL WHERE public_key = $1")
                    .bind(ephemeral_key)
                    .execute(&mut **tx)
                    .await?;
            }
            rows
        });
        Ok(Binding {
            tx,
            mxid: association.mxid.clone(),
            bound_ms: association.bound_ms,
            invites: taken(keys, rows)?,
            _span: span,
        })
    }

    /// The number of bound addresses.
    pub(crate) async fn count_associations(&self) -> Result<usize, StoreError> {
        let count: i64 = on_db!(self, pool => {
            sqlx::query_scalar("SELECT COUNT(*) FROM associations WHERE mxid IS NOT NULL").fetch_one(pool).await?
        });
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// Sends all associations to `to` and returns the position in the change feed from which to continue. Stops early
    /// if the receiver is dropped.
    pub(crate) async fn all_associations(
        &self,
        to: mpsc::Sender<StoredAssociations>,
    ) -> Result<ChangeCursor, StoreError> {
        let cursor = self.change_cursor().await?;
        match self {
            Self::Sqlite { read, .. } => sqlite_associations(read, &to).await?,
            Self::Postgres(pool) => postgres_associations(pool, &to).await?,
        }
        Ok(cursor)
    }

    /// The changes since `since`, some possibly repeated, and the new position.
    ///
    /// On PostgreSQL every transaction that was still running at the last poll has a number of at least `since`, so its
    /// changes are found however late it commits.
    pub(crate) async fn changes_since(
        &self,
        keys: &StorageKeys,
        since: ChangeCursor,
    ) -> Result<(Vec<Change>, ChangeCursor), StoreError> {
        let cursor = self.change_cursor().await?;
        let rows: Vec<Row> = on_db!(self, pool => {
            sqlx::query_as(
                "SELECT medium, address_sealed, mxid FROM associations WHERE changed >= $1 ORDER BY changed",
            )
            .bind(since.0)
            .fetch_all(pool)
            .await?
        });
        let changes = rows.into_iter().map(|row| change(keys, row)).collect::<Result<_, _>>()?;
        Ok((changes, cursor))
    }

    /// Must be taken before the rows are read: changes committed in between are then read twice rather than missed.
    async fn change_cursor(&self) -> Result<ChangeCursor, StoreError> {
        let number = match self {
            Self::Sqlite { read, .. } => {
                sqlx::query_scalar("SELECT number + 1 FROM association_changes").fetch_one(read).await?
            }
            Self::Postgres(pool) => {
                let oldest = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint";
                sqlx::query_scalar(oldest).fetch_one(pool).await?
            }
        };
        Ok(ChangeCursor(number))
    }
}

/// Passing a row from sqlx's SQLite thread to ours takes longer than reading it, so SQLite joins thousands of rows into
/// one text. Associations bound meanwhile have later row ids or are among the changes since the cursor.
async fn sqlite_associations(pool: &SqlitePool, to: &mpsc::Sender<StoredAssociations>) -> Result<(), sqlx::Error> {
    const SELECT: &str = "SELECT group_concat(substr(medium, 1, 1) || hex(address_sealed) || mxid, char(0))
          FROM associations WHERE rowid > $1 AND rowid <= $2 AND mxid IS NOT NULL";
    let last: Option<i64> = sqlx::query_scalar("SELECT MAX(rowid) FROM associations").fetch_one(pool).await?;
    let mut done = 0;
    while done < last.unwrap_or_default() {
        let until = i64::saturating_add(done, BATCH.into());
        let rows: Option<String> = sqlx::query_scalar(SELECT).bind(done).bind(until).fetch_one(pool).await?;
        if let Some(rows) = rows
            && to.send(StoredAssociations::Joined(rows)).await.is_err()
        {
            break;
        }
        done = until;
    }
    Ok(())
}

async fn postgres_associations(pool: &PgPool, to: &mpsc::Sender<StoredAssociations>) -> Result<(), sqlx::Error> {
    const SELECT: &str = "SELECT medium, address_sealed, mxid FROM associations WHERE mxid IS NOT NULL";
    let mut batches = sqlx::query_as::<_, Row>(SELECT).fetch(pool).try_chunks(BATCH.into());
    while let Some(rows) = batches.try_next().await.map_err(|TryChunksError(_, error)| error)? {
        if to.send(StoredAssociations::Rows(rows)).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn change(keys: &StorageKeys, (medium, address_sealed, mxid): Row) -> Result<Change, StoreError> {
    let medium = Medium::parse(&medium).ok_or(StoreError::Corrupt("medium"))?;
    let address = keys.open(Sealed::Association, &address_sealed)?;
    Ok(Change { threepid: Threepid::stored(medium, address), mxid: mxid.as_deref().map(stored_mxid).transpose()? })
}

/// Opens the rows of invites, oldest first.
fn taken(keys: &StorageKeys, mut rows: Vec<InviteRow>) -> Result<Vec<PendingInvite>, StoreError> {
    rows.sort_by_key(|(.., created_ms)| *created_ms);
    let invites = rows.into_iter().map(|(token_sealed, room_id, sender, key_id, _, _)| {
        let token = keys.open(Sealed::InviteToken, &token_sealed)?;
        Ok(PendingInvite { token, room_id, sender: stored_mxid(&sender)?, key_id })
    });
    invites.collect()
}
