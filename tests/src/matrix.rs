//! The Matrix algorithms that a client needs, implemented independently of the servers' code.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The hash of an address for `/lookup` with `sha256`.
///
/// Source: Identity Service API, "Security considerations" of the association lookup.
pub fn lookup_hash(address: &str, medium: &str, pepper: &str) -> String {
    let digest = Sha256::digest(format!("{address} {medium} {pepper}").as_bytes());
    URL_SAFE_NO_PAD.encode(digest)
}

/// Canonical JSON: keys sorted by code point, no white space, UTF-8.
///
/// `serde_json`'s maps are ordered trees here, so its compact form is canonical for everything that signatures cover
/// (integers and strings).
pub fn canonical_json(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort();
            let members: Vec<String> = keys
                .into_iter()
                .map(|key| format!("{}:{}", Value::from(key.as_str()), canonical_json(&map[key])))
                .collect();
            format!("{{{}}}", members.join(","))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(canonical_json).collect();
            format!("[{}]", items.join(","))
        }
        other => other.to_string(),
    }
}

/// Signs `object`, which must not have signatures yet.
pub fn signature(object: &Value, key: &SigningKey) -> String {
    STANDARD_NO_PAD.encode(key.sign(canonical_json(object).as_bytes()).to_bytes())
}

/// Verifies the signature on `signed` by `server` with key `key_id`.
///
/// # Errors
///
/// Why the signature is not valid.
pub fn verify_signed_json(signed: &Value, server: &str, key_id: &str, public_key: &str) -> Result<(), String> {
    let signature = signed["signatures"][server][key_id]
        .as_str()
        .ok_or_else(|| format!("no signature of {server} with {key_id}"))?;
    let signature = STANDARD_NO_PAD.decode(signature).map_err(|err| err.to_string())?;
    let signature = Signature::from_slice(&signature).map_err(|err| err.to_string())?;
    let key = STANDARD_NO_PAD.decode(public_key).map_err(|err| err.to_string())?;
    let key: [u8; 32] = key.try_into().map_err(|_| "a public key has 32 bytes")?;
    let key = VerifyingKey::from_bytes(&key).map_err(|err| err.to_string())?;

    let mut unsigned = signed.clone();
    if let Some(object) = unsigned.as_object_mut() {
        object.remove("signatures");
        object.remove("unsigned");
    }
    key.verify_strict(canonical_json(&unsigned).as_bytes(), &signature)
        .map_err(|_| "the signature does not hold".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lookup_hash_is_the_specifications() {
        // The example of the Identity Service API.
        assert_eq!(
            lookup_hash("alice@example.com", "email", "matrixrocks"),
            "4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc"
        );
        assert_eq!(
            lookup_hash("bob@example.com", "email", "matrixrocks"),
            "LJwSazmv46n0hlMlsb_iYxI0_HXEqy_yj6Jm636cdT8"
        );
        assert_eq!(lookup_hash("18005552067", "msisdn", "matrixrocks"), "nlo35_T5fzSGZzJApqu8lgIudJvmOQtDaHtr-I4rU7I");
    }

    #[test]
    fn canonical_json_is_sorted_and_compact() {
        // From the specification's appendices.
        let value = json!({"b": "2", "a": {"日": 1, "本": 2}, "c": [1, null, true]});
        assert_eq!(canonical_json(&value), r#"{"a":{"日":1,"本":2},"b":"2","c":[1,null,true]}"#);
    }
}
