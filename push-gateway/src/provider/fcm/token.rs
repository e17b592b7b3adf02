//! Access tokens: fetched once for all pushes, and renewed in the background before they expire.
//!
//! Source: RFC 7523, "JWT Profile for OAuth 2.0 Authorization Grants", as used by Google's service accounts; for
//! workload identity, the metadata server of Google Cloud machines.

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

/// The OAuth scope of the tokens.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
/// The time-out of a fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// A token is not used during its last minute, so that it is still valid when it reaches Google. In milliseconds.
const SPARE_MS: i64 = 60_000;
/// The pause after a failed fetch, in milliseconds.
const PAUSE_MS: i64 = 1000;
/// After a token was discarded because it was refused, its successor is kept at least this long, even if it is refused
/// too. In milliseconds.
const KEPT_MS: i64 = 60_000;
/// The lifetime of a signed assertion in seconds; Google accepts at most an hour.
const ASSERTION_SECS: i64 = 3600;
/// The lifetime of a token without `expires_in`, in seconds.
const DEFAULT_LIFE_SECS: i64 = 3600;

/// Why no token is available.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TokenError {
    /// The credentials were not accepted.
    Refused(&'static str),
    /// The token service is busy or unreachable.
    Unreachable,
}

/// The access token for one app's credentials.
pub(super) struct Tokens {
    credentials: FcmCredentials,
    client: HttpClient,
    clock: Clock,
    state: Mutex<State>,
    /// Held during a fetch.
    fetching: Arc<AsyncMutex<()>>,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    /// The latest failure and its time; cleared once there is a token.
    failure: Option<(TokenError, i64)>,
    /// When a token was last discarded because it was refused.
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

    /// The value of the `Authorization` header.
    pub(super) async fn current(self: &Arc<Self>) -> Result<HeaderValue, TokenError> {
        if let Some(token) = self.usable() {
            if self.clock.now_ms() >= token.renew_at_ms {
                self.renew_in_background();
            }
            return Ok(token.value);
        }
        // In a separate task: if this push times out while waiting, the fetch still completes for the next one.
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

    /// Discards `used`, which Google no longer accepts, unless it was renewed already. Returns false if another token
    /// would not help, because this one was fetched a moment ago for the same reason.
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
        // A fetch is already running.
        let Ok(turn) = self.fetching.clone().try_lock_owned() else { return };
        let this = self.clone();
        tokio::spawn(async move { drop(this.fetch(turn).await) });
    }

    /// Fetches a token. If the last fetch failed a moment ago, everyone who waited for it shares that failure.
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
                tracing::warn!(
                    provider = "fcm",
                    ?failure,
                    "access token could not be fetched; the next push will try again"
                );
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
            tracing::warn!(provider = "fcm", error = %Chain(&error), "token service did not answer");
            TokenError::Unreachable
        })?;
        let status = answer.status();
        if is_transient(status) {
            return Err(TokenError::Unreachable);
        }
        if !status.is_success() {
            return Err(TokenError::Refused("the token service does not accept the app's credentials"));
        }
        let unreadable = TokenError::Refused("the token service's answer contains no token: is its address right?");
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
                    .map_err(|_| TokenError::Refused("signing with the service account's key failed"))?;
                let grant = "urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer";
                // The characters of an assertion need no escaping in a form.
                let form = format!("grant_type={grant}&assertion={assertion}");
                Request::builder()
                    .method(Method::POST)
                    .uri(token_uri)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(Bytes::from(form))
            }
        };
        request.map_err(|_| TokenError::Refused("the token service's address does not make a valid request"))
    }
}
