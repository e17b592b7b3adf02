//! Who owns a server: the key by which servers named by strangers are counted, limited and blocked.
//!
//! Ports, subdomains and alternative spellings cost nothing, so a budget for each of them would be no limit. A
//! registrable domain costs money, and so does an address: `https://a.example.co.uk.:8443` belongs to `example.co.uk`,
//! and an IP literal to itself (IPv6: to its /64).
//!
//! Source: the Public Suffix List (<https://publicsuffix.org>) including its private section, compiled in, so that
//! each name below `github.io` has its own owner.

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc};

use url::Host;

use crate::source::{RequestSource, source_key};

/// The party responsible for a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A registrable domain: lower case, ASCII, no trailing dot.
    Domain(Arc<str>),
    /// An IPv4 address, or the first address of an IPv6 /64.
    Network(IpAddr),
    /// Unknown source; all such requests share one owner.
    Unknown,
}

impl From<IpAddr> for Owner {
    fn from(address: IpAddr) -> Self {
        Self::Network(source_key(address))
    }
}

impl From<RequestSource> for Owner {
    fn from(source: RequestSource) -> Self {
        source.address().map_or(Self::Unknown, Self::from)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(name) => f.write_str(name),
            Self::Network(address) => address.fmt(f),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// Maps servers to owners. Clones share their data.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    hosting_suffixes: Arc<[String]>,
}

impl Owners {
    /// Treats each name directly below one of `hosting_suffixes` as a separate owner, as if it were a public suffix.
    #[must_use]
    pub fn new(hosting_suffixes: &[String]) -> Self {
        let domains = hosting_suffixes.iter().filter_map(|suffix| match canonical_host(suffix) {
            Host::Domain(domain) => Some(domain),
            Host::Ipv4(_) | Host::Ipv6(_) => None,
        });
        Self { hosting_suffixes: domains.collect() }
    }

    /// The owner of a server given as a host with an optional port. Never fails, so a malformed server name cannot
    /// evade a limit.
    #[must_use]
    pub fn of(&self, server: &str) -> Owner {
        match canonical_host(without_port(server)) {
            Host::Domain(name) => Owner::Domain(self.registrable(&name).into()),
            Host::Ipv4(address) => IpAddr::from(address).into(),
            Host::Ipv6(address) => IpAddr::from(address).into(),
        }
    }

    /// The registrable domain of `name`, or all of `name` if it has none (`localhost`, `co.uk`).
    fn registrable<'n>(&self, name: &'n str) -> &'n str {
        let listed = psl::domain_str(name).unwrap_or(name);
        let hosted = self.hosting_suffixes.iter().filter_map(|suffix| one_label_below(name, suffix));
        // The longest candidate is the most specific owner.
        hosted.chain([listed]).max_by_key(|domain| domain.len()).unwrap_or(name)
    }
}

/// A bounded cache keyed by server name, for names that strangers choose. Each owner is limited to a share of it, so
/// inventing names evicts only the inventor's own entries.
#[derive(Debug)]
pub struct ByServer<V> {
    owners: Owners,
    most: usize,
    most_of_one: usize,
    known: HashMap<String, (Owner, V)>,
}

impl<V> ByServer<V> {
    /// Holds up to `most` servers, at most a hundredth of them from one owner.
    #[must_use]
    pub fn new(owners: Owners, most: usize) -> Self {
        Self { owners, most, most_of_one: (most / 100).max(1), known: HashMap::new() }
    }

    /// The cached value of a server.
    #[must_use]
    pub fn get(&self, server: &str) -> Option<&V> {
        self.known.get(server).map(|(_, value)| value)
    }

    /// Caches `value`, evicting another server if necessary: one of the same owner if that owner has used up its
    /// share.
    pub fn insert(&mut self, server: &str, value: V) {
        let owner = self.owners.of(server);
        if !self.known.contains_key(server) {
            let mut of_same = self.known.iter().filter(|(_, (other, _))| *other == owner).map(|(name, _)| name);
            // Any victim will do, since an evicted server can be queried again.
            let makes_room = match of_same.nth(self.most_of_one - 1) {
                Some(name) => Some(name.clone()),
                None if self.known.len() >= self.most => self.known.keys().next().cloned(),
                None => None,
            };
            if let Some(name) = makes_room {
                self.known.remove(&name);
            }
        }
        self.known.insert(server.to_owned(), (owner, value));
    }
}

/// The suffix of `name` that is one label longer than `suffix`, if `name` is below it.
fn one_label_below<'n>(name: &'n str, suffix: &str) -> Option<&'n str> {
    let above = name.strip_suffix(suffix)?.strip_suffix('.')?;
    let start = above.rfind('.').map_or(0, |dot| dot + 1);
    Some(&name[start..])
}

/// The canonical spelling of a host: lower case, A-labels, no trailing dot; an IP literal, with or without brackets
/// and zone, as its address.
#[must_use]
pub fn canonical_host(host: &str) -> Host<String> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let without_zone = bare.split_once('%').map_or(bare, |(address, _)| address);
    match without_zone.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V4(address)) => return Host::Ipv4(address),
        Ok(IpAddr::V6(address)) => return Host::Ipv6(address),
        Err(_) => {}
    }
    let name = host.trim_end_matches('.');
    match Host::parse(name) {
        Ok(Host::Domain(name)) => Host::Domain(name.trim_end_matches('.').to_owned()),
        Ok(address) => address,
        // Not a valid host, so it is never reachable.
        Err(_) => Host::Domain(name.to_lowercase()),
    }
}

/// Whether a single label is a top-level domain of the Public Suffix List.
#[must_use]
pub fn is_top_level_domain(label: &str) -> bool {
    let label = label.to_ascii_lowercase();
    !label.contains('.') && psl::suffix(label.as_bytes()).is_some_and(|suffix| suffix.is_known())
}

/// Whether a string is a domain of one or more labels.
#[must_use]
pub fn is_domain(text: &str) -> bool {
    let is_name = matches!(Host::parse(text), Ok(Host::Domain(_)));
    is_name && text.split('.').all(|label| !label.is_empty() && !label.contains('*'))
}

/// The host part of `host:port`.
fn without_port(server: &str) -> &str {
    // The colons of an unbracketed IPv6 address do not introduce a port.
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    match server.rsplit_once(':') {
        Some((host, port)) if is_port(port) && (host.ends_with(']') || !host.contains(':')) => host,
        _ => server,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(hosting_suffixes: &[&str]) -> Owners {
        Owners::new(&hosting_suffixes.iter().map(|&suffix| suffix.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn names_that_cost_nothing_share_one_owner() {
        let owners = owners(&["ems.host", "Hosting.Example.", "bücher-hosting.example"]);
        for (server, owner) in [
            ("hs.test", "hs.test"),
            ("HS.test", "hs.test"),
            ("hs.test.", "hs.test"),
            ("hs.test:8448", "hs.test"),
            ("hs.test.:8449", "hs.test"),
            ("hs.test:", "hs.test"),
            ("sub.hs.test", "hs.test"),
            ("a.b.c.hs.test:1", "hs.test"),
            // Below a two-label suffix, and below a wildcard rule.
            ("matrix.example.co.uk", "example.co.uk"),
            ("example.co.uk:443", "example.co.uk"),
            ("x.a.b.kobe.jp", "a.b.kobe.jp"),
            // The private section: each name below it has its own owner.
            ("alice.github.io", "alice.github.io"),
            ("www.alice.github.io", "alice.github.io"),
            ("bob.github.io", "bob.github.io"),
            // A public suffix itself, and a name without dots.
            ("co.uk", "co.uk"),
            ("github.io", "github.io"),
            ("localhost:8448", "localhost"),
            // One name in two encodings.
            ("matrix.Bücher.example", "xn--bcher-kva.example"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("XN--BCHER-KVA.example.", "xn--bcher-kva.example"),
            ("a.食狮.公司.cn", "xn--85x722f.xn--55qx5d.cn"),
            ("b.xn--85x722f.xn--55qx5d.cn", "xn--85x722f.xn--55qx5d.cn"),
            ("hs。test", "hs.test"),
            // Configured suffixes.
            ("alice.ems.host", "alice.ems.host"),
            ("matrix.alice.ems.host:443", "alice.ems.host"),
            ("ems.host", "ems.host"),
            ("alicems.host", "alicems.host"),
            ("a.alice.hosting.example", "alice.hosting.example"),
            ("a.alice.xn--bcher-hosting-wob.example", "alice.xn--bcher-hosting-wob.example"),
            // Addresses in every spelling.
            ("192.0.2.1", "192.0.2.1"),
            ("192.0.2.1:8448", "192.0.2.1"),
            ("3221225985", "192.0.2.1"),
            ("0xc0.0.2.1", "192.0.2.1"),
            ("[::ffff:192.0.2.1]:8448", "192.0.2.1"),
            ("[64:ff9b::192.0.2.1]", "192.0.2.1"),
            ("[2001:db8:1:2::1]", "2001:db8:1:2::"),
            ("[2001:DB8:1:2:ffff::9]:8448", "2001:db8:1:2::"),
            ("2001:db8:1:2::1", "2001:db8:1:2::"),
            ("[fe80::1%eth0]:8448", "fe80::"),
            ("fe80::2%25eth1", "fe80::"),
            // Not a server name, but still has an owner.
            ("", ""),
            ("A b:1", "a b"),
            ("evil.test:hs.test", "test:hs.test"),
        ] {
            assert_eq!(owners.of(server).to_string(), owner, "{server}");
        }
    }

    #[test]
    fn without_configured_suffixes_the_list_alone_decides() {
        assert_eq!(Owners::default().of("alice.ems.host"), Owners::default().of("bob.ems.host"));
        // A suffix less specific than the list changes nothing.
        assert_eq!(owners(&["uk", "192.0.2.1"]).of("a.example.co.uk").to_string(), "example.co.uk");
    }

    #[test]
    fn a_literal_and_a_connected_address_are_one_owner() {
        let address: IpAddr = [192, 0, 2, 1].into();
        assert_eq!(Owners::default().of("192.0.2.1:8448"), Owner::from(address));
        assert_ne!(Owner::from(address), Owner::from(IpAddr::from([192, 0, 2, 2])));
    }

    #[test]
    fn one_owner_evicts_only_its_own_servers() {
        let mut cache = ByServer::new(Owners::default(), 300);
        cache.insert("hs.example", 0);
        for number in 0..1000 {
            cache.insert(&format!("{number}.evil.test"), number);
        }
        assert_eq!((cache.get("hs.example"), cache.get("999.evil.test")), (Some(&0), Some(&999)));
        assert_eq!(cache.known.len(), 1 + 3);
        // Inserting the same server again takes no more room.
        cache.insert("999.evil.test", 1);
        assert_eq!((cache.known.len(), cache.get("999.evil.test")), (4, Some(&1)));
        for number in 0..1000 {
            cache.insert(&format!("hs{number}.example"), number);
        }
        assert_eq!((cache.known.len(), cache.get("hs999.example")), (300, Some(&999)));
    }

    #[test]
    fn top_level_domains_are_those_of_the_list() {
        assert!(["com", "COM", "uk", "museum"].into_iter().all(is_top_level_domain));
        assert!(!["", "smith", "co.uk", "example"].into_iter().any(is_top_level_domain));
    }

    #[test]
    fn a_suffix_must_be_a_domain() {
        for (text, expected) in [
            ("ems.host", true),
            ("Bücher.example", true),
            ("internal", true),
            ("", false),
            (".ems.host", false),
            ("ems.host.", false),
            ("*.ems.host", false),
            ("https://ems.host", false),
            ("ems.host:443", false),
            ("192.0.2.1", false),
        ] {
            assert_eq!(is_domain(text), expected, "{text}");
        }
    }
}
