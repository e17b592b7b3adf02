//! What `doctor` found, and how it is said: a line for each check.

use std::error::Error as _;

use crate::{
    client::{ConnectFailure, HttpClientError},
    error::Chain,
};

/// What a check came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It will work.
    Good(String),
    /// Nothing fails yet, or what is there is for trials only.
    Soon(String),
    /// It will not work; the text says what to change.
    Bad(String),
}

impl Finding {
    /// The finding about `what` in a line: `good  what: text`.
    #[must_use]
    pub fn line(&self, what: &str) -> String {
        let (mark, text) = match self {
            Self::Good(text) => ("good", text),
            Self::Soon(text) => ("soon", text),
            Self::Bad(text) => ("BAD ", text),
        };
        // What other programs say may have line ends, and what a terminal would obey.
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text: Vec<_> = text.split_whitespace().collect();
        format!("{mark}  {what}: {}", text.join(" "))
    }
}

/// Says findings and counts the bad ones.
#[derive(Debug, Default)]
pub struct Report {
    bad: usize,
}

impl Report {
    /// Prints a finding about `what` on standard output.
    pub fn say(&mut self, what: &str, finding: &Finding) {
        println!("{}", finding.line(what));
        self.bad += usize::from(matches!(finding, Finding::Bad(_)));
    }

    /// How many were bad.
    #[must_use]
    pub fn bad(&self) -> usize {
        self.bad
    }
}

/// Why a call got no answer, and where to look. Without the URL, which may hold a secret.
#[must_use]
pub fn unreached(error: &HttpClientError) -> String {
    let reason = error.source().map_or_else(|| error.to_string(), |cause| Chain(cause).to_string());
    format!("{} ({reason})", advice(error.connect_failure()))
}

fn advice(failure: Option<ConnectFailure>) -> &'static str {
    match failure {
        Some(ConnectFailure::Name) => {
            "DNS does not know the name, or does not answer: look at its spelling, at its A and AAAA records and at \
             outbound.dns_servers"
        }
        Some(ConnectFailure::Blocked) => {
            "its address is not a public one: if it is yours, add its range to outbound.allowed_ranges"
        }
        Some(ConnectFailure::Network) => {
            "no connection: look at its address and port, whether it runs, and at the firewalls on the way"
        }
        Some(ConnectFailure::Crowded) => "too many calls of this address are under way: try again later",
        Some(ConnectFailure::Proxy) => "no way through the proxy: look at outbound.proxy_url and outbound.no_proxy",
        Some(ConnectFailure::Certificate) => {
            "its certificate is not trusted: it must be valid, be for this name, come with its intermediates, and lead \
             to a root that is known here (ca-certificates, or outbound.extra_ca_file)"
        }
        Some(ConnectFailure::Tls) => {
            "no TLS: what listens there speaks another protocol or version, so look at the port"
        }
        None => "it gave no whole answer in time: look at its log, and at the firewalls on the way",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line() {
        for (finding, expected) in [
            (Finding::Good("all is well".to_owned()), "good  mail: all is well"),
            (Finding::Soon("look here".to_owned()), "soon  mail: look here"),
            (Finding::Bad("it said\r\n  no\n".to_owned()), "BAD   mail: it said no"),
            (Finding::Bad("it said \u{1b}[2J\u{7}no".to_owned()), "BAD   mail: it said [2J no"),
        ] {
            assert_eq!(finding.line("mail"), expected);
        }
    }

    #[test]
    fn only_bad_findings_count() {
        let mut report = Report::default();
        for finding in [Finding::Good(String::new()), Finding::Soon(String::new()), Finding::Bad(String::new())] {
            report.say("a", &finding);
        }
        assert_eq!(report.bad(), 1);
    }

    #[test]
    fn an_unreached_server_is_told_with_its_advice() {
        let late = HttpClientError::Timeout(std::time::Duration::from_secs(1));
        assert_eq!(
            unreached(&late),
            "it gave no whole answer in time: look at its log, and at the firewalls on the way (no answer within \
             1000 ms)"
        );
        assert!(unreached(&HttpClientError::Blocked).contains("outbound.allowed_ranges"));
    }
}
