//! Source: Identity Service API, "Terms of service".

use std::{collections::BTreeSet, sync::Arc};

use http::{
    HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY},
};
use serde_json::{Map, Value};
use waypost_shared::http::{Incoming, MatrixError, Response, json, params::Params, with_body};

use crate::{app::App, auth, domain::language, error::ApiError};

/// The most URLs that one request may accept: there are a few policies, in some languages.
const MAX_URLS: usize = 64;

/// `GET /_matrix/identity/v2/terms`: the policies. No token needed.
pub(crate) async fn terms(app: Arc<App>, _request: Incoming) -> Result<Response, ApiError> {
    Ok(json(&app.terms.to_json()))
}

/// `POST /_matrix/identity/v2/terms`: accepts these URLs, in addition to those accepted before.
pub(crate) async fn accept(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
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

    if urls.len() > MAX_URLS {
        return Err(MatrixError::invalid_param("user_accepts", "must be at most 64 URLs").into());
    }
    let mut policies = BTreeSet::new();
    for url in &urls {
        let found = app.terms.with_url(url);
        if found.is_empty() {
            return Err(MatrixError::invalid_param("user_accepts", "may contain only URLs from GET /terms").into());
        }
        policies.extend(found);
    }
    app.limits.terms.check(&account.mxid).map_err(ApiError::rate_limited)?;
    app.store.accept_terms(&account.mxid, &policies, app.clock.now_ms()).await?;
    app.tokens.forget(&account.token_hash);
    Ok(json(&Map::new()))
}

/// `GET /_waypost/terms/{policy}/{version}/{language}`: a policy hosted by this server.
pub(crate) async fn page(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    let param = |name| request.path_param(name).unwrap_or_default();
    let (version, tag) = (param("version"), param("language"));
    let look = app.templates.look(None, &language::preferred(Some(tag), None));
    let server_name = &app.config.identity.server_name;
    let (status, template, values) = match app.hosted_terms.page(param("policy"), version, tag) {
        Some(page) => {
            let values = serde_json::json!({
                "server_name": server_name,
                "title": page.title,
                "html": page.html,
                "version": version,
                "language": tag,
            });
            (StatusCode::OK, "page_terms.html", values)
        }
        None => {
            let values = serde_json::json!({ "server_name": server_name });
            (StatusCode::NOT_FOUND, "page_missing.html", values)
        }
    };
    let html = app.templates.render(&look, template, &values).map_err(|error| ApiError::Internal(error.into()))?;
    let mut response = with_body(status, "text/html; charset=utf-8", html);
    let policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; \
                  frame-ancestors 'none'";
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}
