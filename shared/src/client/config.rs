//! The section `[outbound]`, and the files that it names.

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

/// Providers of Matrix homeservers that give each customer a sub-domain and are not in the public suffix list: without
/// them all customers of one would share a budget. Each name costs a subscription, so it is not free to multiply.
const HOSTING_SUFFIXES: [&str; 4] = ["ems.host", "etke.host", "modular.im", "onmatrix.chat"];

/// The section `[outbound]`: how other servers are reached.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct OutboundConfig {
    /// Address ranges that are reached although they are not public, such as `127.0.0.0/8`. Default none.
    pub allowed_ranges: Vec<IpNet>,
    /// A PEM file of root certificates, trusted beside the system's. Default none.
    pub extra_ca_file: Option<PathBuf>,
    /// Name servers to ask, `address:port`. Default those of the system.
    pub dns_servers: Vec<SocketAddr>,
    /// Names that are answered from here and not by DNS, `"name" = "address"`. Default none.
    pub hosts: HashMap<String, IpAddr>,
    /// An HTTP proxy for all calls, `http://user:password@host:port`. Default none. A secret for its password.
    pub proxy_url: Option<SecretString>,
    /// A file that holds the proxy's URL.
    pub proxy_url_file: Option<PathBuf>,
    /// What is reached without the proxy: names with all below them, addresses and ranges. Default none.
    pub no_proxy: Vec<String>,
    /// Requests at once on one HTTP/2 connection, where its peer allows as many. Default 1000.
    pub streams_per_connection: usize,
    /// Connections to one server at the most; requests that find none free wait. Default 64.
    pub max_connections_per_origin: usize,
    /// Servers that connections are kept to; those that were used longest ago make room. Default 256.
    pub max_origins: usize,
    /// Domains below which each name is somebody else's, beside those of the public suffix list. Default
    /// `ems.host`, `etke.host`, `modular.im` and `onmatrix.chat`.
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
    /// What the types cannot tell: whether the file of certificates and the proxy can be used.
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

    /// Tells apart whose the servers are that are called or that call.
    #[must_use]
    pub fn owners(&self) -> Owners {
        Owners::new(&self.hosting_suffixes)
    }

    /// The proxy, if there is one; or the key that is wrong, and how.
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

    /// The trusted roots: the system's and the extra ones.
    pub(super) fn roots(&self) -> Result<RootCertStore, OutboundError> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        roots.add_parsable_certificates(self.extra_roots()?);
        if roots.is_empty() {
            tracing::warn!(
                "no root certificates were found, so no TLS server can be trusted: install ca-certificates, or set SSL_CERT_FILE or outbound.extra_ca_file"
            );
        }
        Ok(roots)
    }

    /// The certificates of the extra file, if one is configured.
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

/// The client could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum OutboundError {
    /// A certificate file cannot be read.
    #[error("cannot read {path}")]
    Unreadable {
        /// As configured.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// There are no certificates in the file.
    #[error("{0} holds no PEM certificate")]
    NoCertificate(String),
    /// A client certificate or its key is not what it should be.
    #[error("the client certificate or its key cannot be used: {0}")]
    ClientCertificate(String),
    /// The proxy's configuration: the key, and what is wrong with it.
    #[error("{key}: {problem}")]
    Proxy {
        /// The key.
        key: String,
        /// Without the value, which may hold a password.
        problem: String,
    },
    /// The resolver's configuration cannot be read.
    #[error("the name servers' configuration cannot be read")]
    Resolver(#[source] hickory_resolver::net::NetError),
}
