//! What a stand-in shall answer, by key (a device token, a path).

use std::collections::{HashMap, VecDeque};

use crate::tls_server::Answer;
use parking_lot::Mutex;

/// Programmed answers: first those for one time, in order, then the lasting one.
#[derive(Debug, Default)]
pub struct Script(Mutex<HashMap<String, Lines>>);

#[derive(Debug, Default)]
struct Lines {
    once: VecDeque<Answer>,
    always: Option<Answer>,
}

impl Script {
    /// Answers the next request for `key` like this, once. Several calls queue up.
    pub fn once(&self, key: &str, answer: Answer) {
        self.with(key, |lines| lines.once.push_back(answer));
    }

    /// Answers every request for `key` like this, once the queue is empty.
    pub fn always(&self, key: &str, answer: Answer) {
        self.with(key, |lines| lines.always = Some(answer));
    }

    /// Forgets everything programmed for `key`.
    pub fn forget(&self, key: &str) {
        self.with(key, |lines| *lines = Lines::default());
    }

    /// The answer that is due for `key`, if one was programmed.
    pub fn next(&self, key: &str) -> Option<Answer> {
        self.with(key, |lines| lines.once.pop_front().or_else(|| lines.always.clone()))
    }

    fn with<R>(&self, key: &str, change: impl FnOnce(&mut Lines) -> R) -> R {
        let mut scripts = self.0.lock();
        change(scripts.entry(key.to_owned()).or_default())
    }
}
