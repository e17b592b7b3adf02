//! How many requests are under way to each address. Strangers can give one machine any number of names, and requests
//! that wait for it must not take the place of all others.
//!
//! A request counts for each address that its origin is connected or connecting to, from the moment it asks for a
//! connection until its answer has been read. While a name is being resolved it counts for none.

use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::source::source_key;

/// There are as many requests under way to an address as there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests to this address are under way")]
pub(super) struct Crowded;

/// The requests of one client, by address: IPv6 by /64.
#[derive(Debug)]
pub(super) struct Loads {
    most: usize,
    /// Addresses without a request have no entry.
    requests: Mutex<HashMap<IpAddr, usize>>,
}

impl Loads {
    /// `most` requests at once to one address.
    pub(super) fn new(most: usize) -> Self {
        Self { most, requests: Mutex::default() }
    }

    fn add(&self, address: IpAddr, count: usize) -> Result<(), Crowded> {
        let mut requests = self.lock();
        let known = requests.get(&address).copied().unwrap_or_default();
        if count > 0 && known + count > self.most {
            return Err(Crowded);
        }
        if count > 0 {
            requests.insert(address, known + count);
        }
        Ok(())
    }

    fn remove(&self, address: IpAddr, count: usize) {
        let mut requests = self.lock();
        if let Some(known) = requests.get_mut(&address) {
            *known = known.saturating_sub(count);
            if *known == 0 {
                requests.remove(&address);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        // Each change is one insertion or removal.
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The requests of one origin, and where it is reached.
pub(super) struct OriginLoad {
    all: Arc<Loads>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    requests: usize,
    /// How many connections there are to each address, those included that are being opened.
    connections: HashMap<IpAddr, usize>,
}

impl fmt::Debug for OriginLoad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginLoad").finish_non_exhaustive()
    }
}

impl OriginLoad {
    pub(super) fn new(all: Arc<Loads>) -> Self {
        Self { all, state: Mutex::default() }
    }

    /// Begins a request.
    pub(super) fn begin(self: &Arc<Self>) -> Result<UnderWay, Crowded> {
        let mut state = self.lock();
        let addresses: Vec<_> = state.connections.keys().copied().collect();
        for (counted, address) in addresses.iter().enumerate() {
            if let Err(crowded) = self.all.add(*address, 1) {
                for address in &addresses[..counted] {
                    self.all.remove(*address, 1);
                }
                return Err(crowded);
            }
        }
        state.requests += 1;
        Ok(UnderWay(self.clone()))
    }

    /// Begins a connection: the origin's requests count for `address` too, until it ends.
    pub(super) fn connect(self: &Arc<Self>, address: IpAddr) -> Result<Connected, Crowded> {
        let address = source_key(address);
        let mut state = self.lock();
        if !state.connections.contains_key(&address) {
            self.all.add(address, state.requests)?;
        }
        *state.connections.entry(address).or_default() += 1;
        Ok(Connected { load: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One request, until it is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<OriginLoad>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.requests -= 1;
        for address in state.connections.keys() {
            self.0.all.remove(*address, 1);
        }
    }
}

/// One connection to an address, until it is dropped.
#[derive(Debug)]
pub(super) struct Connected {
    load: Arc<OriginLoad>,
    address: IpAddr,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut state = self.load.lock();
        let Some(connections) = state.connections.get_mut(&self.address) else { return };
        *connections -= 1;
        if *connections == 0 {
            state.connections.remove(&self.address);
            self.load.all.remove(self.address, state.requests);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn origin(all: &Arc<Loads>) -> Arc<OriginLoad> {
        Arc::new(OriginLoad::new(all.clone()))
    }

    #[test]
    fn origins_at_one_address_share_its_room() {
        let all = Arc::new(Loads::new(3));
        let (one, other) = (origin(&all), origin(&all));
        let waiting: Vec<_> = (0..2).map(|_| one.begin().unwrap()).collect();
        let connected = one.connect(HERE).unwrap();
        let two: Vec<_> = (0..2).map(|_| other.begin().unwrap()).collect();
        // Two wait there, and two more are one too many; at another address they are not.
        assert_eq!(other.connect(HERE).err(), Some(Crowded));
        let elsewhere = other.connect(THERE).unwrap();
        let third = one.begin().unwrap();
        assert_eq!(one.begin().err(), Some(Crowded));
        assert!(other.begin().is_ok());
        drop((third, waiting, two));
        drop((connected, elsewhere));
        assert!(all.lock().is_empty(), "{:?}", all.lock());
    }

    #[test]
    fn a_request_counts_wherever_its_origin_is_connected() {
        let all = Arc::new(Loads::new(2));
        let (one, other) = (origin(&all), origin(&all));
        let (here, there) = (one.connect(HERE).unwrap(), one.connect(THERE).unwrap());
        let again = one.connect(HERE).unwrap();
        let _request = one.begin().unwrap();
        let _there = other.connect(THERE).unwrap();
        let _second = other.begin().unwrap();
        // There is no room there, so nothing is counted here either.
        assert_eq!(one.begin().err(), Some(Crowded));
        assert_eq!(all.lock().get(&HERE), Some(&1));
        drop(there);
        assert_eq!(all.lock().get(&THERE), Some(&1));
        drop(again);
        assert_eq!(all.lock().get(&HERE), Some(&1), "the first connection is still there");
        drop(here);
        assert_eq!(all.lock().get(&HERE), None);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let all = Arc::new(Loads::new(1));
        let (one, other) = (origin(&all), origin(&all));
        let (_one, _other) = (one.begin().unwrap(), other.begin().unwrap());
        let _connected = one.connect("2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(other.connect("2001:db8::2".parse().unwrap()).err(), Some(Crowded));
        assert!(other.connect("2001:db8:0:1::1".parse().unwrap()).is_ok());
    }
}
