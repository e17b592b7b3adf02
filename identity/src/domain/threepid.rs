//! Third-party identifiers: an email address or a phone number, parsed once.
//!
//! Source: Appendices, "3PID Types".

use std::{borrow::Cow, fmt};

use unicase::UniCase;
use waypost_shared::owner::canonical_host;

/// The longest address that is taken, in characters. RFC 5321 allows 254; internationalised ones may be longer.
const MAX_ADDRESS_CHARS: usize = 500;

/// What kind of address a threepid has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Medium {
    /// An email address.
    Email,
    /// A phone number, as digits of E.164 without its plus.
    Msisdn,
}

impl Medium {
    /// The name that the specification gives it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Email => "email",
            Self::Msisdn => "msisdn",
        }
    }

    /// What people call an address of it.
    fn noun(self) -> &'static str {
        match self {
            Self::Email => "email address",
            Self::Msisdn => "phone number",
        }
    }

    /// The medium of that name.
    pub(crate) fn parse(name: &str) -> Option<Self> {
        match name {
            "email" => Some(Self::Email),
            "msisdn" => Some(Self::Msisdn),
            _ => None,
        }
    }
}

/// What is not an address of that medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {}", .0.noun())]
pub(crate) struct InvalidAddress(pub(crate) Medium);

/// A medium and an address in its canonical form, so that equal addresses are equal texts.
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
    /// [`InvalidAddress`] unless there is text on both sides of exactly one `@`, without spaces or control
    /// characters, and not too long.
    pub(crate) fn email(raw: &str) -> Result<Self, InvalidAddress> {
        let invalid = InvalidAddress(Medium::Email);
        let (local, domain) = raw.split_once('@').ok_or(invalid)?;
        let plain = raw.chars().all(|c| !c.is_whitespace() && !c.is_control());
        // Brackets, commas and quotes have a meaning in a mail's header.
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
        {
            return Err(invalid);
        }
        Ok(Self { medium: Medium::Email, address: UniCase::new(raw).to_folded_case() })
    }

    /// Parses an address as an operator gives it: an email address, or the digits of a phone number with or without the
    /// plus sign.
    ///
    /// # Errors
    ///
    /// [`InvalidAddress`]; a phone number has up to 15 digits (E.164), the country code with them.
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

    /// Takes an address that was canonical when it was stored.
    pub(crate) fn stored(medium: Medium, address: String) -> Self {
        Self { medium, address }
    }

    /// Its medium.
    pub(crate) fn medium(&self) -> Medium {
        self.medium
    }

    /// Its address in canonical form.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Who reads what is sent to it, for budgets. Whoever writes chooses what follows a plus sign (RFC 5233): `a+1@`
    /// and `a+2@` are one person's, and so are the spellings of an internationalised domain.
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

/// Shows no address: debug output ends up in logs.
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
    fn what_is_no_email_address_is_refused() {
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
    fn a_phone_number_is_its_digits() {
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
