//! Provider tokens: an ES256 signature that says which team is calling, reused for most of an hour.
//!
//! Source: Apple, "Establishing a token-based connection to APNs": a token is good for an hour, and making a new one
//! more often than every 20 minutes is punished with 429.

use std::{collections::HashMap, sync::Arc};

use http::HeaderValue;
use parking_lot::Mutex;
use ring::error::Unspecified;
use serde_json::json;
use waypost_shared::clock::Clock;

use crate::jwt::Es256Key;

/// A token is replaced at this age, in milliseconds.
const RENEWED_AFTER_MS: i64 = 40 * 60 * 1000;
/// A token that Apple calls expired is replaced at this age, in milliseconds.
const LEAST_AGE_MS: i64 = 20 * 60 * 1000;

/// The tokens of all apps: those with the same key share one, as Apple counts them by key. Copies share them too.
#[derive(Clone, Debug, Default)]
pub(crate) struct TeamTokens(HashMap<(String, String), Arc<TeamToken>>);

impl TeamTokens {
    /// The token that is signed with the key `key_id` of a team.
    pub(super) fn of(&mut self, key_id: String, team_id: String, key: Es256Key, clock: &Clock) -> Arc<TeamToken> {
        let name = (key_id, team_id);
        // Another key by the same name is a file that was put right.
        if let Some(known) = self.0.get(&name).filter(|known| known.key.public_key() == key.public_key()) {
            return known.clone();
        }
        let (key_id, team_id) = name.clone();
        let token = Arc::new(TeamToken { key, key_id, team_id, clock: clock.clone(), state: Mutex::default() });
        self.0.insert(name, token.clone());
        token
    }
}

/// A token that renews itself.
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
    /// The header's value, and when it was signed.
    signed: Option<(HeaderValue, i64)>,
    /// The token before this one was called expired: if this one is too, age was not the reason.
    after_expired: bool,
}

impl TeamToken {
    /// The value of `authorization`.
    pub(super) fn current(&self) -> Result<HeaderValue, Unspecified> {
        let now_ms = self.clock.now_ms();
        // Signing takes microseconds, so that others wait for it rather than sign one each.
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

    /// Forgets `used`, which Apple called expired, unless someone else renewed it already. False when another token
    /// would not help: a young one is replaced once, in case the clock was wrong, and then not before its time.
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
    fn a_token_serves_for_forty_minutes_and_for_all_apps_of_its_key() {
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
    fn a_new_configuration_goes_on_with_the_token_unless_the_key_is_another_one() {
        let (clock, pem, mut tokens) = (Clock::manual(1_700_000_000_000), p8(), TeamTokens::default());
        let before = signed_with(&pem, &mut tokens, "A", &clock).current().unwrap();
        let mut later = tokens.clone();
        assert_eq!(signed_with(&pem, &mut later, "A", &clock).current().unwrap(), before);
        assert_ne!(signed_with(&p8(), &mut later, "A", &clock).current().unwrap(), before);
    }

    #[test]
    fn an_expired_token_is_renewed_once_by_whoever_comes_first() {
        let clock = Clock::manual(1_700_000_000_000);
        let token = token(&mut TeamTokens::default(), "A", &clock);
        let first = token.current().unwrap();
        clock.advance(Duration::from_secs(1));
        assert!(token.renew(&first));
        let second = token.current().unwrap();
        assert_ne!(second, first);
        assert!(token.renew(&first), "the second one is worth a try");
        assert_eq!(token.current().unwrap(), second);
    }

    #[test]
    fn when_each_token_is_called_expired_there_are_twenty_minutes_between_them() {
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
        // One that was good until its time was over is not blamed for those before it.
        clock.advance(Duration::from_secs(40 * 60));
        let fourth = token.current().unwrap();
        assert_ne!(fourth, third);
        assert!(token.renew(&fourth));
    }
}
