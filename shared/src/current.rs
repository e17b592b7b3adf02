//! The state that requests share, replaced as a whole when the configuration is reloaded.

use std::sync::Arc;

use parking_lot::RwLock;
/// The current state of a service, shared by all clones. Requests already running keep the state they started with, so
/// each request sees one configuration throughout.
#[derive(Debug)]
pub struct Current<S>(Arc<RwLock<S>>);

impl<S> Clone for Current<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> From<S> for Current<S> {
    /// A state that never changes unless [`Current::set`] is called.
    fn from(state: S) -> Self {
        Self(Arc::new(RwLock::new(state)))
    }
}

impl<S: Clone> Current<S> {
    /// Starts with `state`.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self::from(state)
    }

    /// A clone of the current state.
    #[must_use]
    pub fn get(&self) -> S {
        self.0.read().clone()
    }

    /// Replaces the state for everything that starts from now on.
    pub fn set(&self, state: S) {
        *self.0.write() = state;
    }
}
