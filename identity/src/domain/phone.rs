//! Phone numbers: parsed with libphonenumber's metadata, kept as E.164 digits.
//!
//! Source: Identity Service API, "Phone number associations"; Appendices, "3PID Types".

use rlibphonenumber::{NumberLengthType, PHONE_NUMBER_UTIL, PhoneNumber, PhoneNumberFormat, PhoneNumberType, Region};

use super::threepid::{InvalidAddress, Medium, Threepid};

/// The longest input to parse, in characters: 15 digits and everything people write between them.
const MAX_CHARS: usize = 60;

/// A phone number that could exist: its length is valid for its country.
///
/// It need not be in an assigned range: that metadata goes stale, and never includes fictional numbers such as the
/// specification's own `07700900001`. There is no `Debug`, since debug output ends up in logs.
pub(crate) struct Phone {
    /// The form that is bound and looked up.
    pub(crate) threepid: Threepid,
    /// The form shown to people: `+44 7700 900001`.
    pub(crate) international: String,
    /// The country's calling code: 44.
    pub(crate) calling_code: i32,
    /// Whether it is of a kind that nobody reads text messages on, or that somebody earns money with: premium rate,
    /// shared cost, personal and company-wide numbers, pagers, voicemail.
    pub(crate) special: bool,
    /// The country; the main one of the calling code if several share it and the number does not determine which.
    region: Option<Region>,
}

impl Phone {
    /// Parses `raw` as dialled in `country` (ISO 3166-1 alpha-2). If `country` is empty, which is what iOS sends, the
    /// number must be international; some clients omit its plus.
    ///
    /// # Errors
    ///
    /// [`InvalidAddress`] if it is not a number, has an extension, or is too long or too short for its country.
    pub(crate) fn parse(raw: &str, country: &str) -> Result<Self, InvalidAddress> {
        let invalid = InvalidAddress(Medium::Msisdn);
        let (raw, country) = (raw.trim(), country.trim());
        if raw.chars().count() > MAX_CHARS {
            return Err(invalid);
        }
        let region = region(country);
        let number = PhoneNumber::parse(raw, region)
            .or_else(|error| {
                let bare = country.is_empty() && raw.starts_with(|c: char| c.is_ascii_digit());
                if bare { PhoneNumber::parse(format!("+{raw}"), None) } else { Err(error) }
            })
            .map_err(|_| invalid)?;
        let whole = matches!(number.is_possible_with_reason(), Ok(NumberLengthType::IsPossible));
        if !whole || number.extension.as_deref().is_some_and(|extension| !extension.is_empty()) {
            return Err(invalid);
        }
        let e164 = number.format_as(PhoneNumberFormat::E164).into_owned();
        let digits = e164.strip_prefix('+').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        Ok(Self {
            threepid: Threepid::stored(Medium::Msisdn, digits.ok_or(invalid)?.to_owned()),
            international: number.format_as(PhoneNumberFormat::International).into_owned(),
            calling_code: number.country_code,
            special: matches!(
                number.get_type(),
                PhoneNumberType::PremiumRate
                    | PhoneNumberType::SharedCost
                    | PhoneNumberType::PersonalNumber
                    | PhoneNumberType::UAN
                    | PhoneNumberType::Pager
                    | PhoneNumberType::VoiceMail
            ),
            region: number
                .get_region_code()
                .or_else(|| PHONE_NUMBER_UTIL.get_region_for_country_code(number.country_code)),
        })
    }

    /// Whether the number belongs to one of `countries`.
    pub(crate) fn is_in(&self, countries: &[Country]) -> bool {
        countries.iter().any(|country| match country {
            Country::Region(region) => self.region == Some(*region),
            Country::CallingCode(code) => self.calling_code == *code,
        })
    }

    /// Whether its calling code is no country's, as those of satellite phones (+870, +881), international networks (+882,
    /// +883) and services (+800, +808, +979), which are among the dearest.
    pub(crate) fn is_nowhere(&self) -> bool {
        self.country() == "001" || self.region.is_none()
    }

    /// The country, as a metric label: `GB`, or the calling code if the number belongs to no country.
    pub(crate) fn country(&self) -> String {
        self.region.map_or_else(|| self.calling_code.to_string(), |region| region.as_region_str().to_string())
    }
}

/// A country as written in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Country {
    /// `GB`: ISO 3166-1 alpha-2. Distinguishes countries that share a calling code.
    Region(Region),
    /// `+44`, or `44`.
    CallingCode(i32),
}

impl Country {
    /// Parses either form.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix('+').unwrap_or(text);
        if !digits.is_empty() && digits.len() <= 3 && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return digits.parse().ok().filter(|code| *code > 0).map(Self::CallingCode);
        }
        let region = region(text)?;
        PHONE_NUMBER_UTIL.get_country_code_for_region(region).map(|_| Self::Region(region))
    }
}

/// Parses a two-letter code, which excludes the metadata's non-geographic region `001`.
fn region(code: &str) -> Option<Region> {
    if code.len() == 2 { Region::from_code(code).ok() } else { None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Expected values come from libphonenumber's Python port, version 9.0.
    #[test]
    fn numbers_are_read_as_people_write_them() {
        for (raw, country, digits, international) in [
            // The specification's example.
            ("07700900001", "GB", "447700900001", "+44 7700 900001"),
            ("+447700900001", "", "447700900001", "+44 7700 900001"),
            ("447700900001", "", "447700900001", "+44 7700 900001"),
            ("+44 (0) 7700 900001", "GB", "447700900001", "+44 7700 900001"),
            ("07700 900001", "gb", "447700900001", "+44 7700 900001"),
            // For an international number, the country does not matter.
            ("+447700900001", "US", "447700900001", "+44 7700 900001"),
            ("+447700900001", "XX", "447700900001", "+44 7700 900001"),
            ("8005552067", "US", "18005552067", "+1 800-555-2067"),
            ("030 1234567", "DE", "49301234567", "+49 30 1234567"),
            ("+49 151 23456789", "", "4915123456789", "+49 1512 3456789"),
            // Italy keeps its zero.
            ("+390236618300", "", "390236618300", "+39 02 3661 8300"),
        ] {
            let phone = Phone::parse(raw, country).unwrap();
            assert_eq!(phone.threepid.address(), digits, "{raw} {country}");
            assert_eq!(phone.international, international, "{raw} {country}");
        }
    }

    #[test]
    fn invalid_numbers_are_refused() {
        let long = "1".repeat(200);
        for (raw, country) in [
            ("", "GB"),
            ("alice", "GB"),
            ("0123", "GB"),
            ("07700900001", ""),
            ("07700900001", "UK"),
            ("+999123456789", ""),
            ("+44770090000100000", ""),
            ("+447700900001 ext. 5", ""),
            ("+447700900001\r\nX: y", ""),
            (&long, "GB"),
        ] {
            assert!(Phone::parse(raw, country).is_err(), "{raw:?} {country:?}");
        }
    }

    #[test]
    fn countries_are_told_apart() {
        let jamaica = Phone::parse("+1 876 555 0123", "").unwrap();
        let fictional = Phone::parse("+447700900001", "").unwrap();
        let list = |texts: &[&str]| texts.iter().filter_map(|text| Country::parse(text)).collect::<Vec<_>>();
        assert!(jamaica.is_in(&list(&["JM"])) && jamaica.is_in(&list(&["+1"])) && !jamaica.is_in(&list(&["US"])));
        assert!(fictional.is_in(&list(&["gb"])) && fictional.is_in(&list(&["44"])) && !fictional.is_in(&list(&["IM"])));
        assert_eq!((jamaica.country(), fictional.country()), ("JM".to_owned(), "GB".to_owned()));
        for text in ["", "UK", "XX", "GBR", "+", "0", "1234", "+4 4"] {
            assert_eq!(Country::parse(text), None, "{text}");
        }
    }

    #[test]
    fn numbers_that_are_no_phones_of_people_are_recognised() {
        for (number, special, nowhere) in [
            ("+447700900001", false, false),
            ("+1 212 555 0123", false, false),
            // Premium rate, personal, shared cost, pager, company-wide.
            ("+44900 123 4567", true, false),
            ("+44 70 1234 5678", true, false),
            ("+49 180 5123456", true, false),
            ("+44 7640 123456", true, false),
            ("+44 55 1234 5678", true, false),
            // Satellites, international networks and services.
            ("+870 773 111 632", false, true),
            ("+881 612 345 678", false, true),
            ("+882 16 333 12345", false, true),
            ("+883 510 012 345 678", false, true),
            ("+808 1234 5678", true, true),
        ] {
            let phone = Phone::parse(number, "").unwrap();
            assert_eq!((phone.special, phone.is_nowhere()), (special, nowhere), "{number}");
        }
    }
}
