//! The in-flight cap of one app: in total, per source of requests, and per owner of servers where strangers choose the
//! servers. No slow server and no busy sender can starve the others.

use std::{collections::HashMap, hash::Hash, net::IpAddr};

use parking_lot::Mutex;
use waypost_shared::{owner::Owner, source::RequestSource};

/// Counts the pushes of one app that are in flight.
#[derive(Debug)]
pub(crate) struct InFlight {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: usize,
    /// Owners and sources without a push in flight have no entry.
    to_owners: HashMap<Owner, usize>,
    from_sources: HashMap<Option<IpAddr>, usize>,
}

/// One slot under the cap, freed on drop.
#[derive(Debug)]
pub(crate) struct Permit<'f> {
    in_flight: &'f InFlight,
    owner: Option<Owner>,
    source: Option<IpAddr>,
}

/// The share of `most` that a single address may use: three quarters.
pub(crate) fn share(most: usize) -> usize {
    most - most / 4
}

/// Whether a source or owner with `count` pushes in flight may have another one while `free` slots are left: while it
/// uses less than three times as much. One alone gets three quarters of all slots, two get three sevenths each, and
/// however many there are, something is left for a newcomer.
fn has_room(count: Option<&usize>, free: usize) -> bool {
    count.is_none_or(|count| *count < free.saturating_mul(3)) && free > 0
}

impl InFlight {
    /// Allows `most` pushes at once.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// The cap.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// Takes a slot for a push requested by `source`; `owner` is set where each device may have a server of its own.
    /// None at the cap, or if the source or owner has used up its share, which is the larger the more is free.
    pub(crate) fn enter(&self, owner: Option<Owner>, source: RequestSource) -> Option<Permit<'_>> {
        let (mut state, source) = (self.state.lock(), source.key());
        let free = self.most.saturating_sub(state.all);
        let owner_has_room = owner.as_ref().is_none_or(|owner| has_room(state.to_owners.get(owner), free));
        if !owner_has_room || !has_room(state.from_sources.get(&source), free) {
            return None;
        }
        state.all += 1;
        *state.from_sources.entry(source).or_default() += 1;
        if let Some(owner) = &owner {
            *state.to_owners.entry(owner.clone()).or_default() += 1;
        }
        Some(Permit { in_flight: self, owner, source })
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.in_flight.state.lock();
        state.all -= 1;
        take_one(&mut state.from_sources, &self.source);
        if let Some(owner) = &self.owner {
            take_one(&mut state.to_owners, owner);
        }
    }
}

fn take_one<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use waypost_shared::owner::Owners;

    use super::*;

    fn owner(server: &str) -> Option<Owner> {
        Some(Owners::default().of(server))
    }

    fn source(last: u8) -> RequestSource {
        IpAddr::from([192, 0, 2, last]).into()
    }

    #[test]
    fn one_owner_leaves_room_for_others() {
        let in_flight = InFlight::new(8);
        // All ports and subdomains belong to one owner; each push comes from another source.
        let enter = |server: &str, last| in_flight.enter(owner(server), source(last));
        let hanging: Vec<_> =
            (0..6).map(|number| enter(&format!("{number}.a.example:{number}"), number).unwrap()).collect();
        assert!(enter("a.example", 7).is_none() && enter("A.example.:9", 8).is_none());
        let others: Vec<_> = (0..2).map(|number| enter("b.example", number).unwrap()).collect();
        assert!(enter("b.example", 9).is_none() && in_flight.enter(None, source(9)).is_none(), "eight are in flight");
        drop(others);
        assert!(enter("a.example", 7).is_none());
        drop(hanging);
        let state = in_flight.state.lock();
        assert!(state.all == 0 && state.to_owners.is_empty() && state.from_sources.is_empty(), "{state:?}");
        drop(state);
        assert!(enter("a.example", 7).is_some());
    }

    #[test]
    fn one_source_leaves_room_for_others() {
        let in_flight = InFlight::new(8);
        let from = |address: &str| in_flight.enter(None, address.parse::<IpAddr>().unwrap().into());
        // Addresses in the same /64 are one source.
        let hanging: Vec<_> = (0..6).map(|number| from(&format!("2001:db8::{number}")).unwrap()).collect();
        assert!(from("2001:db8::9").is_none());
        let others: Vec<_> = (0..2).map(|_| from("2001:db8:0:1::1").unwrap()).collect();
        assert!(from("192.0.2.1").is_none(), "eight are in flight");
        drop((hanging, others));
        assert!(from("2001:db8::9").is_some());
    }

    #[test]
    fn two_owners_or_two_sources_cannot_use_up_everything() {
        let in_flight = InFlight::new(70);
        let fill = |server: &str, of_source: fn(u8) -> u8| {
            let enter = |number| in_flight.enter(owner(server), source(of_source(number)));
            (0..200).map_while(enter).collect::<Vec<_>>()
        };
        let hanging = (fill("a.example", |number| number), fill("b.example", |number| number));
        assert_eq!((hanging.0.len(), hanging.1.len()), (53, 13));
        assert!(in_flight.enter(owner("c.example"), source(250)).is_some());
        drop(hanging);
        let hanging = (fill("a.example", |_| 1), fill("b.example", |_| 2));
        assert_eq!((hanging.0.len(), hanging.1.len()), (53, 13));
        assert!(in_flight.enter(None, source(3)).is_some());
    }

    #[test]
    fn a_cap_of_one_admits_one_push() {
        assert!(InFlight::new(1).enter(owner("a.example"), source(1)).is_some());
    }
}
