//! Third-party identifiers: email addresses and phone numbers, parsed once.
//!
//! Source: Appendices, "3PID Types".

use std::{borrow::Cow, fmt};

use unicase::UniCase;
use waypost_shared::owner::canonical_host;

/// The longest accepted address, in characters. RFC 5321 allows 254; internationalised ones may be longer.
const MAX_ADDRESS_CHARS: usize = 500;

/// The kind of a threepid's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Medium {
    /// An email address.
    Email,
    /// A phone number, as E.164 digits without the plus.
    Msisdn,
}

impl Medium {
    /// The name in the specification.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Msisdn => "msisdn",
        }
    }

    /// The name used in error messages.
    fn noun(self) -> &'static str {
        match self {
            Self::Email => "email address",
            Self::Msisdn => "phone number",
        }
    }

    /// The medium with this name in the specification.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "email" => Some(Self::Email),
            "msisdn" => Some(Self::Msisdn),
            _ => None,
        }
    }
}

/// A text is not a valid address of this medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {}", .0.noun())]
pub(crate) struct InvalidAddress(pub(crate) Medium);

/// A medium and an address in canonical form, so that equal addresses are equal strings.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Threepid {
    medium: Medium,
    address: String,
}

impl Threepid {
    /// Parses an email address and case-folds it (MSC2265: full Unicode case folding, so `Strauß@` and `STRAUSS@`
    /// are one address).
    ///
    /// # Errors
    ///
    /// [`InvalidAddress`] unless there is text on both sides of exactly one `@`, without spaces, control characters or
    /// header syntax, and at most [`MAX_ADDRESS_CHARS`] long.
    pub(crate) fn email(raw: &str) -> Result<Self, InvalidAddress> {
        let invalid = InvalidAddress(Medium::Email);
        let (local, domain) = raw.split_once('@').ok_or(invalid)?;
        let plain = raw.chars().all(|c| !c.is_whitespace() && !c.is_control());
        // These characters have a special meaning in mail headers.
        let harmless = !raw.contains(['<', '>', ',', ';', ':', '"', '(', ')', '\\', '[', ']']);
        let dots = |part: &str| !part.starts_with('.') && !part.ends_with('.') && !part.contains("..");
        let hyphens = domain.split('.').all(|label| !label.starts_with('-') && !label.ends_with('-'));
        let short = raw.chars().count() <= MAX_ADDRESS_CHARS;
        if local.is_empty()
            || domain.is_empty()
            || domain.contains('@')
            || !plain
            || !harmless
            || !short
            || !dots(local)
            || !dots(domain)
            || !hyphens
            // A mail server that decodes encoded words (RFC 2047) would deliver to another address than is bound.
            || raw.contains("=?")
            || raw.contains("?=")
        {
            return Err(invalid);
        }
        let address = UniCase::new(raw).to_folded_case();
        // Folding makes `strasse.test` of `straße.test`, which is another domain, and somebody else's: what is meant for
        // one would go to the other.
        let folded = address.split_once('@').map_or("", |(_, domain)| domain);
        if canonical_host(folded) != canonical_host(domain) {
            return Err(invalid);
        }
        Ok(Self { medium: Medium::Email, address })
    }

    /// Parses an address given by an operator: an email address, or the digits of an international phone number with or
    /// without the plus sign.
    ///
    /// # Errors
    ///
    /// [`InvalidAddress`]; a phone number has 3 to 15 digits (E.164), including the country code.
    pub(crate) fn given(medium: Medium, raw: &str) -> Result<Self, InvalidAddress> {
        match medium {
            Medium::Email => Self::email(raw),
            Medium::Msisdn => {
                let digits = raw.strip_prefix('+').unwrap_or(raw);
                let plain = (3..=15).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
                if !plain || digits.starts_with('0') {
                    return Err(InvalidAddress(medium));
                }
                Ok(Self { medium, address: digits.to_owned() })
            }
        }
    }

    /// Wraps a stored address, which is already canonical.
    pub(crate) fn stored(medium: Medium, address: String) -> Self {
        Self { medium, address }
    }

    /// The medium.
    pub(crate) fn medium(&self) -> Medium {
        self.medium
    }

    /// The address in canonical form.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// The mailbox behind the address, for rate limits. Anyone can append any tag after a plus sign (RFC 5233), so
    /// `a+1@` and `a+2@` reach the same mailbox, as do different spellings of an internationalised domain.
    pub(crate) fn mailbox(&self) -> Cow<'_, str> {
        let Some((local, domain)) = self.address.split_once('@') else {
            return Cow::Borrowed(&self.address);
        };
        let name = match local.split_once('+') {
            Some((name, _)) if !name.is_empty() => name,
            _ => local,
        };
        Cow::Owned(format!("{name}@{}", canonical_host(domain)))
    }
}

/// Omits the address, since debug output ends up in logs.
impl fmt::Debug for Threepid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Threepid({})", self.medium.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_email_address_is_folded() {
        for (raw, folded) in [
            ("Alice@Example.COM", "alice@example.com"),
            ("Strauß@Example.com", "strauss@example.com"),
            ("ΑΣ@example.com", "ασ@example.com"),
            ("ﬁ@example.com", "fi@example.com"),
        ] {
            assert_eq!(Threepid::email(raw).map(|threepid| threepid.address), Ok(folded.to_owned()));
        }
    }

    #[test]
    fn a_mailbox_is_an_address_without_its_tag() {
        for (raw, mailbox) in [
            ("alice@example.com", "alice@example.com"),
            ("Alice+Shopping@Example.com", "alice@example.com"),
            ("alice+a+b@example.com", "alice@example.com"),
            ("alice+@example.com", "alice@example.com"),
            ("alice@bücher.example", "alice@xn--bcher-kva.example"),
            ("alice@XN--BCHER-KVA.example", "alice@xn--bcher-kva.example"),
            ("+alice@example.com", "+alice@example.com"),
            ("al.ice@example.com", "al.ice@example.com"),
        ] {
            assert_eq!(Threepid::email(raw).map(|threepid| threepid.mailbox().into_owned()), Ok(mailbox.to_owned()));
        }
        assert_eq!(Threepid::stored(Medium::Msisdn, "18005552067".to_owned()).mailbox(), "18005552067");
    }

    #[test]
    fn invalid_email_addresses_are_refused() {
        let long = format!("{}@example.com", "a".repeat(500));
        for raw in [
            "",
            "alice",
            "@example.com",
            "alice@",
            "a@b@c",
            "a b@c",
            "a@b\r\nBcc: x@y",
            "a\0@b",
            "<a@b>",
            "a@b,c@d",
            ".a@b",
            "a.@b",
            "a..b@c",
            "a@b..c",
            "a@.b",
            "a@-b",
            "a@b-.c",
            &long,
        ] {
            assert!(Threepid::email(raw).is_err(), "{raw:?}");
        }
    }

    #[test]
    fn a_phone_number_is_reduced_to_its_digits() {
        for (raw, digits) in [("+18005552067", Some("18005552067")), ("18005552067", Some("18005552067")), ("01", None)]
        {
            let given = Threepid::given(Medium::Msisdn, raw).ok();
            assert_eq!(given.as_ref().map(Threepid::address), digits, "{raw}");
        }
        for raw in ["", "+", "0123456", "1 800", "1234567890123456", "+49x", "alice@example.com"] {
            assert!(Threepid::given(Medium::Msisdn, raw).is_err(), "{raw}");
        }
        assert!(Threepid::given(Medium::Email, "Alice@Example.com").is_ok_and(|t| t.address() == "alice@example.com"));
    }

    #[test]
    fn debug_output_shows_no_address() {
        let printed = format!("{:?}", Threepid::email("alice@example.com"));
        assert!(!printed.contains("alice"), "{printed}");
    }
}
