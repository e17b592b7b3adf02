//! How a push ends: its push service's verdict, or what became of it without one.
//!
//! Providers turn answers into an [`Outcome`]; `notify` alone decides what that means for the homeserver.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::Response;
use waypost_shared::{client::retry::parse_retry_after, clock::Clock};

/// A push service's verdict on one push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Accepted for delivery.
    Delivered,
    /// The pushkey is dead. The only outcome that puts it into `rejected`.
    Gone,
    /// Busy or unreachable (429, 5xx, time-out). Worth another try.
    Busy {
        /// The service's own `Retry-After`, if it gave one.
        retry_after: Option<Duration>,
    },
    /// Not accepted; an immediate retry cannot help.
    Refused(Refusal),
}

/// Why a push is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) fault: Fault,
    /// For the log: names no pushkey, no id and no address.
    pub(crate) why: Cow<'static, str>,
}

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This push's own: no later try would succeed either, and the user's next pushes must not wait for it.
    Push,
    /// The app's configuration (credentials, topic, project): nothing may be lost while the operator fixes it.
    App,
}

impl Outcome {
    /// Refused for what the push itself is.
    pub(crate) fn refused_push(why: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused(Refusal { fault: Fault::Push, why: why.into() })
    }

    /// Refused for how the app is configured.
    pub(crate) fn refused_app(why: impl Into<Cow<'static, str>>) -> Self {
        Self::Refused(Refusal { fault: Fault::App, why: why.into() })
    }

    /// Busy, for as long as the answer says.
    pub(crate) fn busy(answer: &Response<Bytes>, clock: &Clock) -> Self {
        Self::Busy { retry_after: parse_retry_after(answer.headers(), clock.now_ms()) }
    }

    /// Busy for an unknown time.
    pub(crate) const fn unreachable() -> Self {
        Self::Busy { retry_after: None }
    }

    /// As metrics and spans name it.
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
    /// Delivered before, so not sent again.
    Suppressed,
    /// There was nothing to send (such as a badge that the app does not show), or the pusher's data is invalid.
    Dropped,
}

impl Ended {
    /// What this means for the homeserver: a push that need not be sent is as good as delivered.
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
