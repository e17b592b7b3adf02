//! Which homeservers may be called now, so that an unavailable or slow one does not hold up the others.
//!
//! Calls in flight are counted per owner, who could create any number of homeservers. Availability is per homeserver:
//! otherwise a single dead subdomain would cut off its siblings, and a new name gains no more than one call within the
//! share of its owner.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use waypost_shared::{client::retry::Backoff, clock::millis, owner::Owner};

/// How long a call is postponed while the share of its owner is in use.
const BUSY_MS: i64 = 1000;
/// Maximum number of known homeservers; beyond it, those that may be called again are forgotten.
const MAX_KNOWN: usize = 10_000;
/// Maximum number of homeservers of one owner whose rows are excluded from leasing while its share is in use. Rows of
/// further ones are leased and postponed one by one.
const MAX_LEFT_OUT: usize = 1000;

/// Why a call is postponed, and until when, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deferral {
    /// The share of the owner is in use, or one call is already probing the homeserver.
    Busy(i64),
    /// The homeserver is unavailable.
    Away(i64),
}

/// The homeservers that are being called or are unavailable.
#[derive(Debug, Default)]
pub(super) struct Servers {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Calls in flight.
    all: usize,
    owners: HashMap<Owner, Calls>,
    servers: HashMap<String, Server>,
}

/// The calls to one owner's homeservers.
#[derive(Debug, Default)]
struct Calls {
    under_way: usize,
    /// Homeservers that found no room. They get no more calls until the owner is down to half of its share: their rows
    /// are then leased by the dozen, and not one by one.
    left_out: HashSet<String>,
}

/// A homeserver with calls in flight, or whose last calls failed.
#[derive(Debug, Default)]
struct Server {
    under_way: usize,
    /// Consecutive failures.
    failures: u32,
    away_until_ms: i64,
}

impl Servers {
    /// Begins a call to the homeserver `name`, if its owner has a share left of the `at_once` calls that may be in flight:
    /// three times what is free. One alone gets three quarters, and two do not use up all. [`Servers::end`] must follow.
    pub(super) fn begin(&self, owner: &Owner, name: &str, at_once: usize, now_ms: i64) -> Result<(), Deferral> {
        let mut known = self.known.lock();
        let Known { all, owners, servers } = &mut *known;
        if servers.len() >= MAX_KNOWN {
            servers.retain(|_, server| server.under_way > 0 || server.away_until_ms > now_ms);
        }
        let (under_way, failures, away_until_ms) =
            servers.get(name).map_or((0, 0, 0), |server| (server.under_way, server.failures, server.away_until_ms));
        if away_until_ms > now_ms {
            return Err(Deferral::Away(away_until_ms));
        }
        // A single call probes whether it is back.
        let is_tried = failures > 0 && under_way > 0;
        let left = at_once.saturating_sub(*all + 1);
        let is_full = owners.get(owner).is_some_and(|calls| calls.under_way >= left.saturating_mul(3));
        if is_full || is_tried {
            // Only with calls in flight: otherwise none would end and let the name in again.
            if let Some(calls) = owners.get_mut(owner).filter(|calls| calls.left_out.len() < MAX_LEFT_OUT) {
                calls.left_out.insert(name.to_owned());
            }
            return Err(Deferral::Busy(now_ms.saturating_add(BUSY_MS)));
        }
        *all += 1;
        owners.entry(owner.clone()).or_default().under_way += 1;
        servers.entry(name.to_owned()).or_default().under_way += 1;
        Ok(())
    }

    /// The homeservers whose rows are not to be leased for now.
    pub(super) fn full(&self) -> Vec<String> {
        let known = self.known.lock();
        known.owners.values().flat_map(|calls| &calls.left_out).cloned().collect()
    }

    /// Ends a call. `away` is given if the homeserver itself is unavailable, rather than just this call refused: the
    /// back-off until it is called again.
    pub(super) fn end(&self, owner: &Owner, name: &str, at_once: usize, away: Option<Backoff>, now_ms: i64) {
        let mut known = self.known.lock();
        let Known { all, owners, servers } = &mut *known;
        *all = all.saturating_sub(1);
        if let Some(calls) = owners.get_mut(owner) {
            calls.under_way = calls.under_way.saturating_sub(1);
            // Half of what one alone may have.
            if calls.under_way * 8 <= at_once * 3 {
                calls.left_out.clear();
            }
            if calls.under_way == 0 {
                owners.remove(owner);
            }
        }
        let Some(server) = servers.get_mut(name) else { return };
        server.under_way = server.under_way.saturating_sub(1);
        match away {
            None => {
                server.failures = 0;
                server.away_until_ms = 0;
            }
            Some(backoff) if server.away_until_ms <= now_ms => {
                server.away_until_ms = now_ms.saturating_add(millis(backoff.delay(server.failures)));
                server.failures = server.failures.saturating_add(1);
            }
            // Calls that were in flight together fail together, and count once.
            Some(_) => {}
        }
        if server.under_way == 0 && server.failures == 0 {
            servers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use waypost_shared::owner::Owners;

    use super::*;

    const AT_ONCE: usize = 4;
    const BACKOFF: Backoff = Backoff { first: Duration::from_secs(8), max: Duration::from_secs(3600) };

    fn begin(servers: &Servers, name: &str, now_ms: i64) -> Result<(), Deferral> {
        servers.begin(&Owners::default().of(name), name, AT_ONCE, now_ms)
    }

    fn end(servers: &Servers, name: &str, away: Option<Backoff>, now_ms: i64) {
        servers.end(&Owners::default().of(name), name, AT_ONCE, away, now_ms);
    }

    #[test]
    fn an_owner_gets_its_share_of_the_calls() {
        let servers = Servers::default();
        for name in ["a.test", "x.a.test:8449", "a.test"] {
            assert_eq!(begin(&servers, name, 0), Ok(()), "{name}");
        }
        for name in ["a.test", "A.test.", "y.a.test"] {
            assert_eq!(begin(&servers, name, 0), Err(Deferral::Busy(1000)), "{name}");
        }
        assert_eq!(begin(&servers, "b.test", 0), Ok(()));
        let mut full = servers.full();
        full.sort();
        assert_eq!(full, ["A.test.", "a.test", "y.a.test"]);
        end(&servers, "a.test", None, 0);
        assert!(!servers.full().is_empty());
        end(&servers, "a.test", None, 0);
        assert!(servers.full().is_empty());
        assert_eq!(begin(&servers, "y.a.test", 0), Ok(()));
    }

    #[test]
    fn two_owners_do_not_use_up_all_calls() {
        let servers = Servers::default();
        let most = |name: &str| {
            (0..100).take_while(|_| servers.begin(&Owners::default().of(name), name, 32, 0).is_ok()).count()
        };
        assert_eq!((most("a.test"), most("b.test")), (24, 6));
        assert!(most("c.test") > 0);
    }

    #[test]
    fn an_unavailable_homeserver_is_left_alone_and_then_probed_once() {
        let servers = Servers::default();
        assert_eq!([begin(&servers, "a.test", 0), begin(&servers, "a.test", 0)], [Ok(()), Ok(())]);
        end(&servers, "a.test", Some(BACKOFF), 0);
        end(&servers, "a.test", Some(BACKOFF), 0);
        // Two calls that failed together are one failure: the back-off is half of 8 seconds to all of them.
        let Err(Deferral::Away(until_ms)) = begin(&servers, "a.test", 0) else { panic!("not backing off") };
        assert!((4000..=8000).contains(&until_ms), "{until_ms}");
        // Its sibling is not affected.
        assert_eq!(begin(&servers, "b.a.test", 0), Ok(()));
        end(&servers, "b.a.test", None, 0);
        assert_eq!(begin(&servers, "a.test", until_ms), Ok(()));
        assert_eq!(begin(&servers, "a.test", until_ms), Err(Deferral::Busy(until_ms + 1000)));
        end(&servers, "a.test", Some(BACKOFF), until_ms);
        let Err(Deferral::Away(again_ms)) = begin(&servers, "a.test", until_ms) else { panic!("not backing off") };
        let again_ms = again_ms - until_ms;
        assert!((8000..=16_000).contains(&again_ms), "{again_ms}");
        assert_eq!(begin(&servers, "a.test", until_ms + again_ms), Ok(()));
        end(&servers, "a.test", None, until_ms + again_ms);
        let known = servers.known.lock();
        assert!(known.servers.is_empty() && known.owners.is_empty());
    }
}
