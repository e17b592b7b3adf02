//! HTTP: one file for each section of the specification, one function for each endpoint. What several endpoints do
//! alike stands here.

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

/// The parameters of a request of the older API, v1: those of a JSON body, if the content type says that it is one, or
/// else of a form; and those of the query. What is given twice counts as missing, wherever it stands.
///
/// # Errors
///
/// 400 `M_NOT_JSON`; 400 `M_INVALID_PARAM` for what is not UTF-8, and for too many parameters.
pub(crate) fn v1_values(request: &mut Incoming) -> Result<Map<String, Value>, MatrixError> {
    let content_type = request.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content_type.is_some_and(|value| value.starts_with("application/json"));
    let mut given = utf8_pairs(request.query.as_bytes())?;
    if !is_json {
        given.extend(utf8_pairs(&request.body)?);
    } else if !request.body.trim_ascii().is_empty() {
        match serde_json::from_slice(&request.body) {
            Ok(Value::Object(object)) => given.extend(object),
            // Element Web sends `null`, and all that it has to say in the query.
            Ok(_) => {}
            Err(error) => return Err(not_json(&error)),
        }
    }
    Ok(given_once(given))
}

/// The pairs of a form or a query, which must be UTF-8.
fn utf8_pairs(text: &[u8]) -> Result<Vec<(String, Value)>, MatrixError> {
    let pairs = pairs(text)?;
    // Decoding puts this character in place of what is not UTF-8; nobody means to send it.
    let is_broken = |text: &str| text.contains(char::REPLACEMENT_CHARACTER);
    if pairs.iter().any(|(name, value)| is_broken(name) || value.as_str().is_some_and(is_broken)) {
        return Err(MatrixError::bad_request("M_INVALID_PARAM", "The parameters must be UTF-8"));
    }
    Ok(pairs)
}

/// A Matrix id out of the parameter `name`.
///
/// # Errors
///
/// 400 `M_INVALID_PARAM`
pub(crate) fn mxid(name: &str, text: &str) -> Result<Mxid, MatrixError> {
    Mxid::parse(text).map_err(|_| MatrixError::invalid_param(name, "must be a Matrix user id"))
}
