//! Whose reports of dead pushkeys are judged together.
//!
//! Apple, Google and the push servers that the operator has named speak for an app: many dead pushkeys at once mean that
//! something is wrong with the app's entry. A push server that a stranger chose speaks for itself only. Otherwise its
//! owner could begin a hold for everybody with made-up pushkeys, or end one with living ones.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use waypost_shared::{clock::Clock, owner::Owner};

use crate::{config::HoldConfig, hold::Hold, metrics::AppMetrics, outcome::Outcome, pushkey::PushKey};

/// Owners of push servers that are judged at a time. The least recently used one is forgotten.
const MOST_OWNERS: usize = 200;

/// The holds of one app.
#[derive(Debug)]
pub(crate) struct Holds {
    app: Hold,
    /// `None` unless strangers choose the push servers.
    by_owner: Option<Mutex<ByOwner>>,
    new_hold: NewHold,
}

/// What a new hold needs.
#[derive(Debug)]
struct NewHold {
    config: HoldConfig,
    metrics: AppMetrics,
    clock: Clock,
}

#[derive(Debug, Default)]
struct ByOwner {
    holds: HashMap<Owner, (u64, Arc<Hold>)>,
    /// Counts uses.
    used: u64,
}

impl Holds {
    /// `by_server` where strangers choose the push servers.
    pub(crate) fn new(app: &str, config: &HoldConfig, metrics: AppMetrics, clock: Clock, by_server: bool) -> Self {
        Self {
            app: Hold::new(app, config, metrics.clone(), clock.clone()),
            by_owner: by_server.then(Mutex::default),
            new_hold: NewHold { config: config.clone(), metrics, clock },
        }
    }

    /// Whether each owner of push servers is judged separately.
    pub(crate) fn is_by_server(&self) -> bool {
        self.by_owner.is_some()
    }

    /// Counts an outcome and returns the one to act on; see [`Hold::judge`]. `owner` is that of the push server.
    pub(crate) fn judge(&self, owner: Option<&Owner>, pushkey: &PushKey, outcome: Outcome) -> Outcome {
        match self.of(owner) {
            Some(hold) => hold.judge(pushkey, outcome),
            None => self.app.judge(pushkey, outcome),
        }
    }

    /// Whether all rejections of the app are held right now.
    pub(crate) fn is_on(&self) -> bool {
        self.app.is_on()
    }

    /// Whether a remembered death can be believed; see [`Hold::believes`].
    pub(crate) fn believes(&self, owner: Option<&Owner>, found_ms: i64) -> bool {
        self.of(owner).map_or_else(|| self.app.believes(found_ms), |hold| hold.believes(found_ms))
    }

    /// The hold of an owner; `None` if the app's own judges.
    fn of(&self, owner: Option<&Owner>) -> Option<Arc<Hold>> {
        let mut by_owner = self.by_owner.as_ref()?.lock();
        // A pushkey that names no server says nothing about any.
        let owner = owner.unwrap_or(&Owner::Unknown);
        by_owner.used += 1;
        let used = by_owner.used;
        if let Some((last, hold)) = by_owner.holds.get_mut(owner) {
            *last = used;
            return Some(hold.clone());
        }
        if by_owner.holds.len() >= MOST_OWNERS {
            let oldest = by_owner.holds.iter().min_by_key(|(_, (last, _))| *last).map(|(owner, _)| owner.clone());
            if let Some(oldest) = oldest {
                by_owner.holds.remove(&oldest);
            }
        }
        let NewHold { config, metrics, clock } = &self.new_hold;
        let hold = Arc::new(Hold::of_server(config, metrics.clone(), clock.clone()));
        by_owner.holds.insert(owner.clone(), (used, hold.clone()));
        Some(hold)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use waypost_shared::owner::Owners;

    use super::*;
    use crate::metrics::Metrics;

    fn holds(by_server: bool) -> Holds {
        let clock = Clock::manual(1_000_000);
        let metrics = Metrics::register(&mut Registry::default(), &clock, false).of_app("app", "unifiedpush");
        Holds::new("app", &HoldConfig { min_gone: 3, ..HoldConfig::default() }, metrics, clock, by_server)
    }

    fn says(holds: &Holds, server: &str, pushkey: &str, outcome: Outcome) -> Outcome {
        holds.judge(Some(&Owners::default().of(server)), &pushkey.to_owned().into(), outcome)
    }

    #[test]
    fn a_strangers_server_begins_and_ends_no_hold_but_its_own() {
        let holds = holds(true);
        for number in 0..10 {
            says(&holds, &format!("{number}.evil.test:{number}"), &format!("evil{number}"), Outcome::Gone);
        }
        assert!(matches!(says(&holds, "evil.test", "more", Outcome::Gone), Outcome::Busy { .. }));
        assert_eq!(says(&holds, "good.test", "dead", Outcome::Gone), Outcome::Gone);
        assert!(!holds.is_on());
        // Nor do others end it.
        for number in 0..100 {
            says(&holds, "good.test", &format!("alive{number}"), Outcome::Delivered);
        }
        assert!(matches!(says(&holds, "evil.test", "more", Outcome::Gone), Outcome::Busy { .. }));
        // A pushkey without a server is nobody's.
        assert_eq!(holds.judge(None, &"x".to_owned().into(), Outcome::Gone), Outcome::Gone);
    }

    #[test]
    fn servers_that_the_operator_named_speak_for_the_app() {
        let holds = holds(false);
        for number in 0..10 {
            says(&holds, &format!("{number}.test"), &format!("{number}"), Outcome::Gone);
        }
        assert!(holds.is_on());
    }

    #[test]
    fn owners_are_forgotten_by_their_age() {
        let holds = holds(true);
        for number in 0..2 * MOST_OWNERS {
            says(&holds, &format!("{number}.example"), "x", Outcome::Delivered);
            says(&holds, "kept.example", "x", Outcome::Delivered);
        }
        let by_owner = holds.by_owner.as_ref().map(|by_owner| by_owner.lock());
        let known = by_owner
            .map(|by_owner| (by_owner.holds.len(), by_owner.holds.contains_key(&Owners::default().of("kept.example"))));
        assert_eq!(known, Some((MOST_OWNERS, true)));
    }
}
