//! Retry timing: back-off with jitter, and `Retry-After`.

use std::time::{Duration, UNIX_EPOCH};

use http::{HeaderMap, header::RETRY_AFTER};

use crate::{clock::millis, random};

/// Exponential back-off from `first` up to `max`, with jitter between half and all of each delay, so that callers that
/// failed together do not retry together.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The delay after the first failure.
    pub first: Duration,
    /// The longest delay.
    pub max: Duration,
}

impl Backoff {
    /// The delay after failure number `attempt`, counted from 0.
    #[must_use]
    pub fn delay(&self, attempt: u32) -> Duration {
        let full = self.first.saturating_mul(2_u32.saturating_pow(attempt.min(31))).min(self.max);
        let half = full / 2;
        let jitter = random::below(u64::try_from(half.as_millis()).unwrap_or(u64::MAX));
        half + Duration::from_millis(jitter)
    }
}

/// The delay requested by `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date, relative to `now_ms`. A date
/// in the past is no delay; `None` if the header is missing or malformed.
#[must_use]
pub fn parse_retry_after(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    let date_ms = millis(date.duration_since(UNIX_EPOCH).ok()?);
    Some(Duration::from_millis(u64::try_from(date_ms.saturating_sub(now_ms)).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(value))])
    }

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date() {
        // 1994-11-06T08:49:37Z, the date in RFC 9110's own example.
        let at_ms = 784_111_777_000;
        let date = headers("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parse_retry_after(&headers("120"), 0), Some(Duration::from_secs(120)));
        assert_eq!(parse_retry_after(&date, at_ms - 30_000), Some(Duration::from_secs(30)));
        assert_eq!(parse_retry_after(&date, at_ms + 1), Some(Duration::ZERO));
        assert_eq!(parse_retry_after(&headers("soon"), 0), None);
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(10) };
        for (attempt, full) in [(0, 1), (1, 2), (2, 4), (3, 8), (4, 10), (40, 10)] {
            let delay = backoff.delay(attempt);
            assert!(delay >= Duration::from_secs(full) / 2, "{attempt}: {delay:?}");
            assert!(delay <= Duration::from_secs(full), "{attempt}: {delay:?}");
        }
    }
}
