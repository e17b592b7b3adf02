//! HTTP: one file for each section of the specification, one function for each endpoint. Helpers that several of them
//! share are here.

use http::header::CONTENT_TYPE;
use serde_json::{Map, Value};
use waypost_shared::http::{
    Incoming, MatrixError, not_json,
    params::{given_once, pairs},
};

use crate::domain::mxid::Mxid;

pub(crate) mod account;
pub(crate) mod associations;
pub(crate) mod internal;
pub(crate) mod invitations;
pub(crate) mod lookup;
pub(crate) mod pubkey;
pub(crate) mod status;
pub(crate) mod terms;
pub(crate) mod validation;

/// The parameters of a v1 request: those of the query, and those of the body, which is JSON if the content type says so
/// and a form otherwise. A parameter that is given twice, wherever, counts as missing.
///
/// # Errors
///
/// 400 `M_NOT_JSON`; 400 `M_INVALID_PARAM` for invalid UTF-8 and for too many parameters.
pub(crate) fn v1_values(request: &mut Incoming) -> Result<Map<String, Value>, MatrixError> {
    let content_type = request.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content_type.is_some_and(|value| value.starts_with("application/json"));
    let mut given = utf8_pairs(request.query.as_bytes())?;
    if !is_json {
        given.extend(utf8_pairs(&request.body)?);
    } else if !request.body.trim_ascii().is_empty() {
        match serde_json::from_slice(&request.body) {
            Ok(Value::Object(object)) => given.extend(object),
            // Element Web sends `null`, and all parameters in the query.
            Ok(_) => {}
            Err(error) => return Err(not_json(&error)),
        }
    }
    Ok(given_once(given))
}

/// The pairs of a form or a query, which must be UTF-8.
fn utf8_pairs(text: &[u8]) -> Result<Vec<(String, Value)>, MatrixError> {
    let pairs = pairs(text)?;
    // Decoding replaces invalid UTF-8 with this character, which nobody sends on purpose.
    let is_broken = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
    if pairs.iter().any(|(name, value)| is_broken(name) || value.as_str().is_some_and(is_broken)) {
        return Err(MatrixError::bad_request("M_INVALID_PARAM", "The parameters must be UTF-8"));
    }
    Ok(pairs)
}

/// Parses the parameter `name` as a Matrix ID.
pub(crate) fn mxid(name: &str, text: &str) -> Result<Mxid, MatrixError> {
    Mxid::parse(text).map_err(|_| MatrixError::invalid_param(name, "must be a Matrix user ID"))
}
