//! Hexadecimal encoding.

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Encodes bytes as lower-case digits.
#[must_use]
pub fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
    text
}

/// Decodes digits of either case. `None` if there is any other character or an odd number of digits.
#[must_use]
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = vec![0; text.len() / 2];
    decode_into(text, &mut bytes)?;
    Some(bytes)
}

/// Decodes digits into `bytes`, which they must fill exactly, so that a secret exists in one place only. On failure
/// the contents of `bytes` are unspecified.
#[must_use]
pub fn decode_into(text: &str, bytes: &mut [u8]) -> Option<()> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    for ([high, low], byte) in pairs.iter().zip(bytes) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(())
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_encoded_and_decoded() {
        assert_eq!(encode(&[0, 0x1f, 0xab, 0xff]), "001fabff");
        for text in ["001fabff", "001FABFF"] {
            assert_eq!(decode(text), Some(vec![0, 0x1f, 0xab, 0xff]), "{text}");
        }
        assert_eq!(decode(""), Some(Vec::new()));
    }

    #[test]
    fn malformed_input_is_refused() {
        for text in ["0", "0g", "g0", "+1", " 1", "0x", "é", "000"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode_into("0000", &mut [0; 1]), None);
        assert_eq!(decode_into("00", &mut [0; 2]), None);
    }
}
