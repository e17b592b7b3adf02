//! The section `[traces]`, and the files that it names.

use std::{collections::BTreeMap, path::PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use serde::Deserialize;
use url::Url;

use crate::{
    config_file::{ConfigError, Source},
    secret::{ExposeSecret as _, SecretString, from_file},
};

/// Where a collector takes spans, below its address.
const PATH: &str = "/v1/traces";
/// Seconds of the longest time for one call.
const LONGEST_SECS: u64 = 60;

/// The section `[traces]`: where what requests did is told to.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// A collector's address for OTLP over HTTP, such as `http://127.0.0.1:4318`. Default none (or empty): there are no
    /// traces.
    pub otlp_endpoint: Option<String>,
    /// How many of the traces that begin here are recorded, from 0 to 1. Those that a caller began are recorded if the
    /// caller says so. Default 1.
    pub sample_ratio: f64,
    /// Headers for the collector; their values are never printed. Default none.
    pub headers: BTreeMap<String, SecretString>,
    /// The same, with files that hold the values. Default none.
    pub header_files: BTreeMap<String, PathBuf>,
    /// Seconds for one call of the collector, and for the last ones when the service stops. Default 10.
    pub timeout_secs: u64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            sample_ratio: 1.0,
            headers: BTreeMap::new(),
            header_files: BTreeMap::new(),
            timeout_secs: 10,
        }
    }
}

/// A key, and what is wrong with its value, which is not repeated.
pub(super) type Problem = (String, String);

impl TracesConfig {
    /// Whether there are any traces.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.endpoint().is_some()
    }

    fn endpoint(&self) -> Option<&str> {
        self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty())
    }

    /// What the types cannot tell.
    #[must_use]
    pub fn problems(&self, source: &Source) -> Vec<ConfigError> {
        let mut problems: Vec<Problem> = Vec::new();
        problems.extend(self.uri().err());
        if !(0.0..=1.0).contains(&self.sample_ratio) {
            problems.push(("traces.sample_ratio".to_owned(), "must be 0 to 1, such as 0.1 for a tenth".to_owned()));
        }
        if !(1..=LONGEST_SECS).contains(&self.timeout_secs) {
            problems.push(("traces.timeout_secs".to_owned(), format!("must be 1 to {LONGEST_SECS}")));
        }
        problems.extend(self.header_map().err());
        problems.into_iter().map(|(key, problem)| source.error(&key, problem)).collect()
    }

    /// The secret files, which may be swapped while the service runs.
    pub fn secret_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.header_files.values()
    }

    /// Where spans are sent to, if anywhere.
    pub(super) fn uri(&self) -> Result<Option<Uri>, Problem> {
        let Some(endpoint) = self.endpoint() else { return Ok(None) };
        let wrong = |problem: &str| ("traces.otlp_endpoint".to_owned(), problem.to_owned());
        let is_plain =
            |url: &Url| matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
        let Some(url) = Url::parse(endpoint).ok().filter(is_plain) else {
            return Err(wrong("must be an http or https URL without a query, such as \"http://127.0.0.1:4318\""));
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("must have no password in it; set traces.headers, or header_files"));
        }
        let base = url.as_str().trim_end_matches('/');
        let uri = if base.ends_with(PATH) { base.parse() } else { format!("{base}{PATH}").parse() };
        uri.map(Some).map_err(|_| wrong("cannot be called; write it such as \"http://127.0.0.1:4318\""))
    }

    /// The headers, those in files too.
    pub(super) fn header_map(&self) -> Result<HeaderMap, Problem> {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            put(&mut map, format!("traces.headers.{name}"), name, value)?;
        }
        for (name, file) in &self.header_files {
            let key = format!("traces.header_files.{name}");
            let value = from_file(file).map_err(|error| (key.clone(), error.to_string()))?;
            put(&mut map, key, name, &value)?;
        }
        Ok(map)
    }
}

fn put(map: &mut HeaderMap, key: String, name: &str, value: &SecretString) -> Result<(), Problem> {
    let Ok(name) = name.parse::<HeaderName>() else { return Err((key, "is no name of a header".to_owned())) };
    let Ok(mut value) = HeaderValue::from_str(value.expose_secret()) else {
        return Err((key, "has a value that no header can hold".to_owned()));
    };
    if map.contains_key(&name) {
        return Err((key, "is set twice; keep one of them".to_owned()));
    }
    value.set_sensitive(true);
    map.insert(name, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn config(toml: &str) -> TracesConfig {
        toml::from_str(toml).unwrap()
    }

    #[test]
    fn spans_go_to_the_collectors_own_path() {
        for (endpoint, expected) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://otlp.example.org/tenant", "https://otlp.example.org/tenant/v1/traces"),
            ("https://otlp.example.org/v1/traces", "https://otlp.example.org/v1/traces"),
        ] {
            let uri = config(&format!("otlp_endpoint = '{endpoint}'")).uri().unwrap().unwrap();
            assert_eq!(uri.to_string(), expected);
        }
        for config in [TracesConfig::default(), config("otlp_endpoint = ''")] {
            assert!(!config.is_on());
            assert_eq!(config.uri().unwrap(), None);
        }
    }

    #[test]
    fn mistakes_are_named_without_their_values() {
        for (toml, expected) in [
            (
                "otlp_endpoint = 'ftp://swordfish'",
                "traces.otlp_endpoint: must be an http or https URL without a query, such as \"http://127.0.0.1:4318\"",
            ),
            (
                "otlp_endpoint = '127.0.0.1:4318'",
                "traces.otlp_endpoint: must be an http or https URL without a query, such as \"http://127.0.0.1:4318\"",
            ),
            (
                "otlp_endpoint = 'http://a:swordfish@b'",
                "traces.otlp_endpoint: must have no password in it; set traces.headers, or header_files",
            ),
            ("sample_ratio = 1.5", "traces.sample_ratio: must be 0 to 1, such as 0.1 for a tenth"),
            ("sample_ratio = nan", "traces.sample_ratio: must be 0 to 1, such as 0.1 for a tenth"),
            ("timeout_secs = 0", "traces.timeout_secs: must be 1 to 60"),
            ("headers = { 'a b' = 'swordfish' }", "traces.headers.a b: is no name of a header"),
            ("headers = { a = \"swordfish\\n\" }", "traces.headers.a: has a value that no header can hold"),
            ("headers = { A = 'swordfish', a = 'b' }", "traces.headers.a: is set twice; keep one of them"),
            (
                "header_files = { a = '/nowhere/token' }",
                "traces.header_files.a: cannot read /nowhere/token: No such file or directory (os error 2)",
            ),
        ] {
            let problems: Vec<_> = config(toml).problems(&Source::default()).iter().map(ToString::to_string).collect();
            assert_eq!(problems, [expected]);
        }
        assert!(TracesConfig::default().problems(&Source::default()).is_empty());
    }
}
