//! When the configuration is to be read again: SIGHUP, or a file that it names was changed.
//!
//! Files are looked at every few seconds and not watched by the system: Kubernetes swaps a mounted secret by renaming a
//! symbolic link two folders up, which watches of the file itself do not see.

use std::{collections::hash_map::RandomState, fmt, fs, hash::BuildHasher as _, io, path::PathBuf, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

use crate::{
    current::Current,
    error::Chain,
    service::systemd,
    stop::Stop,
    telemetry::{
        logs::{self, LogLevel},
        metrics::ReloadMetrics,
    },
};

/// How often the files are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What reading the configuration again came to.
#[derive(Debug)]
pub struct Renewed<S> {
    /// What requests share from now on.
    pub state: S,
    /// The secret files of the configuration, to look after.
    pub files: Vec<PathBuf>,
    /// What is logged from now on.
    pub level: LogLevel,
    /// Keys that have another value than the one that the process was started with, and go on with that one.
    pub waiting: Vec<&'static str>,
}

/// Reads the configuration again whenever there is a reason, until `stop`. One that is not good is refused, and the
/// state before stays.
pub async fn keep_up<S: Clone>(
    current: Current<S>,
    mut reasons: Reasons,
    metrics: ReloadMetrics,
    stop: Stop,
    read_again: impl Fn(&S) -> Result<Renewed<S>, Box<dyn std::error::Error + Send + Sync>>,
) {
    loop {
        let reason = tokio::select! {
            reason = reasons.next() => reason,
            () = stop.requested() => return,
        };
        if reason == Reason::Signal {
            systemd::reloading();
        }
        // Before it is read: what changes from here on is another reason.
        reasons.look();
        match read_again(&current.get()) {
            Ok(Renewed { state, files, level, waiting }) => {
                reasons.watch(files);
                logs::set_level(level);
                current.set(state);
                metrics.reloaded(true);
                tracing::info!(%reason, "the configuration was read again");
                if !waiting.is_empty() {
                    tracing::warn!(keys = waiting.join(", "), "these keys take effect at the next start");
                }
            }
            Err(error) => {
                metrics.reloaded(false);
                tracing::error!(%reason, error = %Chain(&*error), "the new configuration is refused, and the one before stays");
            }
        }
        if reason == Reason::Signal {
            systemd::ready();
        }
    }
}

/// Why the configuration is read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody asked for it.
    Signal,
    /// This file is another one now.
    File(PathBuf),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal => f.write_str("SIGHUP"),
            Self::File(path) => write!(f, "{} has changed", path.display()),
        }
    }
}

/// Waits for reasons.
#[derive(Debug)]
pub struct Reasons {
    hangup: Signal,
    files: Files,
    next_look: Instant,
}

impl Reasons {
    /// Listens for SIGHUP from now on, and takes `files` for what was read.
    ///
    /// # Errors
    ///
    /// When the signal cannot be listened to.
    pub fn new(files: Vec<PathBuf>) -> io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { hangup, files: Files::new(files), next_look: Instant::now() + LOOK_EVERY })
    }

    /// Takes the files as they are now for what is about to be read. One that is not there is a reason when it comes
    /// back: without it the reading is refused.
    pub fn look(&mut self) {
        self.files.look();
    }

    /// Looks after `files` from now on: those of the configuration that was just read.
    pub fn watch(&mut self, files: Vec<PathBuf>) {
        self.files.watch(files);
    }

    /// Waits for the next reason. Nothing is lost when this is cancelled.
    pub async fn next(&mut self) -> Reason {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => return Reason::Signal,
                () = sleep_until(self.next_look) => {}
            }
            self.next_look = Instant::now() + LOOK_EVERY;
            if let Some(changed) = self.files.changed() {
                return Reason::File(changed);
            }
        }
    }
}

/// Files and hashes of what was in them.
#[derive(Debug, Default)]
struct Files {
    hasher: RandomState,
    known: Vec<(PathBuf, Option<u64>)>,
}

impl Files {
    fn new(files: Vec<PathBuf>) -> Self {
        let mut new = Self::default();
        new.watch(files);
        new
    }

    fn watch(&mut self, files: Vec<PathBuf>) {
        let known = files.into_iter().map(|path| {
            // As it was before it was read, if it was known then.
            let seen = self.known.iter().find(|(known, _)| *known == path).map(|(_, hash)| *hash);
            let hash = seen.unwrap_or_else(|| self.hash(&path));
            (path, hash)
        });
        self.known = known.collect();
    }

    fn look(&mut self) {
        let now: Vec<_> = self.known.iter().map(|(path, _)| self.hash(path)).collect();
        for ((_, known), now) in self.known.iter_mut().zip(now) {
            *known = now;
        }
    }

    fn hash(&self, path: &PathBuf) -> Option<u64> {
        // What is no file, such as a pipe, is read once at the most, and might be waited for without end.
        let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        is_file.then(|| fs::read(path).ok())?.map(|content| self.hasher.hash_one(content))
    }

    /// A file with another content than before, which is then known. One that is not there is being replaced.
    fn changed(&mut self) -> Option<PathBuf> {
        let now: Vec<_> = self.known.iter().map(|(path, _)| self.hash(path)).collect();
        let mut changed = None;
        for ((path, known), now) in self.known.iter_mut().zip(now) {
            if now.is_some() && *known != now {
                *known = now;
                changed = Some(path.clone());
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_file_that_was_replaced_is_told_once() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let [a, b] = ["a", "b"].map(|name| folder.join(name));
        fs::write(&a, "one").unwrap();
        let mut files = Files::new(vec![a.clone(), b.clone()]);
        assert_eq!(files.changed(), None);

        // As Kubernetes does it: another file by the same name.
        fs::write(folder.join("new"), "two").unwrap();
        fs::rename(folder.join("new"), &a).unwrap();
        assert_eq!(files.changed(), Some(a.clone()));
        assert_eq!(files.changed(), None);

        // One that is gone for a moment is no change, and neither is the same content.
        fs::remove_file(&a).unwrap();
        assert_eq!(files.changed(), None);
        fs::write(&a, "two").unwrap();
        assert_eq!(files.changed(), None);

        fs::write(&b, "").unwrap();
        assert_eq!(files.changed(), Some(b));
    }

    #[test]
    fn what_changes_while_it_is_read_is_told_and_what_was_missing_then_when_it_is_back() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let [a, b, c] = ["a", "b", "c"].map(|name| folder.join(name));
        for path in [&a, &b, &c] {
            fs::write(path, "one").unwrap();
        }
        let mut files = Files::new(vec![a.clone(), b.clone()]);
        fs::remove_file(&b).unwrap();
        files.look();
        fs::write(&a, "two").unwrap();
        // The reading ends with the files that it found named, one of them for the first time.
        files.watch(vec![a.clone(), b.clone(), c]);
        assert_eq!(files.changed(), Some(a));
        assert_eq!(files.changed(), None);
        fs::write(&b, "one").unwrap();
        assert_eq!(files.changed(), Some(b));
        assert_eq!(files.changed(), None);
    }
}
