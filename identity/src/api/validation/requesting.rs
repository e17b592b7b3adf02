//! What `requestToken` for email addresses and for phone numbers have in common: rate limits, sessions, and one message
//! per `send_attempt`.

use std::time::Duration;

use http::header::{ACCEPT_LANGUAGE, CONTENT_TYPE};
use waypost_shared::{
    clock::millis,
    error::Chain,
    http::{Incoming, MatrixError, params::Params},
    random,
    source::RequestSource,
};

use crate::{
    app::{Account, App},
    delivery::templates::Look,
    domain::{
        language, next_link,
        session::is_opaque_id,
        threepid::{Medium, Threepid},
    },
    error::ApiError,
    storage::{
        rate_limits::Charge,
        sessions::{Claimed, TokenRequest},
    },
};

/// Margin on top of the send time-out, in seconds, after which the sender of a message is presumed dead.
const SENDING_SPARE_SECS: u64 = 30;

/// The longest `next_link`, in bytes. It is stored with the session.
const MAX_NEXT_LINK: usize = 2048;

/// Who a message is charged to, besides its recipient.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Requester<'a> {
    /// The user who requests it; `None` where no token is needed.
    pub(crate) account: Option<&'a Account>,
    /// Where the request came from; `None` for a listed homeserver, which makes requests for all its users.
    pub(crate) source: Option<RequestSource>,
}

/// The brand and the languages that a request asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    brand: Option<String>,
    lang: Option<String>,
    accept_language: Option<String>,
}

impl Wanted {
    /// Reads `?brand=`, `?lang=` and `Accept-Language`.
    pub(crate) fn of(request: &Incoming) -> Self {
        let accept_language = request.headers.get(ACCEPT_LANGUAGE).and_then(|value| value.to_str().ok());
        Self {
            brand: request.query_param("brand"),
            lang: request.query_param("lang"),
            accept_language: accept_language.map(str::to_owned),
        }
    }

    /// Lets `brand` and `lang` in the body take precedence.
    pub(super) fn and(mut self, params: &mut Params) -> Self {
        self.brand = params.optional_text("brand").filter(|brand| !brand.is_empty()).or(self.brand);
        self.lang = params.optional_text("lang").filter(|lang| !lang.is_empty()).or(self.lang);
        self
    }

    pub(super) fn look(&self, app: &App) -> Look {
        let preferred = language::preferred(self.lang.as_deref(), self.accept_language.as_deref());
        app.templates.look(self.brand.as_deref(), &preferred)
    }
}

/// The parameters that every `requestToken` has.
pub(super) struct Opening {
    pub(super) client_secret: String,
    send_attempt: i64,
    next_link: Option<String>,
}

impl Opening {
    /// Reads the parameters, which may only be used once `params.finish()` has succeeded.
    pub(super) fn read(params: &mut Params) -> Self {
        Self {
            client_secret: params.text("client_secret"),
            send_attempt: params.integer("send_attempt"),
            next_link: params.optional_text("next_link").filter(|link| !link.is_empty()),
        }
    }

    pub(super) fn check(&self, app: &App) -> Result<(), ApiError> {
        check_opaque_id("client_secret", &self.client_secret)?;
        if self.next_link.as_ref().is_some_and(|link| link.len() > MAX_NEXT_LINK) {
            return Err(MatrixError::invalid_param("next_link", "must be at most 2048 bytes").into());
        }
        let allowed = |link: &String| next_link::allowed(&app.next_links, link).is_some();
        if self.next_link.as_ref().is_some_and(|link| !allowed(link)) {
            return Err(ApiError::NextLinkNotAllowed);
        }
        Ok(())
    }
}

/// Opens a session for `threepid`, or finds the existing one, and decides whether to send a message: only if this
/// `send_attempt` is new and every budget has room. Nothing is charged unless a message is to be sent.
pub(super) async fn claim(
    app: &App,
    threepid: &Threepid,
    opening: &Opening,
    requester: Requester<'_>,
    charges: &[Charge],
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
        requester: requester.account.map(|account| &account.mxid),
        now_ms,
        sending_until_ms: now_ms.saturating_add(sending_ms),
        expired_ms: now_ms.saturating_sub(rules.lifetime_ms),
        max_attempts: rules.max_attempts,
    };
    if let Some(sid) = app.store.sent_session(&app.keys, &request).await? {
        return Ok(Claimed { sid, send: false });
    }
    app.store.take_all(charges, now_ms).await?.map_err(ApiError::rate_limited)?;
    let claimed = app.store.claim_send(&app.keys, &request).await?;
    if !claimed.send {
        // A concurrent request with the same attempt sends it, and is charged for it.
        app.store.give_back(charges).await?;
    }
    Ok(claimed)
}

/// Records that the message was sent. If it was not, releases the claim, so that the same `send_attempt` can retry, and
/// gives the `charges` back if certainly no message went out. The client is told only that sending failed; the log has
/// the reason.
pub(super) async fn settle(
    app: &App,
    claimed: Claimed,
    opening: &Opening,
    charges: &[Charge],
    sent: Result<(), ApiError>,
) -> Result<String, ApiError> {
    if let Err(error) = sent {
        // The router logs server errors.
        if !MatrixError::from(&error).status.is_server_error() {
            tracing::warn!(error = %Chain(&error), "a validation message could not be sent; the client may retry");
        }
        app.store.unclaim_send(&claimed.sid, opening.send_attempt).await?;
        if error.is_unsent_by_our_fault() {
            app.store.give_back(charges).await?;
        }
        return Err(error);
    }
    app.store.message_sent(&claimed.sid, opening.send_attempt).await?;
    Ok(claimed.sid)
}

/// The path of the validation link, and of the button on its page.
pub(super) fn submit_path(medium: Medium) -> &'static str {
    match medium {
        Medium::Email => "/_matrix/identity/v2/validate/email/submitToken",
        Medium::Msisdn => "/_matrix/identity/v2/validate/msisdn/submitToken",
    }
}

/// Reads JSON, or the form that earlier drafts of the specification allowed.
pub(super) fn params(request: &mut Incoming) -> Result<Params, MatrixError> {
    if is_form(request) {
        return Params::from_pairs(&request.body);
    }
    Ok(Params::new(request.json_object()?))
}

/// Whether the body is a form, by its content type; but curl labels everything as a form, so a body that starts like an
/// object is JSON.
pub(super) fn is_form(request: &Incoming) -> bool {
    let content_type = request.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|value| value.starts_with("application/x-www-form-urlencoded"))
        && !request.body.trim_ascii_start().starts_with(b"{")
}

/// Rejects a `sid` or `client_secret` that does not match the grammar of the specification.
pub(super) fn check_opaque_id(name: &'static str, text: &str) -> Result<(), ApiError> {
    if is_opaque_id(text) { Ok(()) } else { Err(ApiError::NotOpaqueId(name)) }
}

/// Renders a template.
pub(super) fn render(app: &App, look: &Look, template: &str, values: &serde_json::Value) -> Result<String, ApiError> {
    app.templates.render(look, template, values).map_err(|error| ApiError::Internal(error.into()))
}

/// Hours until links and codes expire, rounded up.
pub(super) fn hours(app: &App) -> u64 {
    app.config.validation.session_lifetime_secs.div_ceil(3600)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::jobs::tests::app;

    #[tokio::test]
    async fn the_same_attempt_sends_again_after_its_sender_died() {
        let (app, clock, _folder) = app(|config| config.email.smtp_timeout_secs = 20).await;
        let threepid = Threepid::email("alice@example.com").unwrap();
        let opening = Opening { client_secret: "secret".to_owned(), send_attempt: 1, next_link: None };
        let claim = async || super::claim(&app, &threepid, &opening, Requester::default(), &[]).await.unwrap();
        let first = claim().await;
        assert!(first.send);
        // It may still be in flight: 20 s of SMTP time-out and a margin of 30 s.
        clock.advance(Duration::from_millis(50_000 - 1));
        assert_eq!(claim().await, Claimed { sid: first.sid.clone(), send: false });
        clock.advance(Duration::from_millis(1));
        assert_eq!(claim().await, Claimed { sid: first.sid.clone(), send: true });

        settle(&app, claim().await, &opening, &[], Ok(())).await.unwrap();
        clock.advance(Duration::from_secs(3600));
        assert_eq!(claim().await, Claimed { sid: first.sid, send: false });
    }
}
