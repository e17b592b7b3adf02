//! The report of `doctor`: one line per check.

use std::error::Error as _;

use crate::{
    client::{ConnectFailure, HttpClientError},
    error::Chain,
};

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It works.
    Good(String),
    /// Works for now but will fail, or is suitable for trials only.
    Soon(String),
    /// It will not work; the text says what to change.
    Bad(String),
}

impl Finding {
    /// Formats the finding about `what` as one line: `good  what: text`.
    #[must_use]
    pub fn line(&self, what: &str) -> String {
        let (mark, text) = match self {
            Self::Good(text) => ("good", text),
            Self::Soon(text) => ("soon", text),
            Self::Bad(text) => ("BAD ", text),
        };
        // Text from other programs may contain line breaks and terminal control sequences.
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let text: Vec<_> = text.split_whitespace().collect();
        format!("{mark}  {what}: {}", text.join(" "))
    }
}

/// Prints findings and counts the bad ones.
#[derive(Debug, Default)]
pub struct Report {
    bad: usize,
}

impl Report {
    /// Prints a finding about `what` to standard output.
    pub fn say(&mut self, what: &str, finding: &Finding) {
        println!("{}", finding.line(what));
        self.bad += usize::from(matches!(finding, Finding::Bad(_)));
    }

    /// The number of bad findings.
    #[must_use]
    pub fn bad(&self) -> usize {
        self.bad
    }
}

/// Why a call got no response, and what to check. Does not contain the URL, which may hold a secret.
#[must_use]
pub fn unreached(error: &HttpClientError) -> String {
    let reason = error.source().map_or_else(|| error.to_string(), |cause| Chain(cause).to_string());
    format!("{} ({reason})", advice(error.connect_failure()))
}

fn advice(failure: Option<ConnectFailure>) -> &'static str {
    match failure {
        Some(ConnectFailure::Name) => {
            "DNS does not know the name, or does not answer: check its spelling, its A and AAAA records and \
             outbound.dns_servers"
        }
        Some(ConnectFailure::Blocked) => {
            "its address is not public: if it is yours, add its range to outbound.allowed_ranges"
        }
        Some(ConnectFailure::Network) => {
            "no connection: check its address and port, whether it is running, and the firewalls on the way"
        }
        Some(ConnectFailure::Crowded) => "too many calls to this address are in flight: try again later",
        Some(ConnectFailure::Proxy) => {
            "no connection through the proxy: check outbound.proxy_url and outbound.no_proxy"
        }
        Some(ConnectFailure::Certificate) => {
            "its certificate is not trusted: it must be valid, be for this name, come with its intermediates, and lead \
             to a root that is known here (ca-certificates, or outbound.extra_ca_file)"
        }
        Some(ConnectFailure::Tls) => {
            "TLS failed: the server there speaks another protocol or TLS version, so check the port"
        }
        None => "it did not answer in full in time: check its log, and the firewalls on the way",
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
    fn an_unreached_server_is_reported_with_advice() {
        let late = HttpClientError::Timeout(std::time::Duration::from_secs(1));
        assert_eq!(
            unreached(&late),
            "it did not answer in full in time: check its log, and the firewalls on the way (no answer within \
             1000 ms)"
        );
        assert!(unreached(&HttpClientError::Blocked).contains("outbound.allowed_ranges"));
    }
}
