//! What `submitToken` for email addresses and for phone numbers have in common, for clients and for browsers.

use http::Method;
use serde_json::json;
use subtle::ConstantTimeEq as _;
use waypost_shared::{
    http::{Incoming, MatrixError, Response, json, params::Params},
    source::RequestSource,
};

use super::{
    page::{self, Submission},
    requesting::{Wanted, check_opaque_id, is_form},
};
use crate::{
    api::v1_values,
    app::App,
    auth,
    config::Confirm,
    domain::{
        session::{Session, SessionState},
        threepid::Medium,
    },
    error::ApiError,
    storage::rate_limits::Charge,
};

/// Submits a token or code: the work of both `submitToken` endpoints and of their v1 versions.
///
/// # Errors
///
/// 400: `M_INVALID_PARAM`, `M_TOKEN_INCORRECT`, `M_SESSION_EXPIRED`, all with `"success": false`, which older clients
/// check whatever the status is; 429.
pub(crate) async fn submit_token(
    app: &App,
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

/// `POST …/submitToken`: from a client (JSON), or from the button on the page (a form).
///
/// The page has no access token and needs none: the session's secret and the submitted token are the proof.
pub(super) async fn submit_endpoint(app: &App, medium: Medium, request: &mut Incoming) -> Result<Response, ApiError> {
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

/// `POST …/submitToken` of v1, for a listed homeserver.
pub(super) async fn v1_submit_endpoint(
    app: &App,
    medium: Medium,
    request: &mut Incoming,
) -> Result<Response, ApiError> {
    auth::listed_caller(app, request)?;
    let values = v1_values(request).map_err(|error| error.with("success", false))?;
    submit_token(app, medium, Params::new(values), None).await?;
    Ok(json(&json!({ "success": true })))
}

/// `GET …/submitToken`: the page behind a link. Mail scanners follow links, so opening it validates only if the
/// operator configured that, and `HEAD` never does.
pub(super) async fn token_page(app: &App, medium: Medium, request: &Incoming) -> Result<Response, ApiError> {
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

/// Guesses at a session's code that are not charged to its number. Whoever opens sessions for somebody else's number
/// would otherwise use up the budget of its owner, who types the code from the message.
const GUESSES_OF_A_SESSION: i64 = 3;

/// Validates the session if the token matches. Idempotent, because people press twice.
async fn submit(app: &App, submission: &Submission, source: Option<RequestSource>) -> Result<Session, ApiError> {
    let session = session_to_submit_to(app, submission).await?;
    let expected = match submission.medium {
        Medium::Email => app.keys.validation_token(&session.sid),
        Medium::Msisdn => app.keys.validation_code(&session.sid),
    };
    let mut charges = Vec::new();
    // Six digits can be guessed, across many sessions and from many sources at once.
    if let (Medium::Msisdn, Some(source)) = (submission.medium, source) {
        let of_source = app.keys.budget_hash(&source.to_string());
        charges.push(Charge::one("sms_codes_per_source", of_source, app.config.limits.sms_codes_per_source));
    }
    take_all(app, &charges).await?;
    // Counted before the comparison, in one statement, so that concurrent guesses are counted too.
    let attempts = app.store.take_attempt(&session.sid, app.session_rules().max_attempts).await?;
    let attempts = attempts.ok_or(ApiError::SessionExpired)?;
    if submission.medium == Medium::Msisdn && attempts > GUESSES_OF_A_SESSION {
        let of_number = app.keys.fingerprint(&session.threepid);
        let charge = Charge::one("sms_codes_per_number", of_number, app.config.limits.sms_codes_per_number);
        take_all(app, &[charge]).await?;
        charges.push(charge);
    }
    // People type codes as they read them, in groups.
    let submitted: String = submission.token.chars().filter(|c| !c.is_whitespace()).collect();
    if !bool::from(expected.as_bytes().ct_eq(submitted.as_bytes())) {
        return Err(ApiError::TokenIncorrect);
    }
    app.store.validate_session(&session.sid, app.clock.now_ms()).await?;
    // It was no guess.
    app.store.give_back(&charges).await?;
    Ok(session)
}

async fn take_all(app: &App, charges: &[Charge]) -> Result<(), ApiError> {
    app.store.take_all(charges, app.clock.now_ms()).await?.map_err(ApiError::rate_limited)
}

async fn session_to_submit_to(app: &App, submission: &Submission) -> Result<Session, ApiError> {
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
