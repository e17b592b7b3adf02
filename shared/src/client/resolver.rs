//! DNS: addresses and SRV records, from the configured name servers or the system's.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
};

use crate::random;

/// A DNS resolver. Clones share one cache.
#[derive(Clone)]
pub struct Resolver {
    dns: TokioResolver,
    hosts: Arc<HashMap<String, IpAddr>>,
}

/// One target of an SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SrvTarget {
    /// The host to connect to, without the trailing dot.
    pub host: String,
    /// The port to connect to.
    pub port: u16,
}

impl Resolver {
    /// A resolver that queries `servers`, or those in `/etc/resolv.conf` if there are none. `hosts` take precedence
    /// over DNS.
    ///
    /// # Errors
    ///
    /// If the system's configuration cannot be read.
    pub fn new(servers: &[SocketAddr], hosts: HashMap<String, IpAddr>) -> Result<Self, NetError> {
        let mut builder = if servers.is_empty() {
            TokioResolver::builder_tokio()?
        } else {
            let servers = servers.iter().map(|server| name_server(*server)).collect();
            let config = ResolverConfig::from_name_servers(servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        Ok(Self { dns: builder.build()?, hosts: Arc::new(hosts) })
    }

    /// The addresses of `host`; an address literal resolves to itself.
    ///
    /// # Errors
    ///
    /// The resolver's error, including that the name does not exist.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, NetError> {
        if let Some(address) = self.fixed(host) {
            return Ok(vec![address]);
        }
        Ok(self.dns.lookup_ip(host).await?.iter().collect())
    }

    /// The address of `host`, if it is known without querying DNS.
    #[must_use]
    pub fn fixed(&self, host: &str) -> Option<IpAddr> {
        host.parse().ok().or_else(|| self.hosts.get(&host.to_ascii_lowercase()).copied())
    }

    /// The targets of an SRV record in the order in which to try them (RFC 2782): lowest priority first, and weighted
    /// randomly within a priority. Empty if there is no record.
    ///
    /// # Errors
    ///
    /// The resolver's error, if it could not find out whether there is a record.
    pub async fn srv(&self, name: &str) -> Result<Vec<SrvTarget>, NetError> {
        // Absolute, so that the system's search domains are not tried.
        let lookup = match self.dns.srv_lookup(format!("{name}.")).await {
            Ok(lookup) => lookup,
            Err(error) if error.is_no_records_found() => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let records = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => Some(Weighted {
                priority: srv.priority,
                weight: srv.weight,
                target: SrvTarget { host: srv.target.to_utf8().trim_end_matches('.').to_owned(), port: srv.port },
            }),
            _ => None,
        });
        Ok(in_order(records.collect()))
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
    for connection in &mut connections {
        connection.port = address.port();
    }
    NameServerConfig::new(address.ip(), true, connections)
}

#[derive(Clone, Debug)]
struct Weighted {
    priority: u16,
    weight: u16,
    target: SrvTarget,
}

fn in_order(mut records: Vec<Weighted>) -> Vec<SrvTarget> {
    // A target of "." means that the service is not available (RFC 2782).
    records.retain(|record| !record.target.host.is_empty());
    records.sort_by_key(|record| (record.priority, record.weight));
    let mut ordered = Vec::with_capacity(records.len());
    while let Some(priority) = records.first().map(|record| record.priority) {
        let same = records.iter().take_while(|record| record.priority == priority);
        let total: u64 = same.map(|record| u64::from(record.weight)).sum();
        let mut left = random::below(total + 1);
        let chosen = records.iter().position(|record| {
            let weight = u64::from(record.weight);
            let here = left <= weight;
            left = left.saturating_sub(weight);
            here
        });
        ordered.push(records.remove(chosen.unwrap_or(0)).target);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(priority: u16, weight: u16, host: &str) -> Weighted {
        Weighted { priority, weight, target: SrvTarget { host: host.to_owned(), port: 8448 } }
    }

    #[test]
    fn srv_targets_are_ordered_by_priority_and_weight() {
        let mut first_of_ten = HashMap::new();
        for _ in 0..400 {
            let records =
                vec![record(20, 0, "last"), record(10, 90, "heavy"), record(10, 10, "light"), record(10, 0, "")];
            let order: Vec<_> = in_order(records).into_iter().map(|target| target.host).collect();
            assert_eq!((order.len(), order[2].as_str()), (3, "last"));
            *first_of_ten.entry(order[0].clone()).or_insert(0) += 1;
        }
        // 360 of 400 are expected; 280 is 13 standard deviations below.
        assert!(first_of_ten["heavy"] > 280, "{first_of_ten:?}");
        assert!(first_of_ten["light"] > 0, "{first_of_ten:?}");
    }
}
