//! Identifies the gateway to push services: a signed token for each service, reused for hours.
//!
//! Source: RFC 8292, "Voluntary Application Server Identification (VAPID) for Web Push".

use std::collections::HashMap;

use http::HeaderValue;
use parking_lot::Mutex;
use ring::error::Unspecified;
use serde_json::json;
use waypost_shared::clock::Clock;

use crate::jwt::Es256Key;

/// Lifetime of a token, in seconds; the RFC allows at most a day.
const LIFE_SECS: i64 = 12 * 60 * 60;
/// A token is reused for this long, in milliseconds; the rest of its lifetime allows for clock skew.
const REUSED_MS: i64 = 6 * 60 * 60 * 1000;
/// Limit on cached tokens: strangers choose the services.
const MOST_ORIGINS: usize = 1000;

/// The VAPID key of one app, and the tokens signed with it.
#[derive(Debug)]
pub(crate) struct Vapid {
    key: Es256Key,
    public_key: String,
    contact: String,
    clock: Clock,
    /// By origin: the header value, and when it was signed in milliseconds since the epoch.
    signed: Mutex<HashMap<String, (HeaderValue, i64)>>,
}

impl Vapid {
    pub(crate) fn new(key: Es256Key, contact: String, clock: Clock) -> Self {
        let public_key = key.public_key();
        Self { key, public_key, contact, clock, signed: Mutex::default() }
    }

    /// Signs a token for a made-up service. Whether this is the key that clients subscribed with, only they know.
    pub(crate) fn check(&self) -> Result<String, String> {
        match self.authorization("https://push.example") {
            Ok(_) => Ok(format!("the VAPID key works; its public half is {}", self.public_key)),
            Err(_) => Err("the VAPID key cannot sign; generate a new one with the command `vapid`".to_owned()),
        }
    }

    /// The `Authorization` header for the push service at `origin`.
    pub(crate) fn authorization(&self, origin: &str) -> Result<HeaderValue, Unspecified> {
        let now_ms = self.clock.now_ms();
        let is_fresh = |signed_ms: i64| (signed_ms..signed_ms + REUSED_MS).contains(&now_ms);
        let mut signed = self.signed.lock();
        if let Some((value, signed_ms)) = signed.get(origin)
            && is_fresh(*signed_ms)
        {
            return Ok(value.clone());
        }
        let claims = json!({"aud": origin, "exp": now_ms / 1000 + LIFE_SECS, "sub": self.contact});
        let token = self.key.sign(&json!({"typ": "JWT", "alg": "ES256"}), &claims)?;
        let value = format!("vapid t={token}, k={}", self.public_key);
        let mut value = HeaderValue::try_from(value).map_err(|_| Unspecified)?;
        value.set_sensitive(true);
        if signed.len() >= MOST_ORIGINS {
            signed.retain(|_, (_, signed_ms)| is_fresh(*signed_ms));
        }
        if signed.len() >= MOST_ORIGINS {
            signed.clear();
        }
        signed.insert(origin.to_owned(), (value.clone(), now_ms));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;
    use crate::jwt::tests::p8;

    #[test]
    fn each_service_has_a_token_that_is_reused_for_six_hours() {
        let clock = Clock::manual(1_700_000_000_000);
        let key = Es256Key::from_pem(&p8()).unwrap();
        let vapid = Vapid::new(key, "mailto:ops@example.com".to_owned(), clock.clone());
        let first = vapid.authorization("https://push.example").unwrap();
        assert_ne!(vapid.authorization("https://push.example:8443").unwrap(), first);
        clock.advance(Duration::from_secs(6 * 60 * 60 - 1));
        assert_eq!(vapid.authorization("https://push.example").unwrap(), first);
        clock.advance(Duration::from_secs(1));
        assert_ne!(vapid.authorization("https://push.example").unwrap(), first);
    }
}
