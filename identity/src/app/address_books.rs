//! A cache of the addresses that accounts have looked up (see [`AddressBook`]).

use std::sync::Arc;

use moka::sync::Cache;
use parking_lot::RwLock;
use tokio::sync::Mutex;

use crate::domain::{address_book::AddressBook, mxid::Mxid};

/// Maximum number of addresses in all cached books together: some 20 MiB.
const MAX_CACHED: u64 = 2_000_000;
/// What an empty book counts as, in addresses.
const EMPTY: usize = 32;

/// The address books of active accounts.
#[derive(Debug)]
pub(crate) struct AddressBooks {
    cached: Cache<Mxid, Arc<Cached>>,
}

/// The address book of one account.
#[derive(Debug, Default)]
pub(crate) struct Cached {
    pub(crate) book: RwLock<AddressBook>,
    /// Held while new addresses are charged, so that two requests for the same ones are charged once.
    pub(crate) charging: Mutex<()>,
}

impl Default for AddressBooks {
    fn default() -> Self {
        let weigher = |_: &Mxid, cached: &Arc<Cached>| {
            u32::try_from(cached.book.read().len().saturating_add(EMPTY)).unwrap_or(u32::MAX)
        };
        Self { cached: Cache::builder().max_capacity(MAX_CACHED).weigher(weigher).build() }
    }
}

impl AddressBooks {
    /// The cached book of an account: a new, empty one if there is none.
    pub(crate) fn of(&self, mxid: &Mxid) -> Arc<Cached> {
        self.cached.get_with_by_ref(mxid, Arc::default)
    }

    /// Weighs a book again that has grown.
    pub(crate) fn grown(&self, mxid: &Mxid, cached: &Arc<Cached>) {
        self.cached.insert(mxid.clone(), cached.clone());
    }

    /// Forgets the book of a user who was erased.
    pub(crate) fn forget(&self, mxid: &Mxid) {
        self.cached.invalidate(mxid);
    }
}
