//! The pages behind validation links: localised, and without scripts.

use http::{
    HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, RETRY_AFTER},
};
use serde_json::json;
use url::Url;
use waypost_shared::http::{MatrixError, Response, params::Params, redirect, with_body};

use super::requesting::{hours, render, submit_path};
use crate::{
    app::App,
    delivery::templates::Look,
    domain::{
        next_link,
        session::Session,
        shown,
        threepid::{Medium, Threepid},
    },
    error::ApiError,
};

/// A submitted token, from a client or from the page's button.
pub(super) struct Submission {
    pub(super) medium: Medium,
    pub(super) sid: String,
    pub(super) client_secret: String,
    pub(super) token: String,
}

impl Submission {
    pub(super) fn read(medium: Medium, params: &mut Params) -> Self {
        let (token, client_secret, sid) = (params.text("token"), params.text("client_secret"), params.text("sid"));
        Self { medium, sid, client_secret, token }
    }
}

/// The page with the button that confirms.
pub(super) fn confirm(
    app: &App,
    look: &Look,
    submission: &Submission,
    session: &Session,
) -> Result<Response, ApiError> {
    let values = json!({
        "server_name": app.config.identity.server_name,
        "action": format!("{}{}", app.base_url, submit_path(submission.medium)),
        "medium": submission.medium.as_str(),
        "address": address(&session.threepid),
        "account": session.requester.as_ref().map(shown::mxid).unwrap_or_default(),
        "sid": submission.sid,
        "client_secret": submission.client_secret,
        "token": submission.token,
        "brand": look.brand.as_deref().unwrap_or_default(),
        "language": look.language,
    });
    // Browsers apply `form-action` to the redirect after a form, too.
    let next = onward(app, session).map(|link| link.origin().ascii_serialization()).unwrap_or_default();
    page(app, look, StatusCode::OK, "page_confirm.html", &values, &next)
}

/// After validation: redirects to `next_link` if it is still allowed, or else shows a page that says what to do next.
pub(super) fn done(app: &App, look: &Look, session: &Session) -> Result<Response, ApiError> {
    if let Some(link) = onward(app, session) {
        return Ok(redirect(link.as_str()));
    }
    let values = json!({
        "server_name": app.config.identity.server_name,
        "medium": session.threepid.medium().as_str(),
        "address": address(&session.threepid),
    });
    page(app, look, StatusCode::OK, "page_done.html", &values, "")
}

/// A page that says what went wrong and what to do. Server errors are returned, to be answered and logged as usual.
pub(super) fn failed(app: &App, look: &Look, error: ApiError) -> Result<Response, ApiError> {
    let answer = MatrixError::from(&error);
    if answer.status.is_server_error() {
        return Err(error);
    }
    let (template, wait) = match error {
        ApiError::SessionExpired => ("page_expired.html", None),
        ApiError::RateLimited { retry_after } => ("page_failed.html", Some(retry_after)),
        _ => ("page_failed.html", None),
    };
    let values = json!({
        "server_name": app.config.identity.server_name,
        "hours": hours(app),
        "too_often": wait.is_some(),
    });
    let mut response = page(app, look, answer.status, template, &values, "")?;
    if let Some(wait) = wait {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait.as_secs().saturating_add(1)));
    }
    Ok(response)
}

/// Where to redirect to, if anywhere.
fn onward(app: &App, session: &Session) -> Option<Url> {
    session.next_link.as_deref().and_then(|link| next_link::allowed(&app.next_links, link))
}

/// The address as people write it.
fn address(threepid: &Threepid) -> String {
    match threepid.medium() {
        Medium::Email => threepid.address().to_owned(),
        Medium::Msisdn => format!("+{}", threepid.address()),
    }
}

/// A response that loads nothing, sends no referrer and is not cached.
fn page(
    app: &App,
    look: &Look,
    status: StatusCode,
    template: &str,
    values: &serde_json::Value,
    form_may_lead_to: &str,
) -> Result<Response, ApiError> {
    let html = render(app, look, template, values)?;
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
