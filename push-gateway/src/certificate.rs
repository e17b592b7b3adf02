//! The validity of an app's client certificate.

use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::parse_x509_certificate;

/// Warn when a certificate is valid for fewer days than this.
const WARN_DAYS: i64 = 30;
const MS_PER_DAY: i64 = 24 * 60 * 60 * 1000;

/// A certificate's validity period, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Validity {
    pub(crate) not_before_ms: i64,
    pub(crate) not_after_ms: i64,
}

/// The state of a certificate at a given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    NotYetValid,
    Valid { days: i64 },
    ExpiresSoon { days: i64 },
    Expired,
}

impl Validity {
    /// Parses the first certificate of a PEM chain, which is the client's own.
    pub(crate) fn from_pem(pem: &str) -> Option<Self> {
        let der = CertificateDer::pem_slice_iter(pem.as_bytes()).find_map(Result::ok)?;
        let (_, certificate) = parse_x509_certificate(&der).ok()?;
        let validity = certificate.validity();
        Some(Self {
            not_before_ms: validity.not_before.timestamp().saturating_mul(1000),
            not_after_ms: validity.not_after.timestamp().saturating_mul(1000),
        })
    }

    /// The state at `now_ms`, in milliseconds since the epoch.
    pub(crate) fn at(self, now_ms: i64) -> Standing {
        let left_ms = self.not_after_ms.saturating_sub(now_ms);
        let days = left_ms / MS_PER_DAY;
        match left_ms {
            ..=0 => Standing::Expired,
            _ if now_ms < self.not_before_ms => Standing::NotYetValid,
            _ if days < WARN_DAYS => Standing::ExpiresSoon { days },
            _ => Standing::Valid { days },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validity_is_read_from_a_certificate() {
        // openssl x509 -noout -dates
        let expected = Validity { not_before_ms: 1_795_393_617_000, not_after_ms: 2_110_753_617_000 };
        assert_eq!(Validity::from_pem(include_str!("fixtures/certificate.pem")), Some(expected));
        assert_eq!(Validity::from_pem("no certificate"), None);
    }

    #[test]
    fn a_renewal_is_due_a_month_before_expiry() {
        let validity = Validity { not_before_ms: 1000, not_after_ms: 100 * MS_PER_DAY };
        for (now_ms, expected) in [
            (999, Standing::NotYetValid),
            (1000, Standing::Valid { days: 99 }),
            (70 * MS_PER_DAY, Standing::Valid { days: 30 }),
            (70 * MS_PER_DAY + 1, Standing::ExpiresSoon { days: 29 }),
            (100 * MS_PER_DAY - 1, Standing::ExpiresSoon { days: 0 }),
            (100 * MS_PER_DAY, Standing::Expired),
        ] {
            assert_eq!(validity.at(now_ms), expected, "{now_ms}");
        }
    }
}
