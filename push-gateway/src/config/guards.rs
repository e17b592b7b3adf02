//! The sections `[limits]` and `[hold]`: rate limits, and when rejections are held.

use serde::Deserialize;
use waypost_shared::{
    config::file::{ConfigError, Source},
    http::rate_limit::Rate,
};

/// The section `[limits]`: rate limits, answered 429 before any work is done. Counted per process.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    /// Pushes from one source address, and requests without any. Default: a burst of 20000, then one every 0.0002
    /// seconds.
    pub(crate) per_source: Rate,
    /// Pushes for one entry of `apps`. Default: a burst of 80000, then one every 0.00005 seconds.
    pub(crate) per_app: Rate,
    /// Pushes for one pushkey. Default: a burst of 300, then one every 0.2 seconds.
    pub(crate) per_pushkey: Rate,
    /// Pushes to all push servers of one owner, for apps whose `allowed_endpoints` names none. Default: a burst of 500,
    /// then one every 0.02 seconds.
    pub(crate) per_server: Rate,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            per_source: Rate::new(20_000, 0.0002),
            // More than one source may send, or that source would use up what others have.
            per_app: Rate::new(80_000, 0.000_05),
            per_pushkey: Rate::new(300, 0.2),
            per_server: Rate::new(500, 0.02),
        }
    }
}

impl LimitsConfig {
    /// Mistakes that the types cannot rule out.
    pub(super) fn problems(&self, source: &Source) -> Vec<ConfigError> {
        let Self { per_source, per_app, per_pushkey, per_server } = self;
        let rates = [
            ("per_source", per_source),
            ("per_app", per_app),
            ("per_pushkey", per_pushkey),
            ("per_server", per_server),
        ];
        let problems = rates.into_iter().filter_map(|(key, rate)| Some((key, rate.problem()?)));
        problems.map(|(key, problem)| source.error(&format!("limits.{key}"), problem)).collect()
    }
}

/// The section `[hold]`: when rejections are held because too many of an app's pushkeys are reported dead at once.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HoldConfig {
    /// Distinct pushkeys of one app that must be reported dead within the window; 0 disables holds. Default 50.
    pub(crate) min_gone: usize,
    /// The share of all pushkeys with an answer that the dead must exceed as well, in percent. Default 50.
    pub(crate) share_percent: usize,
    /// Length of the window in seconds. Default 600.
    pub(crate) window_secs: u64,
    /// Seconds until a hold ends although the share has not fallen. Default 21600 (six hours).
    pub(crate) hold_secs: u64,
}

impl Default for HoldConfig {
    fn default() -> Self {
        Self { min_gone: 50, share_percent: 50, window_secs: 600, hold_secs: 21_600 }
    }
}

/// Most answers that the window of one app holds.
pub(crate) const MOST_IN_WINDOW: usize = 10_000;
/// Upper bound of a window or hold, in seconds: more than a month is surely a mistake.
const LONGEST_SECS: u64 = 31 * 24 * 60 * 60;

impl HoldConfig {
    /// Mistakes that the types cannot rule out.
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
