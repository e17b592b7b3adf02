//! What the checks have in common.

use std::time::Duration;
use waypost_shared::error::Chain;

use waypost_shared::operations::doctor::Finding;

/// How long one step of a check may take.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// What was looked at, and what it came to.
pub(super) type Findings = Vec<(String, Finding)>;

/// One finding, with the name of what was looked at.
pub(super) fn one(what: &str, finding: Finding) -> Findings {
    vec![(what.to_owned(), finding)]
}

/// Whose clock says how much more than ours, in milliseconds.
pub(super) type Skew = (String, i64);

/// An error with its causes.
pub(super) fn told(error: &(dyn std::error::Error + 'static)) -> String {
    Chain(error).to_string()
}
