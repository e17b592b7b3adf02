//! Proving that an email address is one's own.
//!
//! Source: Identity Service API, "Establishing associations" and "Email associations".

use http::{
    HeaderValue, Method, StatusCode,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY},
};
use serde_json::json;
use subtle::ConstantTimeEq as _;
use url::form_urlencoded;
use waypost_shared::{
    http::{Incoming, Response, json, redirect, with_body},
    matrix_error::MatrixError,
    params::Params,
    random,
};

use crate::{
    app::{App, AppState},
    auth::{self, Account},
    config::Confirm,
    delivery::email::Mail,
    domain::{
        next_link,
        session::{Session, SessionState, is_opaque_id},
        threepid::Threepid,
    },
    error::ApiError,
    storage::sessions::TokenRequest,
};

const SUBMIT_PATH: &str = "/_matrix/identity/v2/validate/email/submitToken";

/// `POST /_matrix/identity/v2/validate/email/requestToken`: sends a token to an address.
pub(crate) async fn request_email_token(app: App, request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account_with_terms(&app, &request).await?;
    let mut params = params(&request)?;
    let client_secret = params.text("client_secret");
    let email = params.text("email");
    let send_attempt = params.integer("send_attempt");
    let next_link = params.optional_text("next_link").filter(|link| !link.is_empty());
    params.finish()?;
    check_opaque_id("client_secret", &client_secret)?;
    let threepid = Threepid::email(&email)?;
    if next_link.as_ref().is_some_and(|link| next_link::allowed(&app.next_links, link).is_none()) {
        return Err(ApiError::NextLinkNotAllowed);
    }

    let now_ms = app.clock.now_ms();
    let new_sid = random::token();
    let token_request = TokenRequest {
        new_sid: &new_sid,
        threepid: &threepid,
        client_secret_hash: app.keys.client_secret_hash(&client_secret),
        send_attempt,
        next_link: next_link.as_deref(),
        now_ms,
        expired_ms: now_ms.saturating_sub(app.session_rules().lifetime_ms),
    };
    if let Some(sid) = app.store.sent_session(&app.keys, &token_request).await? {
        return Ok(json(&json!({ "sid": sid })));
    }
    charge_mail(&app, &account, &request, &threepid, now_ms).await?;
    let claimed = app.store.claim_send(&app.keys, &token_request).await?;
    if claimed.send {
        let sent = send_token(&app, &threepid, &claimed.sid, &client_secret).await;
        app.metrics.mail(sent.is_ok());
        if sent.is_err() {
            app.store.unclaim_send(&claimed.sid, send_attempt).await?;
        }
        sent?;
    }
    Ok(json(&json!({ "sid": claimed.sid })))
}

/// Nobody can be flooded with mail, and nobody can have us flood others: each budget is shared by all replicas.
async fn charge_mail(
    app: &AppState,
    account: &Account,
    request: &Incoming,
    threepid: &Threepid,
    now_ms: i64,
) -> Result<(), ApiError> {
    let limits = &app.config.limits;
    let source = request.source.to_string();
    for (bucket, key, rate) in [
        ("mail_per_address", app.keys.fingerprint(threepid), limits.mail_per_address),
        ("mail_per_account", app.keys.budget_hash(&account.mxid), limits.mail_per_account),
        ("mail_per_source", app.keys.budget_hash(&source), limits.mail_per_source),
        ("mail_total", app.keys.budget_hash(""), limits.mail_total),
    ] {
        app.store.take(bucket, &key, rate.budget(), now_ms).await?.map_err(ApiError::LimitExceeded)?;
    }
    Ok(())
}

/// The mail goes to the address in its canonical form, which is the one that will be bound: a look-alike that folds to
/// it could otherwise be read by somebody else.
async fn send_token(app: &AppState, threepid: &Threepid, sid: &str, client_secret: &str) -> Result<(), ApiError> {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("token", &app.keys.validation_token(sid))
        .append_pair("client_secret", client_secret)
        .append_pair("sid", sid)
        .finish();
    let link = format!("{}{SUBMIT_PATH}?{query}", app.base_url);
    let values = json!({
        "link": link,
        "server_name": app.config.identity.server_name,
        "hours": app.config.validation.session_lifetime_secs.div_ceil(3600),
    });
    let mail = Mail {
        subject: render(app, "verification_subject.txt", &values)?.trim().to_owned(),
        text: render(app, "verification_mail.txt", &values)?,
        html: render(app, "verification_mail.html", &values)?,
    };
    Ok(app.mailer.send(threepid.address(), mail, &link).await?)
}

/// What somebody submits who has the token.
struct Submission {
    sid: String,
    client_secret: String,
    token: String,
}

impl Submission {
    fn read(mut params: Params) -> Result<Self, ApiError> {
        let token = params.text("token");
        let client_secret = params.text("client_secret");
        let sid = params.text("sid");
        params.finish()?;
        Ok(Self { sid, client_secret, token })
    }
}

/// `POST /_matrix/identity/v2/validate/email/submitToken`: by a client, or by the button on the page.
pub(crate) async fn submit_email_token(app: App, request: Incoming) -> Result<Response, ApiError> {
    if is_form(&request) {
        return submit_from_page(&app, &request).await;
    }
    let submitted = async {
        let submission = Submission::read(Params::new(request.json_object()?))?;
        submit(&app, &submission).await
    };
    match submitted.await {
        Ok(_) => Ok(json(&json!({ "success": true }))),
        // Older clients look for `success`, whatever the status.
        Err(error) => {
            let answer = MatrixError::from(&error);
            if answer.status.is_server_error() { Err(error) } else { Err(answer.with("success", false).into()) }
        }
    }
}

/// `GET /_matrix/identity/v2/validate/email/submitToken`: the page behind the link in the mail. What scans mails
/// follows links, so opening it validates only where the operator wants that, and HEAD never does.
pub(crate) async fn email_token_page(app: App, request: Incoming) -> Result<Response, ApiError> {
    let submission = Submission::read(Params::from_pairs(&request.query));
    let opened = async {
        let submission = submission?;
        match app.config.validation.confirm {
            Confirm::Link if request.method == Method::GET => submit(&app, &submission).await.map(Opened::Done),
            Confirm::Link | Confirm::Click => {
                let session = session_to_submit_to(&app, &submission).await?;
                Ok(Opened::Ask(submission, session))
            }
        }
    };
    match opened.await {
        Ok(Opened::Done(session)) => done(&app, &session),
        Ok(Opened::Ask(submission, session)) => confirm_page(&app, &submission, &session),
        Err(error) => failed_page(&app, error),
    }
}

enum Opened {
    Done(Session),
    Ask(Submission, Session),
}

async fn submit_from_page(app: &AppState, request: &Incoming) -> Result<Response, ApiError> {
    let form = String::from_utf8_lossy(&request.body);
    let submitted = async { submit(app, &Submission::read(Params::from_pairs(&form))?).await };
    match submitted.await {
        Ok(session) => done(app, &session),
        Err(error) => failed_page(app, error),
    }
}

/// Validates the session if the token is its own. Doing it again is no mistake: people press twice.
async fn submit(app: &AppState, submission: &Submission) -> Result<Session, ApiError> {
    let session = session_to_submit_to(app, submission).await?;
    let expected = app.keys.validation_token(&session.sid);
    if !bool::from(expected.as_bytes().ct_eq(submission.token.as_bytes())) {
        app.store.count_wrong_token(&session.sid).await?;
        return Err(ApiError::TokenIncorrect);
    }
    app.store.validate_session(&session.sid, app.clock.now_ms()).await?;
    Ok(session)
}

async fn session_to_submit_to(app: &AppState, submission: &Submission) -> Result<Session, ApiError> {
    check_opaque_id("sid", &submission.sid)?;
    check_opaque_id("client_secret", &submission.client_secret)?;
    let session = app.store.session(&app.keys, &submission.sid).await?;
    let secret = app.keys.client_secret_hash(&submission.client_secret);
    let session = session.filter(|session| session.has_client_secret(&secret)).ok_or(ApiError::SubmitToNoSession)?;
    match session.state(app.session_rules(), app.clock.now_ms()) {
        SessionState::Expired => Err(ApiError::SessionExpired),
        SessionState::Open | SessionState::Validated(_) => Ok(session),
    }
}

/// `GET /_matrix/identity/v2/3pid/getValidated3pid`: the address of a session that was proven.
pub(crate) async fn validated_threepid(app: App, request: Incoming) -> Result<Response, ApiError> {
    auth::account_with_terms(&app, &request).await?;
    let mut params = Params::from_pairs(&request.query);
    let sid = params.text("sid");
    let client_secret = params.text("client_secret");
    params.finish()?;
    let (threepid, validated_ms) = app.validated_session(&sid, &client_secret).await?;
    Ok(json(&json!({
        "medium": threepid.medium().as_str(),
        "address": threepid.address(),
        "validated_at": validated_ms,
    })))
}

/// JSON, or the form that earlier drafts of the specification allowed.
fn params(request: &Incoming) -> Result<Params, MatrixError> {
    if is_form(request) {
        return Ok(Params::from_pairs(&String::from_utf8_lossy(&request.body)));
    }
    Ok(Params::new(request.json_object()?))
}

/// A form by its content type; but curl calls everything a form, so what begins like an object is JSON.
fn is_form(request: &Incoming) -> bool {
    let content_type = request.headers.get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.starts_with("application/x-www-form-urlencoded"))
        && !request.body.trim_ascii_start().starts_with(b"{")
}

fn check_opaque_id(name: &'static str, text: &str) -> Result<(), ApiError> {
    if is_opaque_id(text) { Ok(()) } else { Err(ApiError::NotOpaqueId(name)) }
}

/// The address is proven: on to `next_link`, if it is still allowed, or a page that says what is next.
fn done(app: &AppState, session: &Session) -> Result<Response, ApiError> {
    if let Some(link) = session.next_link.as_deref().and_then(|link| next_link::allowed(&app.next_links, link)) {
        return Ok(redirect(link.as_str()));
    }
    let text = "Thank you: this address is confirmed. You can close this page and go back to your Matrix app.";
    message_page(app, StatusCode::OK, "Address confirmed", text)
}

fn confirm_page(app: &AppState, submission: &Submission, session: &Session) -> Result<Response, ApiError> {
    let values = json!({
        "server_name": app.config.identity.server_name,
        "action": format!("{}{SUBMIT_PATH}", app.base_url),
        "sid": submission.sid,
        "client_secret": submission.client_secret,
        "token": submission.token,
    });
    // Browsers hold the redirect after a form to the same rule as the form.
    let next = session.next_link.as_deref().and_then(|link| next_link::allowed(&app.next_links, link));
    let next = next.map(|link| link.origin().ascii_serialization()).unwrap_or_default();
    page(StatusCode::OK, render(app, "page_confirm.html", &values)?, &next)
}

fn failed_page(app: &AppState, error: ApiError) -> Result<Response, ApiError> {
    let answer = MatrixError::from(&error);
    if answer.status.is_server_error() {
        return Err(error);
    }
    let (title, text) = match error {
        ApiError::SessionExpired => {
            ("This link has expired", "Go back to your Matrix app and ask for a new mail; its link will work.")
        }
        _ => (
            "This link does not work",
            "It may have been cut off. Open it again from the mail, or ask for a new one in your Matrix app.",
        ),
    };
    message_page(app, answer.status, title, text)
}

fn message_page(app: &AppState, status: StatusCode, title: &str, text: &str) -> Result<Response, ApiError> {
    let values = json!({ "server_name": app.config.identity.server_name, "title": title, "text": text });
    page(status, render(app, "page_message.html", &values)?, "")
}

fn render(app: &AppState, template: &str, values: &serde_json::Value) -> Result<String, ApiError> {
    app.templates.render(template, values).map_err(|error| ApiError::Internal(error.into()))
}

/// A page that loads nothing from anywhere, tells nobody where it was, and is kept nowhere.
fn page(status: StatusCode, html: String, form_may_lead_to: &str) -> Result<Response, ApiError> {
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self' {form_may_lead_to}; base-uri 'none'; \
         frame-ancestors 'none'"
    );
    let mut response = with_body(status, "text/html; charset=utf-8", html);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_str(&policy).map_err(|e| ApiError::Internal(e.into()))?);
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}
