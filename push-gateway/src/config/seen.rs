//! The section `[seen]`: what is remembered about past pushes, and where.

use std::path::PathBuf;

use serde::Deserialize;
use waypost_shared::config::{
    file::{ConfigError, Source},
    secret::{self, ExposeSecret as _, SecretString},
};

use crate::redis::Address;

/// The minimum length of the secret in bytes, so that it cannot be guessed.
const LEAST_SECRET: usize = 16;

/// The section `[seen]`. State is kept in memory and, where replicas share it, in Redis or Valkey.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SeenConfig {
    /// Seconds to remember a delivered event, so that no device gets it twice. Default 7200.
    pub(crate) delivered_ttl_secs: u64,
    /// Seconds to remember a dead pushkey, so that its provider is not asked again. Default 3600.
    pub(crate) dead_ttl_secs: u64,
    /// Most entries of each kind; the oldest are evicted. Default 200000.
    pub(crate) max_entries: usize,
    /// The Redis that replicas share, as `redis://`, `redis+sentinel://` or `redis+cluster://`. Default none.
    pub(crate) redis_url: Option<SecretString>,
    /// A file that holds the URL.
    pub(crate) redis_url_file: Option<PathBuf>,
    /// The secret for hashing the keys in Redis; must be the same in all replicas.
    pub(crate) secret: Option<SecretString>,
    /// A file that holds the secret.
    pub(crate) secret_file: Option<PathBuf>,
}

impl Default for SeenConfig {
    fn default() -> Self {
        Self {
            delivered_ttl_secs: 7200,
            dead_ttl_secs: 3600,
            max_entries: 200_000,
            redis_url: None,
            redis_url_file: None,
            secret: None,
            secret_file: None,
        }
    }
}

/// The Redis that replicas share, and the secret for hashing its keys.
#[derive(Clone, Debug)]
pub(crate) struct ReplicasConfig {
    pub(crate) address: Address,
    pub(crate) secret: SecretString,
}

impl SeenConfig {
    /// Resolves the settings for sharing; None means memory only.
    pub(crate) fn replicas(&self, source: &Source) -> Result<Option<ReplicasConfig>, ConfigError> {
        let read = |key: &str, inline: &Option<SecretString>, file: &Option<PathBuf>| {
            secret::inline_or_file(inline.as_ref(), file.as_deref())
                .map_err(|error| source.error(&format!("seen.{}", error.key(key)), &error))
        };
        let url = read("redis_url", &self.redis_url, &self.redis_url_file)?;
        let secret = read("secret", &self.secret, &self.secret_file)?;
        let Some(url) = url else { return Ok(None) };
        let address = Address::parse(url.expose_secret()).ok_or_else(|| {
            // The value is left out: it may hold a password.
            let problem = "must be a URL such as redis://user:password@redis.example.com:6379/0, redis+sentinel://… or redis+cluster://…; use rediss for TLS";
            source.error("seen.redis_url", problem)
        })?;
        let Some(secret) = secret else {
            let problem =
                "is missing; set it to a secret that all replicas share, such as the output of `openssl rand -hex 32`";
            return Err(source.error("seen.secret", problem));
        };
        if secret.expose_secret().len() < LEAST_SECRET {
            return Err(source.error("seen.secret", format!("must have {LEAST_SECRET} bytes or more")));
        }
        Ok(Some(ReplicasConfig { address, secret }))
    }
}
