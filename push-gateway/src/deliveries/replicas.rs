//! What replicas share, in Redis or Valkey: which push is being sent or was delivered, and which pushkey is dead.
//!
//! Keys are hashes and values say nothing of whom they are about. All of it expires. A method that gets no answer says
//! so with None: Redis is unreachable.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use redis::{Cmd, Value, cmd};
use waypost_shared::{clock::millis, random};

use crate::{config::SeenConfig, redis::Redis};

/// Where a push stands: being sent by the holder of a lease, or delivered.
const PUSH: &str = "waypost:push:";
/// Since when a pushkey is dead, in milliseconds since the epoch.
const DEAD: &str = "waypost:dead:";
/// The value of a push that was delivered.
const DELIVERED: &[u8] = b"delivered";
/// Deletes a lease if it is still the same one: after a long pause it may be another replica's.
const RELEASE: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";
/// Ten years: Redis refuses times that it cannot add to the present.
const LONGEST_MS: u64 = 10 * 365 * 24 * 60 * 60 * 1000;
/// A lease outlives the budget of any request by this much.
const SPARE: Duration = Duration::from_secs(10);

/// The shared memory.
#[derive(Debug)]
pub(crate) struct Replicas {
    redis: Redis,
    delivered_ms: u64,
    /// 0 if dead pushkeys are not to be remembered.
    dead_ms: u64,
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
        let ms = |secs: u64| secs.saturating_mul(1000).min(LONGEST_MS);
        Self {
            redis,
            delivered_ms: ms(config.delivered_ttl_secs),
            dead_ms: ms(config.dead_ttl_secs),
            lease_ms: AtomicI64::new(millis(budget + SPARE)),
        }
    }

    /// Connects now, so that the metric is true before the first push. To be called once.
    pub(super) fn connect(&self) {
        self.redis.connect();
    }

    /// From now on no sending takes longer than `budget`.
    pub(super) fn set_budget(&self, budget: Duration) {
        self.lease_ms.store(millis(budget + SPARE), Ordering::Relaxed);
    }

    /// Asks for the right to send a push.
    pub(super) async fn claim(&self, push: &str) -> Option<Claim> {
        let lease = random::token();
        let mut set = command("SET", PUSH, push);
        set.arg(&lease).arg("NX").arg("PX").arg(self.lease_ms.load(Ordering::Relaxed));
        let get = command("GET", PUSH, push);
        // Both at once; the second is only of interest when the first found something.
        let (set, found) = tokio::join!(self.redis.call::<Value>(&set), self.redis.call::<Option<Vec<u8>>>(&get));
        if set? == Value::Okay {
            return Some(Claim::Ours(Lease(lease)));
        }
        Some(match found? {
            Some(text) if text == DELIVERED => Claim::Delivered,
            // Also one that has just been given up: it will be there to take.
            Some(_) | None => Claim::Elsewhere,
        })
    }

    /// Remembers that a push was delivered, whoever has the right to send it now.
    pub(super) async fn delivered(&self, push: &str) {
        let mut set = command("SET", PUSH, push);
        set.arg(DELIVERED).arg("PX").arg(self.delivered_ms);
        self.redis.call::<Value>(&set).await;
    }

    /// Gives the right back.
    pub(super) fn release(&self, push: &str, lease: &Lease) {
        let mut eval = cmd("EVAL");
        eval.arg(RELEASE).arg(1).arg(format!("{PUSH}{push}")).arg(&lease.0);
        self.redis.post(eval);
    }

    /// Remembers that a pushkey is dead.
    pub(super) async fn found_dead(&self, target: &str, since_ms: i64) {
        if self.dead_ms == 0 {
            return;
        }
        let mut set = command("SET", DEAD, target);
        set.arg(since_ms).arg("PX").arg(self.dead_ms);
        self.redis.call::<Value>(&set).await;
    }

    /// Forgets that a pushkey was dead.
    pub(super) async fn found_alive(&self, target: &str) {
        self.redis.call::<Value>(&command("DEL", DEAD, target)).await;
    }

    /// Since when a pushkey is dead, if it is.
    pub(super) async fn dead_since(&self, target: &str) -> Option<Option<i64>> {
        self.redis.call(&command("GET", DEAD, target)).await
    }
}

fn command(name: &str, prefix: &str, key: &str) -> Cmd {
    let mut command = cmd(name);
    command.arg(format!("{prefix}{key}"));
    command
}
