//! Validating that an address belongs to a user.
//!
//! Source: Identity Service API, "Establishing associations", "Email associations", "Phone number associations".

pub(crate) mod email;
pub(crate) mod msisdn;
mod page;
pub(crate) mod requesting;
mod submitting;

use std::sync::Arc;

use serde_json::json;
use waypost_shared::http::{Incoming, Response, json, params::Params};

use super::v1_values;
use crate::{app::App, auth, error::ApiError};

/// `GET /_matrix/identity/v2/3pid/getValidated3pid`: the address that a session validated.
pub(crate) async fn validated_threepid(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    auth::account_with_terms(&app, &request).await?;
    validated(&app, Params::from_pairs(request.query.as_bytes())?).await
}

/// `GET /_matrix/identity/api/v1/3pid/getValidated3pid`: the same, for a listed homeserver.
pub(crate) async fn v1_validated_threepid(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    auth::listed_caller(&app, &request)?;
    validated(&app, Params::new(v1_values(&mut request)?)).await
}

async fn validated(app: &App, mut params: Params) -> Result<Response, ApiError> {
    let sid = params.text("sid");
    let client_secret = params.text("client_secret");
    params.finish()?;
    let (threepid, validated_ms) = auth::validated_session(app, &sid, &client_secret).await?;
    Ok(json(&json!({
        "medium": threepid.medium().as_str(),
        "address": threepid.address(),
        "validated_at": validated_ms,
    })))
}
