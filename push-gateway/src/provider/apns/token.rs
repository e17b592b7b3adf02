//! Provider tokens: ES256-signed JWTs that identify the team, reused for most of an hour.
//!
//! Source: Apple, "Establishing a token-based connection to APNs": a token is valid for an hour, and renewing it more
//! often than every 20 minutes is answered with 429.

use std::{collections::HashMap, sync::Arc};

use http::HeaderValue;
use parking_lot::Mutex;
use ring::error::Unspecified;
use serde_json::json;
use waypost_shared::clock::Clock;

use crate::jwt::Es256Key;

/// The age at which a token is renewed, in milliseconds.
const RENEWED_AFTER_MS: i64 = 40 * 60 * 1000;
/// The minimum age at which a token is renewed again because Apple reports it as expired, in milliseconds.
const LEAST_AGE_MS: i64 = 20 * 60 * 1000;

/// The tokens of all apps. Apps with the same key share one, since Apple limits renewals per key; so do clones.
#[derive(Clone, Debug, Default)]
pub(crate) struct TeamTokens(HashMap<(String, String), Arc<TeamToken>>);

impl TeamTokens {
    /// The token signed with the key `key_id` of a team.
    pub(super) fn of(&mut self, key_id: String, team_id: String, key: Es256Key, clock: &Clock) -> Arc<TeamToken> {
        let name = (key_id, team_id);
        // A different key with the same id means that the operator corrected the key file.
        if let Some(known) = self.0.get(&name).filter(|known| known.key.public_key() == key.public_key()) {
            return known.clone();
        }
        let (key_id, team_id) = name.clone();
        let token = Arc::new(TeamToken { key, key_id, team_id, clock: clock.clone(), state: Mutex::default() });
        self.0.insert(name, token.clone());
        token
    }
}

/// A token that is renewed on use.
#[derive(Debug)]
pub(super) struct TeamToken {
    key: Es256Key,
    key_id: String,
    team_id: String,
    clock: Clock,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The header value and when it was signed, in milliseconds since the epoch.
    signed: Option<(HeaderValue, i64)>,
    /// Whether the previous token was reported as expired. If this one is too, age is not the cause.
    after_expired: bool,
}

impl TeamToken {
    /// The value of the `authorization` header.
    pub(super) fn current(&self) -> Result<HeaderValue, Unspecified> {
        let now_ms = self.clock.now_ms();
        // Signing takes microseconds, so other pushes wait under the lock instead of each signing their own.
        let mut state = self.state.lock();
        if let Some((value, signed_ms)) = &state.signed {
            if (*signed_ms..*signed_ms + RENEWED_AFTER_MS).contains(&now_ms) {
                return Ok(value.clone());
            }
            state.after_expired = false;
        }
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let claims = json!({"iss": self.team_id, "iat": now_ms / 1000});
        let token = self.key.sign(&header, &claims)?;
        let mut value = HeaderValue::try_from(format!("bearer {token}")).map_err(|_| Unspecified)?;
        value.set_sensitive(true);
        state.signed = Some((value.clone(), now_ms));
        Ok(value)
    }

    /// Discards `used`, which Apple reported as expired, unless it was renewed already. Returns false if another token
    /// would not help: a young token is replaced once, in case the clock was wrong, and then not before it is old
    /// enough.
    pub(super) fn renew(&self, used: &HeaderValue) -> bool {
        let mut state = self.state.lock();
        let Some((_, signed_ms)) = state.signed.as_ref().filter(|(value, _)| value == used) else { return true };
        let is_young = self.clock.now_ms().saturating_sub(*signed_ms) < LEAST_AGE_MS;
        if is_young && state.after_expired {
            return false;
        }
        *state = State { signed: None, after_expired: true };
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::jwt::tests::p8;

    fn token(tokens: &mut TeamTokens, key_id: &str, clock: &Clock) -> Arc<TeamToken> {
        signed_with(&p8(), tokens, key_id, clock)
    }

    fn signed_with(pem: &str, tokens: &mut TeamTokens, key_id: &str, clock: &Clock) -> Arc<TeamToken> {
        tokens.of(key_id.to_owned(), "TEAM".to_owned(), Es256Key::from_pem(pem).unwrap(), clock)
    }

    #[test]
    fn a_token_is_reused_for_forty_minutes_by_all_apps_of_its_key() {
        let clock = Clock::manual(1_700_000_000_000);
        let (pem, mut tokens) = (p8(), TeamTokens::default());
        let [one, same, other] = ["A", "A", "B"].map(|key_id| signed_with(&pem, &mut tokens, key_id, &clock));
        let first = one.current().unwrap();
        assert_eq!(same.current().unwrap(), first);
        assert_ne!(other.current().unwrap(), first);
        clock.advance(Duration::from_secs(39 * 60));
        assert_eq!(one.current().unwrap(), first);
        clock.advance(Duration::from_secs(60));
        assert_ne!(one.current().unwrap(), first);
    }

    #[test]
    fn a_reload_keeps_the_token_unless_the_key_changed() {
        let (clock, pem, mut tokens) = (Clock::manual(1_700_000_000_000), p8(), TeamTokens::default());
        let before = signed_with(&pem, &mut tokens, "A", &clock).current().unwrap();
        let mut later = tokens.clone();
        assert_eq!(signed_with(&pem, &mut later, "A", &clock).current().unwrap(), before);
        assert_ne!(signed_with(&p8(), &mut later, "A", &clock).current().unwrap(), before);
    }

    #[test]
    fn an_expired_token_is_renewed_only_once() {
        let clock = Clock::manual(1_700_000_000_000);
        let token = token(&mut TeamTokens::default(), "A", &clock);
        let first = token.current().unwrap();
        clock.advance(Duration::from_secs(1));
        assert!(token.renew(&first));
        let second = token.current().unwrap();
        assert_ne!(second, first);
        assert!(token.renew(&first), "the current token is worth a try");
        assert_eq!(token.current().unwrap(), second);
    }

    #[test]
    fn tokens_that_all_count_as_expired_are_renewed_every_twenty_minutes() {
        let clock = Clock::manual(1_700_000_000_000);
        let token = token(&mut TeamTokens::default(), "A", &clock);
        assert!(token.renew(&token.current().unwrap()));
        let second = token.current().unwrap();
        clock.advance(Duration::from_secs(20 * 60 - 1));
        assert!(!token.renew(&second));
        assert_eq!(token.current().unwrap(), second);
        clock.advance(Duration::from_secs(1));
        assert!(token.renew(&second));
        let third = token.current().unwrap();
        assert!(!token.renew(&third));
        // A token that worked until it was due for renewal clears the history.
        clock.advance(Duration::from_secs(40 * 60));
        let fourth = token.current().unwrap();
        assert_ne!(fourth, third);
        assert!(token.renew(&fourth));
    }
}
