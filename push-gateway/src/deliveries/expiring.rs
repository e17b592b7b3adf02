//! A map bounded in time and size.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// A map whose entries expire after a fixed time, and whose oldest entries are evicted when it is full.
#[derive(Debug)]
pub(super) struct Expiring<K, V> {
    ttl_ms: i64,
    max_entries: usize,
    /// With the time of expiry, in milliseconds since the epoch.
    entries: HashMap<K, (i64, V)>,
    /// All insertions by age. Entries removed or replaced since are skipped when they expire.
    ages: VecDeque<(i64, K)>,
}

impl<K: Copy + Eq + Hash, V> Expiring<K, V> {
    pub(super) fn new(ttl_secs: u64, max_entries: usize) -> Self {
        let ttl_ms = i64::try_from(ttl_secs.saturating_mul(1000)).unwrap_or(i64::MAX);
        Self { ttl_ms, max_entries, entries: HashMap::new(), ages: VecDeque::new() }
    }

    pub(super) fn get(&self, key: K, now_ms: i64) -> Option<&V> {
        self.entries.get(&key).filter(|(expires_ms, _)| *expires_ms > now_ms).map(|(_, value)| value)
    }

    pub(super) fn insert(&mut self, key: K, value: V, now_ms: i64) {
        let expires_ms = now_ms.saturating_add(self.ttl_ms);
        self.entries.insert(key, (expires_ms, value));
        self.ages.push_back((expires_ms, key));
        while let Some((oldest_ms, oldest)) = self.ages.front().copied() {
            if oldest_ms > now_ms && self.ages.len() <= self.max_entries {
                break;
            }
            self.ages.pop_front();
            // An entry that was inserted again lives on under its later insertion.
            if self.entries.get(&oldest).is_some_and(|(expires_ms, _)| *expires_ms == oldest_ms) {
                self.entries.remove(&oldest);
            }
        }
    }

    pub(super) fn remove(&mut self, key: K) {
        self.entries.remove(&key);
    }
}
