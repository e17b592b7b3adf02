//! In-process rate limits. Limits that must hold across replicas are rows in the database.

use std::{
    hash::Hash,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
    time::Duration,
};

use governor::{
    DefaultKeyedRateLimiter, Quota,
    clock::{Clock as _, DefaultClock},
};
use serde::Deserialize;

/// Number of keys at which full budgets are evicted for the first time.
const FIRST_SWEEP: usize = 16_384;
/// Checks between two counts of the keys: counting takes every shard lock of the table.
const COUNT_EVERY: u32 = 256;

/// The shortest interval of a [`Rate`], in seconds.
const LEAST_REFILL_SECS: f64 = 0.000_001;

/// A rate limit as configured: a burst, refilled by one per interval.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Rate {
    /// Requests allowed at once; 0 disables the limit.
    pub burst: u32,
    /// Seconds until one more is allowed; may be fractional, down to 0.000001.
    pub refill_secs: f64,
}

impl Rate {
    /// A rate, for defaults.
    #[must_use]
    pub const fn new(burst: u32, refill_secs: f64) -> Self {
        Self { burst, refill_secs }
    }

    /// What is wrong with the configured values, if anything.
    #[must_use]
    pub fn problem(self) -> Option<&'static str> {
        let fits = Duration::try_from_secs_f64(self.refill_secs).is_ok()
            && (self.burst == 0 || self.refill_secs >= LEAST_REFILL_SECS);
        (!fits).then_some("needs refill_secs of 0.000001 or more, or burst = 0 for no limit")
    }

    /// The refill interval; zero, which disables the limit, for a rate that has a [`Rate::problem`].
    #[must_use]
    pub fn refill(self) -> Duration {
        Duration::try_from_secs_f64(self.refill_secs).unwrap_or_default()
    }

    /// A limiter with a budget of this rate for each key.
    #[must_use]
    pub fn limiter<K: Hash + Eq + Clone>(self) -> Limiter<K> {
        Limiter::new(self.burst, self.refill())
    }
}

/// Token buckets by key: a burst, refilled by one per interval.
#[derive(Debug)]
pub struct Limiter<K: Hash + Eq + Clone> {
    inner: Option<DefaultKeyedRateLimiter<K>>,
    /// Full budgets are evicted once there are more keys than this.
    sweep_above: AtomicUsize,
    burst: u32,
    checks: AtomicU32,
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    /// A burst of `burst`, refilled by one every `per`. A burst of 0 or a zero interval disables the limit.
    #[must_use]
    pub fn new(burst: u32, per: Duration) -> Self {
        let quota = NonZeroU32::new(burst).and_then(|burst| Some(Quota::with_period(per)?.allow_burst(burst)));
        Self {
            inner: quota.map(DefaultKeyedRateLimiter::keyed),
            burst,
            checks: AtomicU32::new(0),
            sweep_above: AtomicUsize::new(FIRST_SWEEP),
        }
    }

    /// Takes one token from the budget of `key`.
    ///
    /// # Errors
    ///
    /// The time until a token is available.
    pub fn check(&self, key: &K) -> Result<(), Duration> {
        self.check_many(key, 1)
    }

    /// Takes `count` tokens from the budget of `key`, all or none. A `count` above the burst counts as a full burst,
    /// since it could never be met.
    ///
    /// # Errors
    ///
    /// The time until enough tokens are available.
    pub fn check_many(&self, key: &K, count: u32) -> Result<(), Duration> {
        let Some(limiter) = &self.inner else { return Ok(()) };
        let Some(count) = NonZeroU32::new(count.min(self.burst)) else { return Ok(()) };
        // governor keeps keys until told to drop them, and strangers choose the keys.
        let counts = self.checks.fetch_add(1, Ordering::Relaxed).is_multiple_of(COUNT_EVERY);
        if counts && limiter.len() > self.sweep_above.load(Ordering::Relaxed) {
            limiter.retain_recent();
            // A sweep visits every key, so the next one waits until their number has doubled.
            self.sweep_above.store(limiter.len().saturating_mul(2).max(FIRST_SWEEP), Ordering::Relaxed);
        }
        match limiter.check_key_n(key, count) {
            Ok(checked) => checked.map_err(|not_until| not_until.wait_time_from(DefaultClock::default().now())),
            // Only if `count` exceeds the burst, which is ruled out above.
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_rate_needs_an_interval_unless_it_is_disabled() {
        for (burst, refill_secs, is_good) in [
            (5, 0.000_001, true),
            (5, 0.000_000_9, false),
            (5, 0.0, false),
            (0, 0.0, true),
            (0, -1.0, false),
            (5, -1.0, false),
            (5, f64::NAN, false),
            (5, f64::INFINITY, false),
            (5, 1e300, false),
        ] {
            assert_eq!(Rate::new(burst, refill_secs).problem().is_none(), is_good, "{burst} {refill_secs}");
        }
    }

    #[test]
    fn a_key_with_a_used_up_budget_waits_and_others_do_not() {
        let limiter = Limiter::new(2, Duration::from_secs(60));
        assert!(limiter.check(&"a").is_ok());
        assert!(limiter.check(&"a").is_ok());
        let wait = limiter.check(&"a").err();
        assert!(wait.is_some_and(|wait| wait > Duration::from_secs(50)), "{wait:?}");
        assert!(limiter.check(&"b").is_ok());
    }

    #[test]
    fn several_tokens_are_taken_all_or_none() {
        let limiter = Limiter::new(10, Duration::from_secs(60));
        assert!(limiter.check_many(&"a", 8).is_ok());
        assert!(limiter.check_many(&"a", 3).is_err());
        assert!(limiter.check_many(&"a", 2).is_ok());
        assert!(limiter.check_many(&"a", 0).is_ok());
        assert!(limiter.check(&"a").is_err());
        // More than a burst counts as a full burst.
        assert!(limiter.check_many(&"b", 1000).is_ok());
        assert!(limiter.check(&"b").is_err());
    }

    #[test]
    fn a_burst_of_nothing_is_no_limit() {
        let limiter = Limiter::new(0, Duration::from_secs(60));
        assert!((0..100).all(|_| limiter.check(&"a").is_ok()));
    }
}
