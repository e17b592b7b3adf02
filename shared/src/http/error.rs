//! The response to a failed request: a status, an `errcode` and a helpful sentence.
//!
//! Source: Client-Server API, "Standard error response", which every Matrix API shares.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, RETRY_AFTER},
};
use serde_json::{Map, Value};

use crate::http::response::Response;

/// A Matrix error. `error` is sent to the client, so it must not contain an address, token or query.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{errcode}: {error}")]
pub struct MatrixError {
    /// The HTTP status.
    pub status: StatusCode,
    /// `M_…`, as in the specification.
    pub errcode: &'static str,
    /// What is wrong and how to fix it, for people.
    pub error: String,
    /// Additional keys of the body, which some errors have (`lookup_pepper`, `success`).
    pub extra: Map<String, Value>,
    retry_after: Option<Duration>,
}

impl MatrixError {
    /// An error without additional keys.
    #[must_use]
    pub fn new(status: StatusCode, errcode: &'static str, error: impl Into<String>) -> Self {
        Self { status, errcode, error: error.into(), extra: Map::new(), retry_after: None }
    }

    /// 400 with the given `errcode`.
    #[must_use]
    pub fn bad_request(errcode: &'static str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, errcode, error)
    }

    /// 400 `M_INVALID_PARAM`, naming the parameter and its constraint.
    #[must_use]
    pub fn invalid_param(name: &str, must: &str) -> Self {
        Self::bad_request("M_INVALID_PARAM", format!("`{name}` {must}"))
    }

    /// Adds a key to the body.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.extra.insert(key.to_owned(), value.into());
        self
    }

    /// Tells the client when to retry: `Retry-After` in whole seconds (rounded up, so that no client retries too
    /// early), and `retry_after_ms` in the body.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        self.with("retry_after_ms", ms)
    }

    /// The HTTP response.
    #[must_use]
    pub fn into_response(self) -> Response {
        let mut body = Map::new();
        body.insert("errcode".to_owned(), self.errcode.into());
        body.insert("error".to_owned(), self.error.into());
        body.extend(self.extra);

        let mut response = Response::new(Bytes::from(Value::Object(body).to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_millis().div_ceil(1000);
            let seconds = u64::try_from(seconds).unwrap_or(u64::MAX).max(1);
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<&MatrixError> for MatrixError {
    fn from(error: &MatrixError) -> Self {
        error.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_retry_delay_is_in_the_header_and_in_the_body() {
        let response = MatrixError::new(StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED", "Too many requests")
            .retry_after(Duration::from_millis(1500))
            .into_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        let body: Value = serde_json::from_slice(response.body()).unwrap_or_default();
        assert_eq!(body, json!({"errcode": "M_LIMIT_EXCEEDED", "error": "Too many requests", "retry_after_ms": 1500}));
    }
}
