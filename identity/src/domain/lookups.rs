//! Lookups under every pepper that is answered: the one that is handed out, those before it for a grace time, and one
//! that is being prepared.
//!
//! A rotation has no gap:
//! - A new pepper is stored with the time from which it is handed out, so every replica prepares for it before any
//!   client hears of it.
//! - A replica hands out a pepper only when its own index for it is complete, and until then the one before.
//! - A lookup with a pepper whose index is not complete is told apart from one with an unknown pepper ([`Found`]), so
//!   it can wait: another replica may have been faster.
//! - A pepper is forgotten only when a later one, complete here, has been handed out for the grace time.
//! - What is bound and unbound reaches all indexes; one that is being filled takes it in when it is complete, since
//!   the rows that fill it may be older.

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
    /// When it was made, in milliseconds since the epoch.
    pub(crate) created_ms: i64,
    /// From when on it is handed out, likewise.
    pub(crate) active_ms: i64,
}

/// A change that came while an index was being filled.
type Waiting = (LookupHash, Option<Mxid>);

/// A pepper and the index of the hashes that are made with it.
#[derive(Debug)]
pub(crate) struct PepperIndex {
    pepper: Pepper,
    index: LookupIndex,
    /// What was bound and unbound since filling began, in its order; none when the index is complete.
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

    /// From when on it is handed out, in milliseconds since the epoch.
    pub(crate) fn active_ms(&self) -> i64 {
        self.pepper.active_ms
    }

    /// The index of hashes made with it.
    pub(crate) fn index(&self) -> &LookupIndex {
        &self.index
    }

    /// Fills in associations as they were stored when filling began or later.
    pub(crate) fn fill<'a>(&self, associations: impl Iterator<Item = (&'a Threepid, &'a Mxid)>) {
        let hashed: Vec<_> = associations
            .map(|(threepid, mxid)| (hashing::lookup_hash(threepid, &self.pepper.text), mxid.as_str()))
            .collect();
        self.index.extend(&hashed);
    }

    /// Takes in what waited; from now on the index is answered from.
    pub(crate) fn complete(&self) {
        let mut waiting = self.waiting.lock();
        for (hash, mxid) in waiting.take().unwrap_or_default() {
            self.change(&hash, mxid.as_ref());
        }
        // While the lock is held, so that no later change is overtaken by one that waited.
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

/// What there is for a pepper that a client hashed with.
#[derive(Debug)]
pub(crate) enum Found {
    /// It is answered.
    Complete(Arc<PepperIndex>),
    /// It will be answered in a moment.
    Filling,
    /// It was never handed out here, or too long ago.
    Unknown,
}

/// All peppers that there are, each with its index.
#[derive(Debug)]
pub(crate) struct Lookups {
    /// How long a pepper is answered after the next one is handed out.
    grace_ms: i64,
    /// The one that is handed out first comes first.
    all: RwLock<Arc<[Arc<PepperIndex>]>>,
}

impl Lookups {
    /// No pepper yet.
    pub(crate) fn new(grace_ms: i64) -> Self {
        Self { grace_ms, all: RwLock::new(Vec::new().into()) }
    }

    fn all(&self) -> Arc<[Arc<PepperIndex>]> {
        self.all.read().clone()
    }

    /// The pepper to hand out: the latest whose time has come, of those that are complete. None before the first
    /// index is.
    pub(crate) fn current(&self, now_ms: i64) -> Option<Arc<PepperIndex>> {
        let all = self.all();
        let active =
            |pepper_index: &&Arc<PepperIndex>| pepper_index.is_complete() && pepper_index.pepper.active_ms <= now_ms;
        all.iter().rev().find(active).or_else(|| all.iter().find(|pepper_index| pepper_index.is_complete())).cloned()
    }

    /// The index for a pepper that a client hashed with.
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

    /// Whether a pepper has been handed out for so long that those before it are forgotten.
    fn ends_others(&self, pepper: &Pepper, now_ms: i64) -> bool {
        pepper.active_ms.saturating_add(self.grace_ms) <= now_ms
    }

    /// When the latest pepper is or was handed out first.
    pub(crate) fn newest_ms(&self) -> Option<i64> {
        self.all().last().map(|pepper_index| pepper_index.pepper.active_ms)
    }

    /// Says that an address belongs to `mxid`, and to nobody else.
    pub(crate) fn insert(&self, threepid: &Threepid, mxid: &Mxid) {
        self.set(threepid, Some(mxid));
    }

    /// Says whose an address is now, if anybody's.
    pub(crate) fn set(&self, threepid: &Threepid, mxid: Option<&Mxid>) {
        for pepper_index in self.all().iter() {
            pepper_index.set(threepid, mxid);
        }
    }

    /// Takes the stored peppers for all that there are, but for those whose time is over. Returns those that have to
    /// be filled: whatever is bound from now on reaches them.
    pub(crate) fn keep(&self, mut stored: Vec<Pepper>, now_ms: i64) -> Vec<Arc<PepperIndex>> {
        stored.sort_by(|a, b| (a.active_ms, a.created_ms, &a.text).cmp(&(b.active_ms, b.created_ms, &b.text)));
        let mut all = self.all.write();
        let before = all.clone();
        let complete = |pepper: &Pepper| before.iter().find(|known| known.is_complete() && known.pepper == *pepper);
        let over = |at: usize| {
            // What is answered stays until its successor is answered too, however late that is.
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
            // Others were put into the table in place of these.
            kept.extend(before.iter().filter(|known| known.is_complete()).cloned());
            kept.sort_by_key(|pepper_index| (pepper_index.pepper.active_ms, pepper_index.pepper.created_ms));
        }
        *all = kept.into();
        filling
    }

    /// New indexes for all peppers, to be filled and then given to [`Lookups::replace`]; the old ones answer meanwhile.
    /// Nobody may call [`Lookups::keep`] in between.
    pub(crate) fn renew(&self) -> Vec<Arc<PepperIndex>> {
        let mut all = self.all.write();
        let new: Vec<_> =
            all.iter().map(|pepper_index| Arc::new(PepperIndex::new(pepper_index.pepper.clone()))).collect();
        // Behind the old ones, so that those are found; both are told of changes.
        *all = all.iter().filter(|known| known.is_complete()).chain(&new).cloned().collect();
        new
    }

    /// Puts complete indexes in the place of those before.
    pub(crate) fn replace(&self, new: Vec<Arc<PepperIndex>>) {
        *self.all.write() = new.into();
    }

    /// How many addresses are known.
    pub(crate) fn len(&self) -> usize {
        self.all()
            .iter()
            .rev()
            .find(|pepper_index| pepper_index.is_complete())
            .map_or(0, |pepper_index| pepper_index.index.len())
    }

    /// Whose an address is.
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

    /// `old` is in force, `new` will be from 5000 on.
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
    fn a_pepper_is_handed_out_from_its_time_on_and_never_before_its_index_is_complete() {
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
    fn the_one_before_is_answered_for_the_grace_time() {
        let (lookups, new) = rotating();
        // However late it is, what is handed out is answered.
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
    fn what_is_bound_while_an_index_is_filled_is_newer_than_what_fills_it() {
        let (lookups, new) = rotating();
        let bob = Threepid::email("bob@example.com").unwrap();
        lookups.insert(&alice(), &mxid("@new:hs.test"));
        lookups.insert(&bob, &mxid("@bob:hs.test"));
        lookups.set(&bob, None);
        // Rows as they were before.
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
    fn an_index_that_could_not_be_filled_is_begun_anew() {
        let (lookups, _) = rotating();
        let again = lookups.keep(vec![pepper("old", 0), pepper("new", 5000)], 4000);
        assert_eq!(again.len(), 1);
        again[0].complete();
        assert_eq!(handed_out(&lookups, 5000), "new");
    }

    #[test]
    fn renewed_indexes_take_the_place_of_the_old_ones() {
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
