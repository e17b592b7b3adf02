//! The addresses that accounts have looked up, and when homeservers were first seen: what the budgets of lookups depend
//! on.

use crate::domain::{
    address_book::AddressBook,
    sealing::{Fingerprint, Sealed, StorageKeys},
};

use super::{Store, StoreError, on_db, write_db};

impl Store {
    /// The address book of the account with this fingerprint; an empty one if none is stored.
    pub(crate) async fn address_book(
        &self,
        keys: &StorageKeys,
        account: &Fingerprint,
    ) -> Result<AddressBook, StoreError> {
        let sealed: Option<Vec<u8>> = on_db!(self, pool => {
            sqlx::query_scalar("SELECT sealed FROM address_books WHERE account = $1")
                .bind(&account[..])
                .fetch_optional(pool)
                .await?
        });
        let Some(sealed) = sealed else { return Ok(AddressBook::default()) };
        Ok(AddressBook::from_bytes(&keys.open_bytes(Sealed::AddressBook, &sealed)?))
    }

    /// Stores an address book. It is sealed: the hashes of phone numbers can be reversed.
    pub(crate) async fn put_address_book(
        &self,
        keys: &StorageKeys,
        account: &Fingerprint,
        book: &[u8],
        now_ms: i64,
    ) -> Result<(), StoreError> {
        write_db!(self, pool => {
            sqlx::query(
                "INSERT INTO address_books (account, sealed, changed_ms) VALUES ($1, $2, $3)
                 ON CONFLICT (account) DO UPDATE SET sealed = excluded.sealed, changed_ms = excluded.changed_ms",
            )
            .bind(&account[..])
            .bind(keys.seal_bytes(Sealed::AddressBook, book))
            .bind(now_ms)
            .execute(pool)
            .await?;
        });
        Ok(())
    }

    /// Deletes up to `most` address books last changed before `changed_ms`; returns how many.
    pub(crate) async fn delete_old_address_books(&self, changed_ms: i64, most: i64) -> Result<u64, StoreError> {
        Ok(write_db!(self, pool => {
            sqlx::query(
                "DELETE FROM address_books WHERE changed_ms < $1 AND account IN
                     (SELECT account FROM address_books WHERE changed_ms < $1 LIMIT $2)",
            )
            .bind(changed_ms)
            .bind(most)
            .execute(pool)
            .await?
            .rows_affected()
        }))
    }

    /// When users of this homeserver (the fingerprint of its owner) were first seen, in milliseconds since the epoch:
    /// `now_ms`, if they were not.
    pub(crate) async fn homeserver_since(&self, owner: &Fingerprint, now_ms: i64) -> Result<i64, StoreError> {
        let known: Option<i64> = on_db!(self, pool => {
            sqlx::query_scalar("SELECT first_seen_ms FROM homeservers WHERE owner = $1")
                .bind(&owner[..])
                .fetch_optional(pool)
                .await?
        });
        if let Some(first_seen_ms) = known {
            return Ok(first_seen_ms);
        }
        write_db!(self, pool => {
            sqlx::query("INSERT INTO homeservers (owner, first_seen_ms) VALUES ($1, $2) ON CONFLICT (owner) DO NOTHING")
                .bind(&owner[..])
                .bind(now_ms)
                .execute(pool)
                .await?;
        });
        Ok(now_ms)
    }
}
