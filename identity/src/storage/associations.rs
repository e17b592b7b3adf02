//! Associations, and how replicas follow each other's changes.

use futures_util::TryStreamExt as _;
use sqlx::postgres::PgListener;

use crate::domain::{
    association::Association,
    sealing::{Sealed, StorageKeys},
    threepid::{Medium, Threepid},
};

use super::{Store, StoreError, write_db};

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

impl Store {
    /// Binds an address to a Matrix id, whoever had it before.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn bind(&self, keys: &StorageKeys, association: &Association) -> Result<(), StoreError> {
        let threepid = &association.threepid;
        write_db!(self, pool => {
            sqlx::query(
                "INSERT INTO associations (fingerprint, medium, address_sealed, mxid, bound_ms)
                 VALUES ($1, $2, $3, $4, $5)
                 ON CONFLICT (fingerprint) DO UPDATE
                    SET address_sealed = excluded.address_sealed, mxid = excluded.mxid, bound_ms = excluded.bound_ms",
            )
            .bind(&keys.fingerprint(threepid)[..])
            .bind(threepid.medium().as_str())
            .bind(keys.seal(Sealed::Association, threepid.address()))
            .bind(&association.mxid)
            .bind(association.bound_ms)
            .execute(pool)
            .await?;
        });
        Ok(())
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
