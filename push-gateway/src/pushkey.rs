//! A pushkey: a provider's address for one device. A secret, since anybody who knows it can push to the device.

use std::fmt;

use ring::digest;

/// Bytes of the hash that logs show instead of the pushkey.
const PRINTED: usize = 4;

/// A pushkey, byte for byte as received.
///
/// Printed as the first eight hex digits of its SHA-256: enough to follow one device through a log, and searchable for
/// an operator who knows the pushkey.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PushKey(String);

impl PushKey {
    /// The pushkey itself; only for its push service and its homeserver.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for PushKey {
    fn from(pushkey: String) -> Self {
        Self(pushkey)
    }
}

impl fmt::Display for PushKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = digest::digest(&digest::SHA256, self.0.as_bytes());
        hash.as_ref().iter().take(PRINTED).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PushKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PushKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pushkey_is_printed_as_a_prefix_of_its_hash() {
        let pushkey = PushKey::from("abc".to_owned());
        // FIPS 180-4: SHA-256("abc") = ba7816bf 8f01cfea …
        assert_eq!(pushkey.to_string(), "ba7816bf");
        assert_eq!(format!("{:?}", Some(&pushkey)), "Some(PushKey(ba7816bf))");
        assert_eq!(pushkey.expose(), "abc");
    }
}
