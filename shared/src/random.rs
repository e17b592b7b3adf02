//! Randomness for keys, tokens and session ids, from the operating system.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

/// `N` unpredictable bytes.
///
/// # Panics
///
/// If the operating system has no randomness to give: nothing safe could be done then.
#[must_use]
#[allow(clippy::disallowed_methods)] // The one place that may ask the machine.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system gives randomness");
    bytes
}

/// A token of 256 bits: 43 characters of URL-safe base64, all of them allowed in a Matrix opaque identifier.
#[must_use]
pub fn token() -> String {
    URL_SAFE_NO_PAD.encode(bytes::<32>())
}

/// A number below `bound`, for jitter; 0 when `bound` is 0.
#[must_use]
pub fn below(bound: u64) -> u64 {
    // The bias of the remainder is below 2^-32 for any delay that is jittered here.
    u64::from_le_bytes(bytes()).checked_rem(bound).unwrap_or(0)
}
