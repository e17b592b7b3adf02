//! Source: Identity Service API, "Establishing associations".

use waypost_shared::{
    http::{Incoming, Response, json},
    params::Params,
};

use crate::{app::App, auth, domain::association::Association, error::ApiError};

/// `POST /_matrix/identity/v2/3pid/bind`: publish that `mxid` owns the address validated in session `sid`.
pub(crate) async fn bind(app: App, request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account_with_terms(&app, &request).await?;
    let mut params = Params::new(request.json_object()?);
    let sid = params.text("sid");
    let client_secret = params.text("client_secret");
    let mxid = params.text("mxid");
    params.finish()?;
    if mxid != *account.mxid {
        return Err(ApiError::NotYourMxid);
    }
    let (threepid, _) = app.validated_session(&sid, &client_secret).await?;

    let association = Association { threepid, mxid, bound_ms: app.clock.now_ms() };
    let signed = app
        .signing_key
        .sign(&app.config.identity.server_name, association.to_json())
        .map_err(|error| ApiError::Internal(error.into()))?;
    {
        let _order = app.binding(&app.keys.fingerprint(&association.threepid)).await;
        app.store.bind(&app.keys, &association).await?;
        app.lookups.insert(&association.threepid, &association.mxid);
    }
    app.metrics.binds.inc();
    app.count_associations();
    tracing::info!(mxid = %association.mxid, medium = association.threepid.medium().as_str(), "threepid bound");
    Ok(json(&signed))
}
