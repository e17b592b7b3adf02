//! Builds a configuration file; later settings override earlier ones.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

/// Sections of keys, rendered as TOML.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    sections: BTreeMap<String, BTreeMap<String, String>>,
    tail: String,
}

impl Settings {
    /// Sets `key` of `[section]`. JSON strings, numbers, booleans and arrays of them are valid TOML.
    pub fn set(&mut self, section: &str, key: &str, value: impl Into<Value>) -> &mut Self {
        let value: Value = value.into();
        self.sections.entry(section.to_owned()).or_default().insert(key.to_owned(), value.to_string());
        self
    }

    /// Removes `key` of `[section]`.
    pub fn remove(&mut self, section: &str, key: &str) -> &mut Self {
        if let Some(keys) = self.sections.get_mut(section) {
            keys.remove(key);
        }
        self
    }

    /// Removes a whole section.
    pub fn remove_section(&mut self, section: &str) -> &mut Self {
        self.sections.remove(section);
        self
    }

    /// Appends an entry to the array of tables `[[name]]`.
    pub fn push(&mut self, name: &str, entry: &[(&str, Value)]) -> &mut Self {
        let _ = writeln!(self.tail, "\n[[{name}]]");
        for (key, value) in entry {
            let _ = writeln!(self.tail, "{key} = {value}");
        }
        self
    }

    /// Appends raw text after all sections.
    pub fn append(&mut self, text: &str) -> &mut Self {
        self.tail.push('\n');
        self.tail.push_str(text);
        self
    }

    /// The file's content.
    pub fn toml(&self) -> String {
        let mut text = String::new();
        for (section, keys) in &self.sections {
            let _ = writeln!(text, "[{section}]");
            for (key, value) in keys {
                let _ = writeln!(text, "{} = {value}", bare_or_quoted(key));
            }
            text.push('\n');
        }
        text.push_str(&self.tail);
        text
    }
}

fn bare_or_quoted(key: &str) -> String {
    let bare = key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
    if bare { key.to_owned() } else { format!("\"{key}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_setting_wins() {
        let mut settings = Settings::default();
        settings.set("listen", "public", "127.0.0.1:1").set("listen", "public", "127.0.0.1:0");
        settings.set("outbound.hosts", "hs.test", "127.0.0.1");
        settings.push("apps", &[("id", "org.example".into())]);
        assert_eq!(
            settings.toml(),
            "[listen]\npublic = \"127.0.0.1:0\"\n\n[outbound.hosts]\n\"hs.test\" = \"127.0.0.1\"\n\n\
             \n[[apps]]\nid = \"org.example\"\n"
        );
    }
}
