//! Peppered hashes, with which clients look up contacts without revealing their addresses.
//!
//! Source: Identity Service API, "Association lookup".

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use waypost_shared::random;

use super::threepid::Threepid;

/// A SHA-256 of address, medium and pepper.
pub(crate) type LookupHash = [u8; 32];

/// The hash that clients compute for `threepid`: SHA-256 of `address medium pepper`.
pub(crate) fn lookup_hash(threepid: &Threepid, pepper: &str) -> LookupHash {
    let mut hash = Sha256::new();
    hash.update(threepid.address());
    hash.update(" ");
    hash.update(threepid.medium().as_str());
    hash.update(" ");
    hash.update(pepper);
    hash.finalize().into()
}

/// Parses a hash as clients send it: URL-safe base64 without padding. Anything else matches no address.
pub(crate) fn parse(text: &str) -> Option<LookupHash> {
    // decode_slice demands room for the longest possible result: 33 bytes for 43 characters.
    let mut bytes = [0; 33];
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
    bytes[..length].try_into().ok()
}

/// The first 8 bytes of a hash as a number, for sorting.
pub(crate) fn prefix(hash: &LookupHash) -> u64 {
    hash.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

/// Generates a pepper of 192 bits, free of characters that are special in a query or a shell.
pub(crate) fn new_pepper() -> String {
    URL_SAFE_NO_PAD.encode(random::bytes::<24>()).replace(['-', '_'], "0")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The specification's own example ("Association lookup", with the pepper `matrixrocks`).
    #[test]
    fn hashes_are_those_of_the_specification() {
        for (hash, threepid) in [
            ("4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc", Threepid::email("Alice@example.com").unwrap()),
            ("LJwSazmv46n0hlMlsb_iYxI0_HXEqy_yj6Jm636cdT8", Threepid::email("bob@example.com").unwrap()),
            (
                "nlo35_T5fzSGZzJApqu8lgIudJvmOQtDaHtr-I4rU7I",
                Threepid::stored(super::super::threepid::Medium::Msisdn, "18005552067".to_owned()),
            ),
        ] {
            assert_eq!(parse(hash), Some(lookup_hash(&threepid, "matrixrocks")));
        }
    }

    #[test]
    fn malformed_hashes_are_rejected() {
        for text in [
            "",
            "a",
            "4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZU",
            "4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc=",
            "alice@example.com email",
            &"A".repeat(1000),
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn peppers_differ() {
        assert_eq!(new_pepper().len(), 32);
        assert_ne!(new_pepper(), new_pepper());
    }
}
