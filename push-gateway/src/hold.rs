//! A circuit breaker for rejections: when an unusual share of an app's pushkeys is reported dead at once, the likely
//! culprit is the credentials, the environment or the push service, and every rejected pushkey would be a user who
//! gets no more pushes.
//!
//! During a hold dead pushkeys are not rejected; the homeserver is asked to retry instead. A hold ends when the share
//! of dead pushkeys has fallen, when `hold_secs` have passed (then reports are believed for at least as long), or on a
//! restart.
//!
//! The share is measured twice: over all pushkeys in the window, and over the latest answers. Without the second, an
//! app whose many users were all alive a minute ago would lose half of them before the first measure is unusual.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    ops::Range,
    time::Duration,
};

use parking_lot::Mutex;
use waypost_shared::clock::Clock;

use crate::{
    config::{HoldConfig, MOST_IN_WINDOW},
    metrics::AppMetrics,
    outcome::Outcome,
    pushkey::PushKey,
};

/// Dead pushkeys that begin a hold (unless `min_gone` is lower) before the first push was accepted: until then nothing
/// proves that the credentials are right.
const UNPROVEN_GONE: usize = 5;
/// Length of the latest answers, over which the share is measured too; twice `min_gone` if that is more.
const LATEST: usize = 100;
/// `retry_after` for homeservers during a hold. Long, since the operator has to investigate first.
const WAIT_WHILE_HELD: Duration = Duration::from_secs(15 * 60);

/// What the push service reported about a pushkey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// A push was accepted.
    Alive,
    /// The pushkey was reported dead.
    Dead,
}

/// A change of phase caused by one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// A hold began: `dead` pushkeys or answers out of `of`.
    Began { dead: usize, of: usize },
    /// A hold ended: because `hold_secs` passed (`in_time`), else because the share has fallen.
    Ended { in_time: bool },
}

/// Tracks recent answers about one app's pushkeys and decides whether dead ones are rejected.
#[derive(Debug)]
pub(crate) struct Hold {
    /// The id as configured, for the log and the metric; `None` for a push server that a stranger chose, of which
    /// neither tells.
    app: Option<String>,
    metrics: AppMetrics,
    config: HoldConfig,
    clock: Clock,
    /// Pushkeys are stored as hashes: they are secrets, and only how many there are matters.
    hasher: RandomState,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    window: Window,
    latest: Latest,
    /// Whether a push was ever accepted.
    is_proven: bool,
    /// Deaths recorded in this period are not believed: from one window before a hold until its end.
    doubtful_ms: Range<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// Reports of dead pushkeys are believed, and counted.
    #[default]
    Watching,
    /// Reports are not believed.
    Holding { since_ms: i64 },
    /// A hold expired before the share had fallen: reports are believed for at least `hold_secs`.
    Believing { since_ms: i64 },
}

impl Hold {
    /// Judges all reports about an app.
    pub(crate) fn new(app: &str, config: &HoldConfig, metrics: AppMetrics, clock: Clock) -> Self {
        Self::named(Some(app.to_owned()), config, metrics, clock)
    }

    /// Judges the reports of one owner of push servers that strangers chose. Anybody can cause such a hold, so it is no
    /// alarm.
    pub(crate) fn of_server(config: &HoldConfig, metrics: AppMetrics, clock: Clock) -> Self {
        Self::named(None, config, metrics, clock)
    }

    fn named(app: Option<String>, config: &HoldConfig, metrics: AppMetrics, clock: Clock) -> Self {
        Self { app, metrics, config: config.clone(), clock, hasher: RandomState::new(), state: Mutex::default() }
    }

    /// Counts an outcome and returns the one to act on: during a hold, `Gone` becomes `Busy`.
    pub(crate) fn judge(&self, pushkey: &PushKey, outcome: Outcome) -> Outcome {
        let said = match outcome {
            Outcome::Delivered => Said::Alive,
            Outcome::Gone => Said::Dead,
            Outcome::Busy { .. } | Outcome::Refused(_) => return outcome,
        };
        if let Some(change) = self.saw(pushkey, said) {
            self.report(change);
        }
        if said == Said::Dead && self.is_on() {
            return Outcome::Busy { retry_after: Some(WAIT_WHILE_HELD) };
        }
        outcome
    }

    fn report(&self, change: Change) {
        let Some(app) = &self.app else {
            tracing::debug!(?change, "the rejections of a push server that strangers chose are judged anew");
            return;
        };
        match change {
            Change::Began { dead, of } => {
                self.metrics.set_held(true);
                tracing::error!(
                    app,
                    dead,
                    of,
                    "too many pushkeys reported dead; rejections held. Check this app's credentials, environment and \
                     project"
                );
            }
            Change::Ended { in_time } => {
                self.metrics.set_held(false);
                tracing::warn!(app, in_time, "hold ended; dead pushkeys are rejected again");
            }
        }
    }

    /// Records an answer and moves to the phase that follows from it.
    fn saw(&self, pushkey: &PushKey, said: Said) -> Option<Change> {
        if self.config.min_gone == 0 {
            return None;
        }
        let now_ms = self.clock.now_ms();
        let pushkey = self.hasher.hash_one(pushkey);
        let mut state = self.state.lock();
        let ended = self.end_in_time(&mut state, now_ms);
        let window_ms = secs_to_ms(self.config.window_secs);
        if !matches!(state.phase, Phase::Holding { .. }) {
            // During a hold nothing is forgotten: homeservers back off, so the dead would simply age out of the window.
            state.window.forget_before(now_ms.saturating_sub(window_ms));
            state.latest.forget_before(now_ms.saturating_sub(window_ms));
        }
        if state.window.put(pushkey, said, now_ms, window_ms / 2) {
            state.latest.put(said, now_ms, self.most_latest());
        }
        state.is_proven |= said == Said::Alive;
        let unusual = self.unusual(&state);
        match (state.phase, unusual.is_some()) {
            (Phase::Watching, true) => {
                state.phase = Phase::Holding { since_ms: now_ms };
                state.doubtful_ms = now_ms.saturating_sub(window_ms)..i64::MAX;
                return unusual.map(|(dead, of)| Change::Began { dead, of });
            }
            (Phase::Holding { .. }, false) => {
                state.phase = Phase::Watching;
                state.doubtful_ms.end = now_ms;
                // The dead of this hold must not start the next one.
                state.latest = Latest::default();
                return Some(Change::Ended { in_time: false });
            }
            (Phase::Believing { since_ms }, false) if self.is_over(since_ms, now_ms) => {
                state.phase = Phase::Watching;
            }
            (Phase::Watching | Phase::Believing { .. }, false)
            | (Phase::Holding { .. } | Phase::Believing { .. }, true) => {}
        }
        ended
    }

    /// Whether rejections are held right now.
    pub(crate) fn is_on(&self) -> bool {
        let state = self.state.lock();
        matches!(state.phase, Phase::Holding { since_ms } if !self.is_over(since_ms, self.clock.now_ms()))
    }

    /// Whether a remembered death can be believed. `found_ms`: when it was recorded, in milliseconds since the epoch.
    pub(crate) fn believes(&self, found_ms: i64) -> bool {
        let state = self.state.lock();
        match state.phase {
            Phase::Holding { since_ms } if self.is_over(since_ms, self.clock.now_ms()) => true,
            Phase::Watching | Phase::Holding { .. } | Phase::Believing { .. } => !state.doubtful_ms.contains(&found_ms),
        }
    }

    /// The number of dead and the total, if the share is unusual.
    fn unusual(&self, state: &State) -> Option<(usize, usize)> {
        let HoldConfig { min_gone, share_percent, .. } = self.config;
        let least = if state.is_proven { min_gone } else { min_gone.min(UNPROVEN_GONE) };
        let in_window = (state.window.dead, state.window.last.len());
        if in_window.0 >= least && in_window.0 * 100 > in_window.1 * share_percent {
            return Some(in_window);
        }
        // Too few for a meaningful share, and all of them are in the window anyway.
        if state.latest.answers.len() < self.most_latest() {
            return None;
        }
        let in_latest = (state.latest.dead, state.latest.answers.len());
        let is_flood = match state.phase {
            Phase::Watching | Phase::Believing { .. } => {
                in_latest.0 >= min_gone && in_latest.0 * 100 > in_latest.1 * share_percent
            }
            // Hysteresis: the share has to fall to half of the limit. Otherwise a service that reports some live
            // pushkeys dead would end the hold, and lose some of them, on every small random dip.
            Phase::Holding { .. } => in_latest.0 * 200 > in_latest.1 * share_percent,
        };
        is_flood.then_some(in_latest)
    }

    fn most_latest(&self) -> usize {
        LATEST.max(self.config.min_gone * 2)
    }

    fn end_in_time(&self, state: &mut State, now_ms: i64) -> Option<Change> {
        let Phase::Holding { since_ms } = state.phase else { return None };
        if !self.is_over(since_ms, now_ms) {
            return None;
        }
        state.phase = Phase::Believing { since_ms: now_ms };
        state.doubtful_ms = 0..0;
        Some(Change::Ended { in_time: true })
    }

    fn is_over(&self, since_ms: i64, now_ms: i64) -> bool {
        now_ms.saturating_sub(since_ms) >= secs_to_ms(self.config.hold_secs)
    }
}

fn secs_to_ms(secs: u64) -> i64 {
    i64::try_from(secs.saturating_mul(1000)).unwrap_or(i64::MAX)
}

/// The latest answer about each pushkey, so that repeated answers count once.
#[derive(Debug, Default)]
struct Window {
    last: HashMap<u64, (i64, Said)>,
    /// All answers by age. Entries replaced by a later answer are skipped when they expire.
    ages: VecDeque<(i64, u64)>,
    dead: usize,
}

impl Window {
    /// Records an answer and returns true, unless the previous one is the same and younger than `fresh_ms`.
    fn put(&mut self, pushkey: u64, said: Said, now_ms: i64, fresh_ms: i64) -> bool {
        match self.last.get(&pushkey).copied() {
            Some((last_ms, before)) if before == said && now_ms.saturating_sub(last_ms) < fresh_ms => return false,
            Some((_, Said::Dead)) => self.dead -= 1,
            Some((_, Said::Alive)) | None => {}
        }
        if said == Said::Dead {
            self.dead += 1;
        }
        self.last.insert(pushkey, (now_ms, said));
        self.ages.push_back((now_ms, pushkey));
        while self.ages.len() > MOST_IN_WINDOW {
            self.forget_oldest();
        }
        true
    }

    fn forget_before(&mut self, time_ms: i64) {
        while self.ages.front().is_some_and(|(age_ms, _)| *age_ms < time_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((age_ms, pushkey)) = self.ages.pop_front() else { return };
        let Some((last_ms, said)) = self.last.get(&pushkey).copied() else { return };
        // A pushkey that was answered again since lives on under its later answer.
        if last_ms == age_ms {
            self.last.remove(&pushkey);
            if said == Said::Dead {
                self.dead -= 1;
            }
        }
    }
}

/// The latest answers, across all pushkeys.
#[derive(Debug, Default)]
struct Latest {
    answers: VecDeque<(i64, Said)>,
    dead: usize,
}

impl Latest {
    fn put(&mut self, said: Said, now_ms: i64, most: usize) {
        self.dead += usize::from(said == Said::Dead);
        self.answers.push_back((now_ms, said));
        while self.answers.len() > most {
            self.forget_oldest();
        }
    }

    fn forget_before(&mut self, time_ms: i64) {
        while self.answers.front().is_some_and(|(age_ms, _)| *age_ms < time_ms) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, said)) = self.answers.pop_front() {
            self.dead -= usize::from(said == Said::Dead);
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::Metrics;

    const NONE: [Change; 0] = [];

    fn hold(change: impl FnOnce(&mut HoldConfig)) -> (Hold, Clock) {
        let clock = Clock::manual(1_700_000_000_000);
        let mut config = HoldConfig { min_gone: 3, share_percent: 50, window_secs: 60, hold_secs: 600 };
        change(&mut config);
        (Hold::new("app", &config, metrics(), clock.clone()), clock)
    }

    fn metrics() -> AppMetrics {
        Metrics::register(&mut Registry::default(), &Clock::System, false).of_app("app", "apns")
    }

    fn saw(hold: &Hold, said: Said, pushkeys: std::ops::Range<usize>) -> Vec<Change> {
        pushkeys.filter_map(|pushkey| hold.saw(&pushkey.to_string().into(), said)).collect()
    }

    #[test]
    fn a_few_dead_pushkeys_among_many_are_usual() {
        let (hold, _clock) = hold(|_| ());
        assert_eq!(saw(&hold, Said::Alive, 0..5), NONE);
        assert_eq!(saw(&hold, Said::Dead, 5..10), NONE);
        assert!(!hold.is_on(), "5 of 10 are not more than half");
        assert_eq!(saw(&hold, Said::Dead, 10..11), [Change::Began { dead: 6, of: 11 }]);
        assert!(hold.is_on());
    }

    #[test]
    fn a_pushkey_that_is_reported_dead_repeatedly_counts_once() {
        let (hold, _clock) = hold(|_| ());
        for _ in 0..100 {
            assert_eq!(saw(&hold, Said::Dead, 0..2), NONE);
        }
        assert_eq!(saw(&hold, Said::Dead, 2..3), [Change::Began { dead: 3, of: 3 }]);
    }

    #[test]
    fn deaths_spread_over_a_long_time_are_usual() {
        let (hold, clock) = hold(|_| ());
        for pushkey in 0..20 {
            assert_eq!(saw(&hold, Said::Dead, pushkey..pushkey + 1), NONE);
            clock.advance(Duration::from_secs(31));
        }
    }

    #[test]
    fn a_hold_ends_when_the_share_has_fallen() {
        let (hold, clock) = hold(|_| ());
        assert_eq!(saw(&hold, Said::Dead, 0..3).len(), 1);
        // A hold does not end just because the window has passed.
        clock.advance(Duration::from_secs(120));
        assert_eq!(saw(&hold, Said::Dead, 3..10), NONE);
        assert!(hold.is_on());
        // Pushkeys that were reported dead accept pushes again: after the fifth, 5 of 10 are dead.
        assert_eq!(saw(&hold, Said::Alive, 0..8), [Change::Ended { in_time: false }]);
        assert!(!hold.is_on());
        // From now on a real death is believed.
        assert_eq!(saw(&hold, Said::Dead, 20..21), NONE);
        assert!(!hold.is_on());
    }

    #[test]
    fn a_hold_expires_and_then_the_dead_are_believed() {
        let (hold, clock) = hold(|_| ());
        assert_eq!(saw(&hold, Said::Dead, 0..3).len(), 1);
        clock.advance(Duration::from_secs(600));
        assert!(!hold.is_on());
        assert_eq!(saw(&hold, Said::Dead, 3..50), [Change::Ended { in_time: true }]);
        assert!(!hold.is_on());
        assert_eq!(saw(&hold, Said::Dead, 50..100), NONE);
        // After another `hold_secs` the next flood is held.
        clock.advance(Duration::from_secs(600));
        assert_eq!(saw(&hold, Said::Dead, 0..3), [Change::Began { dead: 3, of: 3 }]);
    }

    #[test]
    fn deaths_recorded_around_a_hold_are_not_believed_afterwards() {
        let (hold, clock) = hold(|_| ());
        let before_ms = clock.now_ms();
        clock.advance(Duration::from_secs(61));
        let early_ms = clock.now_ms();
        clock.advance(Duration::from_secs(1));
        assert_eq!(saw(&hold, Said::Dead, 0..3).len(), 1);
        assert!(hold.believes(before_ms) && !hold.believes(early_ms) && !hold.believes(clock.now_ms()));
        clock.advance(Duration::from_secs(1));
        saw(&hold, Said::Alive, 0..3);
        assert!(hold.believes(before_ms) && !hold.believes(early_ms) && hold.believes(clock.now_ms()));
        // When a hold expires, its deaths are believed.
        assert_eq!(saw(&hold, Said::Dead, 10..16).len(), 1);
        clock.advance(Duration::from_secs(600));
        assert!(hold.believes(early_ms));
    }

    #[test]
    fn nothing_is_held_if_the_operator_disables_holds() {
        let (hold, _clock) = hold(|config| config.min_gone = 0);
        assert_eq!(saw(&hold, Said::Dead, 0..1000), NONE);
        assert!(!hold.is_on());
    }

    #[test]
    fn an_app_with_many_users_does_not_lose_half_of_them_first() {
        let (hold, _clock) = hold(|config| config.min_gone = 50);
        assert_eq!(saw(&hold, Said::Alive, 0..5000), NONE);
        // One dead in three is usual, however many that is in total.
        for user in 0..2000 {
            let said = if user % 3 == 0 { Said::Dead } else { Said::Alive };
            assert_eq!(saw(&hold, said, 10_000 + user..10_001 + user), NONE);
        }
        assert!(!hold.is_on());
        // The same users again, now all dead. Of the latest hundred, 33 or 34 were dead already.
        let mut rejected = 0;
        for user in 0..5000 {
            saw(&hold, Said::Dead, user..user + 1);
            rejected += usize::from(!hold.is_on());
        }
        assert!((20..=51).contains(&rejected), "{rejected}");
    }

    #[test]
    fn a_flood_has_to_fall_to_half_the_share() {
        let (hold, _clock) = hold(|config| config.min_gone = 50);
        saw(&hold, Said::Alive, 0..1000);
        // The latest hundred: 49 alive and 51 dead.
        assert_eq!(saw(&hold, Said::Dead, 0..51), [Change::Began { dead: 51, of: 100 }]);
        // Half dead and half alive is still too many dead to end the hold.
        for user in 0..200 {
            let said = if user % 2 == 0 { Said::Dead } else { Said::Alive };
            assert_eq!(saw(&hold, said, 2000 + user..2001 + user), NONE);
        }
        assert!(hold.is_on());
        // Every second one of the latest hundred is dead: 49 more live ones push out half of them and leave 25.
        assert_eq!(saw(&hold, Said::Alive, 3000..3048), NONE);
        assert_eq!(saw(&hold, Said::Alive, 3048..3060), [Change::Ended { in_time: false }]);
        assert!(!hold.is_on());
    }

    #[test]
    fn before_the_first_accepted_push_a_few_dead_are_enough() {
        let (hold, _clock) = hold(|config| config.min_gone = 50);
        assert_eq!(saw(&hold, Said::Dead, 0..4), NONE);
        assert_eq!(saw(&hold, Said::Dead, 4..10), [Change::Began { dead: 5, of: 5 }]);
        // A live pushkey proves the credentials; after that ten dead ones are usual.
        assert_eq!(saw(&hold, Said::Alive, 20..21), [Change::Ended { in_time: false }]);
        assert_eq!(saw(&hold, Said::Dead, 30..69), NONE);
        assert_eq!(saw(&hold, Said::Dead, 69..70), [Change::Began { dead: 50, of: 51 }]);
    }

    #[test]
    fn the_window_is_bounded() {
        let (hold, _clock) = hold(|config| config.share_percent = 99);
        saw(&hold, Said::Alive, 0..MOST_IN_WINDOW + 500);
        let state = hold.state.lock();
        let window = &state.window;
        assert_eq!((window.last.len(), window.ages.len(), window.dead), (MOST_IN_WINDOW, MOST_IN_WINDOW, 0));
        assert_eq!((state.latest.answers.len(), state.latest.dead), (LATEST, 0));
    }
}
