//! The smaller sections of the configuration; the larger ones have files of their own.

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
    /// For the operator's own programs, with `internal.secret`; never public. Default none: there is no such listener.
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
    /// The name in signatures, by which clients know the server. Default `localhost`.
    pub(crate) server_name: String,
    /// The base URL of links in emails. Default none: `http://` and `listen.public`.
    pub(crate) public_base_url: Option<Url>,
    /// The folder for the embedded database and for keys generated on first start. Default `./waypost-data`.
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
    /// Maximum number of connections. Default 10.
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
    /// The key that addresses are encrypted with. Default `storage.key` in the data folder, generated on first start
    /// (with SQLite only: replicas must share one).
    pub(crate) storage_key_file: Option<PathBuf>,
    /// The key that signs associations, in the format of Synapse and Sydent; if there are several lines, the first one
    /// signs and all remain valid. Default `signing.key` in the data folder, likewise.
    pub(crate) signing_key_file: Option<PathBuf>,
}

/// How addresses are validated.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ValidationConfig {
    /// `click`: the page behind an email's link has a button. `link`: opening the link is enough, as in the
    /// specification; but mail scanners open links too. Default click.
    pub(crate) confirm: Confirm,
    /// Seconds that a session lives after its last request, and again after its validation. Default 86400.
    pub(crate) session_lifetime_secs: u64,
    /// Wrong tokens until a session is closed. Default 10.
    pub(crate) max_attempts: u32,
    /// Where `next_link` may point: origins, with or without a path that ends in `*`; the host may contain `*`. Default
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
    /// Maximum number of addresses in one request. Default 10000.
    pub(crate) max_addresses: usize,
    /// Whether lookups without hashing (`none`) are allowed: clients then send plain addresses. Default false.
    pub(crate) allow_none: bool,
    /// Days after which the pepper is rotated; 0 means never. Default 0.
    pub(crate) rotate_pepper_days: u32,
    /// Seconds from a rotation until the new pepper is announced: the time that replicas have to build their index.
    /// Default 60.
    pub(crate) pepper_lead_secs: u64,
    /// Seconds that a pepper is still accepted after the next one is announced, since clients keep it for a while.
    /// Default 86400.
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

/// How people who are not on Matrix yet are invited.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct InvitesConfig {
    /// Days that an invite waits for its address to be bound. Default 180.
    pub(crate) lifetime_days: u32,
    /// The web client that emails link to. Default `https://app.element.io`.
    pub(crate) web_client_url: Url,
    /// Web clients that a homeserver may name instead (`org.matrix.web_client_location`), in the format of
    /// `next_link_allowed`. Default none, because the link contains the key that accepts the invite.
    pub(crate) web_clients_allowed: Vec<String>,
    /// Characters before the @ of an invited address that the room may see. Default 3.
    pub(crate) redact_local_chars: usize,
    /// Characters after it. Default 3.
    pub(crate) redact_domain_chars: usize,
    /// Invites that are refused. Default none.
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

/// How homeservers are notified of bindings (onbind).
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OutboxConfig {
    /// Maximum number of calls in flight, in each replica. Default 32.
    pub(crate) at_once: usize,
    /// Seconds until the first retry, doubling each time. Default 1.
    pub(crate) first_retry_secs: u64,
    /// Maximum number of seconds between two attempts. Default 3600.
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

/// How long access tokens are valid.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TokensConfig {
    /// Days without use after which a token expires. Default 365.
    pub(crate) unused_days: u32,
    /// Seconds that a token is cached; a logout may take as long to reach other replicas. Default 10.
    pub(crate) cache_secs: u64,
    /// Whether `?access_token=` is accepted. Removed in Matrix 1.20, but Synapse still sends it. Default true.
    pub(crate) allow_in_query: bool,
}

impl Default for TokensConfig {
    fn default() -> Self {
        Self { unused_days: 365, cache_secs: 10, allow_in_query: true }
    }
}

/// The policies that users must accept.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TermsConfig {
    /// By an ID of the operator's choice. Default none.
    pub(crate) policies: BTreeMap<String, Policy>,
}

/// The homeservers whose users may use this server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HomeserversConfig {
    /// Server names; an empty list allows all. Default none.
    pub(crate) allow: Vec<String>,
    /// Server names whose users may look up as much as those of servers in `allow`, where that is empty. Default none.
    pub(crate) trusted: Vec<String>,
    /// Where to connect for a server name, `"name" = "host:port"`, without discovery. TLS still verifies the name.
    /// Default none.
    pub(crate) overrides: BTreeMap<String, String>,
}

impl HomeserversConfig {
    /// Whether users of `server_name` may use this server.
    pub(crate) fn allows(&self, server_name: &str) -> bool {
        self.allow.is_empty() || self.allow.iter().any(|name| is_same_server(name, server_name))
    }

    /// Whether the operator has named this server, in `allow` or in `trusted`.
    pub(crate) fn names(&self, server_name: &str) -> bool {
        self.allow.iter().chain(&self.trusted).any(|name| is_same_server(name, server_name))
    }
}

/// The internal listener.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct InternalConfig {
    /// The secret that its callers send as `Authorization: Bearer …`; 16 characters or more. Default none.
    pub(crate) secret: Option<SecretString>,
    /// A file that holds it. Default none.
    pub(crate) secret_file: Option<PathBuf>,
}

/// The v1 API, for programs that still call it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct V1Config {
    /// `off`, `minimal` or `full`. Default minimal.
    pub(crate) mode: V1Mode,
    /// Address ranges of the homeservers that may call more than everyone may, since v1 has no tokens. Default none.
    pub(crate) allow: Vec<IpNet>,
}

/// See [`V1Config::mode`].
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum V1Mode {
    /// Not served.
    Off,
    /// For everyone: the status check, keys, sign-ed25519. For `allow`: phone numbers (Synapse's SMS delegate).
    #[default]
    Minimal,
    /// For `allow`, also: email addresses, bind, lookup and store-invite (Dendrite).
    Full,
}
