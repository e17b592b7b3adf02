//! Source: Identity Service API, "Phone number associations".

use std::sync::Arc;

use serde_json::{Value, json};
use waypost_shared::http::{Incoming, Response, json, params::Params};

use super::{
    requesting::{Opening, Requester, Wanted, claim, hours, params, render, settle},
    submitting,
};
use crate::{
    api::v1_values,
    app::App,
    auth,
    delivery::templates::Look,
    domain::{phone::Phone, threepid::Medium},
    error::ApiError,
    storage::rate_limits::Charge,
};

/// `POST /_matrix/identity/v2/validate/msisdn/requestToken`: sends a code to a phone number.
pub(crate) async fn request_token_endpoint(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account_with_terms(&app, &request).await?;
    let (params, wanted, source) = (params(&mut request)?, Wanted::of(&request), Some(request.source));
    let requester = Requester { account: Some(&account), source };
    let answer = request_token(&app, params, requester, wanted).await?;
    Ok(json(&answer))
}

/// `POST /_matrix/identity/v2/validate/msisdn/submitToken`.
pub(crate) async fn submit_token_endpoint(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    submitting::submit_endpoint(&app, Medium::Msisdn, &mut request).await
}

/// `POST /_matrix/identity/api/v1/validate/msisdn/requestToken`: the same, for a listed homeserver.
pub(crate) async fn v1_request_token(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    auth::listed_caller(&app, &request)?;
    let (params, wanted) = (Params::new(v1_values(&mut request)?), Wanted::of(&request));
    let answer = request_token(&app, params, Requester::default(), wanted).await?;
    Ok(json(&answer))
}

/// `POST /_matrix/identity/api/v1/validate/msisdn/submitToken`.
pub(crate) async fn v1_submit_token(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    submitting::v1_submit_endpoint(&app, Medium::Msisdn, &mut request).await
}

/// `GET /_matrix/identity/v2/validate/msisdn/submitToken`: the page behind a link built by a client.
pub(crate) async fn token_page(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    submitting::token_page(&app, Medium::Msisdn, &request).await
}

/// Opens a session for a phone number and sends the code; returns the body of the response. Element iOS reads `msisdn`
/// from it, clients show `intl_fmt`, and deployed servers send `success`.
///
/// # Errors
///
/// 400 for invalid parameters, `M_INVALID_ADDRESS`, `M_DESTINATION_REJECTED` and `M_SEND_ERROR`; 429.
pub(crate) async fn request_token(
    app: &App,
    mut params: Params,
    requester: Requester<'_>,
    wanted: Wanted,
) -> Result<Value, ApiError> {
    let opening = Opening::read(&mut params);
    let number = params.text("phone_number");
    // Required, but iOS sends an empty one.
    let country = params.text("country");
    let look = wanted.and(&mut params).look(app);
    params.finish()?;
    opening.check(app)?;
    let phone = Phone::parse(&number, &country)?;
    if !may_send_to(app, &phone) {
        return Err(ApiError::DestinationRejected);
    }

    let charges = charges(app, &phone, requester);
    let claimed = claim(app, &phone.threepid, &opening, requester, &charges).await?;
    let sid = if claimed.send {
        let sent = send_code(app, &look, &phone, &claimed.sid).await;
        app.metrics.sms(sent.is_ok());
        settle(app, claimed, &opening, &charges, sent).await?
    } else {
        claimed.sid
    };
    Ok(json!({
        "success": true,
        "sid": sid,
        "msisdn": phone.threepid.address(),
        "intl_fmt": phone.international,
    }))
}

fn may_send_to(app: &App, phone: &Phone) -> bool {
    let (allowed, denied) = &app.sms_countries;
    // An empty list means all countries, and what belongs to none has to be named.
    let allowed = (allowed.is_empty() && !phone.is_nowhere()) || phone.is_in(allowed);
    app.sms.is_on() && allowed && !phone.is_in(denied) && !phone.special
}

/// The rate limits of one message: messages cost money, and fraudsters earn from having many sent to their own numbers.
fn charges(app: &App, phone: &Phone, requester: Requester<'_>) -> Vec<Charge> {
    let (keys, limits) = (&app.keys, &app.config.limits);
    let mut charges = Vec::with_capacity(7);
    if let Some(account) = requester.account {
        let mxid = keys.budget_hash(account.mxid.as_str());
        charges.push(Charge::one("sms_per_account", mxid, limits.sms_per_account));
        if !app.config.homeservers.names(&account.homeserver) {
            let owner = keys.budget_hash(&account.owner.to_string());
            charges.push(Charge::one("sms_per_stranger", owner, limits.sms_per_stranger));
            charges.push(Charge::one("sms_of_strangers", keys.budget_hash(""), limits.sms_of_strangers));
        }
    }
    if let Some(source) = requester.source {
        charges.push(Charge::one("sms_per_source", keys.budget_hash(&source.to_string()), limits.sms_per_source));
    }
    charges.push(Charge::one("sms_per_number", keys.fingerprint(&phone.threepid), limits.sms_per_number));
    charges.push(Charge::one("sms_per_country", keys.budget_hash(&phone.country()), limits.sms_per_country));
    charges.push(Charge::one("sms_total", keys.budget_hash(""), limits.sms_total));
    charges
}

async fn send_code(app: &App, look: &Look, phone: &Phone, sid: &str) -> Result<(), ApiError> {
    let code = app.keys.validation_code(sid);
    let values = json!({
        "code": code,
        "server_name": app.config.identity.server_name,
        "hours": hours(app),
    });
    let text = render(app, look, "verification_sms.txt", &values)?;
    Ok(app.sms.send(phone, text.trim(), &code).await?)
}
