//! Access tokens that were found in the database a moment ago, so that most requests need not ask it.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::RwLock;
use waypost_shared::{clock::millis, owner::Owner};

use crate::domain::{mxid::Mxid, sealing::Fingerprint};

/// Tokens in the cache at most; more than any replica sees within the cache's seconds.
const MAX_CACHED: usize = 100_000;

/// The user that a request's token belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// The user.
    pub(crate) mxid: Mxid,
    /// The homeserver's name.
    pub(crate) homeserver: Arc<str>,
    /// Whose homeserver it is: its budgets are shared by all that one owner can make up.
    pub(crate) owner: Owner,
    /// What stands for the token.
    pub(crate) token_hash: Fingerprint,
    /// Whether the user accepted the terms, as they are in the configuration that the account was read under.
    pub(crate) terms_accepted: bool,
}

/// Tokens that were found in the database a moment ago.
#[derive(Debug)]
pub(crate) struct TokenCache {
    lives_ms: i64,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    tokens: HashMap<Fingerprint, (Account, i64)>,
    /// How often something was forgotten: what was read from the database before that may have ended since.
    forgotten: u64,
    /// The configuration that accounts are kept for, by its number.
    configuration: u64,
}

impl TokenCache {
    /// Believes a token for that long without asking again.
    pub(crate) fn new(lives: Duration) -> Self {
        Self { lives_ms: millis(lives), known: RwLock::default() }
    }

    /// The account of a token that is still believed.
    pub(crate) fn get(&self, token_hash: &Fingerprint, now_ms: i64) -> Option<Account> {
        let known = self.known.read();
        known.tokens.get(token_hash).filter(|(_, until_ms)| *until_ms > now_ms).map(|(account, _)| account.clone())
    }

    /// How often something was forgotten: to be asked before the database is, and then given to [`TokenCache::put`].
    pub(crate) fn forgotten(&self) -> u64 {
        self.known.read().forgotten
    }

    /// Keeps what was read under a `configuration` when `forgotten` was the count, unless something was forgotten since
    /// or there is a newer configuration.
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

    /// Forgets a token that ended.
    pub(crate) fn forget(&self, token_hash: &Fingerprint) {
        let mut known = self.known.write();
        known.forgotten += 1;
        known.tokens.remove(token_hash);
    }

    /// Forgets all tokens of somebody who was erased.
    pub(crate) fn forget_user(&self, mxid: &Mxid) {
        let mut known = self.known.write();
        known.forgotten += 1;
        known.tokens.retain(|_, (account, _)| account.mxid != *mxid);
    }

    /// Forgets all tokens: one of them may have ended at another replica while nobody listened.
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
