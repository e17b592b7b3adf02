//! Budgets that are counted in this process. Those that must hold across replicas are rows of a database.

use std::{
    hash::Hash,
    num::NonZeroU32,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use governor::{
    DefaultKeyedRateLimiter, Quota,
    clock::{Clock as _, DefaultClock},
};

/// How many keys may be remembered before those whose budget is full again are forgotten.
const SWEEP_ABOVE: usize = 16_384;
/// How many checks go by between two counts of the keys: counting takes all the locks of the table.
const COUNT_EVERY: u32 = 256;

/// A budget for each key: so many at once, and then one more in each interval.
#[derive(Debug)]
pub struct Limiter<K: Hash + Eq + Clone> {
    inner: Option<DefaultKeyedRateLimiter<K>>,
    burst: u32,
    checks: AtomicU32,
}

impl<K: Hash + Eq + Clone> Limiter<K> {
    /// `burst` at once, then one more each `per`. A burst of 0 or no interval is no limit.
    #[must_use]
    pub fn new(burst: u32, per: Duration) -> Self {
        let quota = NonZeroU32::new(burst).and_then(|burst| Some(Quota::with_period(per)?.allow_burst(burst)));
        Self { inner: quota.map(DefaultKeyedRateLimiter::keyed), burst, checks: AtomicU32::new(0) }
    }

    /// Takes one from the key's budget.
    ///
    /// # Errors
    ///
    /// How long to wait until there is one again.
    pub fn check(&self, key: &K) -> Result<(), Duration> {
        self.check_many(key, 1)
    }

    /// Takes `count` from the key's budget, all or none. More than a whole burst counts as a whole burst: it would
    /// never be there.
    ///
    /// # Errors
    ///
    /// How long to wait until there are so many again.
    pub fn check_many(&self, key: &K, count: u32) -> Result<(), Duration> {
        let Some(limiter) = &self.inner else { return Ok(()) };
        let Some(count) = NonZeroU32::new(count.min(self.burst)) else { return Ok(()) };
        // governor keeps keys until it is asked not to, and strangers choose the keys.
        let counts = self.checks.fetch_add(1, Ordering::Relaxed) % COUNT_EVERY == 0;
        if counts && limiter.len() > SWEEP_ABOVE {
            limiter.retain_recent();
        }
        match limiter.check_key_n(key, count) {
            Ok(checked) => checked.map_err(|not_until| not_until.wait_time_from(DefaultClock::default().now())),
            // More than a burst, which was ruled out above.
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_used_its_budget_waits_and_others_do_not() {
        let limiter = Limiter::new(2, Duration::from_secs(60));
        assert!(limiter.check(&"a").is_ok());
        assert!(limiter.check(&"a").is_ok());
        let wait = limiter.check(&"a").err();
        assert!(wait.is_some_and(|wait| wait > Duration::from_secs(50)), "{wait:?}");
        assert!(limiter.check(&"b").is_ok());
    }

    #[test]
    fn many_are_taken_all_or_none() {
        let limiter = Limiter::new(10, Duration::from_secs(60));
        assert!(limiter.check_many(&"a", 8).is_ok());
        assert!(limiter.check_many(&"a", 3).is_err());
        assert!(limiter.check_many(&"a", 2).is_ok());
        assert!(limiter.check_many(&"a", 0).is_ok());
        assert!(limiter.check(&"a").is_err());
        // More than there ever are is taken as all of them.
        assert!(limiter.check_many(&"b", 1000).is_ok());
        assert!(limiter.check(&"b").is_err());
    }

    #[test]
    fn a_burst_of_nothing_is_no_limit() {
        let limiter = Limiter::new(0, Duration::from_secs(60));
        assert!((0..100).all(|_| limiter.check(&"a").is_ok()));
    }
}
