//! What replicas share, in Redis or Valkey: which push is being sent or was delivered, and which pushkey is dead.
//!
//! Keys are hashes and values say nothing of whom they are about. All of it expires. A method that gets no answer says
//! so with None: Redis is away.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use waypost_shared::{clock::millis, random};

use crate::{
    config::SeenConfig,
    redis::{Redis, Reply},
};

/// Where a push stands: being sent by the holder of a lease, or delivered.
const PUSH: &str = "waypost:push:";
/// Since when a pushkey is dead, in milliseconds since the epoch.
const DEAD: &str = "waypost:dead:";
/// The value of a push that was delivered.
const DELIVERED: &[u8] = b"delivered";
/// Deletes a lease if it is still the same one: after a long pause it may be another replica's.
const RELEASE: &[u8] = b"if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";
/// Ten years: Redis refuses times that it cannot add to the present.
const LONGEST_MS: u64 = 10 * 365 * 24 * 60 * 60 * 1000;
/// A lease outlives the budget of any request by this much.
const SPARE: Duration = Duration::from_secs(10);

/// The shared memory.
#[derive(Debug)]
pub(crate) struct Replicas {
    redis: Redis,
    delivered_ms: String,
    /// Empty when dead pushkeys are not to be remembered.
    dead_ms: String,
    lease_ms: AtomicI64,
}

/// The right to send a push that no other replica has.
#[derive(Debug)]
pub(super) struct Lease(String);

/// Whose push it is.
#[derive(Debug)]
pub(super) enum Claim {
    Ours(Lease),
    Elsewhere,
    Delivered,
}

impl Replicas {
    /// Connects nowhere yet. No sending takes longer than `budget`, until [`Replicas::set_budget`] says otherwise.
    pub(crate) fn new(redis: Redis, config: &SeenConfig, budget: Duration) -> Self {
        let dead_ms = config.dead_ttl_secs.saturating_mul(1000).min(LONGEST_MS);
        Self {
            redis,
            delivered_ms: config.delivered_ttl_secs.saturating_mul(1000).min(LONGEST_MS).to_string(),
            dead_ms: if dead_ms == 0 { String::new() } else { dead_ms.to_string() },
            lease_ms: AtomicI64::new(millis(budget + SPARE)),
        }
    }

    /// Connects now, so that it shows whether Redis is there before the first push wants it.
    pub(super) fn connect(&self) {
        self.redis.post(&[b"PING"]);
    }

    /// From now on no sending takes longer than `budget`.
    pub(super) fn set_budget(&self, budget: Duration) {
        self.lease_ms.store(millis(budget + SPARE), Ordering::Relaxed);
    }

    /// Asks for the right to send a push.
    pub(super) async fn claim(&self, push: &str) -> Option<Claim> {
        let key = format!("{PUSH}{push}");
        let (lease, lease_ms) = (random::token(), self.lease_ms.load(Ordering::Relaxed).to_string());
        let set: [&[u8]; 6] = [b"SET", key.as_bytes(), lease.as_bytes(), b"NX", b"PX", lease_ms.as_bytes()];
        let get: [&[u8]; 2] = [b"GET", key.as_bytes()];
        // Both at once; the second is only of interest when the first found something.
        let (set, found) = tokio::join!(self.redis.call(&set), self.redis.call(&get));
        if set? == Reply::Done {
            return Some(Claim::Ours(Lease(lease)));
        }
        Some(match found? {
            Reply::Text(text) if text == DELIVERED => Claim::Delivered,
            // Also one that has just been given up: it will be there to take.
            Reply::Text(_) | Reply::Nothing | Reply::Done => Claim::Elsewhere,
        })
    }

    /// Remembers that a push was delivered, whoever has the right to send it now.
    pub(super) async fn delivered(&self, push: &str) {
        let key = format!("{PUSH}{push}");
        self.redis.call(&[b"SET", key.as_bytes(), DELIVERED, b"PX", self.delivered_ms.as_bytes()]).await;
    }

    /// Gives the right back.
    pub(super) fn release(&self, push: &str, lease: &Lease) {
        let key = format!("{PUSH}{push}");
        self.redis.post(&[b"EVAL", RELEASE, b"1", key.as_bytes(), lease.0.as_bytes()]);
    }

    /// Remembers that a pushkey is dead.
    pub(super) async fn found_dead(&self, target: &str, since_ms: i64) {
        if self.dead_ms.is_empty() {
            return;
        }
        let (key, since) = (format!("{DEAD}{target}"), since_ms.to_string());
        self.redis.call(&[b"SET", key.as_bytes(), since.as_bytes(), b"PX", self.dead_ms.as_bytes()]).await;
    }

    /// Forgets that a pushkey was dead.
    pub(super) async fn found_alive(&self, target: &str) {
        let key = format!("{DEAD}{target}");
        self.redis.call(&[b"DEL", key.as_bytes()]).await;
    }

    /// Since when a pushkey is dead, if it is.
    pub(super) async fn dead_since(&self, target: &str) -> Option<Option<i64>> {
        let key = format!("{DEAD}{target}");
        Some(match self.redis.call(&[b"GET", key.as_bytes()]).await? {
            Reply::Text(text) => std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok()),
            Reply::Nothing | Reply::Done => None,
        })
    }
}
