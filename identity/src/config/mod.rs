//! The configuration: every key, its default and its unit. `config.sample.toml` documents the same for operators.

mod email;
mod limits;
mod problems;
mod sections;
pub(crate) mod sms;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use waypost_shared::{
    client::OutboundConfig,
    config::secret::{self, ExposeSecret as _, SecretString},
    http::server::ServerConfig,
    telemetry::{logs::LogConfig, otlp::TracesConfig},
};

use self::sms::SmsConfig;
use crate::storage;

pub(crate) use self::{
    email::{EmailConfig, EmailTransport, SmtpTls},
    limits::LimitsConfig,
    sections::{
        Confirm, DatabaseConfig, HomeserversConfig, IdentityConfig, InternalConfig, InvitesConfig, KeysConfig,
        ListenConfig, LookupConfig, OutboxConfig, TermsConfig, TokensConfig, V1Config, V1Mode, ValidationConfig,
    },
};

/// The whole configuration.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
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

impl Config {
    /// Restores settings that are read only at startup from the configuration `before`, and returns the names of those
    /// that differ.
    pub(crate) fn keep_what_a_start_reads(&mut self, before: &Self) -> Vec<&'static str> {
        let mut waiting = Vec::new();
        // `before` holds the address that was bound, so port 0 in the file is not a change.
        if self.listen.public.port() != 0 && self.listen.public != before.listen.public {
            waiting.push("listen.public");
        }
        self.listen.public = before.listen.public;
        waypost_shared::keep_started! { self, before, waiting;
            "listen.operations": listen.operations,
            "listen.internal": listen.internal,
            "[server]": server,
            "database.url": database.url,
            "database.url_file": database.url_file,
            "database.max_connections": database.max_connections,
            "identity.server_name": identity.server_name,
            "identity.data_dir": identity.data_dir,
            "keys.storage_key_file": keys.storage_key_file,
            "tokens.cache_secs": tokens.cache_secs,
            "lookup.previous_pepper_secs": lookup.previous_pepper_secs,
            "v1.mode": v1.mode,
            "log.format": log.format,
            "traces.otlp_endpoint": traces.otlp_endpoint,
            "traces.sample_ratio": traces.sample_ratio,
            "traces.timeout_secs": traces.timeout_secs,
        }
        waiting
    }

    /// Files with secrets that may be replaced while the server runs; a change of any of them reloads the
    /// configuration.
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

    /// Files with secrets that are read only at start-up, with the keys that name them.
    pub(crate) fn start_files(&self) -> Vec<(&'static str, PathBuf)> {
        let database = self.database.url_file.clone().map(|file| ("database.url_file", file));
        let storage_key = ("keys.storage_key_file", self.storage_key_file().path);
        database.into_iter().chain([storage_key]).collect()
    }

    /// The database's URL; SQLite in the data folder if none is configured.
    pub(crate) fn database_url(&self) -> Result<String, secret::SecretError> {
        let inline = self.database.url.as_ref().filter(|url| !url.expose_secret().is_empty());
        let url = secret::inline_or_file(inline, self.database.url_file.as_deref())?;
        Ok(match url {
            Some(url) => url.expose_secret().to_owned(),
            None => storage::sqlite_url(&self.identity.data_dir.join("identity.sqlite")),
        })
    }

    /// The SMTP password, if any.
    pub(crate) fn smtp_password(&self) -> Result<Option<SecretString>, secret::SecretError> {
        secret::inline_or_file(self.email.smtp_password.as_ref(), self.email.smtp_password_file.as_deref())
    }

    /// The secret of the internal listener, if any.
    pub(crate) fn internal_secret(&self) -> Result<Option<SecretString>, secret::SecretError> {
        secret::inline_or_file(self.internal.secret.as_ref(), self.internal.secret_file.as_deref())
    }

    /// Where the storage keys are, and whether they may be generated if missing.
    pub(crate) fn storage_key_file(&self) -> KeyFile {
        KeyFile::new(self.keys.storage_key_file.as_deref(), &self.identity.data_dir, "storage.key")
    }

    /// Where the signing key is, and whether it may be generated if missing.
    pub(crate) fn signing_key_file(&self) -> KeyFile {
        KeyFile::new(self.keys.signing_key_file.as_deref(), &self.identity.data_dir, "signing.key")
    }
}

/// Where a key file is.
#[derive(Debug)]
pub(crate) struct KeyFile {
    pub(crate) path: PathBuf,
    /// Whether the operator configured it: then it must exist.
    pub(crate) configured: bool,
}

impl KeyFile {
    fn new(configured: Option<&Path>, data_dir: &Path, name: &str) -> Self {
        Self { path: configured.map_or_else(|| data_dir.join(name), Path::to_owned), configured: configured.is_some() }
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used)]

    use waypost_shared::config::{file as config_file, file::ConfigError, keys};

    use super::*;

    /// Loads and validates a configuration, as if from a file named `waypost.toml`.
    pub(crate) fn load(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("waypost.toml");
        std::fs::write(&path, text).unwrap();
        let loaded = config_file::load::<Config>(Some(&path), []).map_err(|error| error.to_string());
        let checked = loaded.and_then(|loaded| {
            let problems = loaded.config.problems(&loaded.source);
            if problems.is_empty() { Ok(loaded.config) } else { Err(ConfigError::merge(problems).to_string()) }
        });
        checked.map_err(|error| error.replace(&path.display().to_string(), "waypost.toml"))
    }

    #[test]
    fn the_sample_shows_every_key_at_its_default() {
        let sample = include_str!("../../config.sample.toml");
        assert_eq!(load(sample).unwrap(), Config::default());
        assert_eq!(keys::gaps::<Config>(sample), Vec::<String>::new());
    }

    /// A reload either applies a changed secret or reports it by name; it ignores none.
    #[test]
    fn no_changed_secret_is_ignored_by_a_reload() {
        let secrets: Vec<_> = keys::keys_of::<Config>().into_iter().filter(|key| key.is_secret).collect();
        let names: Vec<_> = secrets.iter().map(keys::Key::dotted).collect();
        assert_eq!(
            names,
            [
                "database.url",
                "email.smtp_password",
                "sms.password",
                "sms.http.headers.*",
                "internal.secret",
                "outbound.proxy_url",
                "traces.headers.*"
            ]
        );
        for key in secrets {
            let with = |value: &str| keys::only::<Config>(&key, value).unwrap();
            let before = with("swordfish");
            let mut now = with("swordfish");
            assert_eq!(now.keep_what_a_start_reads(&before), Vec::<&str>::new(), "{}", key.dotted());
            assert_eq!(now, before);
            let mut now = with("herring");
            assert_ne!(now, before, "{}", key.dotted());
            let is_named = !now.keep_what_a_start_reads(&before).is_empty();
            // A reported key keeps its old value; any other is applied.
            assert_eq!(now == before, is_named, "{}", key.dotted());
            assert_eq!(is_named, key.dotted() == "database.url", "{}", key.dotted());
        }
    }
}
