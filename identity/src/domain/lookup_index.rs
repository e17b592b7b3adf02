//! The index that answers lookups from memory: lookup hash to Matrix id.
//!
//! 160 bits of each hash and a 32-bit number stand in a table of 24-byte entries; each Matrix id stands once in one
//! long text. With the table's own overhead that is 29 to 57 bytes for an association, and its Matrix id once.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{PoisonError, RwLock, RwLockReadGuard},
};

use hashbrown::HashTable;

use super::hashing::LookupHash;

/// Parts of the table, each with a lock of its own: a part that grows holds up a sixteenth of what a whole table would.
const SHARDS: usize = 16;
/// Bytes of a hash that are kept. Finding another address with the same 160 bits is as far out of reach as with 256.
const KEPT: usize = 20;

/// An index for one pepper.
#[derive(Debug)]
pub(crate) struct LookupIndex {
    shards: [RwLock<HashTable<Entry>>; SHARDS],
    mxids: RwLock<Mxids>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hash: [u8; KEPT],
    mxid: u32,
}

impl LookupIndex {
    /// An empty index.
    pub(crate) fn new() -> Self {
        Self { shards: Default::default(), mxids: RwLock::default() }
    }

    /// Says that the address with this hash belongs to `mxid`, and to nobody else.
    pub(crate) fn insert(&self, hash: &LookupHash, mxid: &str) {
        let mxid = self.mxids.write().unwrap_or_else(PoisonError::into_inner).number(mxid);
        self.put(hash, mxid);
    }

    /// The same for many: the lock that all threads want is taken once.
    pub(crate) fn extend(&self, associations: &[(LookupHash, &str)]) {
        let numbers: Vec<_> = {
            let mut mxids = self.mxids.write().unwrap_or_else(PoisonError::into_inner);
            associations.iter().map(|(_, mxid)| mxids.number(mxid)).collect()
        };
        for ((hash, _), mxid) in associations.iter().zip(numbers) {
            self.put(hash, mxid);
        }
    }

    /// Makes room for so many addresses, so that filling does not move what is there again and again.
    pub(crate) fn reserve(&self, addresses: usize) {
        for shard in &self.shards {
            let mut shard = shard.write().unwrap_or_else(PoisonError::into_inner);
            shard.reserve(addresses / SHARDS, |entry| bucket(&entry.hash));
        }
        self.mxids.write().unwrap_or_else(PoisonError::into_inner).reserve(addresses);
    }

    fn put(&self, hash: &LookupHash, mxid: u32) {
        let kept = kept(hash);
        let mut shard = self.shards[shard(hash)].write().unwrap_or_else(PoisonError::into_inner);
        match shard.find_mut(bucket(&kept), |entry| entry.hash == kept) {
            Some(entry) => entry.mxid = mxid,
            None => {
                shard.insert_unique(bucket(&kept), Entry { hash: kept, mxid }, |entry| bucket(&entry.hash));
            }
        }
    }

    /// Forgets the address with this hash. Its Matrix id stays: others may have it, and it may come back.
    pub(crate) fn remove(&self, hash: &LookupHash) {
        let kept = kept(hash);
        let mut shard = self.shards[shard(hash)].write().unwrap_or_else(PoisonError::into_inner);
        if let Ok(entry) = shard.find_entry(bucket(&kept), |entry| entry.hash == kept) {
            entry.remove();
        }
    }

    /// A view that stands still: no association changes while it is held, so hold it for one request and no wait.
    pub(crate) fn read(&self) -> View<'_> {
        View {
            shards: self.shards.each_ref().map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner)),
            mxids: self.mxids.read().unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// How many addresses it knows.
    pub(crate) fn len(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner).len()).sum()
    }
}

/// A view of the index; see [`LookupIndex::read`].
pub(crate) struct View<'a> {
    shards: [RwLockReadGuard<'a, HashTable<Entry>>; SHARDS],
    mxids: RwLockReadGuard<'a, Mxids>,
}

impl View<'_> {
    /// The number of the Matrix id that the address with this hash belongs to. Apart from [`View::mxid`], so that
    /// many hashes can be looked up in one go: the processor then waits for memory once for several of them.
    pub(crate) fn find(&self, hash: &LookupHash) -> Option<u32> {
        let kept = kept(hash);
        let entry = self.shards[shard(hash)].find(bucket(&kept), |entry| entry.hash == kept)?;
        Some(entry.mxid)
    }

    /// The Matrix id of a number that [`View::find`] gave.
    pub(crate) fn mxid(&self, number: u32) -> &str {
        self.mxids.get(number)
    }

    /// The Matrix id that the address with this hash belongs to.
    #[cfg(test)]
    pub(crate) fn get(&self, hash: &LookupHash) -> Option<&str> {
        self.find(hash).map(|number| self.mxid(number))
    }
}

fn kept(hash: &LookupHash) -> [u8; KEPT] {
    let mut kept = [0; KEPT];
    kept.copy_from_slice(&hash[..KEPT]);
    kept
}

fn shard(hash: &LookupHash) -> usize {
    // A byte that is not kept, so that it is independent of the bucket.
    usize::from(hash[KEPT]) % SHARDS
}

fn bucket(kept: &[u8; KEPT]) -> u64 {
    // A SHA-256 needs no further hashing.
    let mut first = [0; 8];
    first.copy_from_slice(&kept[..8]);
    u64::from_le_bytes(first)
}

/// Matrix ids, each once, one after the other in one text.
#[derive(Debug, Default)]
struct Mxids {
    text: String,
    /// Where each one ends.
    ends: Vec<usize>,
    numbers: HashTable<u32>,
    hasher: RandomState,
}

impl Mxids {
    fn number(&mut self, mxid: &str) -> u32 {
        let Self { text, ends, numbers, hasher } = self;
        let hash = hasher.hash_one(mxid);
        if let Some(number) = numbers.find(hash, |number| slice(text, ends, *number) == mxid) {
            return *number;
        }
        let number = u32::try_from(ends.len()).expect("fewer than 4 billion Matrix ids fit into memory");
        text.push_str(mxid);
        ends.push(text.len());
        numbers.insert_unique(hash, number, |number| hasher.hash_one(slice(text, ends, *number)));
        number
    }

    fn reserve(&mut self, more: usize) {
        let Self { text, ends, numbers, hasher } = self;
        ends.reserve(more);
        numbers.reserve(more, |number| hasher.hash_one(slice(text, ends, *number)));
    }

    fn get(&self, number: u32) -> &str {
        slice(&self.text, &self.ends, number)
    }
}

fn slice<'a>(text: &'a str, ends: &[usize], number: u32) -> &'a str {
    let number = number as usize;
    let start = number.checked_sub(1).map_or(0, |before| ends[before]);
    &text[start..ends[number]]
}

#[cfg(test)]
mod tests {
    use sha2::{Digest as _, Sha256};

    use super::*;

    fn hash(number: u32) -> LookupHash {
        Sha256::digest(number.to_le_bytes()).into()
    }

    #[test]
    fn the_newest_owner_of_an_address_wins_and_a_removed_one_is_gone() {
        let index = LookupIndex::new();
        index.insert(&hash(1), "@alice:hs.test");
        index.insert(&hash(2), "@alice:hs.test");
        index.insert(&hash(1), "@bob:hs.test");
        index.remove(&hash(2));
        index.remove(&hash(3));
        assert_eq!(index.read().get(&hash(1)), Some("@bob:hs.test"));
        assert_eq!(index.read().get(&hash(2)), None);
        assert_eq!(index.len(), 1);
    }

    #[test]
    fn many_associations_are_all_found() {
        let index = LookupIndex::new();
        for number in 0..20_000 {
            index.insert(&hash(number), &format!("@user{}:hs.test", number / 2));
        }
        let view = index.read();
        for number in 0..20_000 {
            assert_eq!(view.get(&hash(number)), Some(format!("@user{}:hs.test", number / 2).as_str()));
        }
        assert_eq!(view.get(&hash(20_000)), None);
    }

    #[test]
    fn a_hash_that_differs_late_is_another_one() {
        let index = LookupIndex::new();
        let known = hash(1);
        let mut other = known;
        other[KEPT - 1] ^= 1;
        index.insert(&known, "@alice:hs.test");
        assert_eq!(index.read().get(&other), None);
    }

    #[test]
    fn many_at_once_are_as_one_by_one() {
        let index = LookupIndex::new();
        index.reserve(100);
        index.insert(&hash(1), "@before:hs.test");
        index.extend(&[(hash(1), "@alice:hs.test"), (hash(2), "@bob:hs.test"), (hash(3), "@alice:hs.test")]);
        let view = index.read();
        let found = [1, 2, 3, 4].map(|number| view.get(&hash(number)));
        assert_eq!(found, [Some("@alice:hs.test"), Some("@bob:hs.test"), Some("@alice:hs.test"), None]);
    }

    #[test]
    fn an_entry_takes_24_bytes() {
        assert_eq!(size_of::<Entry>(), 24);
    }
}
