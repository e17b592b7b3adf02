//! Times for people.

use std::time::{Duration, UNIX_EPOCH};

/// A time for people: `Sun, 06 Nov 1994 08:49:37 GMT`.
pub(super) fn date(ms: i64) -> String {
    // The end of the year 9999, the last that this format can express.
    const LAST_MS: u64 = 253_402_300_799_000;
    let ms = u64::try_from(ms).unwrap_or_default().min(LAST_MS);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(ms))
}
