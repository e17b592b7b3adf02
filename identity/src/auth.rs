//! Who sends a request and what they have proven: access tokens, accepted terms, validated sessions.

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

/// How often the use of a token is noted.
const TOUCH_EVERY_MS: i64 = DAY_MS;

/// The account of the request's token, whether or not its owner accepted the terms.
///
/// # Errors
///
/// [`ApiError::Unauthorized`], or the database failed.
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
    // Where tokens live for a day, noting their use once a day would come too late.
    if now_ms.saturating_sub(row.used_ms) >= TOUCH_EVERY_MS.min(unused_ms / 10) {
        app.store.touch_token(&token_hash, now_ms).await?;
    }
    let terms_accepted = app.terms.is_empty() || app.terms.are_accepted_by(&app.store.accepted_terms(&row.mxid).await?);
    let homeserver = row.mxid.server_name().into();
    let owner = app.owners.of(row.mxid.server_name());
    let account = Account { mxid: row.mxid, homeserver, owner, token_hash, terms_accepted };
    // Who has terms to accept will be back in a moment, perhaps having accepted them at another replica.
    if terms_accepted {
        app.tokens.put(account.clone(), now_ms, forgotten, app.generation);
    }
    Ok(account)
}

/// The account of the request's token, whose owner is of a homeserver that is allowed and accepted the terms.
///
/// # Errors
///
/// [`ApiError::Unauthorized`], [`ApiError::HomeserverNotAllowed`], [`ApiError::TermsNotSigned`], or the database failed.
pub(crate) async fn account_with_terms(app: &App, request: &Incoming) -> Result<Account, ApiError> {
    let account = account(app, request).await?;
    // A homeserver that the operator took off the list has users with tokens, which live for a year.
    if !app.config.homeservers.allows(&account.homeserver) {
        return Err(ApiError::HomeserverNotAllowed);
    }
    if account.terms_accepted { Ok(account) } else { Err(ApiError::TermsNotSigned) }
}

/// Lets in callers of the internal listener that know its secret, compared in constant time.
///
/// # Errors
///
/// [`ApiError::Unauthorized`]
pub(crate) fn internal_caller(app: &App, request: &Incoming) -> Result<(), ApiError> {
    let secret = app.internal_secret.as_ref().ok_or(ApiError::Unauthorized)?;
    let given = request.bearer().ok_or(ApiError::Unauthorized)?;
    let right = secret.expose_secret().as_bytes().ct_eq(given.as_bytes());
    if bool::from(right) { Ok(()) } else { Err(ApiError::Unauthorized) }
}

/// Lets in callers that the operator listed by address: what the older API has in place of access tokens.
///
/// # Errors
///
/// [`ApiError::CallerNotListed`].
pub(crate) fn listed_caller(app: &App, request: &Incoming) -> Result<(), ApiError> {
    // A page in the browser of somebody on the listed network is not a listed caller; homeservers send no Origin.
    let from_a_page = request.headers.contains_key(http::header::ORIGIN);
    let is_listed = |address: std::net::IpAddr| app.config.v1.allow.iter().any(|range| range.contains(&address));
    if !from_a_page && request.source.address().is_some_and(is_listed) {
        return Ok(());
    }
    tracing::debug!(source = %request.source, "a caller is not in v1.allow");
    Err(ApiError::CallerNotListed)
}

/// The request's token, whether or not anybody has it.
pub(crate) fn token(app: &App, request: &Incoming) -> Option<String> {
    let in_query = || if app.config.tokens.allow_in_query { request.query_param("access_token") } else { None };
    request.bearer().map(str::to_owned).or_else(in_query).filter(|token| !token.is_empty())
}

/// The address of a session that was proven, and when, for whoever knows its secret.
///
/// # Errors
///
/// [`ApiError::NoValidSession`], [`ApiError::SessionExpired`], [`ApiError::SessionNotValidated`], or the database failed.
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

    use http::{HeaderMap, HeaderValue, Method, header::AUTHORIZATION};

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
    async fn who_accepted_the_terms_of_before_has_not_accepted_the_new_ones() {
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
        let (renewed, _) = app.renewed(config).unwrap();
        // One that began before the new configuration was in its place must not answer for those that begin after.
        account_with_terms(&app, &request).await.unwrap();
        assert!(matches!(account_with_terms(&renewed, &request).await, Err(ApiError::TermsNotSigned)));
    }
}
