//! An append-only list whose readers can wait for items.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Time-out of waits, after which the test fails. Long, because a busy machine is not a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Everything that a stand-in received, in order.
#[derive(Debug)]
pub struct Record<T> {
    items: Mutex<Vec<T>>,
    count: watch::Sender<usize>,
}

impl<T> Default for Record<T> {
    fn default() -> Self {
        Self { items: Mutex::new(Vec::new()), count: watch::Sender::new(0) }
    }
}

impl<T: Clone> Record<T> {
    /// Appends an item and wakes all waiters.
    pub fn push(&self, item: T) {
        self.items.lock().push(item);
        self.count.send_modify(|count| *count += 1);
    }

    /// All items so far.
    pub fn all(&self) -> Vec<T> {
        self.items.lock().clone()
    }

    /// The number of items so far.
    pub fn len(&self) -> usize {
        self.items.lock().len()
    }

    /// Whether there are no items yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for the first matching item; `None` after `patience`.
    pub async fn find(&self, patience: Duration, fits: impl Fn(&T) -> bool) -> Option<T> {
        let mut count = self.count.subscribe();
        let search = async {
            let mut seen = 0;
            loop {
                count.mark_unchanged();
                let all = self.all();
                if let Some(found) = all[seen..].iter().find(|item| fits(item)) {
                    return found.clone();
                }
                seen = all.len();
                // Cannot fail: the sender lives in `self`.
                count.changed().await.unwrap();
            }
        };
        tokio::time::timeout(patience, search).await.ok()
    }

    /// Waits for the first matching item.
    ///
    /// # Panics
    ///
    /// If there is none within [`PATIENCE`]; `what` describes it in the message.
    pub async fn wait_for(&self, what: &str, fits: impl Fn(&T) -> bool) -> T {
        self.find(PATIENCE, fits).await.unwrap_or_else(|| panic!("waited {} s in vain for {what}", PATIENCE.as_secs()))
    }
}
