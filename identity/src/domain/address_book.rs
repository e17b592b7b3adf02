//! The addresses that an account has looked up before, so that each is charged only once.
//!
//! A phone syncs the same address book every day; whoever enumerates numbers asks for new ones each time. Charging only
//! for new addresses therefore lets the budgets be small without anybody noticing who has friends and not victims.
//!
//! An address is remembered as 32 bits of its lookup hash. With 4000 of them, one new address in a million is taken for
//! a known one. Nobody can make that happen on purpose: the hash of a given address is what it is.

use std::collections::HashSet;

/// What an address is remembered by.
type Mark = u32;

/// Addresses in one generation. Two generations are kept, so an account remembers between this many and twice as many;
/// larger address books are charged again, in part.
const GENERATION: usize = 10_000;

/// The addresses that an account has looked up. The least recently used ones are forgotten.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct AddressBook {
    recent: HashSet<Mark>,
    older: HashSet<Mark>,
}

/// The mark of an address whose lookup hash begins with `prefix` (see [`super::hashing::prefix`]).
pub(crate) fn mark(prefix: u64) -> Mark {
    (prefix >> 32) as Mark
}

impl AddressBook {
    /// Reads what [`AddressBook::to_bytes`] wrote. Bytes of a torn value are ignored: forgetting costs a charge, nothing
    /// else.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let mut book = Self::default();
        for mark in bytes.as_chunks().0 {
            book.add(Mark::from_le_bytes(*mark));
        }
        book
    }

    /// Four bytes for each address, the least recently used generation first.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        self.older.iter().chain(&self.recent).flat_map(|mark| mark.to_le_bytes()).collect()
    }

    /// The number of addresses.
    pub(crate) fn len(&self) -> usize {
        self.recent.len() + self.older.len()
    }

    /// Those of `marks` that are not in it, each once.
    pub(crate) fn new_among(&self, marks: &[Mark]) -> Vec<Mark> {
        let is_new = |mark: &Mark| !self.recent.contains(mark) && !self.older.contains(mark);
        let mut new: Vec<_> = marks.iter().copied().filter(is_new).collect();
        new.sort_unstable();
        new.dedup();
        new
    }

    /// Adds addresses, or marks them as used again.
    pub(crate) fn extend(&mut self, marks: &[Mark]) {
        marks.iter().for_each(|mark| self.add(*mark));
    }

    /// Adds what another replica knew.
    pub(crate) fn merge(&mut self, other: &Self) {
        for mark in other.older.iter().chain(&other.recent) {
            if !self.recent.contains(mark) {
                self.add(*mark);
            }
        }
    }

    fn add(&mut self, mark: Mark) {
        self.older.remove(&mark);
        self.recent.insert(mark);
        if self.recent.len() >= GENERATION {
            self.older = std::mem::take(&mut self.recent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_were_not_added_are_new_and_each_counts_once() {
        let mut book = AddressBook::default();
        assert_eq!(book.new_among(&[3, 1, 3, 2]), [1, 2, 3]);
        book.extend(&[1, 2]);
        assert_eq!(book.new_among(&[3, 1, 3, 2]), [3]);
        assert_eq!(AddressBook::from_bytes(&book.to_bytes()), book);
        // A torn last entry is ignored.
        assert_eq!(AddressBook::from_bytes(&book.to_bytes()[..7]).len(), 1);
    }

    #[test]
    fn what_is_used_stays_and_what_is_not_is_forgotten() {
        let mut book = AddressBook::default();
        let mine: Vec<Mark> = (0..4000).collect();
        book.extend(&mine);
        for more in (4000_u32..).step_by(1000).take(100) {
            book.extend(&(more..more + 1000).collect::<Vec<_>>());
            book.extend(&mine);
        }
        assert!(book.new_among(&mine).is_empty());
        assert!(book.len() <= 2 * GENERATION);
        assert_eq!(book.new_among(&[4000]), [4000], "asked for once, long ago");
        let reopened = AddressBook::from_bytes(&book.to_bytes());
        assert!(reopened.new_among(&mine).is_empty());
    }

    #[test]
    fn merging_adds_what_another_replica_knew() {
        let (mut one, mut other) = (AddressBook::default(), AddressBook::default());
        one.extend(&[1, 2]);
        other.extend(&[2, 3]);
        one.merge(&other);
        assert_eq!(one.new_among(&[1, 2, 3, 4]), [4]);
    }
}
