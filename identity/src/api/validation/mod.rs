//! Proving that an address is one's own: what email addresses and phone numbers have in common.
//!
//! Source: Identity Service API, "Establishing associations", "Email associations", "Phone number associations".

pub(crate) mod email;
pub(crate) mod msisdn;
mod page;

use std::time::Duration;

use http::{
    Method,
    header::{ACCEPT_LANGUAGE, CONTENT_TYPE},
};
use serde_json::json;
use subtle::ConstantTimeEq as _;
use waypost_shared::{
    clock::millis,
    http::{Incoming, Response, causes, json},
    matrix_error::MatrixError,
    params::Params,
    random,
    rate_limit::{Rate, RequestSource},
};

use super::{to_the_end, v1_values};
use crate::{
    app::{App, AppState},
    auth,
    config::Confirm,
    delivery::templates::Look,
    domain::{
        language, next_link,
        sealing::Fingerprint,
        session::{Session, SessionState, is_opaque_id},
        threepid::{Medium, Threepid},
    },
    error::ApiError,
    storage::sessions::{Claimed, TokenRequest},
};

/// How much longer than its time-out the sending of a message may take before its sender counts as dead.
const SENDING_SPARE_SECS: u64 = 30;

/// Whom a message is charged to, beside the one that it goes to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Charge<'a> {
    /// The user that asks; none where no token is needed.
    pub(crate) account: Option<&'a str>,
    /// Where the request came from; none for a homeserver that the operator listed, which asks for all its users.
    pub(crate) source: Option<RequestSource>,
}

/// What a request says about how people are to be spoken to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    brand: Option<String>,
    lang: Option<String>,
    accept_language: Option<String>,
}

impl Wanted {
    /// Reads `?brand=`, `?lang=` and Accept-Language.
    pub(crate) fn of(request: &Incoming) -> Self {
        let accept_language = request.headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        Self {
            brand: request.query_param("brand"),
            lang: request.query_param("lang"),
            accept_language: accept_language.map(str::to_owned),
        }
    }

    /// Lets `brand` and `lang` of the body go first.
    fn and(mut self, params: &mut Params) -> Self {
        self.brand = params.optional_text("brand").filter(|brand| !brand.is_empty()).or(self.brand);
        self.lang = params.optional_text("lang").filter(|lang| !lang.is_empty()).or(self.lang);
        self
    }

    fn look(&self, app: &AppState) -> Look {
        let preferred = language::preferred(self.lang.as_deref(), self.accept_language.as_deref());
        app.templates.look(self.brand.as_deref(), &preferred)
    }
}

/// What every requestToken has.
struct Opening {
    client_secret: String,
    send_attempt: i64,
    next_link: Option<String>,
}

impl Opening {
    /// Reads the parameters; they may be used after `finish` alone.
    fn read(params: &mut Params) -> Self {
        Self {
            client_secret: params.text("client_secret"),
            send_attempt: params.integer("send_attempt"),
            next_link: params.optional_text("next_link").filter(|link| !link.is_empty()),
        }
    }

    fn check(&self, app: &AppState) -> Result<(), ApiError> {
        check_opaque_id("client_secret", &self.client_secret)?;
        let allowed = |link: &String| next_link::allowed(&app.next_links, link).is_some();
        if self.next_link.as_ref().is_some_and(|link| !allowed(link)) {
            return Err(ApiError::NextLinkNotAllowed);
        }
        Ok(())
    }
}

/// A budget to take from: its name, whose it is, how much there is.
type Budgeted = (&'static str, Fingerprint, Rate);

/// Opens a session for `threepid`, or finds the one that there is, and says whether to send a message: only if no
/// request with this `send_attempt` was before, and all budgets have one left. Each is shared by all replicas; the
/// asker's own come first, so that who has none left uses up nobody else's.
async fn claim(
    app: &AppState,
    threepid: &Threepid,
    opening: &Opening,
    budgets: &[Budgeted],
) -> Result<Claimed, ApiError> {
    let (now_ms, rules) = (app.clock.now_ms(), app.session_rules());
    let new_sid = random::token();
    let send_secs = match threepid.medium() {
        Medium::Email => app.config.email.smtp_timeout_secs,
        Medium::Msisdn => app.config.sms.timeout_secs,
    };
    let sending_ms = millis(Duration::from_secs(send_secs.saturating_add(SENDING_SPARE_SECS)));
    let request = TokenRequest {
        new_sid: &new_sid,
        threepid,
        client_secret_hash: app.keys.client_secret_hash(&opening.client_secret),
        send_attempt: opening.send_attempt,
        next_link: opening.next_link.as_deref(),
        now_ms,
        sending_until_ms: now_ms.saturating_add(sending_ms),
        expired_ms: now_ms.saturating_sub(rules.lifetime_ms),
        max_attempts: rules.max_attempts,
    };
    if let Some(sid) = app.store.sent_session(&app.keys, &request).await? {
        return Ok(Claimed { sid, send: false });
    }
    take(app, budgets).await?;
    Ok(app.store.claim_send(&app.keys, &request).await?)
}

/// Takes one from each budget.
async fn take(app: &AppState, budgets: &[Budgeted]) -> Result<(), ApiError> {
    let now_ms = app.clock.now_ms();
    for &(bucket, key, rate) in budgets {
        app.store.take(bucket, &key, rate, now_ms).await?.map_err(ApiError::LimitExceeded)?;
    }
    Ok(())
}

/// Notes that the message went out. Takes the claim back if it did not, so that the same `send_attempt` may try again. The client learns
/// only that it did not; the operator learns why.
async fn settle(
    app: &AppState,
    claimed: Claimed,
    opening: &Opening,
    sent: Result<(), ApiError>,
) -> Result<String, ApiError> {
    if let Err(error) = sent {
        // Our own failures are logged where they are answered.
        if !MatrixError::from(&error).status.is_server_error() {
            tracing::warn!(%error, causes = causes(&error), "a validation message was not sent");
        }
        app.store.unclaim_send(&claimed.sid, opening.send_attempt).await?;
        return Err(error);
    }
    app.store.message_sent(&claimed.sid, opening.send_attempt).await?;
    Ok(claimed.sid)
}

/// What somebody submits.
struct Submission {
    medium: Medium,
    sid: String,
    client_secret: String,
    token: String,
}

impl Submission {
    fn read(medium: Medium, params: &mut Params) -> Self {
        let (token, client_secret, sid) = (params.text("token"), params.text("client_secret"), params.text("sid"));
        Self { medium, sid, client_secret, token }
    }
}

/// Submits a token or code that was sent: the work of both submitToken endpoints, and of their older versions.
///
/// # Errors
///
/// 400: `M_INVALID_PARAM`, `M_TOKEN_INCORRECT`, `M_SESSION_EXPIRED`, all with `"success": false`, since older clients
/// look for that whatever the status; 429.
pub(crate) async fn submit_token(
    app: &AppState,
    medium: Medium,
    mut params: Params,
    source: Option<RequestSource>,
) -> Result<(), ApiError> {
    let submission = Submission::read(medium, &mut params);
    let submitted = async {
        params.finish()?;
        submit(app, &submission, source).await
    };
    submitted.await.map(|_| ()).map_err(|error| {
        let answer = MatrixError::from(&error);
        if answer.status.is_server_error() { error } else { answer.with("success", false).into() }
    })
}

/// `POST …/submitToken`: by a client (JSON), or by the button on the page (a form).
///
/// The page has no access token, and needs none: the session's secret and the token that was sent are the proof.
async fn submit_endpoint(app: &AppState, medium: Medium, request: &mut Incoming) -> Result<Response, ApiError> {
    if is_form(request) {
        let mut params = Params::from_pairs(&request.body)?;
        let look = Wanted::of(request).and(&mut params).look(app);
        let submission = Submission::read(medium, &mut params);
        let submitted = async {
            params.finish()?;
            submit(app, &submission, Some(request.source)).await
        };
        return match submitted.await {
            Ok(session) => page::done(app, &look, &session),
            Err(error) => page::failed(app, &look, error),
        };
    }
    auth::account_with_terms(app, request).await?;
    let params = match request.json_object() {
        Ok(object) => Params::new(object),
        Err(error) => return Err(error.with("success", false).into()),
    };
    submit_token(app, medium, params, Some(request.source)).await?;
    Ok(json(&json!({ "success": true })))
}

/// `POST …/submitToken` of the older API: by a homeserver that the operator listed.
async fn v1_submit_endpoint(app: &AppState, medium: Medium, request: &mut Incoming) -> Result<Response, ApiError> {
    auth::listed_caller(app, request)?;
    let values = v1_values(request).map_err(|error| error.with("success", false))?;
    submit_token(app, medium, Params::new(values), None).await?;
    Ok(json(&json!({ "success": true })))
}

/// `GET …/submitToken`: the page behind a link. What scans mails follows links, so opening it validates only where the
/// operator wants that, and HEAD never does.
async fn token_page(app: &AppState, medium: Medium, request: &Incoming) -> Result<Response, ApiError> {
    let look = Wanted::of(request).look(app);
    let mut params = Params::from_pairs(request.query.as_bytes())?;
    let submission = Submission::read(medium, &mut params);
    let opened = async {
        params.finish()?;
        match app.config.validation.confirm {
            Confirm::Link if request.method == Method::GET => {
                submit(app, &submission, Some(request.source)).await.map(|session| (session, false))
            }
            Confirm::Link | Confirm::Click => {
                session_to_submit_to(app, &submission).await.map(|session| (session, true))
            }
        }
    };
    match opened.await {
        Ok((session, false)) => page::done(app, &look, &session),
        Ok((session, true)) => page::confirm(app, &look, &submission, &session),
        Err(error) => page::failed(app, &look, error),
    }
}

/// Validates the session if the token is its own. Doing it again is no mistake: people press twice.
async fn submit(app: &AppState, submission: &Submission, source: Option<RequestSource>) -> Result<Session, ApiError> {
    let session = session_to_submit_to(app, submission).await?;
    let expected = match submission.medium {
        Medium::Email => app.keys.validation_token(&session.sid),
        Medium::Msisdn => {
            // Six digits can be guessed, in many sessions and from many places at once.
            take(app, &msisdn::guesses(app, &session.threepid, source)).await?;
            app.keys.validation_code(&session.sid)
        }
    };
    // Counted before it is compared, in one statement: many guesses at once are not more guesses.
    if !app.store.take_attempt(&session.sid, app.session_rules().max_attempts).await? {
        return Err(ApiError::SessionExpired);
    }
    // People type a code as they read it, in groups.
    let submitted: String = submission.token.chars().filter(|c| !c.is_whitespace()).collect();
    if !bool::from(expected.as_bytes().ct_eq(submitted.as_bytes())) {
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
    let session = session
        .filter(|session| session.has_client_secret(&secret) && session.threepid.medium() == submission.medium)
        .ok_or(ApiError::SubmitToNoSession)?;
    match session.state(app.session_rules(), app.clock.now_ms()) {
        SessionState::Expired => Err(ApiError::SessionExpired),
        SessionState::Open | SessionState::Validated(_) => Ok(session),
    }
}

/// `GET /_matrix/identity/v2/3pid/getValidated3pid`: the address of a session that was proven.
pub(crate) async fn validated_threepid(app: App, request: Incoming) -> Result<Response, ApiError> {
    auth::account_with_terms(&app, &request).await?;
    validated(&app, Params::from_pairs(request.query.as_bytes())?).await
}

/// `GET /_matrix/identity/api/v1/3pid/getValidated3pid`: the same for a homeserver that the operator listed.
pub(crate) async fn v1_validated_threepid(app: App, mut request: Incoming) -> Result<Response, ApiError> {
    auth::listed_caller(&app, &request)?;
    validated(&app, Params::new(v1_values(&mut request)?)).await
}

async fn validated(app: &AppState, mut params: Params) -> Result<Response, ApiError> {
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

/// Where a link to submit a token leads, and its page's button.
fn submit_path(medium: Medium) -> &'static str {
    match medium {
        Medium::Email => "/_matrix/identity/v2/validate/email/submitToken",
        Medium::Msisdn => "/_matrix/identity/v2/validate/msisdn/submitToken",
    }
}

/// JSON, or the form that earlier drafts of the specification allowed.
fn params(request: &mut Incoming) -> Result<Params, MatrixError> {
    if is_form(request) {
        return Params::from_pairs(&request.body);
    }
    Ok(Params::new(request.json_object()?))
}

/// A form by its content type; but curl calls everything a form, so what begins like an object is JSON.
fn is_form(request: &Incoming) -> bool {
    let content_type = request.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.starts_with("application/x-www-form-urlencoded"))
        && !request.body.trim_ascii_start().starts_with(b"{")
}

fn check_opaque_id(name: &'static str, text: &str) -> Result<(), ApiError> {
    if is_opaque_id(text) { Ok(()) } else { Err(ApiError::NotOpaqueId(name)) }
}

fn render(app: &AppState, look: &Look, template: &str, values: &serde_json::Value) -> Result<String, ApiError> {
    app.templates.render(look, template, values).map_err(|error| ApiError::Internal(error.into()))
}

/// Hours that links and codes work.
fn hours(app: &AppState) -> u64 {
    app.config.validation.session_lifetime_secs.div_ceil(3600)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::jobs::tests::app;

    #[tokio::test]
    async fn a_message_whose_sender_died_is_sent_by_the_same_attempt_again() {
        let (app, clock, _folder) = app(|config| config.email.smtp_timeout_secs = 20).await;
        let threepid = Threepid::email("alice@example.com").unwrap();
        let opening = Opening { client_secret: "secret".to_owned(), send_attempt: 1, next_link: None };
        let claim = async || super::claim(&app, &threepid, &opening, &[]).await.unwrap();
        let first = claim().await;
        assert!(first.send);
        // It may still be on its way: 20 seconds of the mail server's, 30 to spare.
        clock.advance(Duration::from_millis(50_000 - 1));
        assert_eq!(claim().await, Claimed { sid: first.sid.clone(), send: false });
        clock.advance(Duration::from_millis(1));
        assert_eq!(claim().await, Claimed { sid: first.sid.clone(), send: true });

        settle(&app, claim().await, &opening, Ok(())).await.unwrap();
        clock.advance(Duration::from_secs(3600));
        assert_eq!(claim().await, Claimed { sid: first.sid, send: false });
    }
}
