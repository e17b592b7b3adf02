//! Errors of text messages.

use http::StatusCode;
use waypost_shared::{client::HttpClientError, config::secret::SecretError};

/// Why a text message could not be sent. The texts never include a phone number.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SmsError {
    /// No gateway is configured.
    #[error("sms.transport is \"off\"")]
    Off,
    /// A template failed to render.
    #[error("the request to the SMS gateway could not be built")]
    Template(#[from] minijinja::Error),
    /// The rendered URL or a header is invalid.
    #[error("the request to the SMS gateway could not be built")]
    Request(#[from] http::Error),
    /// The gateway could not be reached, or did not answer in time.
    #[error("the SMS gateway did not answer")]
    Unreachable(#[from] HttpClientError),
    /// The gateway refused. Its answer often quotes the number, so only the status is reported.
    #[error("the SMS gateway refused with status {0}")]
    Refused(StatusCode),
    /// The gateway's answer does not contain `sms.http.success_contains`.
    #[error("the SMS gateway's answer does not contain the text of sms.http.success_contains")]
    NotSuccess,
}

impl SmsError {
    /// Whether certainly no message went out, for a reason that the requester has no influence on.
    pub(crate) fn is_unsent_by_our_fault(&self) -> bool {
        match self {
            Self::Off | Self::Template(_) => true,
            Self::Unreachable(error) => error.connect_failure().is_some(),
            // A gateway may refuse because of the number.
            Self::Request(_) | Self::Refused(_) | Self::NotSuccess => false,
        }
    }
}

/// An SMS configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SmsSetupError {
    /// The password or a header's value cannot be read.
    #[error("{key}: {source}")]
    Secret {
        /// The configuration key.
        key: String,
        /// Why it cannot be read.
        source: SecretError,
    },
    /// Any other problem; the configuration check reports these too.
    #[error("sms.{key}: {problem}")]
    Problem {
        /// The configuration key, below `sms`.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Fails with the first of `problems`, in case the configuration was not checked before.
pub(super) fn refuse(problems: Vec<(String, String)>) -> Result<(), SmsSetupError> {
    match problems.into_iter().next() {
        Some((key, problem)) => Err(SmsSetupError::Problem { key, problem }),
        None => Ok(()),
    }
}
