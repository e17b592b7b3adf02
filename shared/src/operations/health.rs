//! Whether requests may come.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether the service can take requests: set when its start is complete, cleared when it stops.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says whether requests may come.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::SeqCst);
    }

    /// Whether requests may come.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
