//! A complete response.

use bytes::Bytes;
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};
use serde::Serialize;

/// A response with its complete body.
pub type Response = http::Response<Bytes>;

/// 200 with a JSON body.
pub fn json(value: &impl Serialize) -> Response {
    json_with(StatusCode::OK, value)
}

/// A JSON body with the given status.
pub fn json_with(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => with_body(status, "application/json", body),
        Err(error) => {
            tracing::error!(%error, "a response could not be serialised as JSON; answering 500");
            internal_error()
        }
    }
}

/// A response with a body of the given content type.
pub fn with_body(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// 302 to `location`; 500 if it is not a valid header value.
#[must_use]
pub fn redirect(location: &str) -> Response {
    let Ok(location) = HeaderValue::from_str(location) else { return internal_error() };
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::FOUND;
    response.headers_mut().insert(LOCATION, location);
    response
}

/// 500 as in every Matrix API, for a bug of ours.
pub(super) fn internal_error() -> Response {
    let body = r#"{"errcode":"M_UNKNOWN","error":"Internal server error"}"#;
    with_body(StatusCode::INTERNAL_SERVER_ERROR, "application/json", body)
}
