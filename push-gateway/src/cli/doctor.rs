//! `doctor`: does each app's push service take its credentials?

use futures_util::future::join_all;
use waypost_shared::{
    clock::Clock,
    doctor::{Finding, Report},
};

use super::RunError;
use crate::app::{App, EXPIRY_WARNED_DAYS, Entry, MS_PER_DAY};

/// Checks all apps at once and prints what was found, a line for each.
pub(super) async fn run(app: &App, clock: &Clock) -> Result<(), RunError> {
    let entries = app.entries();
    if entries.is_empty() {
        println!("There are no apps: add an [[apps]] entry for each app that is to be pushed to.");
    }
    let checks = entries.iter().map(|entry| examine(app, entry, clock.now_ms()));
    let mut report = Report::default();
    for (entry, findings) in entries.iter().zip(join_all(checks).await) {
        for finding in findings {
            report.say(&entry.id, &finding);
        }
    }
    match report.bad() {
        0 => Ok(()),
        bad => Err(RunError::Unhealthy(bad)),
    }
}

async fn examine(app: &App, entry: &Entry, now_ms: i64) -> Vec<Finding> {
    let mut findings: Vec<_> =
        entry.expires_at_ms.map(|at_ms| expiry(at_ms.saturating_sub(now_ms))).into_iter().collect();
    findings.push(match entry.provider.check(app.config.attempt_timeout()).await {
        Ok(good) => Finding::Good(good),
        Err(bad) => Finding::Bad(bad),
    });
    findings
}

/// What the time that is left says about a certificate.
fn expiry(left_ms: i64) -> Finding {
    let days = left_ms / MS_PER_DAY;
    if left_ms <= 0 {
        return Finding::Bad("certificate_file has expired: renew it at Apple, or use a key (key_file)".to_owned());
    }
    let text = format!("certificate_file is good for {days} days");
    if days < EXPIRY_WARNED_DAYS { Finding::Soon(format!("{text}: renew it at Apple")) } else { Finding::Good(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_called_for_a_month_before_its_end() {
        for (left_ms, expected) in [
            (0, "BAD   a: certificate_file has expired: renew it at Apple, or use a key (key_file)"),
            (29 * MS_PER_DAY, "soon  a: certificate_file is good for 29 days: renew it at Apple"),
            (30 * MS_PER_DAY, "good  a: certificate_file is good for 30 days"),
        ] {
            assert_eq!(expiry(left_ms).line("a"), expected);
        }
    }
}
