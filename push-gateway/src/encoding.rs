//! Small encodings that the providers share.

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

/// Decodes base64 in either alphabet, padded or not, as clients write their pushkeys.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    LENIENT.decode(text.replace('+', "-").replace('/', "_")).ok()
}

/// A text as one segment of a path: all but unreserved characters escaped, dots as well, so that it cannot climb.
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
    fn base64_is_read_in_each_form() {
        for text in ["+/8=", "+/8", "-_8=", "-_8"] {
            assert_eq!(from_base64(text), Some(vec![0xfb, 0xff]), "{text}");
        }
        assert_eq!(from_base64("not base64!"), None);
    }

    #[test]
    fn a_path_segment_cannot_climb() {
        assert_eq!(path_segment("../a b?é"), "%2E%2E%2Fa%20b%3F%C3%A9");
    }
}
