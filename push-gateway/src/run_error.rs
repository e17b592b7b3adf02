//! Why a command failed, and its exit code.

use std::{io, process::ExitCode};

use waypost_shared::{
    error::Chain,
    service::{ServiceError, command_line::Unhealthy},
};

use crate::app::StartError;

/// Why the process exits unsuccessfully.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The configuration, or a file or server that it names.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Listening or signals.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// A listener or a background job stopped unexpectedly.
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// An invalid command-line option.
    #[error("{0}")]
    Usage(String),
    /// `doctor` found problems: the number of failed checks.
    #[error("{0} of the checks failed")]
    Unhealthy(usize),
    /// `send-test` did not get its push accepted.
    #[error("the push was not delivered")]
    Undelivered,
    /// `health` found the gateway not ready.
    #[error(transparent)]
    Health(#[from] Unhealthy),
    /// The system's random number generator failed.
    #[error("cannot generate a key: the system's random number generator failed")]
    NoKey,
}

impl RunError {
    /// 2 for a mistake in the configuration or on the command line, 1 for everything else.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Start(_) | Self::Usage(_) => ExitCode::from(2),
            Self::Io(_) | Self::Service(_) | Self::Unhealthy(_) | Self::Undelivered | Self::Health(_) | Self::NoKey => {
                ExitCode::FAILURE
            }
        }
    }

    /// The error with its causes, for standard error.
    pub(crate) fn text(&self) -> String {
        Chain(self).to_string()
    }
}
