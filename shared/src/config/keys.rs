//! Lists the keys of a configuration by asking serde, so that no list has to be maintained by hand.

use std::{cell::RefCell, fmt};

use serde::{
    Deserializer,
    de::{
        DeserializeOwned, DeserializeSeed, Error as _, IntoDeserializer as _, MapAccess, SeqAccess, Visitor,
        value::StrDeserializer,
    },
    forward_to_deserialize_any,
};
use toml::{Table, Value};

/// Stands for the freely chosen names of a map and for the entries of a list.
pub const ANY: &str = "*";

/// A key of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Enclosing tables, then the name; [`ANY`] for a list entry or a freely chosen name.
    pub path: Vec<&'static str>,
    /// Whether the value is a [`SecretString`](crate::config::secret::SecretString).
    pub is_secret: bool,
}

impl Key {
    /// The path joined with dots.
    #[must_use]
    pub fn dotted(&self) -> String {
        self.path.join(".")
    }
}

/// All keys of `T`; each table precedes its contents.
///
/// Deserializes `T` repeatedly from a probe that descends one path, records which keys or list entries `T` asks for at
/// its end, and then refuses to provide a value.
#[must_use]
pub fn keys_of<T: DeserializeOwned>() -> Vec<Key> {
    let mut keys = Vec::new();
    let mut open = vec![Vec::new()];
    while let Some(path) = open.pop() {
        let asked = RefCell::new(Asked::default());
        // Always an error, because the probe never provides a value.
        drop(T::deserialize(Probe { path: &path, asked: &asked }));
        let Asked { below, is_secret } = asked.into_inner();
        open.extend(below.iter().rev().map(|name| [path.as_slice(), &[*name]].concat()));
        if !path.is_empty() {
            keys.push(Key { path, is_secret });
        }
    }
    keys
}

/// What a sample file lacks: keys of `T` that appear in it neither with a value nor as a commented-out example, and
/// lines whose value `T` rejects.
#[must_use]
pub fn gaps<T: DeserializeOwned>(sample: &str) -> Vec<String> {
    let (mut gaps, mut shown) = (Vec::new(), Vec::new());
    let (mut list, mut header) = ("", String::new());
    for line in sample.lines() {
        let mut line = line.trim_start_matches("# ");
        if let Some(name) = line.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
            (list, header, line) = (name, format!("{line}\n"), "");
        } else if line.starts_with('[') && line.ends_with(']') {
            let is_entrys = !list.is_empty() && line.starts_with(&format!("[{list}."));
            header = if is_entrys { format!("[[{list}]]\n{line}\n") } else { format!("{line}\n") };
            line = "";
        }
        let text = format!("{header}{line}");
        let Ok(document) = toml::from_str::<Table>(&text) else { continue };
        if let Err(error) = toml::from_str::<T>(&text) {
            gaps.push(format!("{line}: {}", error.message()));
        }
        note(&Value::Table(document), &mut Vec::new(), &mut shown);
    }
    let is_shown = |key: &Key| {
        let names = |path: &Vec<String>| {
            path.len() == key.path.len()
                && path.iter().zip(&key.path).all(|(name, wanted)| *wanted == ANY || name == wanted)
        };
        // Samples need no example of a freely chosen name.
        key.path.last() == Some(&ANY) || shown.iter().any(names)
    };
    gaps.extend(keys_of::<T>().iter().filter(|key| !is_shown(key)).map(Key::dotted));
    gaps
}

/// Collects the paths of all keys into `shown`.
fn note(value: &Value, path: &mut Vec<String>, shown: &mut Vec<Vec<String>>) {
    if !path.is_empty() {
        shown.push(path.clone());
    }
    let below: Vec<(&str, &Value)> = match value {
        Value::Table(table) => table.iter().map(|(name, value)| (name.as_str(), value)).collect(),
        Value::Array(items) => items.iter().map(|item| (ANY, item)).collect(),
        _ => Vec::new(),
    };
    for (name, value) in below {
        path.push(name.to_owned());
        note(value, path, shown);
        path.pop();
    }
}

/// Deserializes a configuration that sets only `key`, to `text`; freely chosen names become `*`. `None` if the key
/// does not take a string.
#[must_use]
pub fn only<T: DeserializeOwned>(key: &Key, text: &str) -> Option<T> {
    let nested = key.path.iter().rev().fold(Value::String(text.to_owned()), |value, name| {
        Value::Table(Table::from_iter([((*name).to_owned(), value)]))
    });
    nested.try_into().ok()
}

/// What `T` asked for at the end of a path.
#[derive(Default)]
struct Asked {
    below: Vec<&'static str>,
    is_secret: bool,
}

/// A deserializer for a document that contains only `path`.
struct Probe<'a> {
    path: &'a [&'static str],
    asked: &'a RefCell<Asked>,
}

/// The error that ends every probe.
#[derive(Debug)]
struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no value")
    }
}

impl std::error::Error for Refused {}

impl serde::de::Error for Refused {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

impl Probe<'_> {
    /// Descends into the next path segment, or records `names` at the end of the path.
    fn table<'de, V: Visitor<'de>>(mut self, names: &[&'static str], visitor: V) -> Result<V::Value, Refused> {
        let Some((name, rest)) = self.path.split_first() else {
            self.asked.borrow_mut().below = names.to_vec();
            return Err(Refused);
        };
        self.path = rest;
        visitor.visit_map(Only { name, value: Some(self) })
    }
}

impl<'de> Deserializer<'de> for Probe<'_> {
    type Error = Refused;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Refused> {
        Err(Refused)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refused> {
        self.table(fields, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        self.table(&[ANY], visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, Refused> {
        let Some((_, rest)) = self.path.split_first() else {
            self.asked.borrow_mut().below = vec![ANY];
            return Err(Refused);
        };
        self.path = rest;
        visitor.visit_seq(Only { name: ANY, value: Some(self) })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refused> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Refused> {
        if name == "SecretString" {
            self.asked.borrow_mut().is_secret = true;
            return Err(Refused);
        }
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct enum identifier ignored_any
    }
}

/// A table or list with a single entry.
struct Only<'a> {
    name: &'static str,
    value: Option<Probe<'a>>,
}

impl<'de> MapAccess<'de> for Only<'_> {
    type Error = Refused;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Refused> {
        if self.value.is_none() {
            return Ok(None);
        }
        let name: StrDeserializer<'_, Refused> = self.name.into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Refused> {
        let value = self.value.take().ok_or_else(|| Refused::custom("the value was already taken"))?;
        seed.deserialize(value)
    }
}

impl<'de> SeqAccess<'de> for Only<'_> {
    type Error = Refused;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Refused> {
        self.value.take().map(|value| seed.deserialize(value)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

    use serde::Deserialize;

    use super::*;
    use crate::config::secret::SecretString;

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Config {
        address: Option<SocketAddr>,
        #[serde(rename = "type")]
        kind: String,
        below: Option<Below>,
        entries: Vec<Below>,
        headers: BTreeMap<String, SecretString>,
        last: bool,
    }

    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Below {
        file: Option<PathBuf>,
        secret: Option<SecretString>,
    }

    #[test]
    fn every_key_is_found_whatever_its_type() {
        let keys = keys_of::<Config>();
        let names: Vec<_> = keys.iter().map(Key::dotted).collect();
        assert_eq!(
            names,
            [
                "address",
                "type",
                "below",
                "below.file",
                "below.secret",
                "entries",
                "entries.*",
                "entries.*.file",
                "entries.*.secret",
                "headers",
                "headers.*",
                "last"
            ]
        );
        let secret: Vec<_> = keys.iter().filter(|key| key.is_secret).map(Key::dotted).collect();
        assert_eq!(secret, ["below.secret", "entries.*.secret", "headers.*"]);
    }

    #[test]
    fn a_sample_must_show_every_key_as_a_value_or_an_example() {
        let sample = "
            # address = \"127.0.0.1:1\"
            type = \"a\"
            last = true
            [below]
            # A comment with = in it.
            # file = \"a\"
            secret = \"b\"
            [headers]
            # [[entries]]
            # # file = \"a\"
            # secret = \"b\"
        "
        .replace("            ", "");
        assert_eq!(gaps::<Config>(&sample), Vec::<String>::new());
        let missing = sample.replace("# # file = \"a\"\n", "").replace("last = true\n", "");
        assert_eq!(gaps::<Config>(&missing), ["entries.*.file", "last"]);
        let wrong = sample.replace("127.0.0.1:1", "here");
        assert_eq!(gaps::<Config>(&wrong), ["address = \"here\": invalid socket address syntax"]);
    }
}
