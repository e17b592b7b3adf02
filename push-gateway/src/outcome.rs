//! How a push ends: with its push service's verdict, or without one.
//!
//! Providers map answers to an [`Outcome`]; only `notify` decides what that means for the homeserver.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::Response;
use waypost_shared::{client::retry::parse_retry_after, clock::Clock};

/// A push service's verdict on one push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Accepted for delivery.
    Delivered,
    /// The pushkey is dead. The only outcome that adds it to `rejected`.
    Gone,
    /// Busy or unreachable (429, 5xx, time-out). Worth a retry.
    Busy {
        /// The service's own `Retry-After`, if it gave one.
        retry_after: Option<Duration>,
    },
    /// Not accepted; an immediate retry cannot help.
    Refused(Refusal),
}

/// Why a push was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) fault: Fault,
    /// For the log; contains no pushkey, id or address.
    pub(crate) why: Cow<'static, str>,
}

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The push itself: no retry would succeed, and the user's next pushes must not wait for it.
    Push,
    /// The app's configuration (credentials, topic, project): no push may be lost while the operator fixes it.
    App,
}

impl Outcome {
    /// Refused because of the push itself.
    pub(crate) fn refused_push(why: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused(Refusal { fault: Fault::Push, why: why.into() })
    }

    /// Refused because of the app's configuration.
    pub(crate) fn refused_app(why: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused(Refusal { fault: Fault::App, why: why.into() })
    }

    /// Busy, with the answer's `Retry-After`.
    pub(crate) fn busy(answer: &Response<Bytes>, clock: &Clock) -> Self {
        Self::Busy { retry_after: parse_retry_after(answer.headers(), clock.now_ms()) }
    }

    /// Busy, without a `Retry-After`.
    pub(crate) const fn unreachable() -> Self {
        Self::Busy { retry_after: None }
    }

    /// The label in metrics and spans.
    pub(crate) const fn label(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Gone => "gone",
            Self::Busy { .. } => "busy",
            Self::Refused(_) => "refused",
        }
    }
}

/// How a push ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With a verdict, from the push service or from memory.
    With(Outcome),
    /// Already delivered, so not sent again.
    Suppressed,
    /// Nothing to send (such as a badge that the app does not show), or invalid pusher data.
    Dropped,
}

impl Ended {
    /// The outcome as far as the homeserver is concerned: a push that need not be sent counts as delivered.
    pub(crate) fn outcome(&self) -> &Outcome {
        match self {
            Self::With(outcome) => outcome,
            Self::Suppressed | Self::Dropped => &Outcome::Delivered,
        }
    }
}

impl From<Outcome> for Ended {
    fn from(outcome: Outcome) -> Self {
        Self::With(outcome)
    }
}
