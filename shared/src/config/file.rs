//! Configuration loading: one TOML file, overridden by environment variables. Errors name the file, line, key and fix.
//!
//! `WAYPOST_DATABASE__URL` sets `database.url`; `WAYPOST_APPS__0__APNS__KEY_FILE` sets `key_file` in the `[apps.apns]`
//! table of the first `[[apps]]`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs,
    ops::Range,
    path::Path,
};

use serde::de::DeserializeOwned;
pub use toml::Table;
use toml::{
    Value,
    de::{DeTable, DeValue},
};

/// Prefix of our environment variables.
const PREFIX: &str = "WAYPOST_";
/// Names the configuration file itself, so it is not an override.
pub const CONFIG_VARIABLE: &str = "WAYPOST_CONFIG";

/// A configuration together with the origin of its keys.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The values.
    pub config: T,
    /// Where each key was set.
    pub source: Source,
}

/// What is wrong with a configuration: one or more messages, each with its location.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(Vec<String>);

impl ConfigError {
    /// A problem with an environment variable that is not an override of a key.
    #[must_use]
    pub fn variable(name: &str, problem: impl fmt::Display) -> Self {
        Self(vec![format!("environment variable {name}: {problem}")])
    }

    /// Concatenates the problems of several errors, in order.
    #[must_use]
    pub fn merge(errors: Vec<Self>) -> Self {
        Self(errors.into_iter().flat_map(|error| error.0).collect())
    }
}

/// Where each key was set: a line of the file, or an environment variable.
#[derive(Clone, Debug, Default)]
pub struct Source {
    file: Option<String>,
    /// Dotted key (list entries by index) to line number.
    lines: HashMap<String, usize>,
    /// Dotted key to the variable that overrides it.
    variables: HashMap<String, String>,
}

impl Source {
    /// A problem with a key, located where the key was set; a missing key is located at its nearest enclosing table.
    #[must_use]
    pub fn error(&self, key: &str, problem: impl fmt::Display) -> ConfigError {
        if let Some(variable) = self.variables.get(key) {
            return ConfigError::variable(variable, problem);
        }
        let mut place = key;
        let line = loop {
            if let Some(line) = self.lines.get(place) {
                break Some(*line);
            }
            match place.rsplit_once('.') {
                Some((parent, _)) => place = parent,
                None => break None,
            }
        };
        let text = match (&self.file, line) {
            (Some(file), Some(line)) => format!("{file}:{line}: {key}: {problem}"),
            (Some(file), None) => format!("{file}: {key}: {problem}"),
            (None, _) => format!("{key}: {problem}"),
        };
        ConfigError(vec![text])
    }
}

/// Reads the file, if any, and applies environment overrides.
///
/// `T` and everything in it must be `#[serde(deny_unknown_fields, default)]` and must not use flattened or tagged
/// types, which lose line numbers.
///
/// # Errors
///
/// [`ConfigError`] if the file cannot be read, is not valid TOML, or has a key that is unknown or of the wrong type.
pub fn load<T: DeserializeOwned>(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Loaded<T>, ConfigError> {
    load_unless(path, environment, |_| Vec::new())
}

/// Like [`load`], but first asks `former` for keys from an older layout. It returns each with what to write instead,
/// which is more helpful than "unknown key".
///
/// # Errors
///
/// Those of [`load`], or the keys that `former` returned.
pub fn load_unless<T: DeserializeOwned>(
    path: Option<&Path>,
    environment: impl IntoIterator<Item = (String, String)>,
    former: fn(&Table) -> Vec<(String, String)>,
) -> Result<Loaded<T>, ConfigError> {
    let file = path.map(|path| path.display().to_string());
    let text = match (path, &file) {
        (Some(path), Some(file)) => {
            fs::read_to_string(path).map_err(|error| ConfigError(vec![format!("{file}: cannot be read: {error}")]))?
        }
        _ => String::new(),
    };
    let mut source = Source { file, ..Source::default() };

    let keys = keys(&text).map_err(|error| source.toml_error(&text, &[], &error))?;
    source.lines = keys.iter().map(|key| (key.path.clone(), line(&text, key.name.start))).collect();
    let mut table: Table = toml::from_str(&text).map_err(|error| source.toml_error(&text, &keys, &error))?;
    let problems = former(&table);
    if !problems.is_empty() {
        return Err(ConfigError::merge(problems.iter().map(|(key, problem)| source.error(key, problem)).collect()));
    }
    let mut config: T = toml::from_str(&text).map_err(|error| source.toml_error(&text, &keys, &error))?;

    let variables: BTreeMap<_, _> = environment.into_iter().filter(|(name, _)| is_ours(name)).collect();
    for (name, value) in variables {
        let path = name[PREFIX.len()..].to_ascii_lowercase().replace("__", ".");
        config =
            override_key(&mut table, &path, &value, former).map_err(|problem| ConfigError::variable(&name, problem))?;
        source.variables.insert(path, name);
    }
    Ok(Loaded { config, source })
}

/// Restores the keys of `$config` that are only read at start-up to their values in `$before`, and pushes the names of
/// those that had changed onto `$waiting`.
#[macro_export]
macro_rules! keep_started {
    ($config:ident, $before:ident, $waiting:ident; $($name:literal: $($field:ident).+),* $(,)?) => {
        $(if $config.$($field).+ != $before.$($field).+ {
            $waiting.push($name);
        }
        $config.$($field).+.clone_from(&$before.$($field).+);)*
    };
}

/// The environment of the process, without variables that are not valid Unicode.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Every key is in a section, so every override contains two underscores. Variables without them belong to others:
/// Kubernetes sets `WAYPOST_IDENTITY_PORT` for a Service named `waypost-identity`.
fn is_ours(name: &str) -> bool {
    name.starts_with(PREFIX) && name.contains("__")
}

/// Sets one key and deserializes the whole configuration again, so that an error can be attributed to this variable.
/// The value is tried as a string first and, if the key wants a number, boolean or list, as TOML.
fn override_key<T: DeserializeOwned>(
    table: &mut Table,
    path: &str,
    value: &str,
    former: fn(&Table) -> Vec<(String, String)>,
) -> Result<T, String> {
    let literal = toml::from_str::<Table>(&format!("value = {value}")).ok().and_then(|mut table| table.remove("value"));
    let candidates = [Some(Value::String(value.to_owned())), literal];
    let mut problem = String::new();
    for candidate in candidates.into_iter().flatten() {
        let mut changed = Value::Table(table.clone());
        let segments: Vec<_> = path.split('.').collect();
        insert(&mut changed, &segments, candidate)?;
        if let Some((_, former)) = changed.as_table().and_then(|changed| former(changed).pop()) {
            return Err(former);
        }
        match changed.clone().try_into::<T>() {
            Ok(config) => {
                if let Value::Table(changed) = changed {
                    *table = changed;
                }
                return Ok(config);
            }
            Err(error) => problem = helpful(error.message()),
        }
    }
    Err(problem)
}

fn insert(into: &mut Value, path: &[&str], value: Value) -> Result<(), String> {
    let Some((first, rest)) = path.split_first() else {
        *into = value;
        return Ok(());
    };
    let child = match into {
        Value::Table(table) => table.entry((*first).to_owned()).or_insert_with(|| Value::Table(Table::new())),
        Value::Array(items) => {
            let number: usize = first.parse().map_err(|_| format!("`{first}` must be the index of a list entry"))?;
            let length = items.len();
            items.get_mut(number).ok_or(format!("the list has {length} entries, counted from 0"))?
        }
        _ => return Err(format!("`{first}` cannot be set, because its parent is not a table")),
    };
    insert(child, rest, value)
}

impl Source {
    fn toml_error(&self, text: &str, keys: &[Key], error: &toml::de::Error) -> ConfigError {
        let file = self.file.as_deref().unwrap_or("configuration");
        let problem = helpful(error.message());
        let Some(span) = error.span() else { return ConfigError(vec![format!("{file}: {problem}")]) };
        let at = line(text, span.start);
        // The innermost key whose name or value contains the error.
        let key = keys.iter().filter(|key| key.holds(span.start)).max_by_key(|key| key.path.len());
        let text = match key {
            Some(key) => format!("{file}:{at}: {}: {problem}", key.path),
            None => format!("{file}:{at}: {problem}"),
        };
        ConfigError(vec![text])
    }
}

/// A key, with the byte ranges of its name and its value.
struct Key {
    path: String,
    name: Range<usize>,
    value: Range<usize>,
}

impl Key {
    fn holds(&self, at: usize) -> bool {
        self.name.contains(&at) || self.value.contains(&at)
    }
}

fn keys(text: &str) -> Result<Vec<Key>, toml::de::Error> {
    let mut keys = Vec::new();
    collect(DeTable::parse(text)?.get_ref(), "", &mut keys);
    Ok(keys)
}

fn collect(table: &DeTable<'_>, prefix: &str, keys: &mut Vec<Key>) {
    for (name, value) in table {
        let path = format!("{prefix}{}", name.get_ref());
        keys.push(Key { path: path.clone(), name: name.span(), value: value.span() });
        collect_value(value.get_ref(), &path, keys);
    }
}

fn collect_value(value: &DeValue<'_>, path: &str, keys: &mut Vec<Key>) {
    match value {
        DeValue::Table(table) => collect(table, &format!("{path}."), keys),
        DeValue::Array(items) => {
            for (number, item) in items.iter().enumerate() {
                let path = format!("{path}.{number}");
                keys.push(Key { path: path.clone(), name: item.span(), value: item.span() });
                collect_value(item.get_ref(), &path, keys);
            }
        }
        _ => {}
    }
}

fn line(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}

/// Rewrites serde's messages. "unknown field `x`, expected one of `a`, `b`" becomes the closest known key; "invalid
/// type: string "x", expected u32" becomes TOML's terms without the value, which may be a secret set at the wrong key.
fn helpful(message: &str) -> String {
    if let Some((_, expected)) =
        message.strip_prefix("invalid value: ").and_then(|wrong| wrong.rsplit_once(", expected "))
    {
        // The type is right, so naming it would not help.
        return format!("must be {}", in_words(expected.trim_end()));
    }
    if let Some((found, expected)) =
        message.strip_prefix("invalid type: ").and_then(|wrong| wrong.rsplit_once(", expected "))
    {
        let found = match found.split(['"', '`']).next().unwrap_or_default().trim_end() {
            "map" => "a table",
            "sequence" => "a list",
            "integer" => "a whole number",
            "floating point" => "a number with a fraction",
            "boolean" => "true or false",
            "string" => "a string",
            other => other,
        };
        return format!("must be {}, not {found}", in_words(expected.trim_end()));
    }
    if !message.starts_with("unknown field") {
        return message.trim_end().to_owned();
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let unknown = quoted.next().unwrap_or_default();
    let known: Vec<_> = quoted.collect();
    let nearest = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(name, unknown), *name))
        .min()
        .filter(|(distance, name)| *distance <= name.len().max(unknown.len()) / 2);
    match nearest {
        Some((_, name)) => format!("unknown key `{unknown}`; did you mean `{name}`?"),
        None => format!("unknown key `{unknown}`; known keys are {}", known.join(", ")),
    }
}

/// A Rust type name in terms that make sense to someone writing TOML.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or more",
        "i32" | "i64" => "a whole number",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "a quoted string",
        "a sequence" => "a list (a repeated section is written [[like this]])",
        other => match other.strip_prefix("struct ") {
            Some(_) => "a table",
            None => other,
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{io::Write as _, path::PathBuf};

    use tempfile::NamedTempFile;

    use serde::Deserialize;

    use super::*;
    use crate::config::secret::{ExposeSecret as _, SecretString};

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        database: Database,
        apps: Vec<App>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Database {
        url: String,
        max_connections: u32,
        password: Option<SecretString>,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct App {
        id: String,
        key_file: Option<PathBuf>,
    }

    fn file(text: &str) -> NamedTempFile {
        let mut file = NamedTempFile::with_suffix(".toml").unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    fn load_text(text: &str, environment: &[(&str, &str)]) -> Result<Loaded<Config>, String> {
        let file = file(text);
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        load(Some(file.path()), environment)
            .map_err(|error| error.to_string().replace(&file.path().display().to_string(), "waypost.toml"))
    }

    #[test]
    fn an_error_names_the_file_line_key_and_fix() {
        for (text, expected) in [
            ("\n[database]\nurll = 'a'", "waypost.toml:3: database.urll: unknown key `urll`; did you mean `url`?"),
            ("[databse]\nurl = 'a'", "waypost.toml:1: databse: unknown key `databse`; did you mean `database`?"),
            (
                "[[apps]]\nid = 'a'\n[[apps]]\nkeyfile = 'b'",
                "waypost.toml:4: apps.1.keyfile: unknown key `keyfile`; did you mean `key_file`?",
            ),
            (
                "[database]\nmax_connections = 'many'",
                "waypost.toml:2: database.max_connections: must be a whole number from 0 to 4294967295, not a string",
            ),
            (
                "[database]\nmax_connections = -1",
                "waypost.toml:2: database.max_connections: must be a whole number from 0 to 4294967295",
            ),
            (
                "[database]\nzzzzzzzzz = 1",
                "waypost.toml:2: database.zzzzzzzzz: unknown key `zzzzzzzzz`; known keys are url, max_connections, password",
            ),
        ] {
            assert_eq!(load_text(text, &[]).unwrap_err(), expected);
        }
        assert!(load_text("[database\n", &[]).unwrap_err().starts_with("waypost.toml:1: "));
    }

    #[test]
    fn the_environment_overrides_every_key() {
        let loaded = load_text(
            "[database]\nurl = 'a'\n[[apps]]\nid = 'x'",
            &[
                ("WAYPOST_DATABASE__URL", "postgres://b"),
                ("WAYPOST_DATABASE__MAX_CONNECTIONS", "7"),
                ("WAYPOST_DATABASE__PASSWORD", "12345"),
                ("WAYPOST_APPS__0__KEY_FILE", "key.p8"),
                ("WAYPOST_CONFIG", "ignored"),
                ("WAYPOST_IDENTITY_PORT", "tcp://10.0.0.1:80"),
                ("HOME", "ignored"),
            ],
        )
        .unwrap();
        let Config { database, apps } = &loaded.config;
        assert_eq!((database.url.as_str(), database.max_connections), ("postgres://b", 7));
        assert_eq!(database.password.as_ref().unwrap().expose_secret(), "12345");
        assert_eq!((apps[0].id.as_str(), apps[0].key_file.as_deref()), ("x", Some(Path::new("key.p8"))));
        let error = loaded.source.error("database.url", "must not be empty");
        assert_eq!(error.to_string(), "environment variable WAYPOST_DATABASE__URL: must not be empty");
    }

    #[test]
    fn an_error_in_the_environment_names_the_variable() {
        for (name, value, expected) in [
            ("WAYPOST_DATABASE__URLL", "a", "unknown key `urll`; did you mean `url`?"),
            ("WAYPOST_DATABASE__MAX_CONNECTIONS", "many", "must be a whole number from 0 to 4294967295, not a string"),
            ("WAYPOST_APPS__0__ID", "a", "the list has 0 entries, counted from 0"),
        ] {
            let error = load_text("apps = []", &[(name, value)]).unwrap_err();
            assert_eq!(error, format!("environment variable {name}: {expected}"));
        }
    }

    #[test]
    fn error_messages_never_contain_the_value() {
        for (text, environment) in [
            ("database = 'postgres://user:swordfish@db'", ("HOME", "")),
            ("[database]\nmax_connections = 'swordfish'", ("HOME", "")),
            ("", ("WAYPOST_DATABASE__MAX_CONNECTIONS", "swordfish")),
        ] {
            let error = load_text(text, &[environment]).unwrap_err();
            assert!(error.contains("database") || error.contains("DATABASE"), "{error}");
            assert!(!error.contains("swordfish"), "{error}");
        }
    }

    #[test]
    fn a_problem_with_a_missing_key_points_at_its_table() {
        let file = file("[database]\nurl = 'a'\n\n[[apps]]\nid = 'x'\n");
        let loaded: Loaded<Config> = load(Some(file.path()), []).unwrap();
        let name = file.path().display();
        let error = loaded.source.error("apps.0.key_file", "is needed").to_string();
        assert_eq!(error, format!("{name}:4: apps.0.key_file: is needed"));
        assert_eq!(
            loaded.source.error("database.url", "is bad").to_string(),
            format!("{name}:2: database.url: is bad")
        );
    }
}
