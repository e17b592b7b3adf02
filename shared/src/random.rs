//! Randomness for keys, tokens and session ids, from the operating system.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// `N` unpredictable bytes.
///
/// # Panics
///
/// If the operating system cannot provide randomness: no safe fallback exists.
#[must_use]
#[allow(clippy::disallowed_methods)] // The only call to the system's generator.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system provides randomness");
    bytes
}

/// A 256-bit token: 43 characters of URL-safe base64, all of them allowed in a Matrix opaque identifier.
#[must_use]
pub fn token() -> String {
    URL_SAFE_NO_PAD.encode(bytes::<32>())
}

/// A number below `bound`, for jitter; 0 when `bound` is 0.
#[must_use]
pub fn below(bound: u64) -> u64 {
    // The modulo bias is below 2^-32 for every delay that is jittered here.
    u64::from_le_bytes(bytes()).checked_rem(bound).unwrap_or(0)
}
