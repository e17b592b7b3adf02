//! In-flight requests by address. Strangers can point any number of names at one machine, and requests waiting for it
//! must not crowd out all others.
//!
//! A request counts towards every address that its origin is connected or connecting to, from the moment it asks for a
//! connection until its response has been read. While its name is being resolved it counts towards none.

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc};

use parking_lot::Mutex;

use crate::source::source_key;

/// The in-flight cap of an address has been reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests to this address are in flight")]
pub(super) struct Crowded;

/// The in-flight requests of one client by address; IPv6 by /64.
#[derive(Debug)]
pub(super) struct Loads {
    most: usize,
    /// Addresses without requests have no entry.
    requests: Mutex<HashMap<IpAddr, usize>>,
}

impl Loads {
    /// Caps the in-flight requests to one address at `most`.
    pub(super) fn new(most: usize) -> Self {
        Self { most, requests: Mutex::default() }
    }

    fn add(&self, address: IpAddr, count: usize) -> Result<(), Crowded> {
        let mut requests = self.requests.lock();
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
        let mut requests = self.requests.lock();
        if let Some(known) = requests.get_mut(&address) {
            *known = known.saturating_sub(count);
            if *known == 0 {
                requests.remove(&address);
            }
        }
    }
}

/// The in-flight requests of one origin, and the addresses they count towards.
pub(super) struct OriginLoad {
    all: Arc<Loads>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    requests: usize,
    /// Connections by address, including those being opened.
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

    /// Counts a request towards every address of the origin.
    pub(super) fn begin(self: &Arc<Self>) -> Result<UnderWay, Crowded> {
        let mut state = self.state.lock();
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

    /// Counts a connection: until it ends, the origin's requests count towards `address` too.
    pub(super) fn connect(self: &Arc<Self>, address: IpAddr) -> Result<Connected, Crowded> {
        let address = source_key(address);
        let mut state = self.state.lock();
        if !state.connections.contains_key(&address) {
            self.all.add(address, state.requests)?;
        }
        *state.connections.entry(address).or_default() += 1;
        Ok(Connected { load: self.clone(), address })
    }
}

/// A request in flight; ends on drop.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<OriginLoad>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.requests -= 1;
        for address in state.connections.keys() {
            self.0.all.remove(*address, 1);
        }
    }
}

/// A connection to an address; ends on drop.
#[derive(Debug)]
pub(super) struct Connected {
    load: Arc<OriginLoad>,
    address: IpAddr,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut state = self.load.state.lock();
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
    fn origins_at_one_address_share_its_cap() {
        let all = Arc::new(Loads::new(3));
        let (one, other) = (origin(&all), origin(&all));
        let waiting: Vec<_> = (0..2).map(|_| one.begin().unwrap()).collect();
        let connected = one.connect(HERE).unwrap();
        let two: Vec<_> = (0..2).map(|_| other.begin().unwrap()).collect();
        // Two are in flight there, so two more are one too many; a different address has room for them.
        assert_eq!(other.connect(HERE).err(), Some(Crowded));
        let elsewhere = other.connect(THERE).unwrap();
        let third = one.begin().unwrap();
        assert_eq!(one.begin().err(), Some(Crowded));
        assert!(other.begin().is_ok());
        drop((third, waiting, two));
        drop((connected, elsewhere));
        assert!(all.requests.lock().is_empty(), "{:?}", all.requests.lock());
    }

    #[test]
    fn a_request_counts_for_every_address_of_its_origin() {
        let all = Arc::new(Loads::new(2));
        let (one, other) = (origin(&all), origin(&all));
        let (here, there) = (one.connect(HERE).unwrap(), one.connect(THERE).unwrap());
        let again = one.connect(HERE).unwrap();
        let _request = one.begin().unwrap();
        let _there = other.connect(THERE).unwrap();
        let _second = other.begin().unwrap();
        // THERE is full, so the request is not counted HERE either.
        assert_eq!(one.begin().err(), Some(Crowded));
        assert_eq!(all.requests.lock().get(&HERE), Some(&1));
        drop(there);
        assert_eq!(all.requests.lock().get(&THERE), Some(&1));
        drop(again);
        assert_eq!(all.requests.lock().get(&HERE), Some(&1), "the first connection is still there");
        drop(here);
        assert_eq!(all.requests.lock().get(&HERE), None);
    }

    #[test]
    fn an_ipv6_64_is_one_address() {
        let all = Arc::new(Loads::new(1));
        let (one, other) = (origin(&all), origin(&all));
        let (_one, _other) = (one.begin().unwrap(), other.begin().unwrap());
        let _connected = one.connect("2001:db8::1".parse().unwrap()).unwrap();
        assert_eq!(other.connect("2001:db8::2".parse().unwrap()).err(), Some(Crowded));
        assert!(other.connect("2001:db8:0:1::1".parse().unwrap()).is_ok());
    }
}
