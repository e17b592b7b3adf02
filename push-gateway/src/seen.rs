//! What was delivered and what is dead, in memory: so that no device gets an event twice (docs/compatibility.md, P8)
//! and no provider is asked about a dead pushkey again (P9).
//!
//! Entries are keyed hashes with a key of this process's own, so that a copy of the memory reveals no ids, and their
//! number is bounded.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ring::hmac;
use tokio::sync::watch;
use waypost_shared::{clock::Clock, random};

use crate::{config::SeenConfig, provider::Outcome};

/// A hash of the texts that make an entry.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
struct Fingerprint([u8; 16]);

/// Where a push goes, as its push service knows it: what is remembered is remembered of this.
#[derive(Clone, Copy, Hash, PartialEq, Eq)]
pub(crate) struct Target<'d> {
    pub(crate) app_id: &'d str,
    pub(crate) pushkey: &'d str,
    /// What the service goes by beside the pushkey; empty where that is all.
    pub(crate) endpoint: &'d str,
}

/// The memory of past pushes.
#[derive(Debug)]
pub(crate) struct Seen {
    key: hmac::Key,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    delivered: Expiring<()>,
    /// With the time at which the pushkey was found dead.
    dead: Expiring<i64>,
    /// Pushes that are being sent right now; who wants to send the same waits for their outcome.
    under_way: HashMap<Fingerprint, watch::Receiver<Option<Outcome>>>,
}

/// What to do with a push.
#[derive(Debug)]
pub(crate) enum Begun {
    /// It is nobody else's: send it, and say how it went.
    Send(Ticket),
    /// It is being sent by another request, whose outcome is this one's too.
    Wait(watch::Receiver<Option<Outcome>>),
    /// It was delivered before.
    Delivered,
}

/// The right to send one push, until it is finished or dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    seen: Arc<Seen>,
    fingerprint: Fingerprint,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Seen {
    /// An empty memory.
    pub(crate) fn new(config: &SeenConfig, clock: Clock) -> Self {
        let state = State {
            delivered: Expiring::new(config.delivered_ttl_secs, config.max_entries),
            dead: Expiring::new(config.dead_ttl_secs, config.max_entries),
            under_way: HashMap::new(),
        };
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random::bytes::<32>());
        Self { key, clock, state: Mutex::new(state) }
    }

    /// Asks to send an event to a device.
    pub(crate) fn begin(self: &Arc<Self>, event_id: &str, target: Target<'_>) -> Begun {
        let fingerprint = self.fingerprint(&[event_id, target.app_id, target.pushkey, target.endpoint]);
        let now_ms = self.clock.now_ms();
        let mut state = self.lock();
        if state.delivered.get(fingerprint, now_ms).is_some() {
            return Begun::Delivered;
        }
        if let Some(outcome) = state.under_way.get(&fingerprint) {
            return Begun::Wait(outcome.clone());
        }
        let (sender, receiver) = watch::channel(None);
        state.under_way.insert(fingerprint, receiver);
        Begun::Send(Ticket { seen: self.clone(), fingerprint, outcome: sender })
    }

    /// Remembers that the provider called a pushkey dead.
    pub(crate) fn found_dead(&self, target: Target<'_>) {
        let fingerprint = self.of_target(target);
        let now_ms = self.clock.now_ms();
        self.lock().dead.insert(fingerprint, now_ms, now_ms);
    }

    /// Forgets that the pushkey was dead, for the provider took a push for it.
    pub(crate) fn found_alive(&self, target: Target<'_>) {
        let fingerprint = self.of_target(target);
        self.lock().dead.remove(fingerprint);
    }

    /// Whether the pushkey is known to be dead. One that was set again since then is forgotten and may live.
    pub(crate) fn is_dead(&self, target: Target<'_>, pushkey_ts_ms: Option<i64>) -> bool {
        let fingerprint = self.of_target(target);
        let mut state = self.lock();
        let Some(since_ms) = state.dead.get(fingerprint, self.clock.now_ms()).copied() else { return false };
        let set_again = pushkey_ts_ms.is_some_and(|set_ms| set_ms > since_ms);
        if set_again {
            state.dead.remove(fingerprint);
        }
        !set_again
    }

    fn of_target(&self, target: Target<'_>) -> Fingerprint {
        self.fingerprint(&[target.app_id, target.pushkey, target.endpoint])
    }

    /// Each text with its length before it, so that no two lists look alike.
    fn fingerprint(&self, texts: &[&str]) -> Fingerprint {
        let mut context = hmac::Context::with_key(&self.key);
        for text in texts {
            context.update(&text.len().to_le_bytes());
            context.update(text.as_bytes());
        }
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&context.sign().as_ref()[..16]);
        Fingerprint(fingerprint)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What a panic left behind is complete: each change is one insertion or removal.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket {
    /// Ends the push. Only a delivery is remembered: everything else may be tried again.
    pub(crate) fn finish(self, outcome: &Outcome) {
        if *outcome == Outcome::Delivered {
            let now_ms = self.seen.clock.now_ms();
            self.seen.lock().delivered.insert(self.fingerprint, (), now_ms);
        }
        self.outcome.send_replace(Some(outcome.clone()));
    }
}

impl Drop for Ticket {
    /// Also when the sending was cut short: who waits then sees the channel closed.
    fn drop(&mut self) {
        self.seen.lock().under_way.remove(&self.fingerprint);
    }
}

/// A map whose entries expire after a fixed time, and whose oldest make room for new ones.
#[derive(Debug)]
struct Expiring<V> {
    ttl_ms: i64,
    max_entries: usize,
    /// With the time of expiry.
    entries: HashMap<Fingerprint, (i64, V)>,
    /// All insertions by age; those that were removed or replaced since are skipped.
    ages: VecDeque<(i64, Fingerprint)>,
}

impl<V> Expiring<V> {
    fn new(ttl_secs: u64, max_entries: usize) -> Self {
        let ttl_ms = i64::try_from(ttl_secs.saturating_mul(1000)).unwrap_or(i64::MAX);
        Self { ttl_ms, max_entries, entries: HashMap::new(), ages: VecDeque::new() }
    }

    fn get(&self, key: Fingerprint, now_ms: i64) -> Option<&V> {
        self.entries.get(&key).filter(|(expires_ms, _)| *expires_ms > now_ms).map(|(_, value)| value)
    }

    fn insert(&mut self, key: Fingerprint, value: V, now_ms: i64) {
        let expires_ms = now_ms.saturating_add(self.ttl_ms);
        self.entries.insert(key, (expires_ms, value));
        self.ages.push_back((expires_ms, key));
        while let Some((oldest_ms, oldest)) = self.ages.front().copied() {
            if oldest_ms > now_ms && self.ages.len() <= self.max_entries {
                break;
            }
            self.ages.pop_front();
            // An entry that was put again lives on under its later insertion.
            if self.entries.get(&oldest).is_some_and(|(expires_ms, _)| *expires_ms == oldest_ms) {
                self.entries.remove(&oldest);
            }
        }
    }

    fn remove(&mut self, key: Fingerprint) {
        self.entries.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const KEY: Target<'static> = Target { app_id: "app", pushkey: "key", endpoint: "https://push.example/1" };
    const OTHER_KEY: Target<'static> = Target { pushkey: "other key", ..KEY };
    const OTHER_ENDPOINT: Target<'static> = Target { endpoint: "https://push.example/2", ..KEY };

    fn seen(max_entries: usize) -> (Arc<Seen>, Clock) {
        let clock = Clock::manual(1_700_000_000_000);
        let config = SeenConfig { delivered_ttl_secs: 60, dead_ttl_secs: 60, max_entries };
        (Arc::new(Seen::new(&config, clock.clone())), clock)
    }

    fn deliver(seen: &Arc<Seen>, event_id: &str) {
        let Begun::Send(ticket) = seen.begin(event_id, KEY) else { panic!("{event_id} is new") };
        ticket.finish(&Outcome::Delivered);
    }

    #[test]
    fn what_was_delivered_is_not_sent_again_until_it_is_forgotten() {
        let (seen, clock) = seen(100);
        deliver(&seen, "$e");
        assert!(matches!(seen.begin("$e", KEY), Begun::Delivered));
        assert!(matches!(seen.begin("$e", OTHER_KEY), Begun::Send(_)));
        assert!(matches!(seen.begin("$e", Target { app_id: "other app", ..KEY }), Begun::Send(_)));
        assert!(matches!(seen.begin("$e", OTHER_ENDPOINT), Begun::Send(_)));
        clock.advance(Duration::from_secs(60));
        assert!(matches!(seen.begin("$e", KEY), Begun::Send(_)));
    }

    #[test]
    fn copies_wait_for_the_one_that_is_under_way() {
        let (seen, _clock) = seen(100);
        let Begun::Send(ticket) = seen.begin("$e", KEY) else { panic!("the first one sends") };
        let Begun::Wait(outcome) = seen.begin("$e", KEY) else { panic!("the second one waits") };
        assert_eq!(*outcome.borrow(), None);
        ticket.finish(&Outcome::Busy { retry_after: None });
        assert_eq!(*outcome.borrow(), Some(Outcome::Busy { retry_after: None }));
        // It was not delivered, so the next one tries again.
        assert!(matches!(seen.begin("$e", KEY), Begun::Send(_)));
    }

    #[test]
    fn a_sending_that_was_cut_short_blocks_nobody() {
        let (seen, _clock) = seen(100);
        let ticket = seen.begin("$e", KEY);
        let Begun::Wait(outcome) = seen.begin("$e", KEY) else { panic!("the second one waits") };
        drop(ticket);
        assert!(outcome.has_changed().is_err(), "the channel is closed");
        assert!(matches!(seen.begin("$e", KEY), Begun::Send(_)));
    }

    #[test]
    fn a_dead_pushkey_is_known_until_it_is_set_again() {
        let (seen, clock) = seen(100);
        seen.found_dead(KEY);
        let found_ms = clock.now_ms();
        assert!(seen.is_dead(KEY, None));
        assert!(seen.is_dead(KEY, Some(found_ms - 1000)));
        assert!(!seen.is_dead(OTHER_KEY, None));
        assert!(!seen.is_dead(OTHER_ENDPOINT, None));
        assert!(!seen.is_dead(KEY, Some(found_ms + 1000)));
        assert!(!seen.is_dead(KEY, None), "it was forgotten");
        seen.found_dead(KEY);
        clock.advance(Duration::from_secs(60));
        assert!(!seen.is_dead(KEY, None), "its time is over");
    }

    #[test]
    fn a_dead_pushkey_that_took_a_push_lives() {
        let (seen, _clock) = seen(100);
        seen.found_dead(KEY);
        seen.found_alive(OTHER_KEY);
        assert!(seen.is_dead(KEY, None));
        seen.found_alive(KEY);
        assert!(!seen.is_dead(KEY, None));
    }

    #[test]
    fn the_oldest_make_room() {
        let (seen, _clock) = seen(2);
        for event_id in ["$1", "$2", "$3"] {
            deliver(&seen, event_id);
        }
        assert!(matches!(seen.begin("$1", KEY), Begun::Send(_)));
        assert!(matches!(seen.begin("$2", KEY), Begun::Delivered));
        assert!(matches!(seen.begin("$3", KEY), Begun::Delivered));
        assert!(seen.lock().under_way.is_empty());
    }
}
