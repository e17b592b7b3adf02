//! Who sends a request and what they have proven: access tokens, accepted terms, validated sessions.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::RwLock;
use waypost_shared::{clock::millis, http::Incoming, owner::Owner};

use crate::{
    app::AppState,
    domain::{
        sealing::Fingerprint,
        session::{SessionState, is_opaque_id},
        threepid::Threepid,
    },
    error::ApiError,
};

/// How often the use of a token is noted.
const TOUCH_EVERY_MS: i64 = DAY_MS;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// Tokens in the cache at the most; more than any replica sees within the cache's seconds.
const MAX_CACHED: usize = 100_000;

/// The user that a request's token belongs to.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// `@user:server`
    pub(crate) mxid: Arc<str>,
    /// The homeserver's name, for the list of those that are allowed.
    pub(crate) homeserver: Arc<str>,
    /// Whose homeserver it is: its budgets are shared by all that one owner can make up.
    pub(crate) owner: Owner,
    /// What stands for the token.
    pub(crate) token_hash: Fingerprint,
    terms_accepted: bool,
}

/// Tokens that were found in the database a moment ago.
#[derive(Debug)]
pub(crate) struct TokenCache {
    lives_ms: i64,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    tokens: HashMap<Fingerprint, (Account, i64)>,
    /// How often something was forgotten: what was read from the database before that may have ended since.
    forgotten: u64,
    /// The configuration that accounts are kept for, by its number.
    configuration: u64,
}

impl TokenCache {
    /// Believes a token for that long without asking again.
    pub(crate) fn new(lives: Duration) -> Self {
        Self { lives_ms: millis(lives), known: RwLock::default() }
    }

    fn get(&self, token_hash: &Fingerprint, now_ms: i64) -> Option<Account> {
        let known = self.known.read();
        known.tokens.get(token_hash).filter(|(_, until_ms)| *until_ms > now_ms).map(|(account, _)| account.clone())
    }

    fn forgotten(&self) -> u64 {
        self.known.read().forgotten
    }

    /// Keeps what was read under a `configuration` when `forgotten` was the count, unless something was forgotten since
    /// or there is a newer configuration.
    fn put(&self, account: Account, now_ms: i64, forgotten: u64, configuration: u64) {
        let mut known = self.known.write();
        if known.forgotten != forgotten || known.configuration != configuration {
            return;
        }
        if known.tokens.len() >= MAX_CACHED {
            known.tokens.retain(|_, (_, until_ms)| *until_ms > now_ms);
        }
        if known.tokens.len() < MAX_CACHED {
            known.tokens.insert(account.token_hash, (account, now_ms.saturating_add(self.lives_ms)));
        }
    }

    /// Forgets a token that ended.
    pub(crate) fn forget(&self, token_hash: &Fingerprint) {
        let mut known = self.known.write();
        known.forgotten += 1;
        known.tokens.remove(token_hash);
    }

    /// Forgets all tokens of somebody who was erased.
    pub(crate) fn forget_user(&self, mxid: &str) {
        let mut known = self.known.write();
        known.forgotten += 1;
        known.tokens.retain(|_, (account, _)| *account.mxid != *mxid);
    }

    /// Forgets all tokens: one of them may have ended at another replica while nobody listened.
    pub(crate) fn forget_all(&self) {
        let mut known = self.known.write();
        known.forgotten += 1;
        known.tokens.clear();
    }

    /// Forgets all tokens, and keeps only what is read under a new configuration, whose number this gives: with a token
    /// it is remembered that its owner accepted the terms, and they may be others now.
    pub(crate) fn begin_anew(&self) -> u64 {
        let mut known = self.known.write();
        known.configuration += 1;
        known.forgotten += 1;
        known.tokens.clear();
        known.configuration
    }
}

/// The account of the request's token, whether or not its owner accepted the terms.
///
/// # Errors
///
/// [`ApiError::Unauthorized`], or the database failed.
pub(crate) async fn account(app: &AppState, request: &Incoming) -> Result<Account, ApiError> {
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
    let homeserver: Arc<str> = row.mxid.split_once(':').map_or("", |(_, name)| name).into();
    let owner = app.owners.of(&homeserver);
    let account = Account { mxid: row.mxid.into(), homeserver, owner, token_hash, terms_accepted };
    // Who has terms to accept will be back in a moment, perhaps having accepted them at another replica.
    if terms_accepted {
        app.tokens.put(account.clone(), now_ms, forgotten, app.number);
    }
    Ok(account)
}

/// The account of the request's token, whose owner is of a homeserver that is allowed and accepted the terms.
///
/// # Errors
///
/// [`ApiError::Unauthorized`], [`ApiError::HomeserverNotAllowed`], [`ApiError::TermsNotSigned`], or the database failed.
pub(crate) async fn account_with_terms(app: &AppState, request: &Incoming) -> Result<Account, ApiError> {
    let account = account(app, request).await?;
    // A homeserver that the operator took off the list has users with tokens, which live for a year.
    if !app.config.homeservers.allows(&account.homeserver) {
        return Err(ApiError::HomeserverNotAllowed);
    }
    if account.terms_accepted { Ok(account) } else { Err(ApiError::TermsNotSigned) }
}

/// Lets in whom the operator listed by address: what the older API has in place of access tokens.
///
/// # Errors
///
/// [`ApiError::CallerNotListed`].
pub(crate) fn listed_caller(app: &AppState, request: &Incoming) -> Result<(), ApiError> {
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
pub(crate) fn token(app: &AppState, request: &Incoming) -> Option<String> {
    let in_query = || if app.config.tokens.allow_in_query { request.query_param("access_token") } else { None };
    request.bearer().map(str::to_owned).or_else(in_query).filter(|token| !token.is_empty())
}

impl AppState {
    /// The address of a session that was proven, and when, for the one who knows its secret.
    ///
    /// # Errors
    ///
    /// [`ApiError::NoValidSession`], [`ApiError::SessionExpired`], [`ApiError::SessionNotValidated`], or the database
    /// failed.
    pub(crate) async fn validated_session(&self, sid: &str, client_secret: &str) -> Result<(Threepid, i64), ApiError> {
        if !is_opaque_id(client_secret) {
            return Err(ApiError::NotOpaqueId("client_secret"));
        }
        let session = self.store.session(&self.keys, sid).await?;
        let secret = self.keys.client_secret_hash(client_secret);
        let session = session.filter(|session| session.has_client_secret(&secret)).ok_or(ApiError::NoValidSession)?;
        match session.state(self.session_rules(), self.clock.now_ms()) {
            SessionState::Expired => Err(ApiError::SessionExpired),
            SessionState::Open => Err(ApiError::SessionNotValidated),
            SessionState::Validated(at) => Ok((session.threepid, at)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderMap, HeaderValue, Method, header::AUTHORIZATION};

    use waypost_shared::{body::Body, rate_limit::RequestSource};

    use super::*;
    use crate::{
        domain::terms::{Policy, PolicyText},
        jobs::tests::app,
    };

    #[tokio::test]
    async fn who_accepted_the_terms_of_before_has_not_accepted_the_new_ones() {
        let (app, clock, _folder) = app(|_| {}).await;
        app.store.add_token("@alice:hs.test", &app.keys.token_hash("token"), clock.now_ms()).await.unwrap();
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
