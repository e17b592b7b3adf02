//! The state that replicas share in Redis or Valkey: leases on pushes, deliveries and dead pushkeys.
//!
//! Keys are hashes, and values identify nobody. Everything expires. Methods return None if Redis is unreachable.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use redis::{Cmd, Value, cmd};
use waypost_shared::{clock::millis, random};

use crate::{config::SeenConfig, redis::Redis};

/// Key prefix for a push. The value is the lease of the replica that is sending it, or [`DELIVERED`].
const PUSH: &str = "waypost:push:";
/// Key prefix for a dead pushkey. The value is when it was found dead, in milliseconds since the epoch.
const DEAD: &str = "waypost:dead:";
/// The value for a delivered push.
const DELIVERED: &[u8] = b"delivered";
/// Deletes a lease if it is still ours: after a long pause another replica may hold it.
const RELEASE: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";
/// Ten years: Redis rejects expiry times that overflow.
const LONGEST_MS: u64 = 10 * 365 * 24 * 60 * 60 * 1000;
/// How much longer a lease lasts than the budget of a request.
const SPARE: Duration = Duration::from_secs(10);

/// The shared memory.
#[derive(Debug)]
pub(crate) struct Replicas {
    redis: Redis,
    delivered_ms: u64,
    /// 0 disables remembering dead pushkeys.
    dead_ms: u64,
    lease_ms: AtomicI64,
}

/// The exclusive right among replicas to send a push.
#[derive(Debug)]
pub(super) struct Lease(String);

/// The result of claiming a push.
#[derive(Debug)]
pub(super) enum Claim {
    Ours(Lease),
    Elsewhere,
    Delivered,
}

impl Replicas {
    /// Opens no connection yet. `budget` is the longest time that sending may take, until [`Replicas::set_budget`].
    pub(crate) fn new(redis: Redis, config: &SeenConfig, budget: Duration) -> Self {
        let ms = |secs: u64| secs.saturating_mul(1000).min(LONGEST_MS);
        Self {
            redis,
            delivered_ms: ms(config.delivered_ttl_secs),
            dead_ms: ms(config.dead_ttl_secs),
            lease_ms: AtomicI64::new(millis(budget + SPARE)),
        }
    }

    /// Connects now, so that the metric is correct before the first push. Call once.
    pub(super) fn connect(&self) {
        self.redis.connect();
    }

    /// Sets the longest time that sending may take.
    pub(super) fn set_budget(&self, budget: Duration) {
        self.lease_ms.store(millis(budget + SPARE), Ordering::Relaxed);
    }

    /// Claims the lease on a push.
    pub(super) async fn claim(&self, push: &str) -> Option<Claim> {
        let lease = random::token();
        let mut set = command("SET", PUSH, push);
        set.arg(&lease).arg("NX").arg("PX").arg(self.lease_ms.load(Ordering::Relaxed));
        let get = command("GET", PUSH, push);
        // Pipelined; the GET only matters if the SET found a value.
        let (set, found) = tokio::join!(self.redis.call::<Value>(&set), self.redis.call::<Option<Vec<u8>>>(&get));
        if set? == Value::Okay {
            return Some(Claim::Ours(Lease(lease)));
        }
        Some(match found? {
            Some(text) if text == DELIVERED => Claim::Delivered,
            // None: released between the two commands, so the next attempt will get it.
            Some(_) | None => Claim::Elsewhere,
        })
    }

    /// Remembers a delivery, no matter who holds the lease by now.
    pub(super) async fn delivered(&self, push: &str) {
        let mut set = command("SET", PUSH, push);
        set.arg(DELIVERED).arg("PX").arg(self.delivered_ms);
        self.redis.call::<Value>(&set).await;
    }

    /// Releases a lease, in the background.
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

    /// When a pushkey was found dead, if it was, in milliseconds since the epoch.
    pub(super) async fn dead_since(&self, target: &str) -> Option<Option<i64>> {
        self.redis.call(&command("GET", DEAD, target)).await
    }
}

fn command(name: &str, prefix: &str, key: &str) -> Cmd {
    let mut command = cmd(name);
    command.arg(format!("{prefix}{key}"));
    command
}
