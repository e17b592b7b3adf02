//! The sections of the configuration, but for the larger ones, which have files of their own.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use ipnet::IpNet;
use serde::Deserialize;
use url::Url;
use waypost_shared::config::secret::SecretString;

use crate::domain::{invite::Blocked, server_name::is_same_server, terms::Policy};

/// Where the service listens.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ListenConfig {
    /// For clients and homeservers. Default `127.0.0.1:8090`.
    pub(crate) public: SocketAddr,
    /// For health checks and Prometheus; never public. Default `127.0.0.1:8091`.
    pub(crate) operations: SocketAddr,
    /// For programs of the operator's own, with `internal.secret`; never public. Default none: there is none.
    pub(crate) internal: Option<SocketAddr>,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self {
            public: SocketAddr::from(([127, 0, 0, 1], 8090)),
            operations: SocketAddr::from(([127, 0, 0, 1], 8091)),
            internal: None,
        }
    }
}

/// Who this server is.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct IdentityConfig {
    /// The name in signatures, as clients know the server. Default `localhost`.
    pub(crate) server_name: String,
    /// The address in mails, as people reach the server. Default none: `http://` and `listen.public`.
    pub(crate) public_base_url: Option<Url>,
    /// The folder of the embedded database and of keys made at the first start. Default `./waypost-data`.
    pub(crate) data_dir: PathBuf,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self { server_name: "localhost".to_owned(), public_base_url: None, data_dir: PathBuf::from("./waypost-data") }
    }
}

/// The database.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DatabaseConfig {
    /// `postgres://user:password@host/name`, or `sqlite:FILE`. Default none: SQLite in the data folder.
    pub(crate) url: Option<SecretString>,
    /// A file that holds the URL. Default none.
    pub(crate) url_file: Option<PathBuf>,
    /// Connections at the most. Default 10.
    pub(crate) max_connections: u32,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self { url: None, url_file: None, max_connections: 10 }
    }
}

/// The keys outside the database.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct KeysConfig {
    /// What addresses are sealed with. Default `storage.key` in the data folder, made at the first start (with SQLite
    /// only: replicas must share one).
    pub(crate) storage_key_file: Option<PathBuf>,
    /// What associations are signed with, in the format of Synapse and Sydent; of several lines the first one signs,
    /// and all are known. Default `signing.key` in the data
    /// folder, made likewise.
    pub(crate) signing_key_file: Option<PathBuf>,
}

/// How addresses are proven.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ValidationConfig {
    /// `click`: the page behind a mail's link has a button. `link`: opening the link is enough, as the specification
    /// reads; but mail scanners open links too. Default click.
    pub(crate) confirm: Confirm,
    /// Seconds a session lives after its last request, and again after its validation. Default 86400.
    pub(crate) session_lifetime_secs: u64,
    /// Wrong tokens until a session is closed. Default 10.
    pub(crate) max_attempts: u32,
    /// Where `next_link` may lead: origins, with or without a path that ends in `*`; the host may have `*`. Default
    /// none.
    pub(crate) next_link_allowed: Vec<String>,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { confirm: Confirm::Click, session_lifetime_secs: 86_400, max_attempts: 10, next_link_allowed: Vec::new() }
    }
}

/// See [`ValidationConfig::confirm`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Confirm {
    /// By a button.
    Click,
    /// By opening the link.
    Link,
}

/// How contacts are found.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LookupConfig {
    /// Addresses in one request at the most. Default 10000.
    pub(crate) max_addresses: usize,
    /// Whether lookups without hashing (`none`) are answered: clients then send plain addresses. Default false.
    pub(crate) allow_none: bool,
    /// Days after which the pepper is rotated; 0 is never. Default 0.
    pub(crate) rotate_pepper_days: u32,
    /// Seconds from a rotation until the new pepper is handed out: the time that all replicas have to prepare for it.
    /// Default 60.
    pub(crate) pepper_lead_secs: u64,
    /// Seconds a pepper is still answered after the next one is handed out: clients keep it for a while. Default
    /// 86400.
    pub(crate) previous_pepper_secs: u64,
}

impl Default for LookupConfig {
    fn default() -> Self {
        Self {
            max_addresses: 10_000,
            allow_none: false,
            rotate_pepper_days: 0,
            pepper_lead_secs: 60,
            previous_pepper_secs: 86_400,
        }
    }
}

/// How people are invited who are not on Matrix yet.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct InvitesConfig {
    /// Days that an invite waits for its address to be bound. Default 180.
    pub(crate) lifetime_days: u32,
    /// The web client that mails lead to. Default `https://app.element.io`.
    pub(crate) web_client_url: Url,
    /// Web clients that a homeserver may name instead (`org.matrix.web_client_location`), as `next_link_allowed` has
    /// them. Default none: the link holds what the invite is accepted with.
    pub(crate) web_clients_allowed: Vec<String>,
    /// Characters before the @ of an invited address that the room sees. Default 3.
    pub(crate) redact_local_chars: usize,
    /// Characters after it. Default 3.
    pub(crate) redact_domain_chars: usize,
    /// Invites that are not taken. Default none.
    pub(crate) blocked: Blocked,
}

impl Default for InvitesConfig {
    fn default() -> Self {
        Self {
            lifetime_days: 180,
            web_client_url: Url::parse("https://app.element.io").expect("this is a URL"),
            web_clients_allowed: Vec::new(),
            redact_local_chars: 3,
            redact_domain_chars: 3,
            blocked: Blocked::default(),
        }
    }
}

/// How homeservers are told of bindings (onbind).
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OutboxConfig {
    /// Calls under way at once, in each replica. Default 32.
    pub(crate) at_once: usize,
    /// Seconds until the second try; then twice as long each time. Default 1.
    pub(crate) first_retry_secs: u64,
    /// Seconds between two tries at the most. Default 3600.
    pub(crate) max_retry_secs: u64,
    /// Seconds after which a call is given up. Default 604800, a week.
    pub(crate) retry_for_secs: u64,
    /// Days that a call is kept after it was given up, for `outbox retry`. Default 30.
    pub(crate) keep_dead_days: u32,
}

impl Default for OutboxConfig {
    fn default() -> Self {
        Self { at_once: 32, first_retry_secs: 1, max_retry_secs: 3600, retry_for_secs: 604_800, keep_dead_days: 30 }
    }
}

/// How long access tokens are good for.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TokensConfig {
    /// Days without use after which a token ends. Default 365.
    pub(crate) unused_days: u32,
    /// Seconds a token is believed without asking the database again; on another replica a logout takes as long.
    /// Default 10.
    pub(crate) cache_secs: u64,
    /// Whether `?access_token=` counts. Removed from Matrix 1.20, and Synapse still sends it. Default true.
    pub(crate) allow_in_query: bool,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self { unused_days: 365, cache_secs: 10, allow_in_query: true }
    }
}

/// What users agree to.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TermsConfig {
    /// By id; the id is free to choose. Default none.
    pub(crate) policies: BTreeMap<String, Policy>,
}

/// Whose users may use this server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HomeserversConfig {
    /// Server names; an empty list allows all. Default none.
    pub(crate) allow: Vec<String>,
    /// Where to connect for a server name, `"name" = "host:port"`, without discovery. TLS is still for the name.
    /// Default none.
    pub(crate) overrides: BTreeMap<String, String>,
}

impl HomeserversConfig {
    /// Whether users of `server_name` may use this server.
    pub(crate) fn allows(&self, server_name: &str) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|name| is_same_server(name, server_name))
    }
}

/// The internal listener.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct InternalConfig {
    /// What its callers send as `Authorization: Bearer …`; 16 characters or more. Default none.
    pub(crate) secret: Option<SecretString>,
    /// A file that holds it. Default none.
    pub(crate) secret_file: Option<PathBuf>,
}

/// The older API, for the programs that still call it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct V1Config {
    /// `off`, `minimal` or `full`. Default minimal.
    pub(crate) mode: V1Mode,
    /// Address ranges of the homeservers that may call what needs no proof from others: in v1 nobody has a token.
    /// Default none.
    pub(crate) allow: Vec<IpNet>,
}

/// See [`V1Config::mode`].
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum V1Mode {
    /// Nothing of it.
    Off,
    /// For all: the status check, keys, sign-ed25519. For `allow`: phone numbers (Synapse's SMS delegate).
    #[default]
    Minimal,
    /// For `allow` also email addresses, bind, lookup and store-invite (Dendrite).
    Full,
}
