//! Where a Redis is, and as whom it is called.

use percent_encoding::percent_decode_str;
use url::Url;
use waypost_shared::config::secret::{ExposeSecret as _, SecretString};

/// The port where the URL names none.
const DEFAULT_PORT: u16 = 6379;

/// A URL, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) is_tls: bool,
    user: Option<String>,
    password: Option<SecretString>,
    database: Option<u32>,
}

impl Address {
    /// Reads `redis://user:password@host:port/database`, and `rediss://` for TLS. All but the host may be left out.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text.trim()).ok()?;
        let is_tls = match url.scheme() {
            "redis" => false,
            "rediss" => true,
            _ => return None,
        };
        if url.query().is_some() || url.fragment().is_some() {
            return None;
        }
        let host = url.host_str().filter(|host| !host.is_empty())?;
        let decoded = |text: &str| Some(percent_decode_str(text).decode_utf8().ok()?.into_owned());
        let password = match url.password() {
            None => None,
            Some(password) => Some(SecretString::from(decoded(password)?)),
        };
        let user = decoded(url.username())?;
        if !user.is_empty() && password.is_none() {
            return None;
        }
        let database = match url.path().trim_matches('/') {
            "" => None,
            number => Some(number.parse().ok()?),
        };
        Some(Self {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: url.port().unwrap_or(DEFAULT_PORT),
            is_tls,
            user: Some(user).filter(|user| !user.is_empty()),
            password,
            database,
        })
    }

    /// What is said first on a new connection. The last of it tells whether the server serves us.
    pub(super) fn greeting(&self) -> Vec<Vec<String>> {
        let mut commands = Vec::new();
        if let Some(password) = &self.password {
            let mut command = vec!["AUTH".to_owned()];
            command.extend(self.user.clone());
            command.push(password.expose_secret().to_owned());
            commands.push(command);
        }
        if let Some(database) = self.database {
            commands.push(vec!["SELECT".to_owned(), database.to_string()]);
        }
        commands.push(vec!["PING".to_owned()]);
        commands
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn greeting(text: &str) -> Vec<String> {
        Address::parse(text).unwrap().greeting().iter().map(|command| command.join(" ")).collect()
    }

    #[test]
    fn a_url_says_where_and_as_whom() {
        for (text, host, port, is_tls) in [
            ("redis://cache", "cache", 6379, false),
            ("redis://127.0.0.1:7000/", "127.0.0.1", 7000, false),
            ("rediss://cache.example.com:6380/2\n", "cache.example.com", 6380, true),
            ("redis://[::1]:7000", "::1", 7000, false),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.host.as_str(), address.port, address.is_tls), (host, port, is_tls), "{text}");
        }
        assert_eq!(greeting("redis://cache"), ["PING"]);
        assert_eq!(greeting("redis://:sword%2Ffish@cache/3"), ["AUTH sword/fish", "SELECT 3", "PING"]);
        assert_eq!(greeting("redis://push:secret@cache"), ["AUTH push secret", "PING"]);
    }

    #[test]
    fn what_is_no_address_is_none() {
        for text in [
            "cache:6379",
            "http://cache",
            "redis://",
            "redis:///0",
            "redis://user@cache",
            "redis://cache/a",
            "redis://a?b",
        ] {
            assert!(Address::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let printed = format!("{:?}", Address::parse("redis://:swordfish@cache").unwrap());
        assert!(!printed.contains("swordfish"), "{printed}");
    }
}
