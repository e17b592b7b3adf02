//! What can go wrong with a request, and which answer that is.

use std::time::Duration;

use http::StatusCode;
use waypost_shared::http::MatrixError;

use crate::notification::InvalidNotification;

/// A failed request. The text goes to the homeserver, so it names no pushkey and no value of the request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The body is not a JSON object.
    #[error("{}", .0.error)]
    Body(#[from] MatrixError),
    /// The body is not a notification.
    #[error(transparent)]
    Notification(#[from] InvalidNotification),
    /// At least one device has no outcome yet. What is settled is remembered, so the same request again sends only
    /// the rest.
    #[error("Not all devices could be reached; send the same request again later")]
    Unsettled {
        /// When it may be worth another try.
        retry_after: Duration,
    },
    /// Too much at once, for one source, one app or one pushkey. Nothing was done.
    #[error("Too many requests; send the same request again later")]
    RateLimited {
        /// When there is room again.
        retry_after: Duration,
    },
}

impl From<&ApiError> for MatrixError {
    fn from(error: &ApiError) -> Self {
        use ApiError as E;
        use InvalidNotification as I;
        // No `_` arm: a new variant must choose its code here.
        let (status, errcode) = match error {
            E::Body(error) => return error.clone(),
            E::Notification(I::NotAnObject) => (StatusCode::BAD_REQUEST, "M_BAD_JSON"),
            E::Notification(I::Missing(_)) => (StatusCode::BAD_REQUEST, "M_MISSING_PARAMS"),
            E::Notification(I::Invalid { .. }) => (StatusCode::BAD_REQUEST, "M_INVALID_PARAM"),
            E::Notification(I::TooManyDevices(_)) => (StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE"),
            E::Unsettled { .. } => (StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN"),
            E::RateLimited { .. } => (StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED"),
        };
        let answer = Self::new(status, errcode, error.to_string());
        match error {
            E::Unsettled { retry_after } | E::RateLimited { retry_after } => answer.retry_after(*retry_after),
            E::Body(_) | E::Notification(_) => answer,
        }
    }
}
