//! Source: Identity Service API, "Key management".

use serde_json::json;
use waypost_shared::{
    http::{Incoming, Response, json},
    params::Params,
};

use crate::{app::App, error::ApiError};

/// `GET /_matrix/identity/v2/pubkey/{keyId}`: the public key that signatures of this id are checked with.
pub(crate) async fn pubkey(app: App, request: Incoming) -> Result<Response, ApiError> {
    if request.path_param("keyId") != Some(app.signing_key.key_id()) {
        return Err(ApiError::UnknownKey);
    }
    Ok(json(&json!({ "public_key": app.signing_key.public_key() })))
}

/// `GET /_matrix/identity/v2/pubkey/isvalid`: whether a long-term key is ours, in either base64 alphabet.
pub(crate) async fn is_valid(app: App, request: Incoming) -> Result<Response, ApiError> {
    let mut params = Params::from_pairs(&request.query);
    let public_key = params.text("public_key");
    params.finish()?;
    // A plus sign that was not encoded came out of the query as a space.
    Ok(json(&json!({ "valid": app.signing_key.is_public_key(&public_key.replace(' ', "+")) })))
}
