//! `doctor`: checks whether each app's push service accepts its credentials.

use futures_util::future::join_all;
use waypost_shared::{
    clock::Clock,
    operations::doctor::{Finding, Report},
};

use crate::{
    app::{App, Entry},
    certificate::Standing,
    run_error::RunError,
};

/// Checks all apps concurrently and prints one line per finding.
pub(super) async fn run(app: &App, clock: &Clock) -> Result<(), RunError> {
    let entries = app.entries();
    if entries.is_empty() {
        println!("There are no apps: add an [[apps]] entry for each app to push to.");
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
    let mut findings: Vec<_> = entry.certificate.map(|validity| certificate(validity.at(now_ms))).into_iter().collect();
    findings.push(match entry.provider.check(app.config.attempt_timeout()).await {
        Ok(good) => Finding::Good(good),
        Err(bad) => Finding::Bad(bad),
    });
    findings
}

fn certificate(standing: Standing) -> Finding {
    match standing {
        Standing::NotYetValid => Finding::Bad(
            "certificate_file is not valid yet: check its notBefore (openssl x509 -noout -dates) and this machine's \
             clock"
                .to_owned(),
        ),
        Standing::Expired => {
            Finding::Bad("certificate_file has expired: renew it with Apple, or use a key (key_file)".to_owned())
        }
        Standing::ExpiresSoon { days } => {
            Finding::Soon(format!("certificate_file is good for {days} days: renew it with Apple"))
        }
        Standing::Valid { days } => Finding::Good(format!("certificate_file is good for {days} days")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_good_while_valid_and_flagged_before_it_expires() {
        for (standing, expected) in [
            (
                Standing::NotYetValid,
                "BAD   a: certificate_file is not valid yet: check its notBefore (openssl x509 -noout -dates) and \
                 this machine's clock",
            ),
            (Standing::Expired, "BAD   a: certificate_file has expired: renew it with Apple, or use a key (key_file)"),
            (Standing::ExpiresSoon { days: 29 }, "soon  a: certificate_file is good for 29 days: renew it with Apple"),
            (Standing::Valid { days: 30 }, "good  a: certificate_file is good for 30 days"),
        ] {
            assert_eq!(certificate(standing).line("a"), expected);
        }
    }
}
