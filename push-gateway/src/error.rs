//! How a request can fail, and the response for each failure.

use std::time::Duration;

use http::StatusCode;
use waypost_shared::http::MatrixError;

use crate::notification::InvalidNotification;

/// A failed request. The text goes to the homeserver, so it contains no pushkey and no value from the request.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// The body is not a JSON object.
    #[error("{}", .0.error)]
    Body(#[from] MatrixError),
    /// The body is not a notification.
    #[error(transparent)]
    Notification(#[from] InvalidNotification),
    /// At least one device is still without an outcome. Settled ones are remembered, so a retry of the same request
    /// sends only the rest.
    #[error("Not all devices could be reached; retry the same request later")]
    Unsettled {
        /// How long to wait before a retry is worthwhile.
        retry_after: Duration,
    },
    /// Over the rate limit of one source, one app or one pushkey. Nothing was sent.
    #[error("Too many requests; retry the same request later")]
    RateLimited {
        /// How long until the limit allows another request.
        retry_after: Duration,
    },
}

impl From<&ApiError> for MatrixError {
    fn from(error: &ApiError) -> Self {
        use ApiError as E;
        use InvalidNotification as I;
        // No `_` arm: a new variant has to choose its code here.
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
