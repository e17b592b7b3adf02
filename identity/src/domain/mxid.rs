//! Matrix user ids, parsed once.
//!
//! Source: Appendices, "User Identifiers" and "Historical User IDs".

use std::{fmt, sync::Arc};

use super::server_name::ServerName;

/// The longest user id in bytes, sigil and server name included.
const MAX_BYTES: usize = 255;

/// A text is not a Matrix user id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a Matrix user id")]
pub(crate) struct InvalidMxid;

/// `@localpart:server_name`. Cheap to clone.
///
/// The localpart is anything that the specification allows in historical user ids: any code points except `:` and NUL,
/// or none at all. That includes line breaks, quotes and terminal escapes, so `Display` and `Debug`, which are for logs
/// and terminals, escape it. [`Mxid::as_str`] is the id itself.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Mxid {
    text: Arc<str>,
    /// Where the server name begins.
    server_at: usize,
}

impl Mxid {
    /// Parses a user id of any server.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidMxid> {
        let (localpart, server_name) =
            text.strip_prefix('@').and_then(|rest| rest.split_once(':')).ok_or(InvalidMxid)?;
        if text.len() > MAX_BYTES || localpart.contains('\0') || ServerName::parse(server_name).is_err() {
            return Err(InvalidMxid);
        }
        Ok(Self { text: text.into(), server_at: text.len() - server_name.len() })
    }

    /// Reads back a stored user id, which was parsed before it was stored.
    ///
    /// # Errors
    ///
    /// [`InvalidMxid`] if there is no colon: then this program did not store it.
    pub(crate) fn stored(text: &str) -> Result<Self, InvalidMxid> {
        let colon = text.find(':').ok_or(InvalidMxid)?;
        Ok(Self { text: text.into(), server_at: colon + 1 })
    }

    /// The whole id, for storage, JSON and comparison. It may contain control characters: do not log or print it.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The name of the user's homeserver, port included.
    pub(crate) fn server_name(&self) -> &str {
        &self.text[self.server_at..]
    }
}

impl fmt::Display for Mxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.text.chars() {
            match c {
                // A space would end the field in a log line.
                ' ' => write!(f, "{}", c.escape_unicode())?,
                c => write!(f, "{}", c.escape_default())?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Mxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_user_id_has_a_server_name() {
        for (text, server_name) in [
            ("@alice:hs.test", "hs.test"),
            ("@alice:hs.test:8448", "hs.test:8448"),
            ("@alice:[::1]:8448", "[::1]:8448"),
            ("@alice:1.2.3.4", "1.2.3.4"),
            ("@Alice+tag/a=b:hs.test", "hs.test"),
        ] {
            let mxid = Mxid::parse(text).unwrap();
            assert_eq!((mxid.as_str(), mxid.server_name()), (text, server_name));
            assert_eq!(Mxid::stored(text), Ok(mxid));
        }
    }

    /// Appendices, "Historical User IDs": any code point except `:` and NUL, so control characters and the empty string
    /// too.
    #[test]
    fn historical_localparts_are_accepted() {
        for text in ["@:hs.test", "@Ärzte 😀:hs.test", "@a\r\nb\t\u{1b}[31m:hs.test", "@\"quoted\" @ 'a\\b':hs.test"]
        {
            assert_eq!(Mxid::parse(text).unwrap().server_name(), "hs.test", "{text:?}");
        }
    }

    #[test]
    fn malformed_user_ids_are_refused() {
        for text in [
            "",
            "@",
            "@alice",
            "@alice:",
            "alice:hs.test",
            "!room:hs.test",
            "@a\0:hs.test",
            "@alice:hs test",
            "@alice:evil.test:hs.test",
            "@alice:hs.test:99999",
            "@alice:hs.test\n",
        ] {
            assert_eq!(Mxid::parse(text), Err(InvalidMxid), "{text:?}");
        }
        assert_eq!(Mxid::stored("alice"), Err(InvalidMxid));
    }

    #[test]
    fn a_user_id_has_255_bytes_at_most() {
        let of_bytes = |bytes: usize| format!("@{}:hs.test", "ü".repeat((bytes - 9) / 2));
        assert_eq!(of_bytes(255).len(), 255);
        assert!(Mxid::parse(&of_bytes(255)).is_ok());
        assert_eq!(Mxid::parse(&of_bytes(257)), Err(InvalidMxid));
    }

    #[test]
    fn formatted_ids_are_escaped_and_unambiguous() {
        for (text, shown) in [
            ("@alice+tag/a=b:hs.test:8448", "@alice+tag/a=b:hs.test:8448"),
            ("@a\nlevel=ERROR b:hs.test", r"@a\nlevel=ERROR\u{20}b:hs.test"),
            ("@\u{1b}[31m\"'\\:hs.test", r#"@\u{1b}[31m\"\'\\:hs.test"#),
            ("@\u{202e}ü:hs.test", r"@\u{202e}\u{fc}:hs.test"),
        ] {
            let mxid = Mxid::parse(text).unwrap();
            assert_eq!((mxid.to_string().as_str(), format!("{mxid:?}").as_str()), (shown, shown));
        }
    }
}
