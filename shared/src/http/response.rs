//! A response with its whole body.

use bytes::Bytes;
use http::{
    HeaderValue, StatusCode,
    header::{CONTENT_TYPE, LOCATION},
};
use serde::Serialize;

/// An answer with its whole body.
pub type Response = http::Response<Bytes>;

/// 200 with a JSON body.
pub fn json(value: &impl Serialize) -> Response {
    json_with(StatusCode::OK, value)
}

/// A JSON body with another status.
pub fn json_with(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => with_body(status, "application/json", body),
        Err(error) => {
            tracing::error!(%error, "a response could not be serialised as JSON");
            internal_error()
        }
    }
}

/// An answer with a body of the given content type.
pub fn with_body(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// 302 to `location`; 500 if that is not something a header can hold.
#[must_use]
pub fn redirect(location: &str) -> Response {
    let Ok(location) = HeaderValue::from_str(location) else { return internal_error() };
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::FOUND;
    response.headers_mut().insert(LOCATION, location);
    response
}

/// 500 as every Matrix API has it, for a bug of ours.
pub(super) fn internal_error() -> Response {
    let body = r#"{"errcode":"M_UNKNOWN","error":"Internal server error"}"#;
    with_body(StatusCode::INTERNAL_SERVER_ERROR, "application/json", body)
}
