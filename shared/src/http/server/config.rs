//! The section `[server]`.

use ipnet::IpNet;
use serde::Deserialize;

use crate::config::file::{ConfigError, Source};

/// The section `[server]`: limits on what a client can consume.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ServerConfig {
    /// Seconds for a request's headers to arrive, for a client to read a response, and for an idle connection to stay
    /// open. Default 60.
    pub header_timeout_secs: u64,
    /// Seconds for a request's body to arrive. Default 30.
    pub body_timeout_secs: u64,
    /// Largest body in bytes, for lookups and notifications; other requests accept 64 KiB. Default 1048576.
    pub max_body_bytes: usize,
    /// Limit in bytes on all bodies together, while they arrive and until they are parsed; one source may hold an
    /// eighth. Requests that do not fit are answered with 429 or 503. Default 67108864.
    pub max_buffered_bytes: usize,
    /// Limit on open connections; further ones wait to be accepted. A peer that is no trusted proxy may have three times
    /// as many as are free; further ones are closed. Default 4096.
    pub max_connections: usize,
    /// Seconds that requests in flight have to finish when the service stops. Default 30.
    pub shutdown_grace_secs: u64,
    /// Address ranges of reverse proxies whose `X-Forwarded-For` is trusted. Default none.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            header_timeout_secs: 60,
            body_timeout_secs: 30,
            max_body_bytes: 1024 * 1024,
            max_buffered_bytes: 64 * 1024 * 1024,
            max_connections: 4096,
            shutdown_grace_secs: 30,
            trusted_proxies: Vec::new(),
        }
    }
}

/// The longest configurable time, a day: deadlines are computed from the present, which must not overflow.
const LONGEST_SECS: u64 = 24 * 60 * 60;
/// More than any process can have open.
const MOST_CONNECTIONS: usize = 1_000_000;

impl ServerConfig {
    /// Checks that the types cannot express: values with which nothing would be served.
    #[must_use]
    pub fn problems(&self, source: &Source) -> Vec<ConfigError> {
        let mut problems = Vec::new();
        for (key, secs, least) in [
            ("server.header_timeout_secs", self.header_timeout_secs, 1),
            ("server.body_timeout_secs", self.body_timeout_secs, 1),
            ("server.shutdown_grace_secs", self.shutdown_grace_secs, 0),
        ] {
            if !(least..=LONGEST_SECS).contains(&secs) {
                problems.push(source.error(key, format!("must be {least} to {LONGEST_SECS}")));
            }
        }
        if !(1..=MOST_CONNECTIONS).contains(&self.max_connections) {
            problems.push(source.error("server.max_connections", format!("must be 1 to {MOST_CONNECTIONS}")));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_with_which_nothing_would_be_served_are_problems() {
        let good = ServerConfig::default();
        assert!(good.problems(&Source::default()).is_empty());
        for (config, expected) in [
            (ServerConfig { header_timeout_secs: 0, ..good.clone() }, "server.header_timeout_secs: must be 1 to 86400"),
            (
                ServerConfig { header_timeout_secs: u64::MAX, ..good.clone() },
                "server.header_timeout_secs: must be 1 to 86400",
            ),
            (ServerConfig { body_timeout_secs: 0, ..good.clone() }, "server.body_timeout_secs: must be 1 to 86400"),
            (
                ServerConfig { shutdown_grace_secs: u64::MAX, ..good.clone() },
                "server.shutdown_grace_secs: must be 0 to 86400",
            ),
            (ServerConfig { max_connections: 0, ..good.clone() }, "server.max_connections: must be 1 to 1000000"),
            (ServerConfig { max_connections: usize::MAX, ..good }, "server.max_connections: must be 1 to 1000000"),
        ] {
            let problems: Vec<_> = config.problems(&Source::default()).iter().map(ToString::to_string).collect();
            assert_eq!(problems, [expected]);
        }
    }
}
