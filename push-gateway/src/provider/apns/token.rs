//! Provider tokens: an ES256 signature that says which team is calling, reused for most of an hour.
//!
//! Source: Apple, "Establishing a token-based connection to APNs": a token is good for an hour, and making a new one
//! more often than every 20 minutes is punished with 429.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use http::HeaderValue;
use ring::error::Unspecified;
use serde_json::json;
use waypost_shared::clock::Clock;

use crate::jwt::Es256Key;

/// A token is replaced at this age, in milliseconds.
const RENEWED_AFTER_MS: i64 = 40 * 60 * 1000;

/// The tokens of all apps: those with the same key share one, as Apple counts them by key.
#[derive(Debug, Default)]
pub(crate) struct TeamTokens(HashMap<(String, String), Arc<TeamToken>>);

impl TeamTokens {
    /// The token that is signed with the key `key_id` of a team.
    pub(super) fn of(&mut self, key_id: String, team_id: String, key: Es256Key, clock: &Clock) -> Arc<TeamToken> {
        let token = self.0.entry((key_id, team_id)).or_insert_with_key(|(key_id, team_id)| {
            Arc::new(TeamToken {
                key,
                key_id: key_id.clone(),
                team_id: team_id.clone(),
                clock: clock.clone(),
                signed: Mutex::new(None),
            })
        });
        token.clone()
    }
}

/// A token that renews itself.
#[derive(Debug)]
pub(super) struct TeamToken {
    key: Es256Key,
    key_id: String,
    team_id: String,
    clock: Clock,
    /// The header's value, and when it was signed.
    signed: Mutex<Option<(HeaderValue, i64)>>,
}

impl TeamToken {
    /// The value of `authorization`.
    pub(super) fn current(&self) -> Result<HeaderValue, Unspecified> {
        let now_ms = self.clock.now_ms();
        // Signing takes microseconds, so that others wait for it rather than sign one each.
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((value, signed_ms)) = &*signed
            && (*signed_ms..*signed_ms + RENEWED_AFTER_MS).contains(&now_ms)
        {
            return Ok(value.clone());
        }
        let header = json!({"alg": "ES256", "kid": self.key_id});
        let claims = json!({"iss": self.team_id, "iat": now_ms / 1000});
        let token = self.key.sign(&header, &claims)?;
        let mut value = HeaderValue::try_from(format!("bearer {token}")).map_err(|_| Unspecified)?;
        value.set_sensitive(true);
        *signed = Some((value.clone(), now_ms));
        Ok(value)
    }

    /// Forgets `used`, which Apple called expired, unless someone else renewed it already.
    pub(super) fn renew(&self, used: &HeaderValue) {
        let mut signed = self.signed.lock().unwrap_or_else(PoisonError::into_inner);
        if signed.as_ref().is_some_and(|(value, _)| value == used) {
            *signed = None;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::jwt::tests::p8;

    fn token(tokens: &mut TeamTokens, key_id: &str, clock: &Clock) -> Arc<TeamToken> {
        tokens.of(key_id.to_owned(), "TEAM".to_owned(), Es256Key::from_pem(&p8()).unwrap(), clock)
    }

    #[test]
    fn a_token_serves_for_forty_minutes_and_for_all_apps_of_its_key() {
        let clock = Clock::manual(1_700_000_000_000);
        let mut tokens = TeamTokens::default();
        let (one, same, other) =
            (token(&mut tokens, "A", &clock), token(&mut tokens, "A", &clock), token(&mut tokens, "B", &clock));
        let first = one.current().unwrap();
        assert_eq!(same.current().unwrap(), first);
        assert_ne!(other.current().unwrap(), first);
        clock.advance(Duration::from_secs(39 * 60));
        assert_eq!(one.current().unwrap(), first);
        clock.advance(Duration::from_secs(60));
        assert_ne!(one.current().unwrap(), first);
    }

    #[test]
    fn an_expired_token_is_renewed_once_by_whoever_comes_first() {
        let clock = Clock::manual(1_700_000_000_000);
        let token = token(&mut TeamTokens::default(), "A", &clock);
        let first = token.current().unwrap();
        clock.advance(Duration::from_secs(1));
        token.renew(&first);
        let second = token.current().unwrap();
        assert_ne!(second, first);
        token.renew(&first);
        assert_eq!(token.current().unwrap(), second);
    }
}
