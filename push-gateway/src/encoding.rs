//! Encodings shared by the providers.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// Decodes base64 in the standard or URL-safe alphabet, padded or not: clients send pushkeys in every form.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    LENIENT.decode(text.replace('+', "-").replace('/', "_")).ok()
}

/// Encodes a text as one path segment. Everything but unreserved characters is escaped, and dots too, so that `..`
/// cannot leave the path.
pub(crate) fn path_segment(text: &str) -> String {
    let mut segment = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'~') {
            segment.push(char::from(byte));
        } else {
            segment.push_str(&format!("%{byte:02X}"));
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_decoded_in_every_form() {
        for text in ["+/8=", "+/8", "-_8=", "-_8"] {
            assert_eq!(from_base64(text), Some(vec![0xfb, 0xff]), "{text}");
        }
        assert_eq!(from_base64("not base64!"), None);
    }

    #[test]
    fn a_path_segment_cannot_leave_its_path() {
        assert_eq!(path_segment("../a b?é"), "%2E%2E%2Fa%20b%3F%C3%A9");
    }
}
