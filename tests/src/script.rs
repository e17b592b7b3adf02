//! Scripted answers of a stand-in, by key (a device token, a path).

use std::collections::{HashMap, VecDeque};

use crate::tls_server::Answer;
use parking_lot::Mutex;

/// Scripted answers: first the one-off ones in order, then the permanent one.
#[derive(Debug, Default)]
pub struct Script(Mutex<HashMap<String, Lines>>);

#[derive(Debug, Default)]
struct Lines {
    once: VecDeque<Answer>,
    always: Option<Answer>,
}

impl Script {
    /// Sets the answer to the next request for `key`. Several calls queue up.
    pub fn once(&self, key: &str, answer: Answer) {
        self.with(key, |lines| lines.once.push_back(answer));
    }

    /// Sets the answer to every request for `key` once the queue is empty.
    pub fn always(&self, key: &str, answer: Answer) {
        self.with(key, |lines| lines.always = Some(answer));
    }

    /// Removes all answers for `key`.
    pub fn forget(&self, key: &str) {
        self.with(key, |lines| *lines = Lines::default());
    }

    /// Takes the next answer for `key`, if there is one.
    pub fn next(&self, key: &str) -> Option<Answer> {
        self.with(key, |lines| lines.once.pop_front().or_else(|| lines.always.clone()))
    }

    fn with<R>(&self, key: &str, change: impl FnOnce(&mut Lines) -> R) -> R {
        let mut scripts = self.0.lock();
        change(scripts.entry(key.to_owned()).or_default())
    }
}
