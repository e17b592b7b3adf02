//! The source of a request, and the key by which it is counted.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// The key by which an address is counted. An IPv6 customer usually has a whole /64, so all its addresses share one
/// key. IPv4-mapped and NAT64 (RFC 6052) addresses count as the IPv4 address.
#[must_use]
pub fn source_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) if matches!(address.segments(), [0x64, 0xff9b, 0, 0, 0, 0, _, _]) => {
            let [.., a, b, c, d] = address.octets();
            Ipv4Addr::new(a, b, c, d).into()
        }
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}

/// The source of a request: the peer's address or the one a trusted proxy reports; unknown if the proxy reports none
/// that can be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestSource(Option<IpAddr>);

impl RequestSource {
    /// Unknown: in no list of addresses, and a single source for every budget.
    pub const UNKNOWN: Self = Self(None);

    /// The address, if it is known.
    #[must_use]
    pub fn address(self) -> Option<IpAddr> {
        self.0
    }

    /// The key by which it is counted; see [`source_key`].
    #[must_use]
    pub fn key(self) -> Option<IpAddr> {
        self.0.map(source_key)
    }
}

impl From<IpAddr> for RequestSource {
    fn from(address: IpAddr) -> Self {
        Self(Some(address.to_canonical()))
    }
}

impl fmt::Display for RequestSource {
    /// The counting key, or `unknown`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key() {
            Some(address) => address.fmt(f),
            None => f.write_str("unknown"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_addresses_of_one_ipv6_network_are_one_source() {
        let key = |text: &str| RequestSource::from(text.parse::<IpAddr>().unwrap()).key();
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff::9"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_eq!(key("64:ff9b::192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("64:ff9b::192.0.2.1"), key("64:ff9b::192.0.2.2"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(RequestSource::UNKNOWN.key(), None);
    }
}
