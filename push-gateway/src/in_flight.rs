//! How many pushes of one app are under way, and how many of them to each server that strangers chose: one that hangs
//! must leave room for the others.

use std::collections::HashMap;

use parking_lot::Mutex;
/// The pushes of one app that are under way.
#[derive(Debug)]
pub(crate) struct InFlight {
    most: usize,
    /// To one server, where there are several: three quarters.
    most_to_one: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: usize,
    /// Servers without a push under way have no entry.
    to_servers: HashMap<String, usize>,
}

/// The right to one push, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit<'f> {
    in_flight: &'f InFlight,
    server: Option<String>,
}

impl InFlight {
    /// `most` pushes at once.
    pub(crate) fn new(most: usize) -> Self {
        Self { most, most_to_one: most - most / 4, state: Mutex::default() }
    }

    /// How many there may be at once.
    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// One more push, to a `server` (host and port) where each device may have another one. None when there is no room.
    pub(crate) fn enter(&self, server: Option<&str>) -> Option<Permit<'_>> {
        let mut state = self.state.lock();
        if state.all >= self.most {
            return None;
        }
        if let Some(server) = server {
            if state.to_servers.get(server).is_some_and(|count| *count >= self.most_to_one) {
                return None;
            }
            *state.to_servers.entry(server.to_owned()).or_default() += 1;
        }
        state.all += 1;
        Some(Permit { in_flight: self, server: server.map(str::to_owned) })
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut state = self.in_flight.state.lock();
        state.all -= 1;
        let Some(server) = &self.server else { return };
        if let Some(count) = state.to_servers.get_mut(server) {
            *count -= 1;
            if *count == 0 {
                state.to_servers.remove(server);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn one_server_leaves_room_for_others() {
        let in_flight = InFlight::new(8);
        let hanging: Vec<_> = (0..6).map(|_| in_flight.enter(Some("a.example")).unwrap()).collect();
        assert!(in_flight.enter(Some("a.example")).is_none());
        let others: Vec<_> = (0..2).map(|_| in_flight.enter(Some("b.example")).unwrap()).collect();
        assert!(in_flight.enter(Some("b.example")).is_none() && in_flight.enter(None).is_none(), "there are eight");
        drop(others);
        assert!(in_flight.enter(Some("a.example")).is_none());
        drop(hanging);
        assert!(in_flight.state.lock().to_servers.is_empty() && in_flight.state.lock().all == 0);
        assert!(in_flight.enter(Some("a.example")).is_some());
    }

    #[test]
    fn where_there_is_one_server_it_has_all_the_room() {
        let in_flight = InFlight::new(8);
        let all: Vec<_> = (0..8).map(|_| in_flight.enter(None).unwrap()).collect();
        assert!(in_flight.enter(None).is_none());
        drop(all);
        // A single push always has room.
        assert!(InFlight::new(1).enter(Some("a.example")).is_some());
    }
}
