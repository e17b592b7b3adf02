//! The configuration: every key, its default and its unit. `config.sample.toml` shows the same to operators.

pub(crate) mod sms;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;
use url::Url;
use waypost_shared::{
    config_file::{self, ConfigError, Loaded, Source},
    http_client::OutboundConfig,
    secret::{self, ExposeSecret as _, SecretString},
    serve::ServerConfig,
    telemetry::LogConfig,
    traces::TracesConfig,
};

use self::sms::SmsConfig;
use crate::{
    delivery,
    domain::{invite::Blocked, language, server_name::ServerName, terms::Policy},
    storage::{self, rate_limits::Budget},
};

/// The whole configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) listen: ListenConfig,
    pub(crate) identity: IdentityConfig,
    pub(crate) database: DatabaseConfig,
    pub(crate) keys: KeysConfig,
    pub(crate) email: EmailConfig,
    pub(crate) sms: SmsConfig,
    pub(crate) validation: ValidationConfig,
    pub(crate) lookup: LookupConfig,
    pub(crate) invites: InvitesConfig,
    pub(crate) outbox: OutboxConfig,
    pub(crate) tokens: TokensConfig,
    pub(crate) terms: TermsConfig,
    pub(crate) homeservers: HomeserversConfig,
    pub(crate) limits: LimitsConfig,
    pub(crate) internal: InternalConfig,
    pub(crate) v1: V1Config,
    pub(crate) server: ServerConfig,
    pub(crate) outbound: OutboundConfig,
    pub(crate) log: LogConfig,
    pub(crate) traces: TracesConfig,
}

/// Where the service listens.
#[derive(Clone, Debug, Deserialize)]
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
#[derive(Clone, Debug, Deserialize)]
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
#[derive(Clone, Debug, Deserialize)]
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
#[derive(Clone, Debug, Default, Deserialize)]
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

/// How mail goes out.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EmailConfig {
    /// `smtp`, or `folder`: written to files, and the link to the log, to try things out. Default folder.
    pub(crate) transport: EmailTransport,
    /// The sender. Default `Waypost <noreply@localhost>`.
    pub(crate) from: String,
    /// The SMTP server. Default `localhost`.
    pub(crate) smtp_host: String,
    /// Its port. Default 25.
    pub(crate) smtp_port: u16,
    /// `none`, `starttls` (required, not merely tried) or `tls`. Default starttls.
    pub(crate) smtp_tls: SmtpTls,
    /// Whom to authenticate as. Default none.
    pub(crate) smtp_username: Option<String>,
    /// With which password. Default none.
    pub(crate) smtp_password: Option<SecretString>,
    /// A file that holds the password. Default none.
    pub(crate) smtp_password_file: Option<PathBuf>,
    /// Mails under way at once. Default 10.
    pub(crate) smtp_max_connections: u32,
    /// Seconds for one mail. Default 30.
    pub(crate) smtp_timeout_secs: u64,
    /// Where the folder transport writes. Default `mail` in the data folder.
    pub(crate) folder: Option<PathBuf>,
    /// A folder with templates that take the place of the built-in ones of the same names. Default none.
    pub(crate) template_dir: Option<PathBuf>,
    /// The language of who reads none that there are templates in. Default en.
    pub(crate) default_language: String,
}

impl Default for EmailConfig {
    fn default() -> Self {
        Self {
            transport: EmailTransport::Folder,
            from: "Waypost <noreply@localhost>".to_owned(),
            smtp_host: "localhost".to_owned(),
            smtp_port: 25,
            smtp_tls: SmtpTls::Starttls,
            smtp_username: None,
            smtp_password: None,
            smtp_password_file: None,
            smtp_max_connections: 10,
            smtp_timeout_secs: 30,
            folder: None,
            template_dir: None,
            default_language: language::ENGLISH.to_owned(),
        }
    }
}

/// See [`EmailConfig::transport`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EmailTransport {
    /// To a mail server.
    Smtp,
    /// To files.
    Folder,
}

/// See [`EmailConfig::smtp_tls`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SmtpTls {
    /// In the clear.
    None,
    /// Encrypted after STARTTLS, or not at all.
    Starttls,
    /// Encrypted from the first byte.
    Tls,
}

/// How addresses are proven.
#[derive(Clone, Debug, Deserialize)]
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
#[derive(Clone, Debug, Deserialize)]
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
#[derive(Clone, Debug, Deserialize)]
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
#[derive(Clone, Debug, Deserialize)]
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
#[derive(Clone, Debug, Deserialize)]
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
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct TermsConfig {
    /// By id; the id is free to choose. Default none.
    pub(crate) policies: BTreeMap<String, Policy>,
}

/// Whose users may use this server.
#[derive(Clone, Debug, Default, Deserialize)]
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
        self.allow.is_empty() || self.allow.iter().any(|name| name == server_name)
    }

    /// The same, of a Matrix id; what has no server is nobody's.
    pub(crate) fn allows_user(&self, mxid: &str) -> bool {
        mxid.split_once(':').is_some_and(|(_, server_name)| self.allows(server_name))
    }
}

/// How much is too much. A burst of 0 is no limit.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    /// Registrations from one source address, in each replica. Default 20, then one in 3 seconds.
    pub(crate) register_per_source: Rate,
    /// Lookups by one account, in each replica. Default 50, then one a second.
    pub(crate) lookup_per_account: Rate,
    /// Lookups by all accounts of one homeserver, in each replica. Default 2000, then 50 a second.
    pub(crate) lookup_per_homeserver: Rate,
    /// Addresses that one account looks up, in each replica. Default 50000, then 50000 a day.
    pub(crate) addresses_per_account: Rate,
    /// Addresses that all accounts of one homeserver look up, in each replica. Default 1000000, then 100 a second.
    pub(crate) addresses_per_homeserver: Rate,
    /// Mails to one address. Default 5, then one in 5 minutes.
    pub(crate) mail_per_address: Rate,
    /// Mails that one account asks for. Default 10, then one in a minute.
    pub(crate) mail_per_account: Rate,
    /// Mails that one source address asks for. Default 20, then one in 30 seconds.
    pub(crate) mail_per_source: Rate,
    /// Mails in all. Default 500, then one a second.
    pub(crate) mail_total: Rate,
    /// Invites to one address. Default 5, then one in an hour.
    pub(crate) invite_per_address: Rate,
    /// Invites that one account sends. Default 20, then one in a minute.
    pub(crate) invite_per_account: Rate,
    /// Invites that come from one source address, which is a homeserver with all its users. Default 200, then one in 5
    /// seconds.
    pub(crate) invite_per_source: Rate,
    /// Binds by one account, in each replica: each of them is told to a homeserver. Default 20, then one in 10 seconds.
    pub(crate) bind_per_account: Rate,
    /// Unbind requests from one source address, in each replica: they need no token and make us ask homeservers for
    /// their keys. Default 50, then one a second.
    pub(crate) unbind_per_source: Rate,
    /// SMS to one number. Default 5, then one in an hour.
    pub(crate) sms_per_number: Rate,
    /// SMS to one country. Default 50, then one in a minute.
    pub(crate) sms_per_country: Rate,
    /// SMS that one account asks for. Default 5, then one in 10 minutes.
    pub(crate) sms_per_account: Rate,
    /// SMS that one source address asks for. Default 10, then one in 5 minutes.
    pub(crate) sms_per_source: Rate,
    /// SMS in all. Default 500, then 500 a day.
    pub(crate) sms_total: Rate,
    /// Codes that are tried for one number, over all its sessions. Default 20, then one in 10 minutes.
    pub(crate) sms_codes_per_number: Rate,
    /// Codes that one source address tries. Default 50, then one in a minute.
    pub(crate) sms_codes_per_source: Rate,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let rate = |burst, refill_secs| Rate { burst, refill_secs };
        Self {
            register_per_source: rate(20, 3.0),
            lookup_per_account: rate(50, 1.0),
            lookup_per_homeserver: rate(2000, 0.02),
            addresses_per_account: rate(50_000, 1.728),
            addresses_per_homeserver: rate(1_000_000, 0.01),
            mail_per_address: rate(5, 300.0),
            mail_per_account: rate(10, 60.0),
            mail_per_source: rate(20, 30.0),
            mail_total: rate(500, 1.0),
            invite_per_address: rate(5, 3600.0),
            invite_per_account: rate(20, 60.0),
            invite_per_source: rate(200, 5.0),
            bind_per_account: rate(20, 10.0),
            unbind_per_source: rate(50, 1.0),
            sms_per_number: rate(5, 3600.0),
            sms_per_country: rate(50, 60.0),
            sms_per_account: rate(5, 600.0),
            sms_per_source: rate(10, 300.0),
            sms_total: rate(500, 172.8),
            sms_codes_per_number: rate(20, 600.0),
            sms_codes_per_source: rate(50, 60.0),
        }
    }
}

/// The internal listener.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct InternalConfig {
    /// What its callers send as `Authorization: Bearer …`; 16 characters or more. Default none.
    pub(crate) secret: Option<SecretString>,
    /// A file that holds it. Default none.
    pub(crate) secret_file: Option<PathBuf>,
}

/// The older API, for the programs that still call it.
#[derive(Clone, Debug, Default, Deserialize)]
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

/// So many at once, then one more in each interval.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Rate {
    /// How many at once; 0 is no limit.
    pub(crate) burst: u32,
    /// Seconds until there is one more; fractions are allowed.
    pub(crate) refill_secs: f64,
}

impl Rate {
    /// The rate as a budget. What cannot be a time was refused when the configuration was checked.
    pub(crate) fn budget(self) -> Budget {
        Budget { burst: self.burst, per: Duration::try_from_secs_f64(self.refill_secs).unwrap_or_default() }
    }
}

impl Config {
    /// Reads and checks the configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with all that is wrong, each with its place.
    pub(crate) fn load(path: Option<&Path>) -> Result<Loaded<Self>, ConfigError> {
        let loaded: Loaded<Self> = config_file::load(path, config_file::environment())?;
        let problems = loaded.config.problems(&loaded.source);
        if problems.is_empty() { Ok(loaded) } else { Err(ConfigError::merge(problems)) }
    }

    fn problems(&self, source: &Source) -> Vec<ConfigError> {
        let mut problems = Vec::new();
        let mut problem = |key: &str, text: String| problems.push(source.error(key, text));
        if ServerName::parse(&self.identity.server_name).is_err() {
            problem("identity.server_name", "must be a host name, such as \"id.example.com\"".to_owned());
        }
        if let Some(url) = &self.identity.public_base_url
            && (!matches!(url.scheme(), "http" | "https") || url.query().is_some() || url.fragment().is_some())
        {
            problem("identity.public_base_url", "must be an http or https URL without a query".to_owned());
        }
        if !(2..=1000).contains(&self.database.max_connections) {
            // With PostgreSQL one of them listens for changes of other replicas.
            problem("database.max_connections", "must be from 2 to 1000".to_owned());
        }
        if self.tokens.unused_days == 0 {
            problem("tokens.unused_days", "must be at least 1, or no token would ever be good".to_owned());
        }
        match self.database_url() {
            Err(error) => problem(&error.key("database.url"), error.to_string()),
            Ok(url) if is_postgres(&url) => {
                if self.keys.storage_key_file.is_none() {
                    problem(
                        "keys.storage_key_file",
                        "is needed with PostgreSQL, since all replicas must share it; \
                         make one with `waypost-identity keys storage`"
                            .to_owned(),
                    );
                }
                if self.keys.signing_key_file.is_none() {
                    problem(
                        "keys.signing_key_file",
                        "is needed with PostgreSQL, since all replicas must share it; \
                         make one with `waypost-identity keys signing`"
                            .to_owned(),
                    );
                }
            }
            Ok(url) if !url.starts_with("sqlite:") => {
                problem("database.url", "must begin with `postgres://` or `sqlite:`".to_owned());
            }
            Ok(_) => {}
        }
        match self.smtp_password() {
            Err(error) => problem(&error.key("email.smtp_password"), error.to_string()),
            Ok(None) if self.email.smtp_username.is_some() => {
                problem("email.smtp_username", "needs smtp_password, or smtp_password_file".to_owned());
            }
            Ok(_) => {}
        }
        if self.email.from.parse::<lettre::message::Mailbox>().is_err() {
            problem("email.from", "must be a sender, such as \"Example <noreply@example.com>\"".to_owned());
        }
        if self.email.smtp_max_connections == 0 {
            problem("email.smtp_max_connections", "must be at least 1".to_owned());
        }
        if language::tag(&self.email.default_language).as_deref() != Some(self.email.default_language.as_str()) {
            problem("email.default_language", "must be a language, such as \"en\" or \"pt-br\"".to_owned());
        }
        for (key, text) in self.sms.problems().into_iter().chain(delivery::sms::problems(&self.sms)) {
            problem(&format!("sms.{key}"), text);
        }
        if self.validation.session_lifetime_secs == 0 {
            problem("validation.session_lifetime_secs", "must be at least 1, or no session could be proven".to_owned());
        }
        if self.validation.max_attempts == 0 {
            problem("validation.max_attempts", "must be at least 1, or no session could be proven".to_owned());
        }
        if self.lookup.max_addresses == 0 {
            problem("lookup.max_addresses", "must be at least 1, or nobody could be found".to_owned());
        }
        for (number, pattern) in self.validation.next_link_allowed.iter().enumerate() {
            if crate::domain::next_link::Pattern::parse(pattern).is_none() {
                problem(
                    &format!("validation.next_link_allowed.{number}"),
                    "must be an origin such as \"https://app.example.com\", or a URL that ends in `*`".to_owned(),
                );
            }
        }
        if self.invites.lifetime_days == 0 {
            problem("invites.lifetime_days", "must be at least 1".to_owned());
        }
        if !matches!(self.invites.web_client_url.scheme(), "http" | "https") {
            problem("invites.web_client_url", "must be an http or https URL".to_owned());
        }
        for (number, pattern) in self.invites.web_clients_allowed.iter().enumerate() {
            if crate::domain::next_link::Pattern::parse(pattern).is_none() {
                problem(
                    &format!("invites.web_clients_allowed.{number}"),
                    "must be an origin such as \"https://app.example.com\", or a URL that ends in `*`".to_owned(),
                );
            }
        }
        if self.outbox.at_once == 0 {
            problem("outbox.at_once", "must be at least 1".to_owned());
        }
        for (id, policy) in &self.terms.policies {
            if policy.version.is_empty() {
                problem(&format!("terms.policies.{id}.version"), "is needed".to_owned());
            }
            if policy.languages.is_empty() {
                problem(&format!("terms.policies.{id}.languages"), "needs a language, such as `en`".to_owned());
            }
            for (language, text) in &policy.languages {
                let key = format!("terms.policies.{id}.languages.{language}");
                let shown_here = text.file.is_some() && text.url.is_empty();
                if language == "version" {
                    problem(&key, "is no language: the version has that name in the list of policies".to_owned());
                }
                if text.name.is_empty() || (Url::parse(&text.url).is_err() && !shown_here) {
                    problem(&key, "needs a name, and a URL or a file".to_owned());
                }
                if text.file.is_some()
                    && [id, &policy.version, language].iter().any(|part| matches!(part.as_str(), "." | ".."))
                {
                    problem(&key, "cannot be shown: `.` and `..` are no parts of an address".to_owned());
                }
            }
        }
        match self.internal_secret() {
            Err(error) => problem("internal.secret", error.to_string()),
            Ok(None) if self.listen.internal.is_some() => {
                problem("internal.secret", "is needed where listen.internal is set; or set secret_file".to_owned());
            }
            Ok(Some(secret)) if secret.expose_secret().len() < 16 => {
                problem("internal.secret", "must have 16 characters or more".to_owned());
            }
            Ok(_) => {}
        }
        if self.v1.mode == V1Mode::Full && self.v1.allow.is_empty() {
            problem("v1.allow", "is needed with mode = \"full\": the addresses of your homeservers".to_owned());
        }
        for (number, name) in self.homeservers.allow.iter().enumerate() {
            if ServerName::parse(name).is_err() {
                problem(
                    &format!("homeservers.allow.{number}"),
                    "must be a server name, such as \"example.com\"".to_owned(),
                );
            }
        }
        for (name, target) in &self.homeservers.overrides {
            let known = ServerName::parse(name).is_ok();
            if !known || ServerName::parse(target).map_or(true, |target| target.port().is_none()) {
                problem(
                    &format!("homeservers.overrides.{name}"),
                    "must be `\"server name\" = \"host:port\"`".to_owned(),
                );
            }
        }
        for (key, rate) in [
            ("register_per_source", self.limits.register_per_source),
            ("lookup_per_account", self.limits.lookup_per_account),
            ("lookup_per_homeserver", self.limits.lookup_per_homeserver),
            ("addresses_per_account", self.limits.addresses_per_account),
            ("addresses_per_homeserver", self.limits.addresses_per_homeserver),
            ("mail_per_address", self.limits.mail_per_address),
            ("mail_per_account", self.limits.mail_per_account),
            ("mail_per_source", self.limits.mail_per_source),
            ("mail_total", self.limits.mail_total),
            ("invite_per_address", self.limits.invite_per_address),
            ("invite_per_account", self.limits.invite_per_account),
            ("invite_per_source", self.limits.invite_per_source),
            ("bind_per_account", self.limits.bind_per_account),
            ("unbind_per_source", self.limits.unbind_per_source),
            ("sms_per_number", self.limits.sms_per_number),
            ("sms_per_country", self.limits.sms_per_country),
            ("sms_per_account", self.limits.sms_per_account),
            ("sms_per_source", self.limits.sms_per_source),
            ("sms_total", self.limits.sms_total),
            ("sms_codes_per_number", self.limits.sms_codes_per_number),
            ("sms_codes_per_source", self.limits.sms_codes_per_source),
        ] {
            if Duration::try_from_secs_f64(rate.refill_secs).is_err() || (rate.burst > 0 && rate.refill_secs < 0.001) {
                problem(
                    &format!("limits.{key}"),
                    "needs refill_secs of 0.001 or more, or burst = 0 for no limit".to_owned(),
                );
            }
        }
        problems.extend(self.server.problems(source));
        problems.extend(self.outbound.problems(source));
        problems.extend(self.traces.problems(source));
        problems
    }

    /// Takes from the configuration `before` what only a start reads, and names what is another one here.
    pub(crate) fn keep_what_a_start_reads(&mut self, before: &Self) -> Vec<&'static str> {
        let mut waiting = Vec::new();
        macro_rules! keep {
            ($($name:literal: $($field:ident).+),* $(,)?) => {
                $(if format!("{:?}", self.$($field).+) != format!("{:?}", before.$($field).+) {
                    waiting.push($name);
                }
                self.$($field).+.clone_from(&before.$($field).+);)*
            };
        }
        // What `listen.public` became at the start, port 0 among others, is in `before` and in no file.
        if self.listen.public.port() != 0 && self.listen.public != before.listen.public {
            waiting.push("listen.public");
        }
        self.listen.public = before.listen.public;
        if self.database_url().ok() != before.database_url().ok() {
            waiting.push("database.url");
        }
        self.database.url.clone_from(&before.database.url);
        self.database.url_file.clone_from(&before.database.url_file);
        keep! {
            "listen.operations": listen.operations,
            "listen.internal": listen.internal,
            "[server]": server,
            "database.max_connections": database.max_connections,
            "identity.server_name": identity.server_name,
            "identity.data_dir": identity.data_dir,
            "keys.storage_key_file": keys.storage_key_file,
            "tokens.cache_secs": tokens.cache_secs,
            "lookup.previous_pepper_secs": lookup.previous_pepper_secs,
            "v1.mode": v1.mode,
            "log.format": log.format,
            "[traces]": traces,
        }
        waiting
    }

    /// The files with secrets that may be swapped while the server runs: when one of them is another one, the
    /// configuration is read again.
    pub(crate) fn secret_files(&self) -> Vec<PathBuf> {
        let files = [
            &self.email.smtp_password_file,
            &self.sms.password_file,
            &self.internal.secret_file,
            &self.outbound.proxy_url_file,
            &self.outbound.extra_ca_file,
        ];
        let headers = self.sms.http.header_files.values().chain(self.traces.secret_files());
        let files = files.into_iter().flatten().chain(headers).cloned();
        files.chain([self.signing_key_file().path]).collect()
    }

    /// The database's URL; SQLite in the data folder when none is configured.
    ///
    /// # Errors
    ///
    /// When its file cannot be read.
    pub(crate) fn database_url(&self) -> Result<String, secret::SecretError> {
        let inline = self.database.url.as_ref().filter(|url| !url.expose_secret().is_empty());
        let url = secret::inline_or_file(inline, self.database.url_file.as_deref())?;
        Ok(match url {
            Some(url) => url.expose_secret().to_owned(),
            None => storage::sqlite_url(&self.identity.data_dir.join("identity.sqlite")),
        })
    }

    /// The SMTP password, if there is one.
    ///
    /// # Errors
    ///
    /// When its file cannot be read.
    pub(crate) fn smtp_password(&self) -> Result<Option<SecretString>, secret::SecretError> {
        secret::inline_or_file(self.email.smtp_password.as_ref(), self.email.smtp_password_file.as_deref())
    }

    /// The secret of the internal listener, if there is one.
    ///
    /// # Errors
    ///
    /// When its file cannot be read.
    pub(crate) fn internal_secret(&self) -> Result<Option<SecretString>, secret::SecretError> {
        secret::inline_or_file(self.internal.secret.as_ref(), self.internal.secret_file.as_deref())
    }

    /// Where the storage keys stand, and whether they may be made when they are not there.
    pub(crate) fn storage_key_file(&self) -> KeyFile {
        KeyFile::new(self.keys.storage_key_file.as_deref(), &self.identity.data_dir, "storage.key")
    }

    /// Where the signing key stands, and whether it may be made when it is not there.
    pub(crate) fn signing_key_file(&self) -> KeyFile {
        KeyFile::new(self.keys.signing_key_file.as_deref(), &self.identity.data_dir, "signing.key")
    }
}

/// A key file's place.
#[derive(Debug)]
pub(crate) struct KeyFile {
    /// Where it is.
    pub(crate) path: PathBuf,
    /// Whether the operator named it: then it must be there.
    pub(crate) configured: bool,
}

impl KeyFile {
    fn new(configured: Option<&Path>, data_dir: &Path, name: &str) -> Self {
        Self { path: configured.map_or_else(|| data_dir.join(name), Path::to_owned), configured: configured.is_some() }
    }
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let path = std::env::temp_dir().join(format!("waypost-{}.toml", waypost_shared::random::token()));
        std::fs::write(&path, text).unwrap();
        let loaded = config_file::load::<Config>(Some(&path), []).map_err(|error| error.to_string());
        let checked = loaded.and_then(|loaded| {
            let problems = loaded.config.problems(&loaded.source);
            if problems.is_empty() { Ok(loaded.config) } else { Err(ConfigError::merge(problems).to_string()) }
        });
        std::fs::remove_file(&path).unwrap();
        checked.map_err(|error| error.replace(&path.display().to_string(), "waypost.toml"))
    }

    #[test]
    fn the_sample_shows_every_key_at_its_default() {
        let sample = include_str!("../config.sample.toml");
        assert_eq!(format!("{:#?}", load(sample).unwrap()), format!("{:#?}", Config::default()));

        // Keys without a default stand there as comments, so every key's name stands in the sample.
        for key in [
            "public_base_url",
            "url",
            "url_file",
            "storage_key_file",
            "signing_key_file",
            "smtp_username",
            "smtp_password",
            "smtp_password_file",
            "folder",
            "template_dir",
            "username",
            "password",
            "password_file",
            "extra_ca_file",
            "otlp_endpoint",
            "internal",
            "secret",
            "secret_file",
        ] {
            assert!(sample.lines().any(|line| line.starts_with(&format!("# {key} = "))), "{key}");
        }
    }

    #[test]
    fn a_mistake_is_named_by_line_and_fix() {
        for (text, expected) in [
            (
                "[identity]\nserver_name = 'https://id'",
                "waypost.toml:2: identity.server_name: must be a host name, such as \"id.example.com\"",
            ),
            (
                "[database]\nurl = 'mysql://a'",
                "waypost.toml:2: database.url: must begin with `postgres://` or `sqlite:`",
            ),
            (
                "[email]\nsmtp_tls = 'ssl'",
                "waypost.toml:2: email.smtp_tls: unknown variant `ssl`, expected one of `none`, `starttls`, `tls`",
            ),
            (
                "[sms]\ncountries_allowed = ['GB', 'UK']",
                "waypost.toml:2: sms.countries_allowed.1: must be a country, such as \"GB\", or a calling code, such as \"+44\"",
            ),
            (
                "[sms]\ntransport = 'http'\n[sms.http]\nurl = 'ftp://a'\nbody = '{{ text }}'",
                "waypost.toml:4: sms.http.url: must be an http or https URL; only its path and query may be filled in",
            ),
            (
                "[email]\ndefault_language = 'English'",
                "waypost.toml:2: email.default_language: must be a language, such as \"en\" or \"pt-br\"",
            ),
            (
                "[limits]\nmail_total = { burst = 5 }",
                "waypost.toml:2: limits.mail_total: needs refill_secs of 0.001 or more, or burst = 0 for no limit",
            ),
            (
                "[terms.policies.privacy]\nversion = '1'",
                "waypost.toml:1: terms.policies.privacy.languages: needs a language, such as `en`",
            ),
            (
                "[terms.policies.privacy]\nversion = '1'\nlanguages.en = { name = 'Privacy' }",
                "waypost.toml:3: terms.policies.privacy.languages.en: needs a name, and a URL or a file",
            ),
            (
                "[listen]\ninternal = '127.0.0.1:8092'\n[internal]",
                "waypost.toml:3: internal.secret: is needed where listen.internal is set; or set secret_file",
            ),
            ("[internal]\nsecret = 'short'", "waypost.toml:2: internal.secret: must have 16 characters or more"),
            (
                "[v1]\nmode = 'full'",
                "waypost.toml:1: v1.allow: is needed with mode = \"full\": the addresses of your homeservers",
            ),
            (
                "[homeservers.overrides]\n'hs.test' = 'localhost'",
                "waypost.toml:2: homeservers.overrides.hs.test: must be `\"server name\" = \"host:port\"`",
            ),
            (
                "[homeservers]\nallow = ['hs.test', 'https://hs.test']",
                "waypost.toml:2: homeservers.allow.1: must be a server name, such as \"example.com\"",
            ),
            (
                "[validation]\nsession_lifetime_secs = 0",
                "waypost.toml:2: validation.session_lifetime_secs: must be at least 1, or no session could be proven",
            ),
            (
                "[validation]\nmax_attempts = 0",
                "waypost.toml:2: validation.max_attempts: must be at least 1, or no session could be proven",
            ),
            (
                "[lookup]\nmax_addresses = 0",
                "waypost.toml:2: lookup.max_addresses: must be at least 1, or nobody could be found",
            ),
            (
                "[email]\nsmtp_username = 'waypost'",
                "waypost.toml:2: email.smtp_username: needs smtp_password, or smtp_password_file",
            ),
            (
                "[terms.policies.privacy]\nversion = '1'\nlanguages.version = { name = 'A', url = 'https://a' }",
                "waypost.toml:3: terms.policies.privacy.languages.version: is no language: the version has that name in \
                 the list of policies",
            ),
            (
                "[traces]\notlp_endpoint = '127.0.0.1:4318'",
                "waypost.toml:2: traces.otlp_endpoint: must be an http or https URL without a query, such as \
                 \"http://127.0.0.1:4318\"",
            ),
            (
                "[traces]\nsample_ratio = 2",
                "waypost.toml:2: traces.sample_ratio: must be 0 to 1, such as 0.1 for a tenth",
            ),
            (
                "[traces]\n[traces.header_files]\nAuthorization = '/nowhere/token'",
                "waypost.toml:3: traces.header_files.Authorization: cannot read /nowhere/token: No such file or \
                 directory (os error 2)",
            ),
            ("[server]\nmax_connections = 0", "waypost.toml:2: server.max_connections: must be 1 to 1000000"),
            (
                "[outbound]\nextra_ca_file = '/nowhere/ca.pem'",
                "waypost.toml:2: outbound.extra_ca_file: cannot read /nowhere/ca.pem: No such file or directory (os error 2)",
            ),
            (
                "[validation]\nnext_link_allowed = ['https://a', 'javascript:*']",
                "waypost.toml:2: validation.next_link_allowed.1: must be an origin such as \"https://app.example.com\", or a URL that ends in `*`",
            ),
        ] {
            assert_eq!(load(text).unwrap_err(), expected);
        }
        let postgres = load("[database]\nurl = 'postgres://a'").unwrap_err();
        assert!(postgres.contains("keys.storage_key_file: is needed with PostgreSQL"), "{postgres}");
    }
}
