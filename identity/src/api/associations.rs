//! Source: Identity Service API, "Establishing associations".

use serde_json::{Map, Value};
use waypost_shared::{
    http::{Incoming, Response, json},
    matrix_error::MatrixError,
    params::Params,
};

use crate::{
    app::{App, AppState},
    auth,
    domain::{
        server_name::is_user_id,
        threepid::{Medium, Threepid},
    },
    error::ApiError,
    federation::request_auth::{SignedRequest, x_matrix},
};

const UNBIND_PATH: &str = "/_matrix/identity/v2/3pid/unbind";

/// `POST /_matrix/identity/v2/3pid/bind`: publish that `mxid` owns the address validated in session `sid`.
pub(crate) async fn bind(app: App, mut request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account_with_terms(&app, &request).await?;
    let binding = Binding::read(request.json_object()?)?;
    if binding.mxid != *account.mxid {
        return Err(ApiError::NotYourMxid);
    }
    app.limits.bind.check(&account.mxid).map_err(ApiError::LimitExceeded)?;
    binding.publish(app).await
}

/// `POST /_matrix/identity/api/v1/3pid/bind`: the same for a homeserver that the operator listed, whose word is enough
/// for any `mxid`.
pub(crate) async fn v1_bind(app: App, mut request: Incoming) -> Result<Response, ApiError> {
    auth::listed_caller(&app, &request)?;
    let binding = Binding::read(super::v1_values(&mut request)?)?;
    if !is_user_id(&binding.mxid) {
        return Err(MatrixError::invalid_param("mxid", "must be a Matrix user id").into());
    }
    if !app.config.homeservers.allows_user(&binding.mxid) {
        return Err(ApiError::HomeserverNotAllowed);
    }
    binding.publish(app).await
}

/// What a bind asks for.
struct Binding {
    sid: String,
    client_secret: String,
    mxid: String,
}

impl Binding {
    fn read(values: Map<String, Value>) -> Result<Self, MatrixError> {
        let mut params = Params::new(values);
        let sid = params.text("sid");
        let client_secret = params.text("client_secret");
        let mxid = params.text("mxid");
        params.finish()?;
        Ok(Self { sid, client_secret, mxid })
    }

    async fn publish(self, app: App) -> Result<Response, ApiError> {
        let (threepid, _) = app.validated_session(&self.sid, &self.client_secret).await?;
        let signed = super::to_the_end(async move { super::publish(&app, threepid, self.mxid).await }).await?;
        Ok(json(&signed))
    }
}

/// `POST /_matrix/identity/v2/3pid/unbind`: nobody is to find `mxid` by this address any more. Asked for by whoever
/// reads what is sent to the address, or by the user's homeserver; neither needs an access token. What is not bound is
/// no mistake.
pub(crate) async fn unbind(app: App, mut request: Incoming) -> Result<Response, ApiError> {
    let content = request.json_object()?;
    let mut params = Params::new(content.clone());
    let mxid = params.text("mxid");
    let threepid = params.object("threepid");
    let sid = params.optional_text("sid");
    let client_secret = params.optional_text("client_secret");
    params.finish()?;
    let threepid = read_threepid(threepid)?;
    if !is_user_id(&mxid) {
        return Err(MatrixError::invalid_param("mxid", "must be a Matrix user id").into());
    }

    match (sid, client_secret) {
        (Some(sid), Some(client_secret)) => {
            let (proven, _) = app.validated_session(&sid, &client_secret).await?;
            if proven != threepid {
                return Err(ApiError::OtherAddress);
            }
        }
        (None, None) => signed_by_homeserver(&app, &request, &mxid, &threepid, &content).await?,
        (Some(_), None) => return Err(missing("client_secret")),
        (None, Some(_)) => return Err(missing("sid")),
    }
    super::to_the_end(async move { super::withdraw(&app, &threepid, &mxid).await }).await?;
    Ok(json(&Map::new()))
}

fn missing(name: &str) -> ApiError {
    MatrixError::bad_request("M_MISSING_PARAMS", format!("Missing parameters: {name}")).into()
}

fn read_threepid(object: Map<String, Value>) -> Result<Threepid, ApiError> {
    let mut params = Params::new(object);
    let medium = params.text("medium");
    let address = params.text("address");
    params.finish()?;
    match Medium::parse(&medium) {
        Some(Medium::Email) => Ok(Threepid::email(&address)?),
        // A number that was bound is stored as the digits of E.164; anything else is not bound.
        Some(Medium::Msisdn) => Ok(Threepid::stored(Medium::Msisdn, address.trim_start_matches('+').to_owned())),
        None => Err(MatrixError::invalid_param("medium", "must be `email` or `msisdn`").into()),
    }
}

/// The homeserver of `mxid`, and no other, signed this request for this server.
async fn signed_by_homeserver(
    app: &AppState,
    request: &Incoming,
    mxid: &str,
    threepid: &Threepid,
    content: &Map<String, Value>,
) -> Result<(), ApiError> {
    let signatures = x_matrix(&request.headers);
    if signatures.is_empty() {
        return Err(ApiError::NoProof);
    }
    let origin = mxid.split_once(':').map(|(_, server)| server).ok_or(ApiError::InvalidSignature)?;
    let for_us = |name: &String| app.own_names.contains(name);
    let all_fit =
        signatures.iter().all(|header| header.origin == origin && header.destination.as_ref().is_none_or(for_us));
    if !all_fit {
        return Err(ApiError::InvalidSignature);
    }
    // A homeserver that was taken off the list can still take back what its users have here: somebody who leaves it
    // must not stay published.
    if !app.config.homeservers.allows(origin)
        && app.store.owner(&app.keys.fingerprint(threepid)).await?.is_none_or(|owner| owner != mxid)
    {
        return Err(ApiError::HomeserverNotAllowed);
    }
    // Last, since it makes us call a server that a stranger names.
    app.limits.unbind.check(&request.source.key()).map_err(ApiError::LimitExceeded)?;
    let signed = SignedRequest {
        method: request.method.as_str(),
        uri: UNBIND_PATH,
        content,
        destinations: &app.own_names,
        signatures: &signatures,
    };
    if app.homeservers.signed(origin, &signed).await? { Ok(()) } else { Err(ApiError::InvalidSignature) }
}
