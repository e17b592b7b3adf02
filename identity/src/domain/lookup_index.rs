//! The in-memory index that answers lookups: lookup hash to Matrix id.
//!
//! Hash tables hold 128 bits of each hash and a 32-bit Matrix id number. An association takes 24 to 48 bytes, depending
//! on how full its table is (docs/decisions/0015). Each Matrix id is stored once, in one buffer, as the JSON that
//! answers contain.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::{HashTable, hash_table::Entry};
use parking_lot::{RwLock, RwLockReadGuard};

use super::hashing::LookupHash;

/// Shards of the index, each with its own lock, so that a growing table blocks only a twelfth of the lookups. Tables
/// double at a load of seven eighths; with twelve of them, neither one million nor ten million associations are just
/// past that point.
const SHARDS: usize = 12;
/// Bytes kept of each hash. Finding another address with the same 128 bits is infeasible.
const KEPT: usize = 16;

/// The index for one pepper.
#[derive(Debug)]
pub(crate) struct LookupIndex {
    shards: [RwLock<HashTable<Slot>>; SHARDS],
    mxids: RwLock<Mxids>,
}

impl LookupIndex {
    /// Creates an empty index.
    pub(crate) fn new() -> Self {
        Self { shards: Default::default(), mxids: RwLock::default() }
    }

    /// Binds the address with this hash to `mxid`, replacing any previous owner.
    pub(crate) fn insert(&self, hash: &LookupHash, mxid: &str) {
        let mxid = self.mxids.write().number(mxid);
        self.put(hash, mxid);
    }

    /// Inserts many at once, taking the contended lock on the Matrix ids only once.
    pub(crate) fn extend(&self, associations: &[(LookupHash, &str)]) {
        let numbers: Vec<_> = {
            let mut mxids = self.mxids.write();
            associations.iter().map(|(_, mxid)| mxids.number(mxid)).collect()
        };
        for ((hash, _), mxid) in associations.iter().zip(numbers) {
            self.put(hash, mxid);
        }
    }

    /// Reserves room for `addresses`, so that filling does not rehash again and again.
    pub(crate) fn reserve(&self, addresses: usize) {
        for shard in &self.shards {
            // 5 % more than the average, since the hashes do not fill all shards equally.
            let mut shard = shard.write();
            shard.reserve(addresses / SHARDS * 21 / 20, Slot::key);
        }
        self.mxids.write().reserve(addresses);
    }

    fn put(&self, hash: &LookupHash, mxid: u32) {
        let mut shard = self.shards[shard(hash)].write();
        let new = Slot { hash: kept(hash), mxid };
        match shard.entry(new.key(), |slot| slot.hash == new.hash, Slot::key) {
            Entry::Occupied(mut slot) => *slot.get_mut() = new,
            Entry::Vacant(slot) => drop(slot.insert(new)),
        }
    }

    /// Removes the address with this hash. Its Matrix id stays: other addresses may refer to it.
    pub(crate) fn remove(&self, hash: &LookupHash) {
        let mut shard = self.shards[shard(hash)].write();
        let hash = kept(hash);
        if let Ok(slot) = shard.find_entry(key(&hash), |slot| slot.hash == hash) {
            slot.remove();
        }
    }

    /// A consistent view. It blocks all changes while held, so hold it for a single request and never across an await.
    pub(crate) fn read(&self) -> View<'_> {
        View { shards: self.shards.each_ref().map(|shard| shard.read()), mxids: self.mxids.read() }
    }

    /// The number of addresses.
    pub(crate) fn len(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.read().len()).sum()
    }
}

/// Whether the names in an answer need JSON escaping.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Escaping {
    /// They contain nothing that JSON would escape.
    None,
    /// They may contain anything.
    Json,
}

/// A view of the index; see [`LookupIndex::read`].
pub(crate) struct View<'a> {
    shards: [RwLockReadGuard<'a, HashTable<Slot>>; SHARDS],
    mxids: RwLockReadGuard<'a, Mxids>,
}

impl View<'_> {
    /// Calls `found` for each known hash, with its position in `hashes` and the number of its Matrix id.
    pub(crate) fn find_all(&self, hashes: &[Option<LookupHash>], mut found: impl FnMut(usize, u32)) {
        for (at, hash) in hashes.iter().enumerate() {
            let Some(hash) = hash else { continue };
            let kept = kept(hash);
            if let Some(slot) = self.shards[shard(hash)].find(key(&kept), |slot| slot.hash == kept) {
                found(at, slot.mxid);
            }
        }
    }

    /// The answer to a lookup, `{"mappings":{…}}`: maps each name to a Matrix id, given by its number from
    /// [`View::find_all`].
    pub(crate) fn mappings(&self, found: &[(&str, u32)], escaping: Escaping) -> Vec<u8> {
        // Reading all lengths before copying anything lets the processor fetch the Matrix ids in parallel.
        let length: usize = found.iter().map(|(name, mxid)| name.len() + self.mxids.json(*mxid).len() + 4).sum();
        let mut body = Vec::with_capacity(length + 16);
        body.extend_from_slice(br#"{"mappings":{"#);
        for (number, (name, mxid)) in found.iter().enumerate() {
            if number > 0 {
                body.push(b',');
            }
            match escaping {
                Escaping::None => {
                    body.push(b'"');
                    body.extend_from_slice(name.as_bytes());
                    body.push(b'"');
                }
                Escaping::Json => {
                    serde_json::to_writer(&mut body, name).expect("a string can be written into memory");
                }
            }
            body.push(b':');
            body.extend_from_slice(self.mxids.json(*mxid));
        }
        body.extend_from_slice(b"}}");
        body
    }

    /// The owner of the address with this hash.
    #[cfg(test)]
    pub(crate) fn get(&self, hash: &LookupHash) -> Option<String> {
        let mut known = None;
        self.find_all(&[Some(*hash)], |_, number| known = Some(number));
        known.map(|number| serde_json::from_slice(self.mxids.json(number)).expect("it was written as JSON"))
    }
}

type Kept = [u8; KEPT];

fn kept(hash: &LookupHash) -> Kept {
    let mut kept = [0; KEPT];
    kept.copy_from_slice(&hash[..KEPT]);
    kept
}

/// The shard of a hash, taken from bytes that are not kept, so that it is independent of the position within the table.
fn shard(hash: &LookupHash) -> usize {
    usize::from(u16::from_le_bytes([hash[KEPT], hash[KEPT + 1]])) % SHARDS
}

/// The table's hash of a key. SHA-256 output needs no further hashing.
fn key(hash: &Kept) -> u64 {
    hash.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// An entry: an address and its owner.
#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: Kept,
    mxid: u32,
}

impl Slot {
    fn key(&self) -> u64 {
        key(&self.hash)
    }
}

/// The Matrix ids: each stored once, as JSON preceded by its length. The number of a Matrix id is its offset in units
/// of [`STEP`] bytes, so 32 bits address 16 GiB.
#[derive(Debug)]
struct Mxids {
    text: Vec<u8>,
    numbers: HashTable<u32>,
    hasher: RandomState,
}

const STEP: usize = 4;

impl Default for Mxids {
    fn default() -> Self {
        // Number 0 stays unused.
        Self { text: vec![0; STEP], numbers: HashTable::new(), hasher: RandomState::new() }
    }
}

impl Mxids {
    fn number(&mut self, mxid: &str) -> u32 {
        let json = serde_json::to_vec(mxid).expect("a string can be written into memory");
        let Self { text, numbers, hasher } = self;
        let hash = hasher.hash_one(&json[..]);
        if let Some(number) = numbers.find(hash, |number| json_at(text, *number) == json) {
            return *number;
        }
        let number = u32::try_from(text.len() / STEP).expect("16 GiB of Matrix ids do not fit into memory");
        let length = u32::try_from(json.len()).expect("4 GiB of a Matrix id do not come in a request");
        text.extend_from_slice(&length.to_le_bytes());
        text.extend_from_slice(&json);
        text.resize(text.len().next_multiple_of(STEP), 0);
        numbers.insert_unique(hash, number, |number| hasher.hash_one(json_at(text, *number)));
        number
    }

    fn reserve(&mut self, more: usize) {
        let Self { text, numbers, hasher } = self;
        numbers.reserve(more, |number| hasher.hash_one(json_at(text, *number)));
    }

    fn json(&self, number: u32) -> &[u8] {
        json_at(&self.text, number)
    }
}

fn json_at(text: &[u8], number: u32) -> &[u8] {
    let begin = number as usize * STEP;
    let (length, text) = text[begin..].split_at(STEP);
    let length = length.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
    &text[..length]
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
        assert_eq!(index.read().get(&hash(1)).as_deref(), Some("@bob:hs.test"));
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
            assert_eq!(view.get(&hash(number)), Some(format!("@user{}:hs.test", number / 2)));
        }
        assert_eq!(view.get(&hash(20_000)), None);
    }

    #[test]
    fn hashes_that_differ_in_the_last_kept_byte_are_told_apart() {
        let index = LookupIndex::new();
        let known = hash(1);
        let mut other = known;
        other[KEPT - 1] ^= 1;
        index.insert(&known, "@alice:hs.test");
        assert_eq!(index.read().get(&other), None);
    }

    #[test]
    fn extending_equals_inserting_one_by_one() {
        let index = LookupIndex::new();
        index.reserve(100);
        index.insert(&hash(1), "@before:hs.test");
        index.extend(&[(hash(1), "@alice:hs.test"), (hash(2), "@bob:hs.test"), (hash(3), "@alice:hs.test")]);
        let view = index.read();
        let found = [1, 2, 3, 4].map(|number| view.get(&hash(number)));
        let known = |mxid: &str| Some(mxid.to_owned());
        assert_eq!(found, [known("@alice:hs.test"), known("@bob:hs.test"), known("@alice:hs.test"), None]);
    }

    #[test]
    fn a_slot_takes_20_bytes() {
        assert_eq!(size_of::<Slot>(), 20);
    }

    #[test]
    fn hits_are_reported_with_their_position_in_the_list() {
        let index = LookupIndex::new();
        for number in (0..100).step_by(3) {
            index.insert(&hash(number), &format!("@user{number}:hs.test"));
        }
        let hashes: Vec<_> = (0..100).map(|number| (number != 51).then(|| hash(number))).collect();
        let view = index.read();
        let mut found = Vec::new();
        view.find_all(&hashes, |at, number| found.push((at, view.mxids.json(number).to_vec())));
        let expected: Vec<_> = (0..100)
            .step_by(3)
            .filter(|number| *number != 51)
            .map(|number| (number, format!("\"@user{number}:hs.test\"").into_bytes()))
            .collect();
        assert_eq!(found, expected);
    }

    /// Compares with the standard library's map: binds, moves and unbinds of a few addresses in one small table, so
    /// that they collide all the time.
    #[test]
    fn any_order_of_changes_gives_the_same_result_as_a_map() {
        let mut seed = 1_u64;
        let mut random = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            u32::try_from(seed % below).unwrap()
        };
        for _ in 0..50 {
            let index = LookupIndex::new();
            let mut map = std::collections::HashMap::new();
            for _ in 0..1500 {
                let address = random(300);
                // All fall into one shard and share their first bytes.
                let mut hash = hash(address);
                hash[..7].fill(if address % 2 == 0 { 0xff } else { 0 });
                hash[KEPT..].fill(0);
                if random(3) == 0 {
                    index.remove(&hash);
                    map.remove(&hash);
                } else {
                    let mxid = format!("@u{}:hs.test", random(20));
                    index.insert(&hash, &mxid);
                    map.insert(hash, mxid);
                }
            }
            assert_eq!(index.len(), map.len());
            let view = index.read();
            for address in 0..300 {
                let mut hash = hash(address);
                hash[..7].fill(if address % 2 == 0 { 0xff } else { 0 });
                hash[KEPT..].fill(0);
                assert_eq!(view.get(&hash), map.get(&hash).cloned());
            }
        }
    }

    #[test]
    fn a_matrix_id_is_kept_as_json() {
        let index = LookupIndex::new();
        index.insert(&hash(1), "@\"quoted\\:hs.test");
        assert_eq!(index.read().get(&hash(1)).as_deref(), Some("@\"quoted\\:hs.test"));
    }
}
