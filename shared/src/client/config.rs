//! The section `[outbound]`, and the files it refers to.

use std::{
    collections::HashMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use ipnet::IpNet;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use serde::Deserialize;

use super::proxy::{NotAProxy, Proxy};
use crate::{
    config::{
        file::{ConfigError, Source},
        secret::{SecretString, inline_or_file},
    },
    error::Chain,
    owner::{Owners, is_domain},
};

/// Matrix hosting providers that give each customer a subdomain and are not in the Public Suffix List: without this,
/// all customers of a provider would share one budget. Each such name costs a subscription, so they cannot be
/// multiplied for free.
const HOSTING_SUFFIXES: [&str; 4] = ["ems.host", "etke.host", "modular.im", "onmatrix.chat"];

/// The section `[outbound]`: how other servers are reached.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct OutboundConfig {
    /// Address ranges that may be reached although they are not public, such as `127.0.0.0/8`. Default none.
    pub allowed_ranges: Vec<IpNet>,
    /// A PEM file of root certificates to trust in addition to the system's. Default none.
    pub extra_ca_file: Option<PathBuf>,
    /// Name servers to query, `address:port`. Default those of the system.
    pub dns_servers: Vec<SocketAddr>,
    /// Names resolved from here instead of DNS, `"name" = "address"`. Default none.
    pub hosts: HashMap<String, IpAddr>,
    /// An HTTP proxy for all calls, `http://user:password@host:port`. Default none. Secret, because it may contain a
    /// password.
    pub proxy_url: Option<SecretString>,
    /// A file that contains the proxy's URL.
    pub proxy_url_file: Option<PathBuf>,
    /// Destinations reached without the proxy: names (including all subdomains), addresses and ranges. Default none.
    pub no_proxy: Vec<String>,
    /// Concurrent requests per HTTP/2 connection, if the peer allows as many. Default 1000.
    pub streams_per_connection: usize,
    /// Limit on connections to one server; requests that find none free wait. Default 64.
    pub max_connections_per_origin: usize,
    /// Limit on servers to which connections are kept; the least recently used are dropped. Default 256.
    pub max_origins: usize,
    /// Domains below which each name has a different owner, in addition to the Public Suffix List. Default `ems.host`,
    /// `etke.host`, `modular.im` and `onmatrix.chat`.
    pub hosting_suffixes: Vec<String>,
}

impl Default for OutboundConfig {
    fn default() -> Self {
        Self {
            allowed_ranges: Vec::new(),
            extra_ca_file: None,
            dns_servers: Vec::new(),
            hosts: HashMap::new(),
            proxy_url: None,
            proxy_url_file: None,
            no_proxy: Vec::new(),
            streams_per_connection: 1000,
            max_connections_per_origin: 64,
            max_origins: 256,
            hosting_suffixes: HOSTING_SUFFIXES.map(str::to_owned).to_vec(),
        }
    }
}

impl OutboundConfig {
    /// Checks that the types cannot express: whether the certificate file and the proxy are usable.
    #[must_use]
    pub fn problems(&self, source: &Source) -> Vec<ConfigError> {
        let mut problems = Vec::new();
        if let Err(error) = self.extra_roots() {
            let problem = Chain(&error).to_string();
            problems.push(source.error("outbound.extra_ca_file", problem));
        }
        if let Err((key, problem)) = self.proxy() {
            problems.push(source.error(&key, problem));
        }
        for (key, value) in [
            ("streams_per_connection", self.streams_per_connection),
            ("max_connections_per_origin", self.max_connections_per_origin),
            ("max_origins", self.max_origins),
        ] {
            if value == 0 {
                problems.push(source.error(&format!("outbound.{key}"), "must be 1 or more"));
            }
        }
        for (number, suffix) in self.hosting_suffixes.iter().enumerate().filter(|(_, suffix)| !is_domain(suffix)) {
            let problem = format!("{suffix:?} is not a domain, such as \"ems.host\"");
            problems.push(source.error(&format!("outbound.hosting_suffixes.{number}"), problem));
        }
        problems
    }

    /// Determines the owners of servers that are called or that call us.
    #[must_use]
    pub fn owners(&self) -> Owners {
        Owners::new(&self.hosting_suffixes)
    }

    /// The proxy, if any; or the key that is wrong, and what is wrong with it.
    pub(super) fn proxy(&self) -> Result<Option<Proxy>, (String, String)> {
        let url = match inline_or_file(self.proxy_url.as_ref(), self.proxy_url_file.as_deref()) {
            Ok(Some(url)) => url,
            Ok(None) => return Ok(None),
            Err(error) => return Err((error.key("outbound.proxy_url"), error.to_string())),
        };
        Proxy::new(&url, &self.no_proxy).map(Some).map_err(|error| {
            let key = match &error {
                NotAProxy::Url if self.proxy_url_file.is_some() => "outbound.proxy_url_file",
                NotAProxy::Url => "outbound.proxy_url",
                NotAProxy::Exception(_) => "outbound.no_proxy",
            };
            (key.to_owned(), error.to_string())
        })
    }

    /// The trusted roots: the system's and the additional ones.
    pub(super) fn roots(&self) -> Result<RootCertStore, OutboundError> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        roots.add_parsable_certificates(self.extra_roots()?);
        if roots.is_empty() {
            tracing::warn!(
                "no root certificates found, so every TLS connection will fail: install ca-certificates, or set SSL_CERT_FILE or outbound.extra_ca_file"
            );
        }
        Ok(roots)
    }

    /// The certificates in the additional file, if one is configured.
    fn extra_roots(&self) -> Result<Vec<CertificateDer<'static>>, OutboundError> {
        let Some(path) = &self.extra_ca_file else { return Ok(Vec::new()) };
        let name = path.display().to_string();
        let pem = match fs::read(path) {
            Ok(pem) => pem,
            Err(source) => return Err(OutboundError::Unreadable { path: name, source }),
        };
        let extra: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect();
        let (good, _) = RootCertStore::empty().add_parsable_certificates(extra.iter().cloned());
        if good == 0 { Err(OutboundError::NoCertificate(name)) } else { Ok(extra) }
    }
}

/// Why the client could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// A certificate file cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// The path as configured.
        path: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The file contains no certificates.
    #[error("{0} contains no PEM certificate")]
    NoCertificate(String),
    /// A client certificate or its key is invalid.
    #[error("the client certificate or its key cannot be used: {0}")]
    ClientCertificate(String),
    /// The proxy is misconfigured: the key, and what is wrong with it.
    #[error("{key}: {problem}")]
    Proxy {
        /// The key.
        key: String,
        /// Without the value, which may contain a password.
        problem: String,
    },
    /// The resolver's configuration cannot be read.
    #[error("the name server configuration cannot be read")]
    Resolver(#[source] hickory_resolver::net::NetError),
}
