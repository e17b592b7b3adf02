//! Readiness.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Whether the service can take requests: set once start-up is complete, cleared at shutdown.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Sets the readiness.
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::SeqCst);
    }

    /// Whether the service can take requests.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}
