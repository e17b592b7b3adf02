//! Access tokens: fetched by one request for all, replaced ahead of their end while the old one still serves.
//!
//! Source: RFC 7523, "JWT Profile for OAuth 2.0 Authorization Grants", as Google's service accounts use it; for
//! workload identity the metadata server of Google's machines.

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request,
    header::{CONTENT_TYPE, HeaderName},
};
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};
use waypost_shared::{client::HttpClient, clock::Clock, error::Chain, trace};

use crate::{
    config::FcmCredentials,
    upstream::{is_transient, limits},
};

/// What the tokens may be used for.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// One fetch takes no longer.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// A token is not used in the last minute of its life: it has to last until Google has looked at it.
const SPARE_MS: i64 = 60_000;
/// After a failed fetch nobody tries again for this long.
const PAUSE_MS: i64 = 1000;
/// After a token was given up because it was refused, the next one is kept for this long, refused or not.
const KEPT_MS: i64 = 60_000;
/// Seconds that a signed assertion is good for; Google takes no more than an hour.
const ASSERTION_SECS: i64 = 3600;
/// The life of a token that does not say how long it lives, in seconds.
const DEFAULT_LIFE_SECS: i64 = 3600;

/// Why there is no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenError {
    /// The credentials are not taken.
    Refused(&'static str),
    /// The token service is busy or away.
    Unreachable,
}

/// The token of one app's credentials.
pub(super) struct Tokens {
    credentials: FcmCredentials,
    client: HttpClient,
    clock: Clock,
    state: Mutex<State>,
    /// Held by who fetches.
    fetching: Arc<AsyncMutex<()>>,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    /// The latest failure and its time, until there is a token.
    failure: Option<(TokenError, i64)>,
    /// When a token was last given up because it was refused.
    given_up_ms: Option<i64>,
}

#[derive(Clone)]
struct Token {
    value: HeaderValue,
    renew_at_ms: i64,
    ends_at_ms: i64,
}

/// The token service's answer.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: Option<i64>,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    pub(super) fn new(credentials: FcmCredentials, client: HttpClient, clock: Clock) -> Self {
        Self { credentials, client, clock, state: Mutex::default(), fetching: Arc::default() }
    }

    /// The value of `Authorization`.
    pub(super) async fn current(self: &Arc<Self>) -> Result<HeaderValue, TokenError> {
        if let Some(token) = self.usable() {
            if self.clock.now_ms() >= token.renew_at_ms {
                self.renew_in_background();
            }
            return Ok(token.value);
        }
        // In a task of its own: whoever waits here may run out of time, and the next one shall find the token.
        let this = self.clone();
        let fetched = tokio::spawn(trace::carried(async move {
            let turn = this.fetching.clone().lock_owned().await;
            match this.usable() {
                Some(token) => Ok(token.value),
                None => this.fetch(turn).await,
            }
        }));
        fetched.await.unwrap_or(Err(TokenError::Unreachable))
    }

    /// Forgets `used`, which Google no longer takes, unless someone else renewed it already. False when another token
    /// would not help: this one was fetched a moment ago, for the same reason.
    pub(super) fn renew(&self, used: &HeaderValue) -> bool {
        let now_ms = self.clock.now_ms();
        let mut state = self.state.lock();
        if state.token.as_ref().is_none_or(|token| token.value != used) {
            return true;
        }
        if state.given_up_ms.is_some_and(|given_up_ms| (given_up_ms..given_up_ms + KEPT_MS).contains(&now_ms)) {
            return false;
        }
        state.token = None;
        state.given_up_ms = Some(now_ms);
        true
    }

    fn usable(&self) -> Option<Token> {
        self.state.lock().token.clone().filter(|token| self.clock.now_ms() < token.ends_at_ms)
    }

    fn renew_in_background(self: &Arc<Self>) {
        // Someone fetches already.
        let Ok(turn) = self.fetching.clone().try_lock_owned() else { return };
        let this = self.clone();
        tokio::spawn(async move { drop(this.fetch(turn).await) });
    }

    /// Fetches a token, unless that failed a moment ago: then those who waited share the failure.
    async fn fetch(&self, _turn: OwnedMutexGuard<()>) -> Result<HeaderValue, TokenError> {
        let now_ms = self.clock.now_ms();
        if let Some(failure) = self.failure_of_just_now(now_ms) {
            return Err(failure);
        }
        match self.ask(now_ms).await {
            Ok(token) => {
                let value = token.value.clone();
                let mut state = self.state.lock();
                state.token = Some(token);
                state.failure = None;
                Ok(value)
            }
            Err(failure) => {
                tracing::warn!(provider = "fcm", ?failure, "no access token");
                self.state.lock().failure = Some((failure.clone(), self.clock.now_ms()));
                Err(failure)
            }
        }
    }

    fn failure_of_just_now(&self, now_ms: i64) -> Option<TokenError> {
        let state = self.state.lock();
        let (failure, failed_ms) = state.failure.as_ref()?;
        (*failed_ms..*failed_ms + PAUSE_MS).contains(&now_ms).then(|| failure.clone())
    }

    async fn ask(&self, now_ms: i64) -> Result<Token, TokenError> {
        let answer = self.client.send(self.request(now_ms)?, limits(FETCH_TIMEOUT)).await.map_err(|error| {
            tracing::warn!(provider = "fcm", error = %Chain(&error), "no answer from the token service");
            TokenError::Unreachable
        })?;
        let status = answer.status();
        if is_transient(status) {
            return Err(TokenError::Unreachable);
        }
        if !status.is_success() {
            return Err(TokenError::Refused("the token service does not take the app's credentials"));
        }
        let unreadable = TokenError::Refused("the token service's answer holds no token: is its address right?");
        let Ok(granted) = serde_json::from_slice::<Granted>(answer.body()) else { return Err(unreadable) };
        let mut value = HeaderValue::try_from(format!("Bearer {}", granted.access_token)).map_err(|_| unreadable)?;
        value.set_sensitive(true);
        let life_ms = granted.expires_in.unwrap_or(DEFAULT_LIFE_SECS).clamp(0, 86_400) * 1000;
        Ok(Token {
            value,
            renew_at_ms: now_ms + life_ms / 5 * 4,
            ends_at_ms: now_ms + life_ms - SPARE_MS.min(life_ms / 10),
        })
    }

    fn request(&self, now_ms: i64) -> Result<Request<Bytes>, TokenError> {
        let request = match &self.credentials {
            FcmCredentials::WorkloadIdentity { metadata_uri } => Request::builder()
                .uri(metadata_uri)
                .header(HeaderName::from_static("metadata-flavor"), "Google")
                .body(Bytes::new()),
            FcmCredentials::ServiceAccount { key, key_id, email, token_uri } => {
                let mut header = json!({"alg": "RS256", "typ": "JWT"});
                if let Some(key_id) = key_id {
                    header["kid"] = key_id.as_str().into();
                }
                let now_secs = now_ms / 1000;
                let claims = json!({
                    "iss": email, "scope": SCOPE, "aud": token_uri, "iat": now_secs, "exp": now_secs + ASSERTION_SECS,
                });
                let assertion = key
                    .sign(&header, &claims)
                    .map_err(|_| TokenError::Refused("the service account's key could not sign"))?;
                let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
                // The assertion consists of characters that a form need not escape.
                let form = format!("grant_type={grant}&assertion={assertion}");
                Request::builder()
                    .method(Method::POST)
                    .uri(token_uri)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(Bytes::from(form))
            }
        };
        request.map_err(|_| TokenError::Refused("the token service's address makes no valid request"))
    }
}
