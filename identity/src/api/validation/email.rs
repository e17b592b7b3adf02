//! Source: Identity Service API, "Email associations".

use std::sync::Arc;

use serde_json::json;
use url::form_urlencoded;
use waypost_shared::http::{Incoming, Response, json, params::Params};

use super::{
    requesting::{Opening, Requester, Wanted, claim, hours, params, render, settle, submit_path},
    submitting,
};
use crate::{
    api::v1_values,
    app::App,
    auth,
    delivery::{email::Mail, templates::Look},
    domain::{
        shown,
        threepid::{Medium, Threepid},
    },
    error::ApiError,
    storage::rate_limits::Charge,
};

/// `POST /_matrix/identity/v2/validate/email/requestToken`: sends a token to an address.
pub(crate) async fn request_token_endpoint(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account_with_terms(&app, &request).await?;
    let (params, wanted, source) = (params(&mut request)?, Wanted::of(&request), Some(request.source));
    let requester = Requester { account: Some(&account), source };
    let sid = request_token(&app, params, requester, wanted).await?;
    Ok(json(&json!({ "sid": sid })))
}

/// `POST /_matrix/identity/v2/validate/email/submitToken`.
pub(crate) async fn submit_token_endpoint(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    submitting::submit_endpoint(&app, Medium::Email, &mut request).await
}

/// `POST /_matrix/identity/api/v1/validate/email/requestToken`: the same, for a listed homeserver.
pub(crate) async fn v1_request_token(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    auth::listed_caller(&app, &request)?;
    let (params, wanted) = (Params::new(v1_values(&mut request)?), Wanted::of(&request));
    let sid = request_token(&app, params, Requester::default(), wanted).await?;
    Ok(json(&json!({ "sid": sid })))
}

/// `POST /_matrix/identity/api/v1/validate/email/submitToken`.
pub(crate) async fn v1_submit_token(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    submitting::v1_submit_endpoint(&app, Medium::Email, &mut request).await
}

/// `GET /_matrix/identity/v2/validate/email/submitToken`: the page behind the link in the email.
pub(crate) async fn token_page(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    submitting::token_page(&app, Medium::Email, &request).await
}

/// Opens a session for an address and sends the email; returns the session's ID.
///
/// # Errors
///
/// 400 for invalid parameters, `M_INVALID_EMAIL` and `M_EMAIL_SEND_ERROR`; 429.
pub(crate) async fn request_token(
    app: &App,
    mut params: Params,
    requester: Requester<'_>,
    wanted: Wanted,
) -> Result<String, ApiError> {
    let opening = Opening::read(&mut params);
    let email = params.text("email");
    let look = wanted.and(&mut params).look(app);
    params.finish()?;
    opening.check(app)?;
    let threepid = Threepid::email(&email)?;

    let charges = charges(app, &threepid, requester);
    let claimed = claim(app, &threepid, &opening, requester, &charges).await?;
    if !claimed.send {
        return Ok(claimed.sid);
    }
    let session = (claimed.sid.as_str(), opening.client_secret.as_str());
    let sent = send_token(app, &look, &threepid, requester, session).await;
    app.metrics.mail(sent.is_ok());
    settle(app, claimed, &opening, &charges, sent).await
}

/// The rate limits of one email: nobody can be flooded, and nobody can flood others through this server.
fn charges(app: &App, threepid: &Threepid, requester: Requester<'_>) -> Vec<Charge> {
    let (keys, limits) = (&app.keys, &app.config.limits);
    let mut charges = Vec::with_capacity(6);
    if let Some(account) = requester.account {
        let mxid = keys.budget_hash(account.mxid.as_str());
        charges.push(Charge::one("mail_per_account", mxid, limits.mail_per_account));
        if !app.config.homeservers.names(&account.homeserver) {
            let owner = keys.budget_hash(&account.owner.to_string());
            charges.push(Charge::one("mail_per_stranger", owner, limits.mail_per_stranger));
            charges.push(Charge::one("mail_of_strangers", keys.budget_hash(""), limits.mail_of_strangers));
        }
    }
    if let Some(source) = requester.source {
        charges.push(Charge::one("mail_per_source", keys.budget_hash(&source.to_string()), limits.mail_per_source));
    }
    charges.push(Charge::one("mail_per_address", keys.mailbox_hash(threepid), limits.mail_per_address));
    charges.push(Charge::one("mail_total", keys.budget_hash(""), limits.mail_total));
    charges
}

/// Sends to the canonical form of the address, which is the one that will be bound: otherwise the token could reach
/// somebody else, whose look-alike address folds to it.
async fn send_token(
    app: &App,
    look: &Look,
    threepid: &Threepid,
    requester: Requester<'_>,
    (sid, client_secret): (&str, &str),
) -> Result<(), ApiError> {
    let link = link(app, look, sid, client_secret);
    let values = json!({
        "link": link,
        "address": threepid.address(),
        "account": requester.account.map(|account| shown::mxid(&account.mxid)).unwrap_or_default(),
        "server_name": app.config.identity.server_name,
        "hours": hours(app),
    });
    let mail = Mail {
        subject: render(app, look, "verification_subject.txt", &values)?.trim().to_owned(),
        text: render(app, look, "verification_mail.txt", &values)?,
        html: render(app, look, "verification_mail.html", &values)?,
    };
    Ok(app.mailer.send(threepid.address(), mail, &link).await?)
}

fn link(app: &App, look: &Look, sid: &str, client_secret: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("token", &app.keys.validation_token(sid));
    query.append_pair("client_secret", client_secret);
    query.append_pair("sid", sid);
    // The page uses the email's language, whatever browser it is opened in.
    query.append_pair("lang", &look.language);
    if let Some(brand) = &look.brand {
        query.append_pair("brand", brand);
    }
    format!("{}{}?{}", app.base_url, submit_path(Medium::Email), query.finish())
}
