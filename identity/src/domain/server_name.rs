//! Server names: a hostname or an IP address literal, optionally with a port.
//!
//! Source: Appendices, "Server Name".

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use waypost_shared::owner::canonical_host;

/// The port of a server whose name has none.
pub(crate) const DEFAULT_PORT: u16 = 8448;

/// A text is not a server name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid server name")]
pub(crate) struct InvalidServerName;

/// A parsed server name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerName {
    text: String,
    host: String,
    literal: Option<IpAddr>,
    port: Option<u16>,
}

impl ServerName {
    /// Parses a server name: `host`, `host:port`, `1.2.3.4:port`, `[::1]:port`.
    pub(crate) fn parse(text: &str) -> Result<Self, InvalidServerName> {
        let (host, port) = match text.rsplit_once(':') {
            // The colons inside brackets belong to the address.
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        let port = match port {
            None => None,
            Some(digits) if (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().map_err(|_| InvalidServerName)?)
            }
            Some(_) => return Err(InvalidServerName),
        };
        let literal = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(inner) => Some(inner.parse::<Ipv6Addr>().map_err(|_| InvalidServerName)?.into()),
            None => host.parse::<Ipv4Addr>().ok().map(IpAddr::from),
        };
        if literal.is_none() && !is_dns_name(host) {
            return Err(InvalidServerName);
        }
        Ok(Self { text: text.to_owned(), host: host.to_owned(), literal, port })
    }

    /// The name as given.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// The host without the port; an IPv6 literal keeps its brackets.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The IP address, if the host is a literal.
    pub(crate) fn literal(&self) -> Option<IpAddr> {
        self.literal
    }

    /// The port, if there is one.
    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }
}

fn is_dns_name(host: &str) -> bool {
    let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    (1..=230).contains(&host.len()) && host.bytes().all(known) && !host.starts_with('.') && !host.contains("..")
}

/// Whether two names denote the same server, ignoring case, a trailing dot and an explicit default port.
pub(crate) fn is_same_server(one: &str, other: &str) -> bool {
    let place = |name| {
        let name = ServerName::parse(name).ok()?;
        Some((canonical_host(name.host()), name.port().unwrap_or(DEFAULT_PORT)))
    };
    one == other || place(one).is_some_and(|one| Some(one) == place(other))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn server_names_are_split_into_host_and_port() {
        for (text, host, literal, port) in [
            ("matrix.org", "matrix.org", None, None),
            ("matrix.org:8888", "matrix.org", None, Some(8888)),
            ("1.2.3.4", "1.2.3.4", Some("1.2.3.4"), None),
            ("1.2.3.4:1234", "1.2.3.4", Some("1.2.3.4"), Some(1234)),
            ("[1234:5678::abcd]", "[1234:5678::abcd]", Some("1234:5678::abcd"), None),
            ("[1234:5678::abcd]:5678", "[1234:5678::abcd]", Some("1234:5678::abcd"), Some(5678)),
            ("localhost", "localhost", None, None),
        ] {
            let name = ServerName::parse(text).unwrap();
            let literal = literal.map(|address| address.parse::<IpAddr>().unwrap());
            assert_eq!((name.host(), name.literal(), name.port()), (host, literal, port), "{text}");
        }
    }

    #[test]
    fn malformed_server_names_are_refused() {
        for text in [
            "",
            ":8448",
            "a:",
            "a:b",
            "a:99999",
            "a:+1",
            "a b",
            "a/b",
            "user@a",
            "a?b",
            "a#b",
            "[::1",
            "::1",
            "a..b",
            "ä.example",
            "a\r\nb",
            "https://a",
        ] {
            assert_eq!(ServerName::parse(text), Err(InvalidServerName), "{text:?}");
        }
    }
}
