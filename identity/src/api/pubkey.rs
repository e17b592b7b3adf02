//! Source: Identity Service API, "Key management".

use std::sync::Arc;

use serde_json::json;
use waypost_shared::http::{Incoming, MatrixError, Response, json, params::Params};

use crate::{app::App, domain::signing, error::ApiError};

/// `GET /_matrix/identity/v2/pubkey/{keyId}`: the public key that has this ID.
pub(crate) async fn pubkey(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    let key_id = request.path_param("keyId").unwrap_or_default();
    let key = app.signer.keys.by_id(key_id).ok_or(ApiError::UnknownKey)?;
    Ok(json(&json!({ "public_key": key.public_key() })))
}

/// `GET /_matrix/identity/v2/pubkey/isvalid`: whether this is a long-term key of this server, in either base64
/// alphabet.
pub(crate) async fn is_valid(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    let public_key = public_key(&request)?;
    Ok(json(&json!({ "valid": app.signer.keys.is_public_key(&public_key) })))
}

/// `GET /_matrix/identity/v2/pubkey/ephemeral/isvalid`: whether this is the key of an invite that has been neither
/// revoked nor expired, in either base64 alphabet.
pub(crate) async fn is_ephemeral_valid(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    let valid = match signing::key_bytes(&public_key(&request)?) {
        Some(public_key) => app.store.is_ephemeral_key(&public_key, app.clock.now_ms()).await?,
        None => false,
    };
    Ok(json(&json!({ "valid": valid })))
}

fn public_key(request: &Incoming) -> Result<String, MatrixError> {
    let mut params = Params::from_pairs(request.query.as_bytes())?;
    let public_key = params.text("public_key");
    params.finish()?;
    Ok(public_key)
}
