//! A cache of access tokens that were recently found in the database, so that most requests need not query it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::RwLock;
use waypost_shared::{clock::millis, owner::Owner};

use crate::domain::{mxid::Mxid, sealing::Fingerprint};

/// Maximum number of cached tokens; more than any replica sees within the lifetime of an entry.
const MAX_CACHED: usize = 100_000;

/// The user that a request's token belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) mxid: Mxid,
    pub(crate) homeserver: Arc<str>,
    /// The owner of the homeserver, whose rate limits cover all homeservers that they can create.
    pub(crate) owner: Owner,
    pub(crate) token_hash: Fingerprint,
    /// Whether the user has accepted the terms of the configuration under which the account was read.
    pub(crate) terms_accepted: bool,
}

/// A cache of access tokens that were recently found in the database.
#[derive(Debug)]
pub(crate) struct TokenCache {
    lives_ms: i64,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    tokens: HashMap<Fingerprint, (Account, i64)>,
    /// The number of invalidations. What was read from the database before the last one may have been revoked since.
    forgotten: u64,
    /// The generation of the configuration that the accounts belong to.
    configuration: u64,
}

impl TokenCache {
    /// A cache whose entries expire after `lives`.
    pub(crate) fn new(lives: Duration) -> Self {
        Self { lives_ms: millis(lives), known: RwLock::default() }
    }

    /// The account of a token, if it is cached and has not expired.
    pub(crate) fn get(&self, token_hash: &Fingerprint, now_ms: i64) -> Option<Account> {
        let known = self.known.read();
        known.tokens.get(token_hash).filter(|(_, until_ms)| *until_ms > now_ms).map(|(account, _)| account.clone())
    }

    /// The number of invalidations: read it before the database, and pass it to [`TokenCache::put`].
    pub(crate) fn forgotten(&self) -> u64 {
        self.known.read().forgotten
    }

    /// Caches an account that was read under `configuration`, when the number of invalidations was `forgotten`, unless
    /// there has been one since or there is a newer configuration.
    pub(crate) fn put(&self, account: Account, now_ms: i64, forgotten: u64, configuration: u64) {
        let mut known = self.known.write();
        if known.forgotten != forgotten || known.configuration != configuration {
            return;
        }
        if known.tokens.len() >= MAX_CACHED {
            known.tokens.retain(|_, (_, until_ms)| *until_ms > now_ms);
        }
        if known.tokens.len() < MAX_CACHED {
            known.tokens.insert(account.token_hash, (account, now_ms.saturating_add(self.lives_ms)));
        }
    }

    /// Removes a token that was revoked.
    pub(crate) fn forget(&self, token_hash: &Fingerprint) {
        let mut known = self.known.write();
        known.forgotten += 1;
        known.tokens.remove(token_hash);
    }

    /// Removes all tokens of a user who was erased.
    pub(crate) fn forget_user(&self, mxid: &Mxid) {
        let mut known = self.known.write();
        known.forgotten += 1;
        known.tokens.retain(|_, (account, _)| account.mxid != *mxid);
    }

    /// Removes all tokens: any of them may have been revoked on another replica while notifications were missed.
    pub(crate) fn forget_all(&self) {
        let mut known = self.known.write();
        known.forgotten += 1;
        known.tokens.clear();
    }

    /// Clears the cache and starts a new generation, returning its number. Cached accounts say that the terms were
    /// accepted, and a new configuration may have new terms.
    pub(crate) fn begin_anew(&self) -> u64 {
        let mut known = self.known.write();
        known.configuration += 1;
        known.forgotten += 1;
        known.tokens.clear();
        known.configuration
    }
}
