//! Source: Identity Service API, "Establishing associations".

use std::sync::Arc;

use ruma_common::CanonicalJsonValue;
use serde_json::{Map, Value};
use waypost_shared::http::{Incoming, MatrixError, Response, json, params::Params};

use crate::{
    app::App,
    auth,
    domain::{
        association::Association,
        mxid::Mxid,
        threepid::{Medium, Threepid},
    },
    error::ApiError,
    federation::request_auth::{SignedRequest, x_matrix},
};

const UNBIND_PATH: &str = "/_matrix/identity/v2/3pid/unbind";

/// `POST /_matrix/identity/v2/3pid/bind`: publishes that `mxid` owns the address validated in session `sid`.
pub(crate) async fn bind(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account_with_terms(&app, &request).await?;
    let request = BindRequest::read(request.json_object()?)?;
    if request.mxid != account.mxid {
        return Err(ApiError::NotYourMxid);
    }
    app.limits.bind.check(&account.mxid).map_err(ApiError::rate_limited)?;
    let (threepid, _) = auth::validated_session(&app, &request.sid, &request.client_secret).await?;
    publish(app, threepid, request.mxid).await
}

/// `POST /_matrix/identity/api/v1/3pid/bind`: the same, for a listed homeserver, whose word is enough for any `mxid`.
pub(crate) async fn v1_bind(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    auth::listed_caller(&app, &request)?;
    let request = BindRequest::read(super::v1_values(&mut request)?)?;
    if !app.config.homeservers.allows(request.mxid.server_name()) {
        return Err(ApiError::HomeserverNotAllowed);
    }
    let (threepid, _) = auth::validated_session(&app, &request.sid, &request.client_secret).await?;
    publish(app, threepid, request.mxid).await
}

/// `POST /_matrix/identity/internal/bind`: publishes that `mxid` owns an address, on the operator's word.
pub(crate) async fn internal_bind(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    auth::internal_caller(&app, &request)?;
    let (threepid, mxid) = read_internal(&mut request)?;
    publish(app, threepid, mxid).await
}

struct BindRequest {
    sid: String,
    client_secret: String,
    mxid: Mxid,
}

impl BindRequest {
    fn read(values: Map<String, Value>) -> Result<Self, MatrixError> {
        let mut params = Params::new(values);
        let sid = params.text("sid");
        let client_secret = params.text("client_secret");
        let mxid = params.text("mxid");
        params.finish()?;
        Ok(Self { sid, client_secret, mxid: super::mxid("mxid", &mxid)? })
    }
}

/// Publishes that `threepid` belongs to `mxid`, and returns the signed association. Runs to completion even if the
/// client disconnects, so that a bind never commits without reaching the index.
async fn publish(app: Arc<App>, threepid: Threepid, mxid: Mxid) -> Result<Response, ApiError> {
    let association = Association { threepid, mxid, bound_ms: app.clock.now_ms() };
    let invites = {
        // Concurrent binds of one address must reach the database and the index in the same order.
        let _lock = app.lock_address(&app.keys.fingerprint(&association.threepid)).await;
        let binding = app.store.begin_bind(&app.keys, &association).await?;
        let onbind = CanonicalJsonValue::Object(app.signer.onbind(&association, &binding.invites)).to_string();
        let invites = binding.commit(&app.keys, &onbind).await?;
        app.lookups.insert(&association.threepid, &association.mxid);
        invites
    };
    app.outbox_filled.notify_one();
    app.metrics.binds.inc();
    app.count_associations();
    tracing::info!(
        mxid = %association.mxid,
        medium = association.threepid.medium().as_str(),
        invites = invites.len(),
        "threepid bound"
    );
    Ok(json(&app.signer.bound(&association, &invites)))
}

/// `POST /_matrix/identity/v2/3pid/unbind`: withdraws the binding of this address to `mxid`. Requested by whoever can
/// read what is sent to the address, or by the user's homeserver; neither needs an access token. It is not an error if
/// there is no such binding.
pub(crate) async fn unbind(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    let content = request.json_object()?;
    let mut params = Params::new(content.clone());
    let mxid = params.text("mxid");
    let threepid = params.object("threepid");
    let sid = params.optional_text("sid");
    let client_secret = params.optional_text("client_secret");
    params.finish()?;
    let threepid = read_threepid(threepid)?;
    let mxid = super::mxid("mxid", &mxid)?;

    match (sid, client_secret) {
        (Some(sid), Some(client_secret)) => {
            let (proven, _) = auth::validated_session(&app, &sid, &client_secret).await?;
            if proven != threepid {
                return Err(ApiError::OtherAddress);
            }
        }
        (None, None) => signed_by_homeserver(&app, &request, &mxid, &threepid, &content).await?,
        (Some(_), None) => return Err(missing("client_secret")),
        (None, Some(_)) => return Err(missing("sid")),
    }
    withdraw(app, threepid, mxid).await
}

/// `POST /_matrix/identity/internal/unbind`: withdraws the binding of this address to `mxid`, if there is one.
pub(crate) async fn internal_unbind(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    auth::internal_caller(&app, &request)?;
    let (threepid, mxid) = read_internal(&mut request)?;
    withdraw(app, threepid, mxid).await
}

/// Withdraws the binding of `threepid` to `mxid`, if there is one.
async fn withdraw(app: Arc<App>, threepid: Threepid, mxid: Mxid) -> Result<Response, ApiError> {
    if app.store.remove_association(&app.keys, &threepid, Some(&mxid), app.clock.now_ms()).await? {
        app.refresh_address(&threepid).await?;
        app.metrics.unbinds.inc();
        app.count_associations();
        tracing::info!(%mxid, medium = threepid.medium().as_str(), "threepid unbound");
    }
    Ok(json(&Map::new()))
}

/// Reads the parameters of the internal bind and unbind.
fn read_internal(request: &mut Incoming) -> Result<(Threepid, Mxid), ApiError> {
    let mut params = Params::new(request.json_object()?);
    let medium = params.text("medium");
    let address = params.text("address");
    let mxid = params.text("mxid");
    params.finish()?;
    let medium = read_medium(&medium)?;
    let threepid = Threepid::given(medium, &address)
        .map_err(|_| MatrixError::invalid_param("address", "must be an address of that medium"))?;
    Ok((threepid, super::mxid("mxid", &mxid)?))
}

fn read_medium(medium: &str) -> Result<Medium, MatrixError> {
    Medium::parse(medium).ok_or_else(|| MatrixError::invalid_param("medium", "must be `email` or `msisdn`"))
}

fn missing(name: &str) -> ApiError {
    MatrixError::bad_request("M_MISSING_PARAMS", format!("Missing parameters: {name}")).into()
}

fn read_threepid(object: Map<String, Value>) -> Result<Threepid, ApiError> {
    let mut params = Params::new(object);
    let medium = params.text("medium");
    let address = params.text("address");
    params.finish()?;
    match read_medium(&medium)? {
        Medium::Email => Ok(Threepid::email(&address)?),
        // A bound number is stored as its E.164 digits; anything else is not bound.
        Medium::Msisdn => Ok(Threepid::stored(Medium::Msisdn, address.trim_start_matches('+').to_owned())),
    }
}

/// Checks that the homeserver of `mxid`, and no other, signed this request for this server.
async fn signed_by_homeserver(
    app: &App,
    request: &Incoming,
    mxid: &Mxid,
    threepid: &Threepid,
    content: &Map<String, Value>,
) -> Result<(), ApiError> {
    let signatures = x_matrix(&request.headers);
    if signatures.is_empty() {
        return Err(ApiError::NoProof);
    }
    let origin = mxid.server_name();
    let for_us = |name: &String| app.own_names.contains(name);
    let all_fit =
        signatures.iter().all(|header| header.origin == origin && header.destination.as_ref().is_none_or(for_us));
    if !all_fit {
        return Err(ApiError::InvalidSignature);
    }
    // A homeserver that was removed from the list may still withdraw what its users have here: somebody who leaves it
    // must not stay published.
    if !app.config.homeservers.allows(origin)
        && app.store.owner(&app.keys.fingerprint(threepid)).await?.is_none_or(|owner| owner != *mxid)
    {
        return Err(ApiError::HomeserverNotAllowed);
    }
    // Last, since it makes us call a server that a stranger chose.
    app.limits.unbind.check(&request.source.key()).map_err(ApiError::rate_limited)?;
    let signed = SignedRequest {
        method: request.method.as_str(),
        uri: UNBIND_PATH,
        content,
        destinations: &app.own_names,
        signatures: &signatures,
    };
    if app.homeservers.signed(origin, &signed).await? { Ok(()) } else { Err(ApiError::InvalidSignature) }
}
