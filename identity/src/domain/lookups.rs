//! Lookups under every live pepper: the current one, its predecessors during a grace period, and the next one while it
//! is being prepared.
//!
//! A rotation has no gap:
//! - A new pepper is stored with an activation time, so every replica prepares for it before any client learns of it.
//! - A replica hands out a pepper only once its own index for it is complete; until then it hands out the previous one.
//! - A lookup with a pepper whose index is still filling is distinguished from one with an unknown pepper ([`Found`]),
//!   so it can wait: another replica may have been faster and handed the pepper out.
//! - A pepper is dropped only once a later one, complete here, has been active for the grace period.
//! - Binds and unbinds reach all indexes. An index that is being filled applies them on completion, since the rows that
//!   fill it may be older.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use parking_lot::{Mutex, RwLock};

use super::{
    hashing::{self, LookupHash},
    lookup_index::LookupIndex,
    mxid::Mxid,
    threepid::Threepid,
};

/// A pepper as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pepper {
    /// The pepper itself.
    pub(crate) text: String,
    /// When it was generated, in milliseconds since the epoch.
    pub(crate) created_ms: i64,
    /// When it becomes the one handed out, in milliseconds since the epoch.
    pub(crate) active_ms: i64,
}

/// A change that arrived while an index was being filled.
type Waiting = (LookupHash, Option<Mxid>);

/// A pepper and its index.
#[derive(Debug)]
pub(crate) struct PepperIndex {
    pepper: Pepper,
    index: LookupIndex,
    /// Binds and unbinds since filling began, in order; none once the index is complete.
    waiting: Mutex<Option<Vec<Waiting>>>,
    complete: AtomicBool,
}

impl PepperIndex {
    fn new(pepper: Pepper) -> Self {
        Self {
            pepper,
            index: LookupIndex::new(),
            waiting: Mutex::new(Some(Vec::new())),
            complete: AtomicBool::new(false),
        }
    }

    /// The pepper.
    pub(crate) fn pepper(&self) -> &str {
        &self.pepper.text
    }

    /// When the pepper becomes the one handed out, in milliseconds since the epoch.
    pub(crate) fn active_ms(&self) -> i64 {
        self.pepper.active_ms
    }

    /// The index of hashes made with this pepper.
    pub(crate) fn index(&self) -> &LookupIndex {
        &self.index
    }

    /// Adds stored associations, read when filling began or later.
    pub(crate) fn fill<'a>(&self, associations: impl Iterator<Item = (&'a Threepid, &'a Mxid)>) {
        let hashed: Vec<_> = associations
            .map(|(threepid, mxid)| (hashing::lookup_hash(threepid, &self.pepper.text), mxid.as_str()))
            .collect();
        self.index.extend(&hashed);
    }

    /// Applies the waiting changes and makes the index available to lookups.
    pub(crate) fn complete(&self) {
        let mut waiting = self.waiting.lock();
        for (hash, mxid) in waiting.take().unwrap_or_default() {
            self.change(&hash, mxid.as_ref());
        }
        // Under the lock, so that no waiting change can overtake a later one.
        self.complete.store(true, Ordering::Release);
    }

    fn is_complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    fn set(&self, threepid: &Threepid, mxid: Option<&Mxid>) {
        let hash = hashing::lookup_hash(threepid, &self.pepper.text);
        if !self.is_complete() {
            let mut waiting = self.waiting.lock();
            if let Some(waiting) = waiting.as_mut() {
                waiting.push((hash, mxid.cloned()));
                return;
            }
        }
        self.change(&hash, mxid);
    }

    fn change(&self, hash: &LookupHash, mxid: Option<&Mxid>) {
        match mxid {
            Some(mxid) => self.index.insert(hash, mxid.as_str()),
            None => self.index.remove(hash),
        }
    }
}

/// The result of looking up a pepper that a client hashed with.
#[derive(Debug)]
pub(crate) enum Found {
    /// Its index is ready.
    Complete(Arc<PepperIndex>),
    /// Its index will be ready in a moment.
    Filling,
    /// It was never handed out, or its grace period has ended.
    Unknown,
}

/// All live peppers with their indexes.
#[derive(Debug)]
pub(crate) struct Lookups {
    /// How long a pepper is still answered after its successor became active.
    grace_ms: i64,
    /// Ordered by activation time, earliest first.
    all: RwLock<Arc<[Arc<PepperIndex>]>>,
}

impl Lookups {
    /// Creates a set without peppers.
    pub(crate) fn new(grace_ms: i64) -> Self {
        Self { grace_ms, all: RwLock::new(Vec::new().into()) }
    }

    fn all(&self) -> Arc<[Arc<PepperIndex>]> {
        self.all.read().clone()
    }

    /// The pepper to hand out: the latest active one with a complete index, or else the earliest complete one. None
    /// before the first index is complete.
    pub(crate) fn current(&self, now_ms: i64) -> Option<Arc<PepperIndex>> {
        let all = self.all();
        let active =
            |pepper_index: &&Arc<PepperIndex>| pepper_index.is_complete() && pepper_index.pepper.active_ms <= now_ms;
        all.iter().rev().find(active).or_else(|| all.iter().find(|pepper_index| pepper_index.is_complete())).cloned()
    }

    /// Finds the index for a pepper that a client hashed with.
    pub(crate) fn find(&self, pepper: &str, now_ms: i64) -> Found {
        let all = self.all();
        let Some(at) = all.iter().position(|pepper_index| pepper_index.pepper.text == pepper) else {
            return Found::Unknown;
        };
        if !all[at].is_complete() {
            Found::Filling
        } else if all[at + 1..].iter().any(|later| later.is_complete() && self.ends_others(&later.pepper, now_ms)) {
            Found::Unknown
        } else {
            Found::Complete(all[at].clone())
        }
    }

    /// Whether a pepper has been active for the whole grace period, so that its predecessors are dropped.
    fn ends_others(&self, pepper: &Pepper, now_ms: i64) -> bool {
        pepper.active_ms.saturating_add(self.grace_ms) <= now_ms
    }

    /// The activation time of the newest pepper, in milliseconds since the epoch.
    pub(crate) fn newest_ms(&self) -> Option<i64> {
        self.all().last().map(|pepper_index| pepper_index.pepper.active_ms)
    }

    /// Binds an address to `mxid`, replacing any previous owner.
    pub(crate) fn insert(&self, threepid: &Threepid, mxid: &Mxid) {
        self.set(threepid, Some(mxid));
    }

    /// Sets the owner of an address, or removes it.
    pub(crate) fn set(&self, threepid: &Threepid, mxid: Option<&Mxid>) {
        for pepper_index in self.all().iter() {
            pepper_index.set(threepid, mxid);
        }
    }

    /// Replaces the set with the stored peppers, except for expired ones. Returns the indexes that have to be filled;
    /// they receive all changes from now on.
    pub(crate) fn keep(&self, mut stored: Vec<Pepper>, now_ms: i64) -> Vec<Arc<PepperIndex>> {
        stored.sort_by(|a, b| (a.active_ms, a.created_ms, &a.text).cmp(&(b.active_ms, b.created_ms, &b.text)));
        let mut all = self.all.write();
        let before = all.clone();
        let complete = |pepper: &Pepper| before.iter().find(|known| known.is_complete() && known.pepper == *pepper);
        let over = |at: usize| {
            // A complete index stays until its successor is complete too, however late that is.
            let answered = complete(&stored[at]).is_some();
            stored[at + 1..]
                .iter()
                .any(|later| self.ends_others(later, now_ms) && (!answered || complete(later).is_some()))
        };
        let mut filling = Vec::new();
        let mut kept = Vec::new();
        for (at, pepper) in stored.iter().enumerate() {
            if over(at) {
                continue;
            }
            kept.push(complete(pepper).cloned().unwrap_or_else(|| {
                let new = Arc::new(PepperIndex::new(pepper.clone()));
                filling.push(new.clone());
                new
            }));
        }
        if !kept.iter().any(|pepper_index| pepper_index.is_complete()) {
            // The peppers in the database were replaced: keep answering with the old ones until the new are filled.
            kept.extend(before.iter().filter(|known| known.is_complete()).cloned());
            kept.sort_by_key(|pepper_index| (pepper_index.pepper.active_ms, pepper_index.pepper.created_ms));
        }
        *all = kept.into();
        filling
    }

    /// Creates new indexes for all peppers, to be filled and passed to [`Lookups::replace`]; the old ones answer
    /// meanwhile. [`Lookups::keep`] must not be called in between.
    pub(crate) fn renew(&self) -> Vec<Arc<PepperIndex>> {
        let mut all = self.all.write();
        let new: Vec<_> =
            all.iter().map(|pepper_index| Arc::new(PepperIndex::new(pepper_index.pepper.clone()))).collect();
        // Behind the old ones, so that lookups find the old ones first; changes reach both.
        *all = all.iter().filter(|known| known.is_complete()).chain(&new).cloned().collect();
        new
    }

    /// Replaces all indexes with `new`, which must be complete.
    pub(crate) fn replace(&self, new: Vec<Arc<PepperIndex>>) {
        *self.all.write() = new.into();
    }

    /// The number of addresses in the newest complete index.
    pub(crate) fn len(&self) -> usize {
        self.all()
            .iter()
            .rev()
            .find(|pepper_index| pepper_index.is_complete())
            .map_or(0, |pepper_index| pepper_index.index.len())
    }

    /// The owner of an address.
    #[cfg(test)]
    fn owner(&self, pepper: &str, threepid: &Threepid, now_ms: i64) -> Option<String> {
        match self.find(pepper, now_ms) {
            Found::Complete(pepper_index) => {
                let view = pepper_index.index.read();
                view.get(&hashing::lookup_hash(threepid, pepper))
            }
            Found::Filling | Found::Unknown => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const GRACE_MS: i64 = 1000;

    fn pepper(text: &str, active_ms: i64) -> Pepper {
        Pepper { text: text.to_owned(), created_ms: 0, active_ms }
    }

    fn mxid(text: &str) -> Mxid {
        Mxid::parse(text).unwrap()
    }

    fn alice() -> Threepid {
        Threepid::email("alice@example.com").unwrap()
    }

    fn handed_out(lookups: &Lookups, now_ms: i64) -> String {
        lookups.current(now_ms).unwrap().pepper().to_owned()
    }

    /// `old` is active; `new` becomes active at 5000.
    fn rotating() -> (Lookups, Arc<PepperIndex>) {
        let lookups = Lookups::new(GRACE_MS);
        for old in lookups.keep(vec![pepper("old", 0)], 0) {
            old.complete();
        }
        let filling = lookups.keep(vec![pepper("new", 5000), pepper("old", 0)], 4000);
        assert_eq!(filling.len(), 1);
        (lookups, filling.into_iter().next().unwrap())
    }

    #[test]
    fn a_pepper_is_handed_out_once_it_is_active_and_its_index_complete() {
        let (lookups, new) = rotating();
        assert_eq!(handed_out(&lookups, 6000), "old");
        assert!(matches!(lookups.find("new", 6000), Found::Filling));
        new.complete();
        assert_eq!(handed_out(&lookups, 4999), "old");
        assert_eq!(handed_out(&lookups, 5000), "new");
        // Another replica's clock may be ahead.
        assert!(matches!(lookups.find("new", 4999), Found::Complete(_)));
    }

    #[test]
    fn the_previous_pepper_is_answered_during_the_grace_period() {
        let (lookups, new) = rotating();
        // However late it is, the pepper that is handed out is answered.
        assert!(matches!(lookups.find("old", 9000), Found::Complete(_)));
        assert_eq!(lookups.keep(vec![pepper("old", 0), pepper("new", 5000)], 9000).len(), 1);
        assert_eq!(handed_out(&lookups, 9000), "old");
        new.complete();
        let (lookups, new) = rotating();
        new.complete();
        assert!(matches!(lookups.find("old", 5999), Found::Complete(_)));
        assert!(matches!(lookups.find("old", 6000), Found::Unknown));
        assert!(matches!(lookups.find("never", 5000), Found::Unknown));
        assert!(lookups.keep(vec![pepper("old", 0), pepper("new", 5000)], 6000).is_empty());
        assert_eq!(lookups.all().len(), 1);
    }

    #[test]
    fn changes_during_filling_win_over_the_rows_that_fill_the_index() {
        let (lookups, new) = rotating();
        let bob = Threepid::email("bob@example.com").unwrap();
        lookups.insert(&alice(), &mxid("@new:hs.test"));
        lookups.insert(&bob, &mxid("@bob:hs.test"));
        lookups.set(&bob, None);
        // The rows as they were before the changes.
        new.fill([(&alice(), &mxid("@old:hs.test")), (&bob, &mxid("@bob:hs.test"))].into_iter());
        new.complete();
        lookups.insert(&Threepid::email("carol@example.com").unwrap(), &mxid("@carol:hs.test"));
        for pepper in ["old", "new"] {
            assert_eq!(lookups.owner(pepper, &alice(), 5000).as_deref(), Some("@new:hs.test"), "{pepper}");
            assert_eq!(lookups.owner(pepper, &bob, 5000), None, "{pepper}");
        }
        assert_eq!(lookups.len(), 2);
    }

    #[test]
    fn filling_an_index_that_failed_starts_over() {
        let (lookups, _) = rotating();
        let again = lookups.keep(vec![pepper("old", 0), pepper("new", 5000)], 4000);
        assert_eq!(again.len(), 1);
        again[0].complete();
        assert_eq!(handed_out(&lookups, 5000), "new");
    }

    #[test]
    fn renewed_indexes_replace_the_old_ones() {
        let lookups = Lookups::new(GRACE_MS);
        for old in lookups.keep(vec![pepper("a", 0)], 0) {
            old.complete();
        }
        lookups.insert(&alice(), &mxid("@gone:hs.test"));
        let new = lookups.renew();
        assert_eq!(lookups.owner("a", &alice(), 0).as_deref(), Some("@gone:hs.test"));
        for index in &new {
            index.complete();
        }
        lookups.replace(new);
        assert_eq!(lookups.owner("a", &alice(), 0), None);
    }
}
