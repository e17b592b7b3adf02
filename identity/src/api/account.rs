//! Source: Identity Service API, "Authentication".

use std::sync::Arc;

use serde_json::{Map, json};
use waypost_shared::{
    http::{Incoming, MatrixError, Response, json, params::Params},
    random,
};

use crate::{app::App, auth, error::ApiError};

/// The longest OpenID token accepted, in bytes: it becomes part of a URL, whose length is limited.
const MAX_OPENID_TOKEN: usize = 8192;

/// `POST /_matrix/identity/v2/account/register`: exchanges a homeserver's OpenID token for an access token.
pub(crate) async fn register(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    let mut params = Params::new(request.json_object()?);
    let openid_token = params.text("access_token");
    let server_name = params.text("matrix_server_name");
    params.finish()?;
    if openid_token.len() > MAX_OPENID_TOKEN {
        return Err(MatrixError::invalid_param("access_token", "must be an OpenID token").into());
    }

    app.limits.register.check(&request.source.key()).map_err(ApiError::rate_limited)?;
    if !app.config.homeservers.allows(&server_name) {
        return Err(ApiError::HomeserverNotAllowed);
    }
    let mxid = app.homeservers.openid_user(&server_name, &openid_token).await?;
    let token = random::token();
    for replaced in app.store.add_token(&mxid, &app.keys.token_hash(&token), app.clock.now_ms()).await? {
        app.tokens.forget(&replaced);
    }
    if !app.config.homeservers.names(&server_name) {
        // Its budgets grow from today on.
        let owner = app.keys.budget_hash(&app.owners.of(&server_name).to_string());
        app.store.homeserver_since(&owner, app.clock.now_ms()).await?;
    }
    tracing::info!(server_name, "account registered");
    // Android and the specification read `token`, iOS and Element Web `access_token`.
    Ok(json(&json!({ "token": token, "access_token": token })))
}

/// `GET /_matrix/identity/v2/account`: the user that the token belongs to.
pub(crate) async fn account(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account_with_terms(&app, &request).await?;
    Ok(json(&json!({ "user_id": account.mxid.as_str() })))
}

/// `POST /_matrix/identity/v2/account/logout`: revokes the token.
pub(crate) async fn logout(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    let account = match auth::account(&app, &request).await {
        Err(ApiError::Unauthorized) if auth::token(&app, &request).is_some() => return Err(ApiError::UnknownToken),
        account => account?,
    };
    let deleted = app.store.delete_token(&account.token_hash).await?;
    app.tokens.forget(&account.token_hash);
    if !deleted {
        return Err(ApiError::UnknownToken);
    }
    Ok(json(&Map::new()))
}
