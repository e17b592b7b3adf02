//! Which homeservers may be called now, so that one that is away or slow holds up no other.
//!
//! Calls under way are counted for the owner, who could make up any number of homeservers. Whether one is away is its
//! own matter: otherwise a single dead sub-domain would cut off its siblings, and a new name gains no more than one
//! call within its owner's share.

use std::collections::{HashMap, HashSet};

use parking_lot::Mutex;
use waypost_shared::{client::retry::Backoff, clock::millis, owner::Owner};

/// How long a call waits whose homeserver has its share of calls under way.
const BUSY_MS: i64 = 1000;
/// Homeservers that are remembered at the most; past that, those that may be called again are forgotten.
const MAX_KNOWN: usize = 10_000;
/// Homeservers of one owner that are left out of what is leased while it has its share. Calls of further ones are
/// leased and put off one by one.
const MAX_LEFT_OUT: usize = 1000;

/// Why a call does not begin, and when to ask again, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deferral {
    /// The homeserver or its owner has its share of calls under way.
    Busy(i64),
    /// It was away.
    Away(i64),
}

/// The homeservers that are being called or are away.
#[derive(Debug, Default)]
pub(super) struct Servers {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    owners: HashMap<Owner, Calls>,
    servers: HashMap<String, Server>,
}

/// The calls of one owner's homeservers.
#[derive(Debug, Default)]
struct Calls {
    under_way: usize,
    /// Homeservers that found no room. They get no more calls before half of the owner's have ended: what waits for
    /// them is then taken out of the database by the dozen, and not one by one.
    left_out: HashSet<String>,
}

/// A homeserver that has calls under way, or had some that failed.
#[derive(Debug, Default)]
struct Server {
    under_way: usize,
    /// How often in a row it was away.
    failures: u32,
    away_until_ms: i64,
}

impl Servers {
    /// Begins a call of the homeserver `name`, if fewer than `share` of its owner's are under way; [`Servers::end`]
    /// must follow.
    ///
    /// # Errors
    ///
    /// [`Deferral`].
    pub(super) fn begin(&self, owner: &Owner, name: &str, share: usize, now_ms: i64) -> Result<(), Deferral> {
        let mut known = self.known.lock();
        let Known { owners, servers } = &mut *known;
        if servers.len() >= MAX_KNOWN {
            servers.retain(|_, server| server.under_way > 0 || server.away_until_ms > now_ms);
        }
        let (under_way, failures, away_until_ms) =
            servers.get(name).map_or((0, 0, 0), |server| (server.under_way, server.failures, server.away_until_ms));
        if away_until_ms > now_ms {
            return Err(Deferral::Away(away_until_ms));
        }
        // One call shows whether it is back.
        let is_tried = failures > 0 && under_way > 0;
        let is_full = owners.get(owner).is_some_and(|calls| calls.under_way >= share);
        if is_full || is_tried {
            // Without calls under way there is no end that would let the name in again.
            if let Some(calls) = owners.get_mut(owner).filter(|calls| calls.left_out.len() < MAX_LEFT_OUT) {
                calls.left_out.insert(name.to_owned());
            }
            return Err(Deferral::Busy(now_ms.saturating_add(BUSY_MS)));
        }
        owners.entry(owner.clone()).or_default().under_way += 1;
        servers.entry(name.to_owned()).or_default().under_way += 1;
        Ok(())
    }

    /// Those that get no more calls for now; there is no use in looking for any.
    pub(super) fn full(&self) -> Vec<String> {
        let known = self.known.lock();
        known.owners.values().flat_map(|calls| &calls.left_out).cloned().collect()
    }

    /// Ends a call. `away` is given if the homeserver itself was away and not only this call in vain: how long it is
    /// then left alone.
    pub(super) fn end(&self, owner: &Owner, name: &str, share: usize, away: Option<Backoff>, now_ms: i64) {
        let mut known = self.known.lock();
        let Known { owners, servers } = &mut *known;
        if let Some(calls) = owners.get_mut(owner) {
            calls.under_way = calls.under_way.saturating_sub(1);
            if calls.under_way * 2 <= share {
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
            // Calls that were under way together fail together, and count once.
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

    const SHARE: usize = 2;
    const BACKOFF: Backoff = Backoff { first: Duration::from_secs(8), max: Duration::from_secs(3600) };

    fn begin(servers: &Servers, name: &str, now_ms: i64) -> Result<(), Deferral> {
        servers.begin(&Owners::default().of(name), name, SHARE, now_ms)
    }

    fn end(servers: &Servers, name: &str, away: Option<Backoff>, now_ms: i64) {
        servers.end(&Owners::default().of(name), name, SHARE, away, now_ms);
    }

    #[test]
    fn an_owner_gets_its_share_of_the_calls() {
        let servers = Servers::default();
        assert_eq!([begin(&servers, "a.test", 0), begin(&servers, "x.a.test:8449", 0)], [Ok(()), Ok(())]);
        for name in ["a.test", "A.test.", "y.a.test"] {
            assert_eq!(begin(&servers, name, 0), Err(Deferral::Busy(1000)), "{name}");
        }
        assert_eq!(begin(&servers, "b.test", 0), Ok(()));
        let mut full = servers.full();
        full.sort();
        assert_eq!(full, ["A.test.", "a.test", "y.a.test"]);
        end(&servers, "a.test", None, 0);
        assert!(servers.full().is_empty());
        assert_eq!(begin(&servers, "y.a.test", 0), Ok(()));
    }

    #[test]
    fn one_that_is_away_is_left_alone_and_then_asked_once() {
        let servers = Servers::default();
        assert_eq!([begin(&servers, "a.test", 0), begin(&servers, "a.test", 0)], [Ok(()), Ok(())]);
        end(&servers, "a.test", Some(BACKOFF), 0);
        end(&servers, "a.test", Some(BACKOFF), 0);
        // Two calls that failed together are one failure: between half of 8 seconds and all of them.
        let Err(Deferral::Away(until_ms)) = begin(&servers, "a.test", 0) else { panic!("it was away") };
        assert!((4000..=8000).contains(&until_ms), "{until_ms}");
        // A sibling is not away with it.
        assert_eq!(begin(&servers, "b.a.test", 0), Ok(()));
        end(&servers, "b.a.test", None, 0);
        assert_eq!(begin(&servers, "a.test", until_ms), Ok(()));
        assert_eq!(begin(&servers, "a.test", until_ms), Err(Deferral::Busy(until_ms + 1000)));
        end(&servers, "a.test", Some(BACKOFF), until_ms);
        let Err(Deferral::Away(again_ms)) = begin(&servers, "a.test", until_ms) else { panic!("it is still away") };
        let again_ms = again_ms - until_ms;
        assert!((8000..=16_000).contains(&again_ms), "{again_ms}");
        assert_eq!(begin(&servers, "a.test", until_ms + again_ms), Ok(()));
        end(&servers, "a.test", None, until_ms + again_ms);
        let known = servers.known.lock();
        assert!(known.servers.is_empty() && known.owners.is_empty());
    }
}
