//! Request bodies, and the limit on the memory they occupy together.
//!
//! Only bytes that have arrived count, from the first one until the body is parsed: a `Content-Length` alone reserves
//! nothing, and a handler that waits for something else must not block other bodies.

use std::{collections::HashMap, net::IpAddr, ops::Deref, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::source::RequestSource;

/// One source may hold an eighth of the memory.
const SHARES: usize = 8;

/// The memory limit shared by all bodies.
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

/// Why a body was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoMemory {
    /// The source has used up its share.
    Source,
    /// All of the memory is in use.
    All,
}

impl BodyMemory {
    /// `all` bytes for all bodies together, `largest` bytes for a single one. A body of `largest` bytes always fits
    /// into an empty budget.
    #[must_use]
    pub fn new(all: usize, largest: usize) -> Arc<Self> {
        let all = all.max(largest);
        Arc::new(Self { all, share: (all / SHARES).max(largest), taken: Mutex::default() })
    }

    /// Starts accounting for a body from `source`; nothing is reserved yet.
    #[must_use]
    pub fn hold(self: &Arc<Self>, source: RequestSource) -> Held {
        Held { memory: self.clone(), source: source.key(), bytes: 0 }
    }
}

/// The memory reserved for one body; released on drop.
#[derive(Debug)]
pub struct Held {
    memory: Arc<BodyMemory>,
    source: Option<IpAddr>,
    bytes: usize,
}

impl Held {
    /// Reserves `bytes` more.
    ///
    /// # Errors
    ///
    /// [`NoMemory`] if they do not fit; nothing more is reserved then.
    pub fn grow(&mut self, bytes: usize) -> Result<(), NoMemory> {
        if bytes == 0 {
            return Ok(());
        }
        let mut taken = self.memory.taken.lock();
        if taken.all + bytes > self.memory.all {
            return Err(NoMemory::All);
        }
        let of_source = taken.by_source.get(&self.source).copied().unwrap_or_default() + bytes;
        if of_source > self.memory.share {
            return Err(NoMemory::Source);
        }
        taken.by_source.insert(self.source, of_source);
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

/// A complete request body. Its memory is released on drop, so a handler should take it out of the request, parse it
/// and drop it before awaiting anything.
#[derive(Debug, Default)]
pub struct Body {
    bytes: Bytes,
    /// `None` in tests and for requests without a body.
    _held: Option<Held>,
}

impl Body {
    /// A body that has been read, and its memory reservation.
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
    fn a_source_is_limited_to_its_share() {
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
        // A source that is refused at once leaves no entry either.
        assert_eq!(mine().grow(101), Err(NoMemory::Source));
        let taken = memory.taken.lock();
        assert_eq!((taken.all, taken.by_source.len()), (0, 0));
    }

    #[test]
    fn all_sources_together_are_limited_to_the_total() {
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
