//! How many pushes of one app are under way: in all, for one source of requests, and to the servers of one owner where
//! strangers choose them. Nobody who is slow or loud may take the room of all others.

use std::{collections::HashMap, hash::Hash, net::IpAddr};

use parking_lot::Mutex;
use waypost_shared::{owner::Owner, source::RequestSource};

/// The pushes of one app that are under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: usize,
    /// Owners and sources without a push under way have no entry.
    to_owners: HashMap<Owner, usize>,
    from_sources: HashMap<Option<IpAddr>, usize>,
}

/// The right to one push, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit<'f> {
    in_flight: &'f InFlight,
    owner: Option<Owner>,
    source: Option<IpAddr>,
}

/// What one source, one owner and one address may have of `most` pushes: three quarters.
pub(crate) fn share(most: usize) -> usize {
    most - most / 4
}

impl InFlight {
    /// `most` pushes at once.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, state: Mutex::default() }
    }

    /// How many there may be at once.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// One more push, on a request from `source`; to a server of `owner` where each device may have another server.
    /// None when there is no room.
    pub(crate) fn enter(&self, owner: Option<Owner>, source: RequestSource) -> Option<Permit<'_>> {
        let (mut state, source) = (self.state.lock(), source.key());
        let has_share = |count: Option<&usize>| count.is_some_and(|count| *count >= share(self.most));
        let owner_has_share = owner.as_ref().is_some_and(|owner| has_share(state.to_owners.get(owner)));
        if state.all >= self.most || owner_has_share || has_share(state.from_sources.get(&source)) {
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
        // Ports and sub-domains are one owner's, and each push comes from another source.
        let enter = |server: &str, last| in_flight.enter(owner(server), source(last));
        let hanging: Vec<_> =
            (0..6).map(|number| enter(&format!("{number}.a.example:{number}"), number).unwrap()).collect();
        assert!(enter("a.example", 7).is_none() && enter("A.example.:9", 8).is_none());
        let others: Vec<_> = (0..2).map(|number| enter("b.example", number).unwrap()).collect();
        assert!(enter("b.example", 9).is_none() && in_flight.enter(None, source(9)).is_none(), "there are eight");
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
        // Addresses of one /64 are one source.
        let hanging: Vec<_> = (0..6).map(|number| from(&format!("2001:db8::{number}")).unwrap()).collect();
        assert!(from("2001:db8::9").is_none());
        let others: Vec<_> = (0..2).map(|_| from("2001:db8:0:1::1").unwrap()).collect();
        assert!(from("192.0.2.1").is_none(), "there are eight");
        drop((hanging, others));
        assert!(from("2001:db8::9").is_some());
    }

    #[test]
    fn a_single_push_always_has_room() {
        assert!(InFlight::new(1).enter(owner("a.example"), source(1)).is_some());
    }
}
