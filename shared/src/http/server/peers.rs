//! A share of the open connections for each peer.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use parking_lot::Mutex;

use super::forwarded::is_trusted;
use crate::source::source_key;

/// The open connections, by peer.
#[derive(Debug)]
pub(super) struct Peers {
    most: usize,
    /// Reverse proxies: their connections are everybody's.
    trusted: Vec<IpNet>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    by_peer: HashMap<IpAddr, usize>,
}

/// One open connection; ends on drop.
#[derive(Debug)]
pub(super) struct Place {
    peers: Arc<Peers>,
    peer: Option<IpAddr>,
}

impl Peers {
    /// Of at most `most` connections.
    pub(super) fn new(most: usize, trusted: &[IpNet]) -> Arc<Self> {
        Arc::new(Self { most, trusted: trusted.to_vec(), open: Mutex::default() })
    }

    /// Counts a connection. None if its peer has used up its share, which is three times what is free: one alone gets
    /// three quarters, and however many there are, something is left for a newcomer.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Option<Place> {
        let peer = (!is_trusted(peer, &self.trusted)).then(|| source_key(peer));
        let mut open = self.open.lock();
        if let Some(peer) = peer {
            let free = self.most.saturating_sub(open.all);
            let count = open.by_peer.get(&peer).copied().unwrap_or_default();
            if count > 0 && count >= free.saturating_mul(3) {
                return None;
            }
            open.by_peer.insert(peer, count + 1);
        }
        open.all += 1;
        Some(Place { peers: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.peers.open.lock();
        open.all -= 1;
        let Some(peer) = self.peer else { return };
        if let Some(count) = open.by_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                open.by_peer.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_peer_leaves_room_for_others_and_a_proxy_has_no_share() {
        let peers = Peers::new(8, &["10.0.0.0/8".parse().unwrap()]);
        let fill = |address: &str| {
            let peer: IpAddr = address.parse().unwrap();
            (0..100).map_while(|_| peers.enter(peer)).collect::<Vec<_>>()
        };
        let one = fill("192.0.2.1");
        assert_eq!(one.len(), 6);
        // Addresses of one /64 are one peer.
        let mut other = fill("2001:db8::1");
        assert_eq!(other.len(), 2);
        assert!(peers.enter("2001:db8::2".parse().unwrap()).is_none());
        assert!(peers.enter("192.0.2.1".parse().unwrap()).is_none());
        other.pop();
        assert!(peers.enter("192.0.2.1".parse().unwrap()).is_none());
        drop((one, other));
        let open = peers.open.lock();
        assert!(open.all == 0 && open.by_peer.is_empty(), "{open:?}");
        drop(open);
        assert_eq!(fill("10.0.0.1").len(), 100, "the connection limit itself is the accept loop's");
    }
}
