//! The sections `[limits]` and `[hold]`: how much is too much, and what is too bad to be true.

use serde::Deserialize;
use waypost_shared::{
    config::file::{ConfigError, Source},
    http::rate_limit::Rate,
};

/// The section `[limits]`: what is answered 429 before any work. Counted in this process.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    /// Requests from one source address. Default 20000, then one in 0.0002 seconds.
    pub(crate) per_source: Rate,
    /// Pushes for one entry of `apps`. Default 20000, then one in 0.0002 seconds.
    pub(crate) per_app: Rate,
    /// Pushes for one pushkey. Default 300, then one in 0.2 seconds.
    pub(crate) per_pushkey: Rate,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            per_source: Rate::new(20_000, 0.0002),
            per_app: Rate::new(20_000, 0.0002),
            per_pushkey: Rate::new(300, 0.2),
        }
    }
}

impl LimitsConfig {
    /// What the types cannot tell.
    pub(super) fn problems(&self, source: &Source) -> Vec<ConfigError> {
        let Self { per_source, per_app, per_pushkey } = self;
        let rates = [("per_source", per_source), ("per_app", per_app), ("per_pushkey", per_pushkey)];
        let problems = rates.into_iter().filter_map(|(key, rate)| Some((key, rate.problem()?)));
        problems.map(|(key, problem)| source.error(&format!("limits.{key}"), problem)).collect()
    }
}

/// The section `[hold]`: when so many pushkeys of an app turn dead at once that none of them is rejected for now.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HoldConfig {
    /// So many different pushkeys of one app must be called dead within the window; 0 is never. Default 50.
    pub(crate) min_gone: usize,
    /// And more than this share of the pushkeys that were pushed to, in percent. Default 50.
    pub(crate) share_percent: usize,
    /// Seconds of the window. Default 600.
    pub(crate) window_secs: u64,
    /// Seconds until dead pushkeys are believed although the share has not fallen. Default 21600 (six hours).
    pub(crate) hold_secs: u64,
}

impl Default for HoldConfig {
    fn default() -> Self {
        Self { min_gone: 50, share_percent: 50, window_secs: 600, hold_secs: 21_600 }
    }
}

/// Pushkeys of one app that a window remembers at the most.
pub(crate) const MOST_IN_WINDOW: usize = 10_000;
/// A window and a hold of more than a month are mistakes.
const LONGEST_SECS: u64 = 31 * 24 * 60 * 60;

impl HoldConfig {
    /// What the types cannot tell.
    pub(super) fn problems(&self, source: &Source) -> Vec<ConfigError> {
        let mut problems = Vec::new();
        let mut must = |holds: bool, key: &str, problem: String| {
            if !holds {
                problems.push(source.error(&format!("hold.{key}"), problem));
            }
        };
        must(self.min_gone <= MOST_IN_WINDOW, "min_gone", format!("must be 0 to {MOST_IN_WINDOW}"));
        must(self.share_percent < 100, "share_percent", "must be 0 to 99".to_owned());
        let secs = 1..=LONGEST_SECS;
        must(secs.contains(&self.window_secs), "window_secs", format!("must be 1 to {LONGEST_SECS}"));
        must(secs.contains(&self.hold_secs), "hold_secs", format!("must be 1 to {LONGEST_SECS}"));
        problems
    }
}
