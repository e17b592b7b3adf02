//! Bodies of requests, and the memory that all of them together may take.
//!
//! What counts is bytes that arrived, from the first one until the body is parsed: an announcement costs a client
//! nothing, and a handler that waits for somebody else must not keep others from being read.

use std::{collections::HashMap, net::IpAddr, ops::Deref, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::source::RequestSource;

/// One source may take so much of the memory: an eighth.
const SHARES: usize = 8;

/// The memory for bodies.
#[derive(Debug)]
pub struct BodyMemory {
    all: usize,
    share: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    /// Sources without a body have no entry.
    by_source: HashMap<Option<IpAddr>, usize>,
}

/// Why there is no memory for a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMemory {
    /// This source has its share already.
    Source,
    /// All of it is taken.
    All,
}

impl BodyMemory {
    /// `all` bytes for all bodies, of which one has `largest` at most. One always fits.
    #[must_use]
    pub fn new(all: usize, largest: usize) -> Arc<Self> {
        let all = all.max(largest);
        Arc::new(Self { all, share: (all / SHARES).max(largest), taken: Mutex::default() })
    }

    /// Room for a body from `source`, of which nothing has arrived yet.
    #[must_use]
    pub fn hold(self: &Arc<Self>, source: RequestSource) -> Held {
        Held { memory: self.clone(), source: source.key(), bytes: 0 }
    }
}

/// The memory that one body takes, until this is dropped.
#[derive(Debug)]
pub struct Held {
    memory: Arc<BodyMemory>,
    source: Option<IpAddr>,
    bytes: usize,
}

impl Held {
    /// Takes the memory for `bytes` more.
    ///
    /// # Errors
    ///
    /// There is not so much left; then nothing more is taken.
    pub fn grow(&mut self, bytes: usize) -> Result<(), NoMemory> {
        if bytes == 0 {
            return Ok(());
        }
        let mut taken = self.memory.taken.lock();
        if taken.all + bytes > self.memory.all {
            return Err(NoMemory::All);
        }
        let of_source = taken.by_source.entry(self.source).or_default();
        if *of_source + bytes > self.memory.share {
            return Err(NoMemory::Source);
        }
        *of_source += bytes;
        taken.all += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut taken = self.memory.taken.lock();
        taken.all -= self.bytes;
        if let Some(of_source) = taken.by_source.get_mut(&self.source) {
            *of_source -= self.bytes;
            if *of_source == 0 {
                taken.by_source.remove(&self.source);
            }
        }
    }
}

/// A request's whole body. Its memory is given back when it is dropped, so a handler takes it out of the request,
/// parses it and lets it go before it waits for anybody.
#[derive(Debug, Default)]
pub struct Body {
    bytes: Bytes,
    /// None in tests, and where there is no body.
    _held: Option<Held>,
}

impl Body {
    /// What was read, and the memory that it takes.
    #[must_use]
    pub fn new(bytes: Bytes, held: Held) -> Self {
        Self { bytes, _held: Some(held) }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { bytes, _held: None }
    }
}

impl Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_source_has_its_share_and_no_more() {
        let memory = BodyMemory::new(800, 10);
        let mine = || memory.hold(RequestSource::from(IpAddr::from([192, 0, 2, 1])));
        let mut first = mine();
        first.grow(60).unwrap();
        let mut second = mine();
        second.grow(40).unwrap();
        assert_eq!(second.grow(1), Err(NoMemory::Source));
        let mut other = memory.hold(RequestSource::UNKNOWN);
        other.grow(100).unwrap();
        drop(first);
        second.grow(60).unwrap();
        drop((second, other));
        let taken = memory.taken.lock();
        assert_eq!((taken.all, taken.by_source.len()), (0, 0));
    }

    #[test]
    fn all_sources_have_no_more_than_there_is() {
        let memory = BodyMemory::new(800, 10);
        let mut held: Vec<_> =
            (0..8).map(|number| memory.hold(RequestSource::from(IpAddr::from([192, 0, 2, number])))).collect();
        held.iter_mut().for_each(|held| held.grow(100).unwrap());
        let mut ninth = memory.hold(RequestSource::from(IpAddr::from([192, 0, 2, 9])));
        assert_eq!(ninth.grow(1), Err(NoMemory::All));
        held.pop();
        ninth.grow(100).unwrap();
    }

    #[test]
    fn the_largest_body_always_fits() {
        let memory = BodyMemory::new(5, 10);
        memory.hold(RequestSource::UNKNOWN).grow(10).unwrap();
    }
}
