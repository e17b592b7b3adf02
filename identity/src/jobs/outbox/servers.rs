//! Which homeservers may be called now, so that one that is away or slow holds up no other.

use std::collections::HashMap;

use parking_lot::Mutex;
use waypost_shared::{clock::millis, retry::Backoff};

/// How long a call waits whose homeserver has its share of calls under way.
const BUSY_MS: i64 = 1000;
/// Homeservers that are remembered at the most; past that, those that may be called again are forgotten.
const MAX_KNOWN: usize = 10_000;

/// Why a call does not begin, and when to ask again, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deferral {
    /// The homeserver has its share of calls under way.
    Busy(i64),
    /// It was away.
    Away(i64),
}

/// What is known of a homeserver that has calls under way, or had some that failed.
#[derive(Debug, Default)]
struct Server {
    under_way: usize,
    /// How often in a row it was away.
    failures: u32,
    away_until_ms: i64,
    /// It has its share of calls under way, and gets no more before half of them have ended: what waits for it is then
    /// taken out of the database by the dozen, and not one by one.
    full: bool,
}

/// The homeservers that are being called or are away.
#[derive(Debug, Default)]
pub(super) struct Servers {
    known: Mutex<HashMap<String, Server>>,
}

impl Servers {
    /// Begins a call, if fewer than `share` of this homeserver are under way; [`Servers::end`] must follow.
    ///
    /// # Errors
    ///
    /// [`Deferral`].
    pub(super) fn begin(&self, name: &str, share: usize, now_ms: i64) -> Result<(), Deferral> {
        let mut known = self.known.lock();
        if known.len() >= MAX_KNOWN {
            known.retain(|_, server| server.under_way > 0 || server.away_until_ms > now_ms);
        }
        let server = known.entry(name.to_owned()).or_default();
        if server.away_until_ms > now_ms {
            return Err(Deferral::Away(server.away_until_ms));
        }
        // One call shows whether it is back.
        let share = if server.failures > 0 { 1 } else { share };
        if server.under_way >= share {
            server.full = true;
            return Err(Deferral::Busy(now_ms.saturating_add(BUSY_MS)));
        }
        server.under_way += 1;
        Ok(())
    }

    /// Those that get no more calls for now; there is no use in looking for any.
    pub(super) fn full(&self) -> Vec<String> {
        let known = self.known.lock();
        known.iter().filter(|(_, server)| server.full).map(|(name, _)| name.clone()).collect()
    }

    /// Ends a call. `away` is given if the homeserver itself was away and not only this call in vain: how long it is
    /// then left alone.
    pub(super) fn end(&self, name: &str, share: usize, away: Option<Backoff>, now_ms: i64) {
        let mut known = self.known.lock();
        let Some(server) = known.get_mut(name) else { return };
        server.under_way = server.under_way.saturating_sub(1);
        if server.under_way * 2 <= share {
            server.full = false;
        }
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
            known.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SHARE: usize = 2;
    const BACKOFF: Backoff = Backoff { first: Duration::from_secs(8), max: Duration::from_secs(3600) };

    #[test]
    fn a_homeserver_gets_its_share_of_the_calls() {
        let servers = Servers::default();
        assert_eq!([servers.begin("a", SHARE, 0), servers.begin("a", SHARE, 0)], [Ok(()), Ok(())]);
        assert_eq!(servers.begin("a", SHARE, 0), Err(Deferral::Busy(1000)));
        assert_eq!(servers.begin("b", SHARE, 0), Ok(()));
        assert_eq!(servers.full(), ["a"]);
        servers.end("a", SHARE, None, 0);
        assert!(servers.full().is_empty());
        assert_eq!(servers.begin("a", SHARE, 0), Ok(()));
    }

    #[test]
    fn one_that_is_away_is_left_alone_and_then_asked_once() {
        let servers = Servers::default();
        assert_eq!([servers.begin("a", SHARE, 0), servers.begin("a", SHARE, 0)], [Ok(()), Ok(())]);
        servers.end("a", SHARE, Some(BACKOFF), 0);
        servers.end("a", SHARE, Some(BACKOFF), 0);
        // Two calls that failed together are one failure: between half of 8 seconds and all of them.
        let Err(Deferral::Away(until_ms)) = servers.begin("a", SHARE, 0) else { panic!("it was away") };
        assert!((4000..=8000).contains(&until_ms), "{until_ms}");
        assert_eq!(servers.begin("a", SHARE, until_ms), Ok(()));
        assert_eq!(servers.begin("a", SHARE, until_ms), Err(Deferral::Busy(until_ms + 1000)));
        servers.end("a", SHARE, Some(BACKOFF), until_ms);
        let Err(Deferral::Away(again_ms)) = servers.begin("a", SHARE, until_ms) else { panic!("it is still away") };
        let again_ms = again_ms - until_ms;
        assert!((8000..=16_000).contains(&again_ms), "{again_ms}");
        assert_eq!(servers.begin("a", SHARE, until_ms + again_ms), Ok(()));
        servers.end("a", SHARE, None, until_ms + again_ms);
        assert!(servers.known.lock().is_empty());
    }
}
