//! What requests share, and what takes its place when the configuration is read again.

use std::sync::Arc;

use parking_lot::RwLock;
/// The state of a service as it is now. Copies see the same one; whoever works with a state that was got goes on with
/// it, so a request sees one configuration from its beginning to its end.
#[derive(Debug)]
pub struct Current<S>(Arc<RwLock<S>>);

impl<S> Clone for Current<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S> From<S> for Current<S> {
    /// A state that may never change.
    fn from(state: S) -> Self {
        Self(Arc::new(RwLock::new(state)))
    }
}

impl<S: Clone> Current<S> {
    /// Begins with `state`.
    #[must_use]
    pub fn new(state: S) -> Self {
        Self::from(state)
    }

    /// The state as it is now.
    #[must_use]
    pub fn get(&self) -> S {
        self.0.read().clone()
    }

    /// Puts `state` in its place, for what begins from now on.
    pub fn set(&self, state: S) {
        *self.0.write() = state;
    }
}
