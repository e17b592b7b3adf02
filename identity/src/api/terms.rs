//! Source: Identity Service API, "Terms of service".

use serde_json::{Map, Value};
use waypost_shared::{
    http::{Incoming, Response, json},
    matrix_error::MatrixError,
    params::Params,
};

use crate::{app::App, auth, error::ApiError};

/// `GET /_matrix/identity/v2/terms`: the policies. No token needed.
pub(crate) async fn terms(app: App, _request: Incoming) -> Result<Response, ApiError> {
    Ok(json(&app.terms.to_json()))
}

/// `POST /_matrix/identity/v2/terms`: the user accepts these URLs, beside those accepted before.
pub(crate) async fn accept(app: App, request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account(&app, &request).await?;
    let mut object = request.json_object()?;
    // Some clients send one URL as a string.
    if let Some(Value::String(url)) = object.get("user_accepts") {
        let url = url.clone();
        object.insert("user_accepts".to_owned(), Value::from(vec![url]));
    }
    let mut params = Params::new(object);
    let urls = params.texts("user_accepts");
    params.finish()?;

    let mut policies = Vec::new();
    for url in &urls {
        let found = app.terms.with_url(url);
        if found.is_empty() {
            return Err(MatrixError::invalid_param("user_accepts", "must hold URLs that GET /terms lists").into());
        }
        policies.extend(found);
    }
    app.store.accept_terms(&account.mxid, &policies, app.clock.now_ms()).await?;
    app.tokens.forget(&account.token_hash);
    Ok(json(&Map::new()))
}
