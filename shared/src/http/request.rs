//! A complete request.

use std::mem;

use http::{HeaderMap, Method, header::AUTHORIZATION};
use serde_json::{Map, Value};

use crate::{
    http::{body::Body, error::MatrixError},
    source::RequestSource,
};

/// A request with its complete body.
#[derive(Debug)]
pub struct Incoming {
    /// The method.
    pub method: Method,
    /// The path as received, percent-encoded.
    pub path: String,
    /// Decoded path parameters: `("keyId", "ed25519:0")`.
    pub path_params: Vec<(String, String)>,
    /// The query as received, without the question mark.
    pub query: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body; empty once taken.
    pub body: Body,
    /// Where the request came from.
    pub source: RequestSource,
    /// Identifies this request in the log and in the response's `X-Request-Id`.
    pub request_id: String,
}

impl Incoming {
    /// Takes the body. Dropping it releases its memory for other requests.
    pub fn take_body(&mut self) -> Body {
        mem::take(&mut self.body)
    }

    /// Takes the body and parses it as a JSON object, whatever its content type: homeservers omit it.
    ///
    /// # Errors
    ///
    /// Those of [`json_object`].
    pub fn json_object(&mut self) -> Result<Map<String, Value>, MatrixError> {
        json_object(&self.take_body())
    }

    /// A decoded query parameter; the first one if repeated.
    #[must_use]
    pub fn query_param(&self, name: &str) -> Option<String> {
        url::form_urlencoded::parse(self.query.as_bytes())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.into_owned())
    }

    /// A decoded path parameter.
    #[must_use]
    pub fn path_param(&self, name: &str) -> Option<&str> {
        self.path_params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The token in `Authorization: Bearer …`.
    #[must_use]
    pub fn bearer(&self) -> Option<&str> {
        let value = self.headers.get(AUTHORIZATION)?.to_str().ok()?;
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    }
}

/// Parses a body as a JSON object.
///
/// # Errors
///
/// 400 `M_NOT_JSON` for anything but JSON, 400 `M_BAD_JSON` for JSON other than an object.
pub fn json_object(body: &[u8]) -> Result<Map<String, Value>, MatrixError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(MatrixError::bad_request("M_BAD_JSON", "The body must be a JSON object")),
        Err(error) => Err(not_json(&error)),
    }
}

/// 400 `M_NOT_JSON` with the position of the syntax error, which reveals no value.
#[must_use]
pub fn not_json(error: &serde_json::Error) -> MatrixError {
    let text = format!("The body is not JSON: line {}, column {}", error.line(), error.column());
    MatrixError::bad_request("M_NOT_JSON", text)
}
