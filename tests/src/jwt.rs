//! Parses and verifies signed tokens as strictly as the providers do (RFC 7515): unpadded URL-safe base64 only.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey};
use serde_json::Value;

/// A token whose signature was verified.
#[derive(Clone, Debug)]
pub struct Jwt {
    /// The protected header.
    pub header: Value,
    /// The claims.
    pub claims: Value,
}

/// Verifies `token` with the key that `key_for` finds for its header.
///
/// # Errors
///
/// A description of what is wrong with it.
pub fn verify<K: AsRef<[u8]>>(
    token: &str,
    algorithm: &str,
    key_for: impl FnOnce(&Value) -> Option<UnparsedPublicKey<K>>,
) -> Result<Jwt, String> {
    let (signed, signature) = token.rsplit_once('.').ok_or("not a JWT")?;
    let (header, claims) = signed.split_once('.').ok_or("not a JWT")?;
    let header = part(header)?;
    let claims = part(claims)?;
    if header["alg"] != algorithm {
        return Err(format!("alg is {}, not {algorithm}", header["alg"]));
    }
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|err| err.to_string())?;
    let key = key_for(&header).ok_or("unknown key id")?;
    key.verify(signed.as_bytes(), &signature).map_err(|_| "the signature does not hold")?;
    Ok(Jwt { header, claims })
}

fn part(encoded: &str) -> Result<Value, String> {
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|err| err.to_string())?;
    serde_json::from_slice(&bytes).map_err(|err| err.to_string())
}

/// The current time in whole seconds since the epoch, as in claims.
pub fn now_secs() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap()
}

/// Generates a P-256 signing key: its PEM file, and its public point.
pub fn p256_key() -> (String, Vec<u8>) {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
    (pem("PRIVATE KEY", document.as_ref()), pair.public_key().as_ref().to_vec())
}

fn pem(label: &str, der: &[u8]) -> String {
    let encoded = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in encoded.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).unwrap());
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}
