//! Decides when to reload the configuration: on SIGHUP, or when a file it refers to changes.
//!
//! Files are polled rather than watched: Kubernetes swaps a mounted secret by renaming a symbolic link two directories
//! up, which a watch on the file itself does not see.

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

/// Interval between polls of the files.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The result of a successful reload.
#[derive(Debug)]
pub struct Renewed<S> {
    /// The state that requests share from now on.
    pub state: S,
    /// The secret files of the configuration, to be polled.
    pub files: Vec<PathBuf>,
    /// The new log level.
    pub level: LogLevel,
    /// Keys whose change takes effect only after a restart.
    pub waiting: Vec<&'static str>,
}

/// Reloads the configuration whenever there is a reason to, until `stop`. An invalid configuration is rejected and the
/// previous state stays in effect.
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
        // Before reading: a change from here on is a new reason.
        reasons.look();
        match read_again(&current.get()) {
            Ok(Renewed { state, files, level, waiting }) => {
                reasons.watch(files);
                logs::set_level(level);
                current.set(state);
                metrics.reloaded(true);
                tracing::info!(%reason, "configuration reloaded");
                let waiting: Vec<_> = waiting.into_iter().chain(reasons.changed_since_start()).collect();
                if !waiting.is_empty() {
                    tracing::warn!(keys = waiting.join(", "), "changes to these keys take effect after a restart");
                }
            }
            Err(error) => {
                metrics.reloaded(false);
                tracing::error!(%reason, error = %Chain(&*error), "new configuration refused; keeping the previous one");
            }
        }
        if reason == Reason::Signal {
            systemd::ready();
        }
    }
}

/// Why the configuration is reloaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// SIGHUP.
    Signal,
    /// The content of this file changed.
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

/// Waits for reasons to reload.
#[derive(Debug)]
pub struct Reasons {
    hangup: Signal,
    files: Files,
    /// Read only at start-up, with the keys that name them. Polled too, so that somebody is told.
    start_files: Vec<(&'static str, PathBuf)>,
    started_with: Files,
    next_look: Instant,
}

impl Reasons {
    /// Starts listening for SIGHUP, and takes `files` to have been read.
    ///
    /// # Errors
    ///
    /// If the signal handler cannot be installed.
    pub fn new(files: Vec<PathBuf>) -> io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        let next_look = Instant::now() + LOOK_EVERY;
        let (start_files, started_with) = (Vec::new(), Files::default());
        Ok(Self { hangup, files: Files::new(files), start_files, started_with, next_look })
    }

    /// Polls files too that have been read, and are read only at start-up, with the keys that name them. A change of one
    /// is reported after each reload.
    pub fn watch_start_files(&mut self, files: Vec<(&'static str, PathBuf)>) {
        self.started_with = Files::new(files.iter().map(|(_, path)| path.clone()).collect());
        self.start_files = files;
        self.watch(self.files.known.iter().map(|(path, _)| path.clone()).collect());
    }

    /// The keys of the files that are read only at start-up and have changed since.
    fn changed_since_start(&self) -> Vec<&'static str> {
        let is_changed = |(_, path): &&(&'static str, PathBuf)| self.started_with.differs(path);
        self.start_files.iter().filter(is_changed).map(|(key, _)| *key).collect()
    }

    /// Takes the current content of the files to be what is about to be read. A missing file is a reason to reload
    /// once it is back, since reading without it fails.
    pub fn look(&mut self) {
        self.files.look();
    }

    /// Polls `files` from now on: those of the configuration that was just read.
    pub fn watch(&mut self, files: Vec<PathBuf>) {
        let start_files = self.start_files.iter().map(|(_, path)| path.clone());
        self.files.watch(files.into_iter().chain(start_files).collect());
    }

    /// Waits for the next reason. Cancel-safe.
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

/// Files and the hashes of their contents.
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
            // The hash from before the file was read, if there was one.
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

    /// Whether the content of a file is not what it was when it was first seen. A missing file is not.
    fn differs(&self, path: &PathBuf) -> bool {
        let now = self.hash(path);
        now.is_some() && self.known.iter().any(|(known, hash)| known == path && *hash != now)
    }

    fn hash(&self, path: &PathBuf) -> Option<u64> {
        // Anything but a regular file, such as a pipe, can be read only once and might block forever.
        let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        is_file.then(|| fs::read(path).ok())?.map(|content| self.hasher.hash_one(content))
    }

    /// A file whose content changed since the last call, if any. A missing file is assumed to be in the middle of
    /// being replaced.
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
    fn a_replaced_file_is_reported_once() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        let [a, b] = ["a", "b"].map(|name| folder.join(name));
        fs::write(&a, "one").unwrap();
        let mut files = Files::new(vec![a.clone(), b.clone()]);
        assert_eq!(files.changed(), None);

        // As Kubernetes does it: another file with the same name.
        fs::write(folder.join("new"), "two").unwrap();
        fs::rename(folder.join("new"), &a).unwrap();
        assert_eq!(files.changed(), Some(a.clone()));
        assert_eq!(files.changed(), None);

        // Neither a file that is missing for a moment nor identical content is a change.
        fs::remove_file(&a).unwrap();
        assert_eq!(files.changed(), None);
        fs::write(&a, "two").unwrap();
        assert_eq!(files.changed(), None);

        fs::write(&b, "").unwrap();
        assert_eq!(files.changed(), Some(b));
    }

    #[tokio::test]
    async fn a_changed_file_that_only_a_start_reads_is_named_until_it_is_as_it_was() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "one").unwrap();
        let mut reasons = Reasons::new(Vec::new()).unwrap();
        reasons.watch_start_files(vec![("database.url_file", file.path().to_owned())]);
        assert_eq!(reasons.changed_since_start(), [] as [&str; 0]);
        fs::write(&file, "two").unwrap();
        assert_eq!(reasons.files.changed().as_deref(), Some(file.path()));
        reasons.watch(Vec::new());
        for _ in 0..2 {
            assert_eq!(reasons.changed_since_start(), ["database.url_file"]);
        }
        fs::write(&file, "one").unwrap();
        assert_eq!(reasons.changed_since_start(), [] as [&str; 0]);
    }

    #[test]
    fn a_change_during_a_reload_is_reported_and_so_is_the_return_of_a_missing_file() {
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
        // The reload ends with the files that the configuration names, one of them for the first time.
        files.watch(vec![a.clone(), b.clone(), c]);
        assert_eq!(files.changed(), Some(a));
        assert_eq!(files.changed(), None);
        fs::write(&b, "one").unwrap();
        assert_eq!(files.changed(), Some(b));
        assert_eq!(files.changed(), None);
    }
}
