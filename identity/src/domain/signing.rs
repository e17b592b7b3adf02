//! Signatures under JSON, by the server's ed25519 key.
//!
//! Source: Appendices, "Signing JSON". Keys are read and written in the format of Synapse and Sydent:
//! `ed25519 VERSION SEED`, the seed of 32 bytes in unpadded standard base64.

use std::fmt;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD_NO_PAD},
};
use ed25519_dalek::Signer as _;
use ruma_common::{
    CanonicalJsonValue,
    canonical_json::{CanonicalJsonError, try_from_json_map},
};
use serde_json::{Map, Value};
use waypost_shared::random;
use zeroize::Zeroizing;

/// Takes base64 with and without padding, and with stray bits at its end, as the specification's own test key has:
/// keys come from many hands.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A signing key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("there is no line `ed25519 VERSION SEED` with a seed of 32 bytes in base64")]
pub(crate) struct InvalidSigningKey;

/// The server's signing key.
pub(crate) struct SigningKey {
    /// `ed25519:0`
    key_id: String,
    key: ed25519_dalek::SigningKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.key_id)
    }
}

impl SigningKey {
    /// The text of a new key file, version 0.
    pub(crate) fn generate() -> Zeroizing<String> {
        let seed = Zeroizing::new(random::bytes::<32>());
        Zeroizing::new(format!("ed25519 0 {}\n", STANDARD_NO_PAD.encode(*seed)))
    }

    /// Reads the first key of a key file.
    ///
    /// # Errors
    ///
    /// [`InvalidSigningKey`] when there is none.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidSigningKey> {
        let line = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
        let mut words = line.unwrap_or_default().split_whitespace();
        let (Some("ed25519"), Some(version), Some(seed), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(InvalidSigningKey);
        };
        let seed = Zeroizing::new(LENIENT.decode(seed).map_err(|_| InvalidSigningKey)?);
        let seed: Zeroizing<[u8; 32]> = Zeroizing::new(seed.as_slice().try_into().map_err(|_| InvalidSigningKey)?);
        Ok(Self { key_id: format!("ed25519:{version}"), key: ed25519_dalek::SigningKey::from_bytes(&seed) })
    }

    /// `ed25519:<version>`
    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The public key in unpadded standard base64.
    pub(crate) fn public_key(&self) -> String {
        STANDARD_NO_PAD.encode(self.key.verifying_key().as_bytes())
    }

    /// Whether `text` is this key's public half, in either base64 alphabet, padded or not.
    pub(crate) fn is_public_key(&self, text: &str) -> bool {
        let standard = text.replace('-', "+").replace('_', "/");
        LENIENT.decode(standard).is_ok_and(|bytes| bytes == self.key.verifying_key().as_bytes())
    }

    /// Adds `signatures` of `server_name` over everything but `signatures` and `unsigned`.
    ///
    /// # Errors
    ///
    /// When there is no canonical form: a number that is no integer, or too large a one.
    pub(crate) fn sign(
        &self,
        server_name: &str,
        mut object: Map<String, Value>,
    ) -> Result<Map<String, Value>, CanonicalJsonError> {
        let mut signed = object.clone();
        signed.remove("signatures");
        signed.remove("unsigned");
        let canonical = try_from_json_map(signed)?;
        let text = CanonicalJsonValue::Object(canonical).to_string();
        let signature = STANDARD_NO_PAD.encode(self.key.sign(text.as_bytes()).to_bytes());
        object.insert("signatures".to_owned(), serde_json::json!({ server_name: { self.key_id.as_str(): signature } }));
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    /// Key, objects and signatures of the specification: Appendices, "Cryptographic Test Vectors".
    #[test]
    fn signatures_are_those_of_the_specification() {
        let key = SigningKey::parse("ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n").unwrap();
        for (object, signature) in [
            (json!({}), "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
            (
                json!({"two": "Two", "one": 1}),
                "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
            ),
        ] {
            let signed = key.sign("domain", object.as_object().unwrap().clone()).unwrap();
            assert_eq!(signed["signatures"], json!({"domain": {"ed25519:1": signature}}));
        }
    }

    #[test]
    fn a_public_key_is_known_in_either_alphabet() {
        // A key whose public half has both characters in which the alphabets differ.
        let key = (0..=255_u8)
            .map(|seed| SigningKey::parse(&format!("ed25519 0 {}", STANDARD_NO_PAD.encode([seed; 32]))).unwrap())
            .find(|key| key.public_key().contains('+') && key.public_key().contains('/'))
            .unwrap();
        let standard = key.public_key();
        let url_safe = standard.replace('+', "-").replace('/', "_");
        for text in [&standard, &url_safe, &format!("{standard}=")] {
            assert!(key.is_public_key(text), "{text}");
        }
        assert!(!key.is_public_key("VXuGitF39UH5iRfvbIknlvlAVKgD1BsLDMvBf0pmp7c"));
        assert!(!key.is_public_key(""));
    }

    #[test]
    fn a_key_file_that_is_none_is_refused() {
        for text in ["", "ed25519 0", "rsa 0 AAAA", "ed25519 0 AAAA", "ed25519 0 ????"] {
            assert!(SigningKey::parse(text).is_err(), "{text}");
        }
        assert_eq!(SigningKey::parse(&SigningKey::generate()).unwrap().key_id(), "ed25519:0");
    }
}
