//! Authentication: access tokens, accepted terms, validated sessions, and the callers that the operator trusts.

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{COOKIE, ORIGIN, REFERER, UPGRADE_INSECURE_REQUESTS, USER_AGENT},
};
use subtle::ConstantTimeEq as _;
use waypost_shared::{clock::DAY_MS, config::secret::ExposeSecret as _, http::Incoming};

use crate::{
    app::{Account, App},
    domain::{
        session::{SessionState, is_opaque_id},
        threepid::Threepid,
    },
    error::ApiError,
};

/// Minimum interval between updates of the time that a token was last used.
const TOUCH_EVERY_MS: i64 = DAY_MS;

/// The account that the request's token belongs to, whether or not the user has accepted the terms.
///
/// # Errors
///
/// [`ApiError::Unauthorized`], or a database failure.
pub(crate) async fn account(app: &App, request: &Incoming) -> Result<Account, ApiError> {
    let token = token(app, request).ok_or(ApiError::Unauthorized)?;
    let token_hash = app.keys.token_hash(&token);
    let now_ms = app.clock.now_ms();
    if let Some(account) = app.tokens.get(&token_hash, now_ms) {
        return Ok(account);
    }
    let forgotten = app.tokens.forgotten();
    let unused_ms = i64::from(app.config.tokens.unused_days).saturating_mul(DAY_MS);
    let row = app.store.token(&token_hash, now_ms.saturating_sub(unused_ms)).await?.ok_or(ApiError::Unauthorized)?;
    // Where tokens expire after a day without use, recording their use once a day would be too late.
    if now_ms.saturating_sub(row.used_ms) >= TOUCH_EVERY_MS.min(unused_ms / 10) {
        app.store.touch_token(&token_hash, now_ms).await?;
    }
    let terms_accepted = app.terms.is_empty() || app.terms.are_accepted_by(&app.store.accepted_terms(&row.mxid).await?);
    let homeserver = row.mxid.server_name().into();
    let owner = app.owners.of(row.mxid.server_name());
    let account = Account { mxid: row.mxid, homeserver, owner, token_hash, terms_accepted };
    // Not cached before the terms are accepted: the user will be back in a moment, perhaps having accepted them on
    // another replica.
    if terms_accepted {
        app.tokens.put(account.clone(), now_ms, forgotten, app.generation);
    }
    Ok(account)
}

/// Like [`account`], but the homeserver must be allowed and the user must have accepted the terms.
///
/// # Errors
///
/// [`ApiError::Unauthorized`], [`ApiError::HomeserverNotAllowed`], [`ApiError::TermsNotSigned`], or a database failure.
pub(crate) async fn account_with_terms(app: &App, request: &Incoming) -> Result<Account, ApiError> {
    let account = account(app, request).await?;
    // Users of a homeserver that was removed from the list may still hold tokens, which are good for a year.
    if !app.config.homeservers.allows(&account.homeserver) {
        return Err(ApiError::HomeserverNotAllowed);
    }
    if account.terms_accepted { Ok(account) } else { Err(ApiError::TermsNotSigned) }
}

/// Admits callers of the internal listener that present its secret, compared in constant time.
pub(crate) fn internal_caller(app: &App, request: &Incoming) -> Result<(), ApiError> {
    let secret = app.internal_secret.as_ref().ok_or(ApiError::Unauthorized)?;
    let given = request.bearer().ok_or(ApiError::Unauthorized)?;
    let right = secret.expose_secret().as_bytes().ct_eq(given.as_bytes());
    if bool::from(right) { Ok(()) } else { Err(ApiError::Unauthorized) }
}

/// Admits callers whose address the operator has listed, since the v1 API has no access tokens.
pub(crate) fn listed_caller(app: &App, request: &Incoming) -> Result<(), ApiError> {
    // A web page opened by somebody on a listed network is not a listed caller.
    let from_a_page = is_from_a_browser(&request.headers);
    let is_listed = |address: std::net::IpAddr| app.config.v1.allow.iter().any(|range| range.contains(&address));
    if !from_a_page && request.source.address().is_some_and(is_listed) {
        return Ok(());
    }
    tracing::debug!(source = %request.source, "refused a v1 request: its source is not in v1.allow");
    Err(ApiError::CallerNotListed)
}

/// Whether a request has what only browsers send. A GET by a page that reached this server through DNS rebinding has no
/// `Origin`, and over plain HTTP no `Sec-Fetch-…`. `Accept-Language` does not count: homeservers may pass it on, for the
/// language of messages.
fn is_from_a_browser(headers: &HeaderMap) -> bool {
    let is_sent = |name: &HeaderName| {
        matches!(*name, ORIGIN | REFERER | COOKIE | UPGRADE_INSECURE_REQUESTS) || name.as_str().starts_with("sec-")
    };
    let names_one = |agent: &HeaderValue| agent.as_bytes().starts_with(b"Mozilla/");
    headers.keys().any(is_sent) || headers.get(USER_AGENT).is_some_and(names_one)
}

/// The request's token, not checked against the database.
pub(crate) fn token(app: &App, request: &Incoming) -> Option<String> {
    let in_query = || if app.config.tokens.allow_in_query { request.query_param("access_token") } else { None };
    request.bearer().map(str::to_owned).or_else(in_query).filter(|token| !token.is_empty())
}

/// The address that a session validated, and when (milliseconds since the epoch), for a client that knows its secret.
///
/// # Errors
///
/// [`ApiError::NoValidSession`], [`ApiError::SessionExpired`], [`ApiError::SessionNotValidated`], or a database
/// failure.
pub(crate) async fn validated_session(app: &App, sid: &str, client_secret: &str) -> Result<(Threepid, i64), ApiError> {
    if !is_opaque_id(client_secret) {
        return Err(ApiError::NotOpaqueId("client_secret"));
    }
    let session = app.store.session(&app.keys, sid).await?;
    let secret = app.keys.client_secret_hash(client_secret);
    let session = session.filter(|session| session.has_client_secret(&secret)).ok_or(ApiError::NoValidSession)?;
    match session.state(app.session_rules(), app.clock.now_ms()) {
        SessionState::Expired => Err(ApiError::SessionExpired),
        SessionState::Open => Err(ApiError::SessionNotValidated),
        SessionState::Validated(at) => Ok((session.threepid, at)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{Method, header::AUTHORIZATION};

    use waypost_shared::{http::body::Body, source::RequestSource};

    use super::*;
    use crate::{
        domain::{
            mxid::Mxid,
            terms::{Policy, PolicyText},
        },
        jobs::tests::app,
    };

    #[tokio::test]
    async fn accepting_old_terms_does_not_accept_new_ones() {
        let (app, clock, _folder) = app(|_| {}).await;
        app.store
            .add_token(&Mxid::parse("@alice:hs.test").unwrap(), &app.keys.token_hash("token"), clock.now_ms())
            .await
            .unwrap();
        let request = Incoming {
            method: Method::GET,
            path: String::new(),
            path_params: Vec::new(),
            query: String::new(),
            headers: HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static("Bearer token"))]),
            body: Body::default(),
            source: RequestSource::UNKNOWN,
            request_id: String::new(),
        };
        account_with_terms(&app, &request).await.unwrap();

        let text = PolicyText { name: "Privacy".to_owned(), url: "https://is.test/en".to_owned(), file: None };
        let policy = Policy { version: "1".to_owned(), languages: [("en".to_owned(), text)].into() };
        let mut config = app.config.clone();
        config.terms.policies = [("privacy_policy".to_owned(), policy)].into();
        let (mut renewed, _) = app.renewed(config).unwrap();
        renewed.take_over();
        // A request that started under the old configuration must not cache its account for requests under the new one.
        account_with_terms(&app, &request).await.unwrap();
        assert!(matches!(account_with_terms(&renewed, &request).await, Err(ApiError::TermsNotSigned)));
    }
}
