//! When a certificate expires: the one field of X.509 that is needed here, read by hand (RFC 5280, section 4.1; X.690).

use rustls::pki_types::{CertificateDer, pem::PemObject as _};

// Tags of DER.
const INTEGER: u8 = 0x02;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// `[0]`, in which the version stands.
const VERSION: u8 = 0xa0;

const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;

/// The end (`notAfter`) of the first certificate in a PEM text, in milliseconds since the epoch.
pub(crate) fn expires_at_ms(pem: &str) -> Option<i64> {
    let certificate = CertificateDer::pem_slice_iter(pem.as_bytes()).find_map(Result::ok)?;
    let mut certificate = Der(&certificate);
    let mut signed = Der(Der(certificate.value(SEQUENCE)?).value(SEQUENCE)?);
    if signed.0.first() == Some(&VERSION) {
        signed.value(VERSION)?;
    }
    signed.value(INTEGER)?; // serialNumber
    signed.value(SEQUENCE)?; // signature
    signed.value(SEQUENCE)?; // issuer
    let mut validity = Der(signed.value(SEQUENCE)?);
    validity.time()?;
    validity.time()
}

/// Values of DER, one after another.
struct Der<'d>(&'d [u8]);

impl<'d> Der<'d> {
    /// The next value, if it has this tag.
    fn value(&mut self, tag: u8) -> Option<&'d [u8]> {
        let (first, rest) = self.0.split_first()?;
        let (length, rest) = rest.split_first()?;
        let (length, rest) = match *length {
            short @ 0..=0x7f => (usize::from(short), rest),
            // So many bytes of length follow; more than three make no certificate.
            long @ 0x81..=0x83 => {
                let (length, rest) = rest.split_at_checked(usize::from(long & 0x7f))?;
                (length.iter().fold(0, |length, byte| (length << 8) | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        (*first == tag).then_some(value)
    }

    /// `YYMMDDhhmmssZ`, of 1950 to 2049, or `YYYYMMDDhhmmssZ`.
    fn time(&mut self) -> Option<i64> {
        let (text, century) = match self.0.first() {
            Some(&UTC_TIME) => (self.value(UTC_TIME)?, None),
            _ => {
                let text = self.value(GENERALIZED_TIME)?;
                let (century, text) = text.split_at_checked(2)?;
                (text, Some(number(century)?))
            }
        };
        let [year, month, day, hour, minute, second] =
            [0, 2, 4, 6, 8, 10].map(|at| text.get(at..at + 2).and_then(number));
        let year = year?;
        let year = century.map_or(if year < 50 { 2000 + year } else { 1900 + year }, |century| century * 100 + year);
        let seconds = (hour? * 60 + minute?) * 60 + second?;
        Some(days(year, month?, day?) * MS_PER_DAY + seconds * 1000)
    }
}

fn number(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Days from 1970-01-01 to a date of the Gregorian calendar; years are counted from March, so that a leap day is last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let before_year = year * 365 + year / 4 - year / 100 + year / 400;
    let before_month = (month * 153 + 2) / 5;
    before_year + before_month + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_counted_from_1970() {
        // Python: (date(y, m, d) - date(1970, 1, 1)).days
        for (date, expected) in [
            ((1970, 1, 1), 0),
            ((1950, 1, 1), -7305),
            ((2000, 2, 29), 11_016),
            ((2000, 3, 1), 11_017),
            ((2026, 11, 22), 20_779),
            ((2100, 3, 1), 47_541),
        ] {
            let (year, month, day) = date;
            assert_eq!(days(year, month, day), expected, "{date:?}");
        }
    }

    #[test]
    fn both_forms_of_a_time_are_read() {
        let utc = b"\x17\x0d260102030405Z";
        let general = b"\x18\x0f20260102030405Z";
        // Python: int(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc).timestamp()) * 1000
        assert_eq!(Der(utc).time(), Some(1_767_323_045_000));
        assert_eq!(Der(general).time(), Some(1_767_323_045_000));
        assert_eq!(Der(b"\x17\x0d500102030405Z").time(), Some(-631_054_555_000));
        assert_eq!(Der(b"\x17\x0d26010203040").time(), None);
    }

    #[test]
    fn a_certificate_says_when_it_expires() {
        // openssl x509 -noout -enddate: Nov 20 00:26:57 2036 GMT
        assert_eq!(expires_at_ms(include_str!("fixtures/certificate.pem")), Some(2_110_753_617_000));
        assert_eq!(expires_at_ms("no certificate"), None);
    }
}
