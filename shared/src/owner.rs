//! Whose server is this? The key under which servers that strangers name are counted, limited and blocked.
//!
//! Ports, sub-domains and spellings of a name cost nothing, so a budget for each of them is no budget. A registrable
//! domain costs something, and so does an address: `https://a.example.co.uk.:8443` belongs to `example.co.uk`, and an
//! IP literal to itself (IPv6: to its /64).
//!
//! Source: the Public Suffix List (<https://publicsuffix.org>) with its private section, compiled in, so that names
//! below `github.io` are different people's.

use std::{collections::HashMap, fmt, net::IpAddr, sync::Arc};

use url::Host;

use crate::source::{RequestSource, source_key};

/// Who answers for a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    /// A registrable domain, in lower case and ASCII, without a final dot.
    Domain(Arc<str>),
    /// An address, or the first of an IPv6 /64.
    Network(IpAddr),
    /// A source that is not known: all of them are one.
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

/// Tells owners apart. Copies share their content.
#[derive(Clone, Debug, Default)]
pub struct Owners {
    hosting_suffixes: Arc<[String]>,
}

impl Owners {
    /// Names directly below one of `hosting_suffixes` are owners of their own, as those below a public suffix are.
    #[must_use]
    pub fn new(hosting_suffixes: &[String]) -> Self {
        let domains = hosting_suffixes.iter().filter_map(|suffix| match canonical_host(suffix) {
            Host::Domain(domain) => Some(domain),
            Host::Ipv4(_) | Host::Ipv6(_) => None,
        });
        Self { hosting_suffixes: domains.collect() }
    }

    /// The owner of a server, named by its host with or without a port. Every text has one, so that what is not a
    /// server's name cannot slip past a limit either.
    #[must_use]
    pub fn of(&self, server: &str) -> Owner {
        match canonical_host(without_port(server)) {
            Host::Domain(name) => Owner::Domain(self.registrable(&name).into()),
            Host::Ipv4(address) => IpAddr::from(address).into(),
            Host::Ipv6(address) => IpAddr::from(address).into(),
        }
    }

    /// The registrable domain of `name`; all of it where there is none, as in `localhost` and `co.uk`.
    fn registrable<'n>(&self, name: &'n str) -> &'n str {
        let listed = psl::domain_str(name).unwrap_or(name);
        let hosted = self.hosting_suffixes.iter().filter_map(|suffix| one_label_below(name, suffix));
        // The longest one tells the most people apart.
        hosted.chain([listed]).max_by_key(|domain| domain.len()).unwrap_or(name)
    }
}

/// What is remembered of servers that strangers name, by their names. No owner has room for more than its share, so
/// that making up names pushes out only what one made up before.
#[derive(Debug)]
pub struct ByServer<V> {
    owners: Owners,
    most: usize,
    most_of_one: usize,
    known: HashMap<String, (Owner, V)>,
}

impl<V> ByServer<V> {
    /// Remembers `most` servers, and of one owner a hundredth of them.
    #[must_use]
    pub fn new(owners: Owners, most: usize) -> Self {
        Self { owners, most, most_of_one: (most / 100).max(1), known: HashMap::new() }
    }

    /// What is remembered of the server.
    #[must_use]
    pub fn get(&self, server: &str) -> Option<&V> {
        self.known.get(server).map(|(_, value)| value)
    }

    /// Remembers `value`; another server's makes room, one of the same owner where that has its share.
    pub fn insert(&mut self, server: &str, value: V) {
        let owner = self.owners.of(server);
        if !self.known.contains_key(server) {
            let mut of_same = self.known.iter().filter(|(_, (other, _))| *other == owner).map(|(name, _)| name);
            // Which of them makes room does not matter much, since each can be asked again.
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

/// The end of `name` that is one label longer than `suffix`, if `name` is below it.
fn one_label_below<'n>(name: &'n str, suffix: &str) -> Option<&'n str> {
    let above = name.strip_suffix(suffix)?.strip_suffix('.')?;
    let start = above.rfind('.').map_or(0, |dot| dot + 1);
    Some(&name[start..])
}

/// A host in the one spelling that all others stand for: lower case, A-labels, no final dot; an IP literal as the
/// address that it is, with or without brackets and zone.
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
        // Not a host, so nothing is ever reached there.
        Err(_) => Host::Domain(name.to_lowercase()),
    }
}

/// Whether a text is a domain, with one label or several.
#[must_use]
pub fn is_domain(text: &str) -> bool {
    let is_name = matches!(Host::parse(text), Ok(Host::Domain(_)));
    is_name && text.split('.').all(|label| !label.is_empty() && !label.contains('*'))
}

/// The host of `host:port`.
fn without_port(server: &str) -> &str {
    // The colons of an IPv6 address without brackets are its own.
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
    fn what_a_stranger_can_multiply_has_one_owner() {
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
            // Under a suffix with two labels, and under a wildcard of the list.
            ("matrix.example.co.uk", "example.co.uk"),
            ("example.co.uk:443", "example.co.uk"),
            ("x.a.b.kobe.jp", "a.b.kobe.jp"),
            // The private section: names below it are different people's.
            ("alice.github.io", "alice.github.io"),
            ("www.alice.github.io", "alice.github.io"),
            ("bob.github.io", "bob.github.io"),
            // A suffix itself, and a name without dots.
            ("co.uk", "co.uk"),
            ("github.io", "github.io"),
            ("localhost:8448", "localhost"),
            // One name in two scripts.
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
            // Addresses, however they are written.
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
            // What is not a server name has an owner all the same.
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
        // One that is less specific than the list takes nothing away from it.
        assert_eq!(owners(&["uk", "192.0.2.1"]).of("a.example.co.uk").to_string(), "example.co.uk");
    }

    #[test]
    fn a_literal_and_a_connected_address_are_one_owner() {
        let address: IpAddr = [192, 0, 2, 1].into();
        assert_eq!(Owners::default().of("192.0.2.1:8448"), Owner::from(address));
        assert_ne!(Owner::from(address), Owner::from(IpAddr::from([192, 0, 2, 2])));
    }

    #[test]
    fn one_owner_pushes_out_only_its_own_servers() {
        let mut cache = ByServer::new(Owners::default(), 300);
        cache.insert("hs.example", 0);
        for number in 0..1000 {
            cache.insert(&format!("{number}.evil.test"), number);
        }
        assert_eq!((cache.get("hs.example"), cache.get("999.evil.test")), (Some(&0), Some(&999)));
        assert_eq!(cache.known.len(), 1 + 3);
        // The same server again takes no more room.
        cache.insert("999.evil.test", 1);
        assert_eq!((cache.known.len(), cache.get("999.evil.test")), (4, Some(&1)));
        for number in 0..1000 {
            cache.insert(&format!("hs{number}.example"), number);
        }
        assert_eq!((cache.known.len(), cache.get("hs999.example")), (300, Some(&999)));
    }

    #[test]
    fn a_suffix_has_to_be_a_domain() {
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
