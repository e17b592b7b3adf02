//! How sending a text message fails.

use http::StatusCode;
use waypost_shared::{client::HttpClientError, config::secret::SecretError};

/// A message that did not go out. The texts name no number.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SmsError {
    /// The operator has no gateway.
    #[error("sms.transport is \"off\"")]
    Off,
    /// The request could not be put together.
    #[error("the request to the SMS gateway could not be put together")]
    Template(#[from] minijinja::Error),
    /// The same: what was filled in is no URL or no header.
    #[error("the request to the SMS gateway could not be put together")]
    Request(#[from] http::Error),
    /// The gateway could not be reached.
    #[error("the SMS gateway did not answer")]
    Unreachable(#[from] HttpClientError),
    /// The gateway said no. Its sentence often quotes the number, so only its status is told.
    #[error("the SMS gateway refused with status {0}")]
    Refused(StatusCode),
    /// The gateway's answer does not contain `sms.http.success_contains`.
    #[error("the SMS gateway's answer is not the one that sms.http.success_contains describes")]
    NotSuccess,
}

/// An SMS configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SmsSetupError {
    /// The password, or a header's value.
    #[error("{key}: {source}")]
    Secret {
        /// The configuration's key.
        key: String,
        /// What is wrong with it.
        source: SecretError,
    },
    /// Anything else; found when the configuration is checked, too.
    #[error("sms.{key}: {problem}")]
    Problem {
        /// The configuration's key, below `sms`.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The first of `problems` as an error: whoever skipped the check ends here.
pub(super) fn refuse(problems: Vec<(String, String)>) -> Result<(), SmsSetupError> {
    match problems.into_iter().next() {
        Some((key, problem)) => Err(SmsSetupError::Problem { key, problem }),
        None => Ok(()),
    }
}
