//! Validation sessions: the proof, pending or complete, that a user controls an address.
//!
//! Source: Identity Service API, "Email associations" and "General".

use subtle::ConstantTimeEq as _;

use super::{mxid::Mxid, sealing::Fingerprint, threepid::Threepid};

/// The longest `client_secret` and `sid` (Identity Service API, "Validation sessions").
const MAX_OPAQUE_ID: usize = 255;

/// Whether `text` is what the specification calls an opaque identifier: 1 to 255 of `[0-9a-zA-Z.=_-]`.
pub(crate) fn is_opaque_id(text: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b".=_-".contains(&byte);
    (1..=MAX_OPAQUE_ID).contains(&text.len()) && text.bytes().all(known)
}

/// A validation session, as stored.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The session id.
    pub(crate) sid: String,
    /// The address to validate.
    pub(crate) threepid: Threepid,
    /// The fingerprint of the client secret.
    pub(crate) client_secret_hash: Fingerprint,
    /// Tokens tried so far.
    pub(crate) attempts: i64,
    /// Where to redirect the user afterwards.
    pub(crate) next_link: Option<String>,
    /// The user who requested the token last; `None` without an account (v1).
    pub(crate) requester: Option<Mxid>,
    /// When a token was last requested, in milliseconds since the epoch.
    pub(crate) requested_ms: i64,
    /// When the token was submitted, in milliseconds since the epoch.
    pub(crate) validated_ms: Option<i64>,
}

/// The lifetime of sessions and the number of attempts they allow.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionRules {
    /// Milliseconds, counted from the last request for a token, or once validated, from the validation.
    pub(crate) lifetime_ms: i64,
    /// Wrong tokens after which the session is closed.
    pub(crate) max_attempts: i64,
}

/// The state of a session at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SessionState {
    /// Waiting for its token.
    Open,
    /// The address was validated, at this time in milliseconds since the epoch.
    Validated(i64),
    /// Too old, or too many wrong tokens.
    Expired,
}

impl Session {
    /// Whether the client secret matches; compares in constant time.
    pub(crate) fn has_client_secret(&self, hash: &Fingerprint) -> bool {
        self.client_secret_hash.ct_eq(hash).into()
    }

    /// The state at `now_ms`.
    pub(crate) fn state(&self, rules: SessionRules, now_ms: i64) -> SessionState {
        // Requesting another token must not extend an old validation: the mailbox may have changed hands.
        let since = self.validated_ms.unwrap_or(self.requested_ms);
        if now_ms.saturating_sub(since) >= rules.lifetime_ms {
            return SessionState::Expired;
        }
        match self.validated_ms {
            Some(at) => SessionState::Validated(at),
            None if self.attempts >= rules.max_attempts => SessionState::Expired,
            None => SessionState::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const RULES: SessionRules = SessionRules { lifetime_ms: 1000, max_attempts: 3 };

    fn session(attempts: i64, requested_ms: i64, validated_ms: Option<i64>) -> Session {
        Session {
            sid: "sid".to_owned(),
            threepid: Threepid::email("a@b").unwrap(),
            client_secret_hash: [1; 32],
            attempts,
            next_link: None,
            requester: None,
            requested_ms,
            validated_ms,
        }
    }

    #[test]
    fn a_session_expires_after_its_lifetime_or_too_many_wrong_tokens() {
        for (attempts, validated_ms, now_ms, state) in [
            (0, None, 1999, SessionState::Open),
            (0, None, 2000, SessionState::Expired),
            (2, None, 1000, SessionState::Open),
            (3, None, 1000, SessionState::Expired),
            (3, Some(1500), 2499, SessionState::Validated(1500)),
            (0, Some(1500), 2500, SessionState::Expired),
            (0, Some(500), 1500, SessionState::Expired),
        ] {
            assert_eq!(session(attempts, 1000, validated_ms).state(RULES, now_ms), state);
        }
    }

    #[test]
    fn opaque_ids_are_those_of_the_specification() {
        for good in ["a", "monkeys_are_GREAT", "a.b=c-d", &"a".repeat(255)] {
            assert!(is_opaque_id(good), "{good}");
        }
        for bad in ["", "a b", "a\n", "ä", "a/b", "a+b", &"a".repeat(256)] {
            assert!(!is_opaque_id(bad), "{bad}");
        }
    }
}
