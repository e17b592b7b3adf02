//! Signed JSON, with the server's ed25519 keys.
//!
//! Source: Appendices, "Signing JSON". Key files have the format of Synapse and Sydent: `ed25519 VERSION SEED`, where
//! the seed is 32 bytes in unpadded standard base64; a file may contain several keys.

use std::fmt;

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD_NO_PAD},
};
use ed25519_dalek::Signer as _;
use ruma_common::{CanonicalJsonObject, CanonicalJsonValue, canonical_json::try_from_json_map};
use serde_json::{Map, Value};
use waypost_shared::{hex, random};
use zeroize::Zeroizing;

/// Accepts base64 with or without padding, and with non-zero trailing bits as in the specification's own test key: keys
/// come from many sources.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// A signing key file that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidSigningKey {
    /// A line is not a key.
    #[error("line {0} is not `ed25519 VERSION SEED` with a seed of 32 bytes in base64")]
    Line(usize),
    /// Two keys have the same id.
    #[error("line {0} repeats the version of an earlier line")]
    Twice(usize),
    /// The file contains no key.
    #[error("there is no line `ed25519 VERSION SEED`")]
    Missing,
}

/// The server's signing keys. The first one signs; all of them stay published, since signatures of older ones are still
/// verified.
#[derive(Debug)]
pub(crate) struct SigningKeys {
    first: SigningKey,
    older: Vec<SigningKey>,
}

impl SigningKeys {
    /// Parses a key file: one key per line, the signing one first. A line may also be in the format of early versions
    /// of Sydent: the seed alone, as 64 hexadecimal digits, which is version 0.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidSigningKey> {
        let mut keys: Vec<SigningKey> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let key = SigningKey::parse(line).ok_or(InvalidSigningKey::Line(number))?;
            if keys.iter().any(|known| known.key_id == key.key_id) {
                return Err(InvalidSigningKey::Twice(number));
            }
            keys.push(key);
        }
        let mut keys = keys.into_iter();
        let first = keys.next().ok_or(InvalidSigningKey::Missing)?;
        Ok(Self { first, older: keys.collect() })
    }

    /// The key that signs new objects.
    pub(crate) fn first(&self) -> &SigningKey {
        &self.first
    }

    /// The key with this id.
    pub(crate) fn by_id(&self, key_id: &str) -> Option<&SigningKey> {
        self.all().find(|key| key.key_id == key_id)
    }

    /// Whether `text` is the public key of one of them, in either base64 alphabet, padded or not.
    pub(crate) fn is_public_key(&self, text: &str) -> bool {
        key_bytes(text).is_some_and(|bytes| self.all().any(|key| key.public_bytes() == bytes))
    }

    fn all(&self) -> impl Iterator<Item = &SigningKey> {
        std::iter::once(&self.first).chain(&self.older)
    }
}

/// Decodes the 32 bytes of a key from either base64 alphabet, padded or not. A space is read as a plus sign, which it
/// was before an unencoded query parameter was decoded.
pub(crate) fn key_bytes(text: &str) -> Option<[u8; 32]> {
    let standard: String = text
        .chars()
        .map(|c| match c {
            '-' | ' ' => '+',
            '_' => '/',
            c => c,
        })
        .collect();
    LENIENT.decode(standard).ok()?.try_into().ok()
}

/// Whether `signature` is a valid signature of `object` by `public_key`, both in base64.
pub(crate) fn holds(public_key: &str, signature: &str, object: &Map<String, Value>) -> bool {
    text_to_sign(object).is_some_and(|text| holds_text(public_key, signature, &text))
}

/// The text that a signature of `object` is for; `None` if the object has no canonical form.
pub(crate) fn text_to_sign(object: &Map<String, Value>) -> Option<String> {
    Some(signed_text(try_from_json_map(object.clone()).ok()?))
}

/// Whether `signature` is a valid signature of a [`text_to_sign`] by `public_key`, both in base64.
pub(crate) fn holds_text(public_key: &str, signature: &str, text: &str) -> bool {
    let verify = || {
        let key = ed25519_dalek::VerifyingKey::from_bytes(&key_bytes(public_key)?).ok()?;
        let signature = ed25519_dalek::Signature::from_slice(&LENIENT.decode(signature).ok()?).ok()?;
        key.verify_strict(text.as_bytes(), &signature).ok()
    };
    verify().is_some()
}

/// The canonical JSON of everything except `signatures` and `unsigned`.
fn signed_text(mut object: CanonicalJsonObject) -> String {
    object.remove("signatures");
    object.remove("unsigned");
    CanonicalJsonValue::Object(object).to_string()
}

/// One signing key.
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
    /// Generates the text of a new key file, with a key of version 0.
    pub(crate) fn generate() -> Zeroizing<String> {
        let seed = Zeroizing::new(random::bytes::<32>());
        Zeroizing::new(format!("ed25519 0 {}\n", STANDARD_NO_PAD.encode(*seed)))
    }

    /// Parses a line of a key file.
    fn parse(line: &str) -> Option<Self> {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["ed25519", version, seed] => {
                let seed = Zeroizing::new(LENIENT.decode(seed).ok()?);
                let seed: Zeroizing<[u8; 32]> = Zeroizing::new(seed.as_slice().try_into().ok()?);
                Some(Self::from_seed(format!("ed25519:{version}"), &seed))
            }
            [digits] => {
                let mut seed = Zeroizing::new([0; 32]);
                hex::decode_into(digits, &mut *seed)?;
                Some(Self::from_seed("ed25519:0".to_owned(), &seed))
            }
            _ => None,
        }
    }

    /// Creates the key with this seed.
    pub(crate) fn from_seed(key_id: String, seed: &[u8; 32]) -> Self {
        Self { key_id, key: ed25519_dalek::SigningKey::from_bytes(seed) }
    }

    /// The public key.
    pub(crate) fn public_bytes(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// `ed25519:<version>`
    pub(crate) fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The public key in unpadded standard base64.
    pub(crate) fn public_key(&self) -> String {
        STANDARD_NO_PAD.encode(self.key.verifying_key().as_bytes())
    }

    /// Signs everything except `signatures` and `unsigned`, and sets `signatures` to the signature of `server_name`.
    pub(crate) fn sign(&self, server_name: &str, mut object: CanonicalJsonObject) -> CanonicalJsonObject {
        let text = signed_text(object.clone());
        let signature = STANDARD_NO_PAD.encode(self.key.sign(text.as_bytes()).to_bytes());
        let nested = |name: &str, value| CanonicalJsonValue::Object([(name.to_owned(), value)].into());
        let signature = nested(&self.key_id, CanonicalJsonValue::String(signature));
        object.insert("signatures".to_owned(), nested(server_name, signature));
        object
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    /// Key, objects and signatures are those of the specification: Appendices, "Cryptographic Test Vectors".
    #[test]
    fn signatures_are_those_of_the_specification() {
        let keys = SigningKeys::parse("ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n").unwrap();
        let key = keys.first();
        for (object, signature) in [
            (json!({}), "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"),
            (
                json!({"two": "Two", "one": 1}),
                "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw",
            ),
        ] {
            let signed = key.sign("domain", try_from_json_map(object.as_object().unwrap().clone()).unwrap());
            let signed: Map<String, Value> = signed.into_iter().map(|(name, value)| (name, value.into())).collect();
            assert_eq!(signed["signatures"], json!({"domain": {"ed25519:1": signature}}));
            assert!(holds(&key.public_key(), signature, &signed));
            let mut altered = signed.clone();
            altered.insert("two".to_owned(), json!("Three"));
            assert!(!holds(&key.public_key(), signature, &altered));
        }
    }

    #[test]
    fn a_public_key_is_recognised_in_either_alphabet() {
        // A key whose public key contains both characters in which the alphabets differ.
        let keys = (0..=255_u8)
            .map(|seed| SigningKeys::parse(&format!("ed25519 0 {}", STANDARD_NO_PAD.encode([seed; 32]))).unwrap())
            .find(|keys| keys.first().public_key().contains('+') && keys.first().public_key().contains('/'))
            .unwrap();
        let standard = keys.first().public_key();
        let url_safe = standard.replace('+', "-").replace('/', "_");
        for text in [&standard, &url_safe, &format!("{standard}="), &standard.replace('+', " ")] {
            assert!(keys.is_public_key(text), "{text}");
        }
        assert!(!keys.is_public_key("VXuGitF39UH5iRfvbIknlvlAVKgD1BsLDMvBf0pmp7c"));
        assert!(!keys.is_public_key(""));
    }

    #[test]
    fn the_first_key_signs_and_all_are_known() {
        let (new, old) = (STANDARD_NO_PAD.encode([1; 32]), STANDARD_NO_PAD.encode([2; 32]));
        // In Synapse's format, and in Sydent's earliest.
        let text = format!("# keys\ned25519 a_AbCd {new}\n\ned25519 1 {old}\n{}\n", "03".repeat(32));
        let keys = SigningKeys::parse(&text).unwrap();
        assert_eq!(keys.first().key_id(), "ed25519:a_AbCd");
        for (id, seed) in [("ed25519:a_AbCd", [1; 32]), ("ed25519:1", [2; 32]), ("ed25519:0", [3; 32])] {
            let key = keys.by_id(id).unwrap();
            assert_eq!(key.public_bytes(), SigningKey::from_seed(id.to_owned(), &seed).public_bytes());
            assert!(keys.is_public_key(&key.public_key()));
        }
        assert!(keys.by_id("ed25519:2").is_none());
    }

    #[test]
    fn malformed_key_files_are_refused() {
        for text in ["ed25519 0", "rsa 0 AAAA", "ed25519 0 AAAA", "ed25519 0 ????", "0303"] {
            assert_eq!(SigningKeys::parse(text).err(), Some(InvalidSigningKey::Line(1)), "{text}");
        }
        assert_eq!(SigningKeys::parse("# none\n").err(), Some(InvalidSigningKey::Missing));
        let twice = SigningKey::generate().repeat(2);
        assert_eq!(SigningKeys::parse(&twice).err(), Some(InvalidSigningKey::Twice(2)));
        assert_eq!(SigningKeys::parse(&SigningKey::generate()).unwrap().first().key_id(), "ed25519:0");
    }
}
