//! `seen.redis_url`: the address, topology and login of Redis.

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo};
use url::Url;

/// Default ports.
const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// A parsed URL. Its `Debug` shows no password.
#[derive(Clone, Debug)]
pub(crate) enum Address {
    Server(ConnectionInfo),
    Sentinel(Sentinel),
    /// Seed nodes, from which the rest of the cluster is discovered.
    Cluster(Vec<ConnectionInfo>),
}

/// Servers watched by Sentinel.
#[derive(Clone, Debug)]
pub(crate) struct Sentinel {
    pub(super) sentinels: Vec<ConnectionInfo>,
    /// Sentinel's name for the master and its replicas.
    pub(super) service: String,
    is_tls: bool,
    login: RedisConnectionInfo,
}

impl Sentinel {
    /// The master at the address that Sentinel gave.
    pub(super) fn master(&self, host: String, port: u16) -> Option<ConnectionInfo> {
        server(host, port, self.is_tls, &self.login)
    }
}

impl Address {
    /// Parses one of these forms, where `rediss` means TLS:
    ///
    /// - `redis://user:password@host:port/database`
    /// - `redis+sentinel://user:password@host:port,host:port/service/database?sentinel_user=…&sentinel_password=…`
    /// - `redis+cluster://user:password@host:port,host:port`
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.trim().split_once("://")?;
        let (scheme, layout) = scheme.split_once('+').unwrap_or((scheme, ""));
        let is_tls = match scheme {
            "redis" => false,
            "rediss" => true,
            _ => return None,
        };
        // Parse one URL per host: a standard URL has only one.
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let urls: Vec<Url> = hosts
            .split(',')
            .map(|host| Url::parse(&format!("redis://{login}@{host}{path}")).ok())
            .collect::<Option<_>>()?;
        let url = urls.first().filter(|url| url.fragment().is_none())?;

        let path: Vec<&str> = url.path().split('/').filter(|part| !part.is_empty()).collect();
        let (service, database) = match (layout, path.as_slice()) {
            ("" | "cluster", path) => ("", path),
            ("sentinel", [service, database @ ..]) => (*service, database),
            _ => return None,
        };
        let database = match database {
            [] => 0,
            [number] => i64::from(number.parse::<u32>().ok()?),
            _ => return None,
        };
        let login = credentials(url.username(), url.password())?.set_db(database);
        let servers = |default_port: u16, login: &RedisConnectionInfo| {
            let server = |url: &Url| {
                let host = url.host_str().filter(|host| !host.is_empty())?;
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                server(host, url.port().unwrap_or(default_port), is_tls, login)
            };
            urls.iter().map(server).collect::<Option<Vec<_>>>()
        };
        match layout {
            "sentinel" => {
                let (mut user, mut password) = ("", None);
                for pair in url.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
                    // Not form-decoded: a plus in a password is a plus.
                    match pair.split_once('=')? {
                        ("sentinel_user", value) => user = value,
                        ("sentinel_password", value) => password = Some(value),
                        _ => return None,
                    }
                }
                let sentinels = servers(SENTINEL_PORT, &credentials(user, password)?)?;
                Some(Self::Sentinel(Sentinel { sentinels, service: decoded(service)?, is_tls, login }))
            }
            _ if url.query().is_some() => None,
            "cluster" => Some(Self::Cluster(servers(REDIS_PORT, &login)?)),
            _ => match servers(REDIS_PORT, &login)?.as_slice() {
                [server] => Some(Self::Server(server.clone())),
                _ => None,
            },
        }
    }
}

fn decoded(text: &str) -> Option<String> {
    Some(percent_decode_str(text).decode_utf8().ok()?.into_owned())
}

/// None for a user without a password.
fn credentials(user: &str, password: Option<&str>) -> Option<RedisConnectionInfo> {
    let mut login = RedisConnectionInfo::default();
    match password {
        Some(password) => login = login.set_password(decoded(password)?),
        None if user.is_empty() => {}
        None => return None,
    }
    if !user.is_empty() {
        login = login.set_username(decoded(user)?);
    }
    Some(login)
}

fn server(host: String, port: u16, is_tls: bool, login: &RedisConnectionInfo) -> Option<ConnectionInfo> {
    let address = match is_tls {
        false => ConnectionAddr::Tcp(host, port),
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
    };
    Some(address.into_connection_info().ok()?.set_redis_settings(login.clone()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Each server as `host:port`, followed by `tls`, user, password and database where they are set.
    fn shown(servers: &[ConnectionInfo]) -> Vec<String> {
        let shown = |server: &ConnectionInfo| {
            let login = server.redis_settings();
            let tls = matches!(server.addr(), ConnectionAddr::TcpTls { .. }).then_some("tls");
            let parts = [tls, login.username(), login.password()].into_iter().flatten();
            let database = (login.db() != 0).then(|| login.db().to_string());
            let parts = parts.map(str::to_owned).chain(database);
            [server.addr().to_string()].into_iter().chain(parts).collect::<Vec<_>>().join(" ")
        };
        servers.iter().map(shown).collect()
    }

    #[test]
    fn a_single_server_is_parsed() {
        for (text, expected) in [
            ("redis://cache", "cache:6379"),
            ("redis://127.0.0.1:7000/", "127.0.0.1:7000"),
            ("rediss://cache.example.com:6380/2\n", "cache.example.com:6380 tls 2"),
            ("redis://[::1]:7000", "::1:7000"),
            ("redis://:sword%2Ffish@cache/3", "cache:6379 sword/fish 3"),
            ("redis://push:se+cr@et@cache", "cache:6379 push se+cr@et"),
        ] {
            let Some(Address::Server(server)) = Address::parse(text) else { panic!("{text}") };
            assert_eq!(shown(&[server]), [expected], "{text}");
        }
    }

    #[test]
    fn servers_behind_sentinel_are_parsed() {
        let text = "rediss+sentinel://push:secret@s1,s2:7000/my%20master/2?sentinel_user=u&sentinel_password=a+b%26";
        let Some(Address::Sentinel(sentinel)) = Address::parse(text) else { panic!("{text}") };
        assert_eq!(shown(&sentinel.sentinels), ["s1:26379 tls u a+b&", "s2:7000 tls u a+b&"]);
        assert_eq!(sentinel.service, "my master");
        assert_eq!(
            shown(&[sentinel.master("10.0.0.1".to_owned(), 6380).unwrap()]),
            ["10.0.0.1:6380 tls push secret 2"]
        );

        let Some(Address::Sentinel(sentinel)) = Address::parse("redis+sentinel://s1/main") else { panic!() };
        assert_eq!((shown(&sentinel.sentinels), sentinel.service.as_str()), (vec!["s1:26379".to_owned()], "main"));
        assert_eq!(shown(&[sentinel.master("m".to_owned(), 1).unwrap()]), ["m:1"]);
    }

    #[test]
    fn a_cluster_is_parsed() {
        let Some(Address::Cluster(seeds)) = Address::parse("redis+cluster://:secret@a,b:7001,[::1]:7002") else {
            panic!()
        };
        assert_eq!(shown(&seeds), ["a:6379 secret", "b:7001 secret", "::1:7002 secret"]);
        let Some(Address::Cluster(seeds)) = Address::parse("rediss+cluster://a") else { panic!() };
        assert_eq!(shown(&seeds), ["a:6379 tls"]);
    }

    #[test]
    fn an_invalid_address_is_none() {
        for text in [
            "cache:6379",
            "http://cache",
            "redis://",
            "redis:///0",
            "redis://user@cache",
            "redis://cache/a",
            "redis://cache/-1",
            "redis://cache/0/1",
            "redis://a?b",
            "redis://a#insecure",
            "redis://a,b",
            "redis+cluster://a,,b",
            "redis+cluster://a?b=c",
            "redis+sentinel://a",
            "redis+sentinel://a/main/x",
            "redis+sentinel://a/main?sentinel_user=u",
            "redis+sentinel://a/main?password=p",
            "redis+unix://a",
        ] {
            assert!(Address::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        for text in [
            "redis://:swordfish@cache",
            "redis+cluster://:swordfish@cache",
            "redis+sentinel://:swordfish@cache/main?sentinel_password=swordfish",
        ] {
            let printed = format!("{:?}", Address::parse(text).unwrap());
            assert!(!printed.contains("swordfish"), "{printed}");
        }
    }
}
