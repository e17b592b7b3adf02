//! What programs of the operator's own may do without a user's token: bind, unbind, erase. On a listener of its own.

use serde_json::{Map, json};
use subtle::ConstantTimeEq as _;
use waypost_shared::{
    http::{Incoming, Response, json},
    matrix_error::MatrixError,
    params::Params,
    secret::ExposeSecret as _,
};

use crate::{
    app::{App, AppState},
    domain::{
        server_name::is_user_id,
        threepid::{Medium, Threepid},
    },
    error::ApiError,
};

/// `POST /_matrix/identity/internal/bind`: publish that `mxid` owns an address, on the operator's word.
pub(crate) async fn bind(app: App, mut request: Incoming) -> Result<Response, ApiError> {
    let (threepid, mxid) = read(&app, &mut request)?;
    let signed = super::to_the_end(async move { super::publish(&app, threepid, mxid).await }).await?;
    Ok(json(&signed))
}

/// `POST /_matrix/identity/internal/unbind`: `mxid` owns that address no more. If it did not, nothing changes.
pub(crate) async fn unbind(app: App, mut request: Incoming) -> Result<Response, ApiError> {
    let (threepid, mxid) = read(&app, &mut request)?;
    super::to_the_end(async move { super::withdraw(&app, &threepid, &mxid).await }).await?;
    Ok(json(&Map::new()))
}

/// `POST /_matrix/identity/internal/erase`: removes the rows about `mxid`, and says in numbers what they were.
///
/// Validation sessions are not linked to a Matrix id: those of the addresses that were bound are removed, others end
/// by themselves. The row of an address stays for an hour without its owner, so that other replicas learn of it. Letters
/// of the outbox to others that name `mxid` as the one who invited stay too: they are sealed, and nobody is found in them.
pub(crate) async fn erase(app: App, mut request: Incoming) -> Result<Response, ApiError> {
    authorise(&app, &request)?;
    let mut params = Params::new(request.json_object()?);
    let mxid = params.text("mxid");
    params.finish()?;
    check_user_id(&mxid)?;

    let addresses = app.store.associations_of(&app.keys, &mxid).await?;
    let erased = app.store.erase(&app.keys, &mxid, app.clock.now_ms()).await?;
    for association in &addresses {
        app.refresh_address(&association.threepid).await?;
    }
    app.tokens.forget_user(&mxid);
    tracing::info!(associations = erased.associations, access_tokens = erased.access_tokens, "somebody was erased");
    Ok(json(&json!({
        "erased": {
            "associations": erased.associations,
            "validation_sessions": erased.validation_sessions,
            "access_tokens": erased.access_tokens,
            "accepted_terms": erased.accepted_terms,
            "accounts": erased.accounts,
            "budgets": erased.budgets,
            "invites": erased.invites,
            "ephemeral_keys": erased.ephemeral_keys,
            "outbox": erased.outbox,
        }
    })))
}

fn read(app: &AppState, request: &mut Incoming) -> Result<(Threepid, String), ApiError> {
    authorise(app, request)?;
    let mut params = Params::new(request.json_object()?);
    let medium = params.text("medium");
    let address = params.text("address");
    let mxid = params.text("mxid");
    params.finish()?;
    let medium =
        Medium::parse(&medium).ok_or_else(|| MatrixError::invalid_param("medium", "must be `email` or `msisdn`"))?;
    let threepid = Threepid::given(medium, &address)
        .map_err(|_| MatrixError::invalid_param("address", "must be an address of that medium"))?;
    check_user_id(&mxid)?;
    Ok((threepid, mxid))
}

/// In constant time, so that the secret cannot be found letter by letter.
fn authorise(app: &AppState, request: &Incoming) -> Result<(), ApiError> {
    let secret = app.internal_secret.as_ref().ok_or(ApiError::Unauthorized)?;
    let given = request.bearer().ok_or(ApiError::Unauthorized)?;
    let right = secret.expose_secret().as_bytes().ct_eq(given.as_bytes());
    if bool::from(right) { Ok(()) } else { Err(ApiError::Unauthorized) }
}

fn check_user_id(mxid: &str) -> Result<(), MatrixError> {
    if is_user_id(mxid) { Ok(()) } else { Err(MatrixError::invalid_param("mxid", "must be a Matrix id")) }
}
