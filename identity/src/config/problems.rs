//! Loading a configuration, and finding the mistakes that its types cannot rule out.

use std::path::Path;

use url::Url;
use waypost_shared::config::{
    file as config_file,
    file::{ConfigError, Loaded, Source},
    secret::ExposeSecret as _,
};

use crate::{
    delivery,
    domain::{language, server_name::ServerName},
};

use super::{Config, V1Mode};

impl Config {
    /// Loads and validates the configuration.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with every mistake and its place.
    pub(crate) fn load(path: Option<&Path>) -> Result<Loaded<Self>, ConfigError> {
        let loaded: Loaded<Self> = config_file::load(path, config_file::environment())?;
        let problems = loaded.config.problems(&loaded.source);
        if problems.is_empty() { Ok(loaded) } else { Err(ConfigError::merge(problems)) }
    }

    /// Every mistake, with its place.
    pub(super) fn problems(&self, source: &Source) -> Vec<ConfigError> {
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
            // With PostgreSQL, one of them listens for the changes made by other replicas.
            problem("database.max_connections", "must be from 2 to 1000".to_owned());
        }
        if self.tokens.unused_days == 0 {
            problem("tokens.unused_days", "must be at least 1, or no token would ever be valid".to_owned());
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
            problem(
                "validation.session_lifetime_secs",
                "must be at least 1, or no session could be validated".to_owned(),
            );
        }
        if self.validation.max_attempts == 0 {
            problem("validation.max_attempts", "must be at least 1, or no session could be validated".to_owned());
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
                    problem(&key, "is not a language: the list of policies uses that name for the version".to_owned());
                }
                if text.name.is_empty() || (Url::parse(&text.url).is_err() && !shown_here) {
                    problem(&key, "needs a name, and a URL or a file".to_owned());
                }
                if text.file.is_some()
                    && [id, &policy.version, language].iter().any(|part| matches!(part.as_str(), "." | ".."))
                {
                    problem(&key, "cannot be hosted: `.` and `..` cannot be parts of its URL".to_owned());
                }
            }
        }
        match self.internal_secret() {
            Err(error) => problem("internal.secret", error.to_string()),
            Ok(None) if self.listen.internal.is_some() => {
                problem("internal.secret", "is needed with listen.internal; or set secret_file".to_owned());
            }
            Ok(Some(secret)) if secret.expose_secret().len() < 16 => {
                problem("internal.secret", "must have at least 16 characters".to_owned());
            }
            Ok(_) => {}
        }
        if self.v1.mode == V1Mode::Full && self.v1.allow.is_empty() {
            problem("v1.allow", "is needed with mode = \"full\": the addresses of your homeservers".to_owned());
        }
        // A proxy that does not say who its client is must not pass for a listed homeserver.
        let is_proxy = |range: &&ipnet::IpNet| {
            self.server.trusted_proxies.iter().any(|proxies| proxies.contains(*range) || range.contains(proxies))
        };
        if let Some(range) = self.v1.allow.iter().find(is_proxy) {
            let text = format!(
                "{range} overlaps server.trusted_proxies: anyone behind such a proxy could pass for a listed \
                 homeserver; list the homeservers' own addresses, and narrow trusted_proxies to the proxies'"
            );
            problem("v1.allow", text);
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
        problems.extend(self.limits.problems(source));
        problems.extend(self.server.problems(source));
        problems.extend(self.outbound.problems(source));
        problems.extend(self.traces.problems(source));
        problems
    }
}

fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;

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
                "waypost.toml:2: limits.mail_total: needs refill_secs of 0.000001 or more, or burst = 0 for no limit",
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
                "waypost.toml:3: internal.secret: is needed with listen.internal; or set secret_file",
            ),
            ("[internal]\nsecret = 'short'", "waypost.toml:2: internal.secret: must have at least 16 characters"),
            (
                "[v1]\nmode = 'full'",
                "waypost.toml:1: v1.allow: is needed with mode = \"full\": the addresses of your homeservers",
            ),
            (
                "[v1]\nallow = ['10.1.2.0/24']\n[server]\ntrusted_proxies = ['192.0.2.1/32', '10.0.0.0/8']",
                "waypost.toml:2: v1.allow: 10.1.2.0/24 overlaps server.trusted_proxies: anyone behind such a \
                 proxy could pass for a listed homeserver; list the homeservers' own addresses, and narrow \
                 trusted_proxies to the proxies'",
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
                "waypost.toml:2: validation.session_lifetime_secs: must be at least 1, or no session could be validated",
            ),
            (
                "[validation]\nmax_attempts = 0",
                "waypost.toml:2: validation.max_attempts: must be at least 1, or no session could be validated",
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
                "waypost.toml:3: terms.policies.privacy.languages.version: is not a language: the list of policies uses \
                 that name for the version",
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
