//! The section `[traces]`, and the standard `OTEL_…` variables.
//!
//! The SDK reads those variables too, but silently ignores invalid values. Here they are configuration errors like any
//! other, and keys of `[traces]` take precedence.
//!
//! Sources: OpenTelemetry Specification, "Environment Variable Specification"; "OTLP Exporter Configuration".

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use opentelemetry::KeyValue;
use opentelemetry_sdk::trace::Sampler;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use url::Url;

use crate::{
    config::{
        file::{ConfigError, Source},
        secret::{ExposeSecret as _, SecretString, from_file},
    },
    random,
};

/// Path at which a collector accepts spans, relative to its address.
const PATH: &str = "/v1/traces";
/// Upper limit of `timeout_secs`.
const LONGEST_SECS: u64 = 60;

/// The section `[traces]`: the export of traces to a collector.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct TracesConfig {
    /// The address of a collector for OTLP over HTTP, such as `http://127.0.0.1:4318`. Default: the one in the
    /// environment, if any. An empty string disables traces, whatever the environment says.
    pub otlp_endpoint: Option<String>,
    /// The fraction of traces started here that are sampled, from 0 to 1. For requests with a `traceparent`, the
    /// sender decides. Default: that of the environment, or 1.
    pub sample_ratio: Option<f64>,
    /// Headers for the collector; their values are never printed. Default none.
    pub headers: BTreeMap<String, SecretString>,
    /// Likewise, with files that contain the values. Default none.
    pub header_files: BTreeMap<String, PathBuf>,
    /// Seconds for one call to the collector, and for the last calls at shutdown. Default 10.
    pub timeout_secs: u64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            sample_ratio: None,
            headers: BTreeMap::new(),
            header_files: BTreeMap::new(),
            timeout_secs: 10,
        }
    }
}

/// What is wrong with a key or a variable. Does not contain the value, which may be a secret.
#[derive(Debug)]
pub(super) struct Problem {
    /// A key of `[traces]`, or the name of a variable.
    place: String,
    text: String,
}

impl Problem {
    pub(super) fn at(&self, source: &Source) -> ConfigError {
        if self.place.starts_with("OTEL_") {
            ConfigError::variable(&self.place, &self.text)
        } else {
            source.error(&self.place, &self.text)
        }
    }
}

fn wrong<T>(place: &str, problem: impl ToString) -> Result<T, Problem> {
    Err(Problem { place: place.to_owned(), text: problem.to_string() })
}

/// Looks up a variable. An empty one counts as unset.
pub(super) type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Looks up a variable of the process.
pub(super) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The settings from `[traces]` and the variables combined.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) endpoint: Uri,
    pub(super) headers: HeaderMap,
    pub(super) sampler: Sampler,
    pub(super) call_timeout: Duration,
    /// Limit for exporting a batch, including retries.
    pub(super) export_timeout: Duration,
    pub(super) queue_size: usize,
    pub(super) batch_size: usize,
    /// How long the first span of a batch waits for others.
    pub(super) delay: Duration,
    resource: Vec<KeyValue>,
}

impl Settings {
    /// The resource attributes of the spans. The operator's attributes take precedence.
    pub(super) fn resource(&self, service: &'static str) -> Vec<KeyValue> {
        let instance = format!("{:032x}", u128::from_le_bytes(random::bytes()));
        let ours = [
            KeyValue::new("service.name", service),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance),
        ];
        ours.into_iter().chain(self.resource.iter().cloned()).collect()
    }
}

impl TracesConfig {
    /// Whether traces are exported.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.endpoint(&environment).is_ok_and(|endpoint| endpoint.is_some())
    }

    /// Checks that the types cannot express.
    #[must_use]
    pub fn problems(&self, source: &Source) -> Vec<ConfigError> {
        self.problems_with(source, &environment)
    }

    fn problems_with(&self, source: &Source, variables: Variables<'_>) -> Vec<ConfigError> {
        let ratio = self.sample_ratio.map_or(Ok(1.0), |ratio| a_ratio("traces.sample_ratio", Some(ratio)));
        let timeout = match self.timeout_secs {
            1..=LONGEST_SECS => Ok(()),
            _ => wrong("traces.timeout_secs", format!("must be 1 to {LONGEST_SECS}")),
        };
        let problems = [ratio.err(), timeout.err(), self.settings(variables).err()];
        problems.into_iter().flatten().map(|problem| problem.at(source)).collect()
    }

    /// The secret files, which may be swapped while the service runs.
    pub fn secret_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.header_files.values()
    }

    /// The settings of the export; `None` without a collector, in which case the variables are not validated.
    pub(super) fn settings(&self, variables: Variables<'_>) -> Result<Option<Settings>, Problem> {
        let own_headers = self.own_headers()?;
        let Some(endpoint) = self.endpoint(variables)? else { return Ok(None) };
        let mut headers = environment_headers(variables)?;
        headers.extend(own_headers);
        let millis =
            |name, default| number(variables, name, default).map(|millis| Duration::from_millis(millis.into()));
        let count = |name, default| number(variables, name, default).map(|count| count as usize);
        Ok(Some(Settings {
            endpoint,
            headers,
            sampler: self.sampler(variables)?,
            call_timeout: Duration::from_secs(self.timeout_secs),
            export_timeout: millis("OTEL_BSP_EXPORT_TIMEOUT", 30_000)?,
            delay: millis("OTEL_BSP_SCHEDULE_DELAY", 1_000)?,
            queue_size: count("OTEL_BSP_MAX_QUEUE_SIZE", 2_048)?,
            batch_size: count("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", 512)?,
            resource: resource(variables)?,
        }))
    }

    /// Where spans are sent, if anywhere.
    fn endpoint(&self, variables: Variables<'_>) -> Result<Option<Uri>, Problem> {
        const OF_TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let own = self.otlp_endpoint.clone().map(|endpoint| ("traces.otlp_endpoint", endpoint));
        let found = own.or_else(|| first(variables, [OF_TRACES, "OTEL_EXPORTER_OTLP_ENDPOINT"]));
        let Some((place, endpoint)) = found.filter(|(_, endpoint)| !endpoint.is_empty()) else { return Ok(None) };
        match variables("OTEL_SDK_DISABLED").map(|value| value.to_ascii_lowercase()).as_deref() {
            Some("true") => return Ok(None),
            None | Some("false") => {}
            Some(_) => return wrong("OTEL_SDK_DISABLED", "must be true or false"),
        }
        let protocol = first(variables, ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]);
        match protocol {
            // An endpoint in our own section is meant for us; one in the environment is for this protocol.
            Some((name, protocol)) if self.otlp_endpoint.is_none() && protocol != "http/protobuf" => {
                return wrong(name, "only \"http/protobuf\" is supported; use it, or set traces.otlp_endpoint");
            }
            Some(_) | None => {}
        }
        // The traces-specific variable is used as it is, without appending the path.
        let path = if place == OF_TRACES { "" } else { PATH };
        uri(&endpoint, path).or_else(|problem| wrong(place, problem)).map(Some)
    }

    /// Which traces are sampled.
    fn sampler(&self, variables: Variables<'_>) -> Result<Sampler, Problem> {
        const ARGUMENT: &str = "OTEL_TRACES_SAMPLER_ARG";
        let parent_based = |root| Sampler::ParentBased(Box::new(root));
        if let Some(ratio) = self.sample_ratio {
            return Ok(parent_based(Sampler::TraceIdRatioBased(ratio)));
        }
        let name = variables("OTEL_TRACES_SAMPLER").unwrap_or_else(|| "parentbased_always_on".to_owned());
        let root = match name.strip_prefix("parentbased_").unwrap_or(&name) {
            "always_on" => Sampler::AlwaysOn,
            "always_off" => Sampler::AlwaysOff,
            "traceidratio" => {
                let ratio = variables(ARGUMENT).map_or(Some(1.0), |ratio| ratio.parse().ok());
                Sampler::TraceIdRatioBased(a_ratio(ARGUMENT, ratio)?)
            }
            _ => {
                let known = "must be always_on, always_off or traceidratio, or one of them prefixed with parentbased_";
                return wrong("OTEL_TRACES_SAMPLER", known);
            }
        };
        Ok(if name.starts_with("parentbased_") { parent_based(root) } else { root })
    }

    /// The headers in the section, including those in files.
    fn own_headers(&self) -> Result<HeaderMap, Problem> {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            put(&mut map, &format!("traces.headers.{name}"), name, value.expose_secret().as_bytes())?;
        }
        for (name, file) in &self.header_files {
            let key = format!("traces.header_files.{name}");
            let value = from_file(file).or_else(|error| wrong(&key, error))?;
            put(&mut map, &key, name, value.expose_secret().as_bytes())?;
        }
        Ok(map)
    }
}

fn a_ratio(place: &str, ratio: Option<f64>) -> Result<f64, Problem> {
    match ratio.filter(|ratio| (0.0..=1.0).contains(ratio)) {
        Some(ratio) => Ok(ratio),
        None => wrong(place, "must be 0 to 1, such as 0.1 for a tenth"),
    }
}

fn number(variables: Variables<'_>, name: &str, default: u32) -> Result<u32, Problem> {
    match variables(name).map_or(Ok(default), |text| text.parse()) {
        Ok(number @ 1..) => Ok(number),
        _ => wrong(name, "must be a whole number above 0"),
    }
}

/// The first of these variables that is set.
fn first<const N: usize>(variables: Variables<'_>, names: [&'static str; N]) -> Option<(&'static str, String)> {
    names.into_iter().find_map(|name| Some((name, variables(name)?)))
}

fn environment_headers(variables: Variables<'_>) -> Result<HeaderMap, Problem> {
    let mut map = HeaderMap::new();
    let found = first(variables, ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"]);
    let Some((variable, text)) = found else { return Ok(map) };
    for (name, value) in pairs(variable, &text)? {
        put(&mut map, variable, name, &value)?;
    }
    Ok(map)
}

/// The operator's resource attributes.
fn resource(variables: Variables<'_>) -> Result<Vec<KeyValue>, Problem> {
    const ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
    let text = variables(ATTRIBUTES).unwrap_or_default();
    let mut attributes = Vec::new();
    for (key, value) in pairs(ATTRIBUTES, &text)? {
        attributes.push(KeyValue::new(key.to_owned(), String::from_utf8_lossy(&value).into_owned()));
    }
    attributes.extend(variables("OTEL_SERVICE_NAME").map(|name| KeyValue::new("service.name", name)));
    Ok(attributes)
}

/// Parses `key=value,key=value` with percent-encoded values.
fn pairs<'t>(variable: &str, text: &'t str) -> Result<Vec<(&'t str, Vec<u8>)>, Problem> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let pair = |entry: &'t str| {
        let (key, value) = entry.split_once('=').filter(|(key, _)| !key.trim().is_empty())?;
        Some((key.trim(), percent_decode_str(value.trim()).collect()))
    };
    match entries.map(pair).collect() {
        Some(pairs) => Ok(pairs),
        None => wrong(variable, "must be a list such as key=value,key=value"),
    }
}

fn uri(endpoint: &str, path: &str) -> Result<Uri, &'static str> {
    let is_plain =
        |url: &Url| matches!(url.scheme(), "http" | "https") && url.query().is_none() && url.fragment().is_none();
    let Some(url) = Url::parse(endpoint).ok().filter(is_plain) else {
        return Err("must be an http or https URL without a query, such as \"http://127.0.0.1:4318\"");
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a password; use traces.headers or traces.header_files");
    }
    let base = if path.is_empty() { url.as_str() } else { url.as_str().trim_end_matches('/') };
    let uri = if base.ends_with(path) { base.parse() } else { format!("{base}{path}").parse() };
    uri.map_err(|_| "is not a valid URL; write it like \"http://127.0.0.1:4318\"")
}

fn put(map: &mut HeaderMap, place: &str, name: &str, value: &[u8]) -> Result<(), Problem> {
    let Ok(name) = name.parse::<HeaderName>() else { return wrong(place, "is not a valid header name") };
    let Ok(mut value) = HeaderValue::from_bytes(value) else {
        return wrong(place, "does not have a valid header value");
    };
    if map.contains_key(&name) {
        return wrong(place, "is set twice; keep one of them");
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

    /// The settings that the section and these variables result in.
    fn settings(toml: &str, variables: &[(&str, &str)]) -> Result<Option<Settings>, String> {
        let variables =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        let config = config(toml);
        let problems = config.problems_with(&Source::default(), &variables);
        if problems.is_empty() {
            Ok(config.settings(&variables).unwrap())
        } else {
            Err(ConfigError::merge(problems).to_string())
        }
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn spans_go_to_the_collectors_own_path() {
        for (endpoint, expected) in [
            ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
            ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
            ("https://otlp.example.org/tenant", "https://otlp.example.org/tenant/v1/traces"),
            ("https://otlp.example.org/v1/traces", "https://otlp.example.org/v1/traces"),
        ] {
            let settings = settings(&format!("otlp_endpoint = '{endpoint}'"), &[]).unwrap().unwrap();
            assert_eq!(settings.endpoint.to_string(), expected);
        }
    }

    #[test]
    fn the_environment_names_a_collector_unless_the_section_does() {
        const TRACES: (&str, &str) = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/as/it/is");
        let own = "otlp_endpoint = 'http://own:4318'";
        for (toml, variables, expected) in [
            ("", &[][..], None),
            ("", &[ENDPOINT], Some("http://collector:4318/v1/traces")),
            ("", &[ENDPOINT, TRACES], Some("http://collector:4318/as/it/is")),
            (own, &[ENDPOINT, TRACES], Some("http://own:4318/v1/traces")),
            ("otlp_endpoint = ''", &[ENDPOINT], None),
            ("", &[ENDPOINT, ("OTEL_SDK_DISABLED", "false")], Some("http://collector:4318/v1/traces")),
            ("", &[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")], None),
            (own, &[("OTEL_SDK_DISABLED", "true")], None),
            // Invalid, but not validated, as nothing is sent.
            ("", &[("OTEL_TRACES_SAMPLER", "xray"), ("OTEL_BSP_MAX_QUEUE_SIZE", "many")], None),
        ] {
            let settings = settings(toml, variables).unwrap();
            assert_eq!(settings.map(|settings| settings.endpoint.to_string()).as_deref(), expected, "{variables:?}");
        }
    }

    #[test]
    fn the_environment_chooses_the_sampler_unless_the_section_does() {
        for (toml, sampler, argument, expected) in [
            ("", None, None, "ParentBased(AlwaysOn)"),
            ("", Some("always_on"), None, "AlwaysOn"),
            ("", Some("always_off"), None, "AlwaysOff"),
            ("", Some("traceidratio"), Some("0.25"), "TraceIdRatioBased(0.25)"),
            ("", Some("parentbased_always_on"), None, "ParentBased(AlwaysOn)"),
            ("", Some("parentbased_always_off"), None, "ParentBased(AlwaysOff)"),
            ("", Some("parentbased_traceidratio"), Some("0.25"), "ParentBased(TraceIdRatioBased(0.25))"),
            ("", Some("parentbased_traceidratio"), None, "ParentBased(TraceIdRatioBased(1.0))"),
            ("sample_ratio = 0.5", Some("always_on"), None, "ParentBased(TraceIdRatioBased(0.5))"),
        ] {
            let mut variables = vec![ENDPOINT];
            variables.extend(sampler.map(|sampler| ("OTEL_TRACES_SAMPLER", sampler)));
            variables.extend(argument.map(|argument| ("OTEL_TRACES_SAMPLER_ARG", argument)));
            let settings = settings(toml, &variables).unwrap().unwrap();
            assert_eq!(format!("{:?}", settings.sampler), expected);
        }
    }

    #[test]
    fn the_sections_headers_override_those_of_the_environment() {
        let variables = [
            ENDPOINT,
            ("OTEL_EXPORTER_OTLP_HEADERS", "not=read"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "x-tenant=environment, x-more=a%20b%3Dc"),
            ("OTEL_SERVICE_NAME", "named"),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test, service.name=overruled"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "7"),
        ];
        let settings = settings("headers = { X-Tenant = 'section' }", &variables).unwrap().unwrap();
        let mut headers: Vec<_> =
            settings.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        headers.sort_unstable();
        assert_eq!(headers, [("x-more", "a b=c"), ("x-tenant", "section")]);
        assert!(settings.headers.values().all(HeaderValue::is_sensitive));
        assert_eq!((settings.queue_size, settings.batch_size), (7, 512));

        // The last value of a name wins.
        let resource: BTreeMap<_, _> = settings
            .resource("waypost")
            .into_iter()
            .map(|pair| (pair.key.to_string(), pair.value.to_string()))
            .collect();
        assert_eq!(resource["service.name"], "named");
        assert_eq!(resource["deployment.environment.name"], "test");
        assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
        assert_eq!(resource["service.instance.id"].len(), 32);
    }

    #[test]
    fn errors_in_the_environment_do_not_contain_the_value() {
        let list = "must be a list such as key=value,key=value";
        let number = "must be a whole number above 0";
        for (name, value, expected) in [
            ("OTEL_SDK_DISABLED", "swordfish", "must be true or false"),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "swordfish:4318",
                "must be an http or https URL without a query, such as \"http://127.0.0.1:4318\"",
            ),
            (
                "OTEL_EXPORTER_OTLP_PROTOCOL",
                "grpc",
                "only \"http/protobuf\" is supported; use it, or set traces.otlp_endpoint",
            ),
            ("OTEL_EXPORTER_OTLP_HEADERS", "swordfish", list),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=swordfish", "is not a valid header name"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=sword%0Afish", "does not have a valid header value"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=swordfish", list),
            (
                "OTEL_TRACES_SAMPLER",
                "swordfish",
                "must be always_on, always_off or traceidratio, or one of them prefixed with parentbased_",
            ),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "swordfish", number),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "0", number),
            ("OTEL_BSP_SCHEDULE_DELAY", "0", number),
            ("OTEL_BSP_EXPORT_TIMEOUT", "-1", number),
        ] {
            let problem = settings("", &[ENDPOINT, (name, value)]).unwrap_err();
            assert_eq!(problem, format!("environment variable {name}: {expected}"));
        }
        let ratio = [ENDPOINT, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")];
        assert_eq!(
            settings("timeout_secs = 0", &ratio).unwrap_err(),
            "traces.timeout_secs: must be 1 to 60\n\
             environment variable OTEL_TRACES_SAMPLER_ARG: must be 0 to 1, such as 0.1 for a tenth"
        );
    }

    #[test]
    fn errors_do_not_contain_the_value() {
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
                "traces.otlp_endpoint: must not contain a password; use traces.headers or traces.header_files",
            ),
            ("sample_ratio = 1.5", "traces.sample_ratio: must be 0 to 1, such as 0.1 for a tenth"),
            ("sample_ratio = nan", "traces.sample_ratio: must be 0 to 1, such as 0.1 for a tenth"),
            ("timeout_secs = 0", "traces.timeout_secs: must be 1 to 60"),
            ("headers = { 'a b' = 'swordfish' }", "traces.headers.a b: is not a valid header name"),
            ("headers = { a = \"swordfish\\n\" }", "traces.headers.a: does not have a valid header value"),
            ("headers = { A = 'swordfish', a = 'b' }", "traces.headers.a: is set twice; keep one of them"),
            (
                "header_files = { a = '/nowhere/token' }",
                "traces.header_files.a: cannot read /nowhere/token: No such file or directory (os error 2)",
            ),
        ] {
            assert_eq!(settings(toml, &[]).unwrap_err(), expected);
        }
    }
}
