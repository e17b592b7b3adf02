//! Where a request came from, as reverse proxies report it.

use std::net::{IpAddr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

use crate::source::RequestSource;

/// The source of a request: the last address in `X-Forwarded-For` that is not a trusted proxy's, if the peer is one.
///
/// If a trusted proxy reports something that cannot be parsed, the source is unknown. It must not be the proxy itself,
/// which may be in a network with more privileges.
pub(super) fn source(headers: &HeaderMap, peer: IpAddr, trusted: &[IpNet]) -> RequestSource {
    let peer = peer.to_canonical();
    if !is_trusted(peer, trusted) {
        return peer.into();
    }
    let mut source = RequestSource::UNKNOWN;
    for value in headers.get_all("x-forwarded-for").iter().rev() {
        let Ok(value) = value.to_str() else { return RequestSource::UNKNOWN };
        for hop in value.rsplit(',') {
            let Some(address) = hop_address(hop) else { return RequestSource::UNKNOWN };
            source = address.into();
            if !is_trusted(address, trusted) {
                return source;
            }
        }
    }
    source
}

/// Whether an address is that of a trusted proxy.
pub(super) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|range| range.contains(&address))
}

/// An address as proxies write it: bare, with a port, in brackets or in quotation marks.
fn hop_address(hop: &str) -> Option<IpAddr> {
    let hop = hop.trim().trim_matches('"');
    let address = hop.parse::<IpAddr>().ok();
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    let in_brackets = || hop.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    address.or_else(with_port).or_else(in_brackets).map(|address| address.to_canonical())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::{HeaderName, HeaderValue};

    use super::*;

    fn forwarded(values: &[&str], peer: &str) -> RequestSource {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let name = HeaderName::from_static("x-forwarded-for");
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_str(value).unwrap());
        }
        source(&headers, peer.parse().unwrap(), &trusted)
    }

    fn known(address: &str) -> RequestSource {
        address.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn only_a_trusted_proxy_may_report_the_source() {
        let hops = "1.1.1.1, 203.0.113.7, 10.0.0.9";
        assert_eq!(forwarded(&[hops], "10.0.0.1"), known("203.0.113.7"));
        assert_eq!(forwarded(&[hops], "::ffff:10.0.0.1"), known("203.0.113.7"));
        assert_eq!(forwarded(&[hops], "198.51.100.1"), known("198.51.100.1"));
        // A client in the proxies' own network.
        assert_eq!(forwarded(&["10.0.0.9"], "10.0.0.1"), known("10.0.0.9"));
        // The header may be repeated; the last one is from the nearest proxy.
        assert_eq!(forwarded(&["1.1.1.1", "203.0.113.7", "10.0.0.9"], "10.0.0.1"), known("203.0.113.7"));
    }

    #[test]
    fn a_hop_may_have_a_port_and_brackets() {
        for (hop, address) in [
            ("6.6.6.6:1234", "6.6.6.6"),
            ("\"6.6.6.6\"", "6.6.6.6"),
            ("\"6.6.6.6:1234\"", "6.6.6.6"),
            ("::ffff:6.6.6.6", "6.6.6.6"),
            ("2001:db8::1", "2001:db8::1"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("[2001:db8::1]:99", "2001:db8::1"),
            ("\"[2001:db8::1]:99\"", "2001:db8::1"),
        ] {
            assert_eq!(forwarded(&[hop], "10.0.0.1"), known(address), "{hop}");
        }
    }

    #[test]
    fn an_unparsable_hop_makes_the_source_unknown() {
        for values in [
            &["nonsense"][..],
            &["unknown"],
            &["_hidden"],
            &[""],
            &["6.6.6.6,"],
            &["6.6.6.6, unknown"],
            &["6.6.6.6", "\u{e9}"],
            &["6.6.6.6:99999"],
            &["[6.6.6.6"],
            &["fe80::1%eth0"],
            &[],
        ] {
            assert_eq!(forwarded(values, "10.0.0.1"), RequestSource::UNKNOWN, "{values:?}");
        }
        // The nearest hop can be parsed.
        assert_eq!(forwarded(&["unknown, 6.6.6.6"], "10.0.0.1"), known("6.6.6.6"));
    }
}
