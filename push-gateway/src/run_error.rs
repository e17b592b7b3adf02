//! Why a command fails, and the exit code that says so.

use std::{io, process::ExitCode};

use waypost_shared::{
    error::Chain,
    service::{ServiceError, command_line::Unhealthy},
};

use crate::app::StartError;

/// Why the process ends without success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The configuration, or what it names.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Listening or signals.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A listener or a background job came to an end.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// An option of the command line that cannot be understood.
    #[error("{0}")]
    Usage(String),
    /// `doctor` found something.
    #[error("{0} of the checks failed")]
    Unhealthy(usize),
    /// `send-test` did not get through.
    #[error("the push was not delivered")]
    Undelivered,
    /// `health` asked.
    #[error(transparent)]
    Health(#[from] Unhealthy),
    /// The machine gives no randomness.
    #[error("no key could be made")]
    NoKey,
}

impl RunError {
    /// 2 for the configuration, 1 for all else.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Start(_) | Self::Usage(_) => ExitCode::from(2),
            Self::Io(_) | Self::Service(_) | Self::Unhealthy(_) | Self::Undelivered | Self::Health(_) | Self::NoKey => {
                ExitCode::FAILURE
            }
        }
    }

    /// What is wrong, with its causes, for standard error.
    pub(crate) fn text(&self) -> String {
        Chain(self).to_string()
    }
}
