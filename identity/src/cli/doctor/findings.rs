//! What the checks have in common.

use std::time::Duration;
use waypost_shared::error::Chain;

use waypost_shared::operations::doctor::Finding;

/// Time-out of one step of a check.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// What was checked, and the result.
pub(super) type Findings = Vec<(String, Finding)>;

/// A single finding, with the name of what was checked.
pub(super) fn one(what: &str, finding: Finding) -> Findings {
    vec![(what.to_owned(), finding)]
}

/// Whose clock is ahead of ours, and by how many milliseconds.
pub(super) type Skew = (String, i64);

/// An error with its causes.
pub(super) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    Chain(error).to_string()
}
