//! The texts of mails and pages: built in, and each replaceable by an operator's file of the same name.

use std::{fs, io, path::Path};

use minijinja::{AutoEscape, Environment, Output, State, UndefinedBehavior, Value, value::Serde};
use serde::Serialize;

/// Names and texts of all templates. Those that end in `.html` are escaped.
const BUILT_IN: [(&str, &str); 8] = [
    ("mail_layout.html", include_str!("../../templates/mail_layout.html")),
    ("verification_subject.txt", include_str!("../../templates/verification_subject.txt")),
    ("verification_mail.txt", include_str!("../../templates/verification_mail.txt")),
    ("verification_mail.html", include_str!("../../templates/verification_mail.html")),
    ("page_layout.html", include_str!("../../templates/page_layout.html")),
    ("page_confirm.html", include_str!("../../templates/page_confirm.html")),
    ("page_message.html", include_str!("../../templates/page_message.html")),
    ("page_terms.html", include_str!("../../templates/page_terms.html")),
];

/// How much work one rendering may do: an operator's endless loop must not hold up the server.
const FUEL: u64 = 100_000;

/// A template folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// A file in it cannot be read.
    #[error("cannot read the template {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// A template has a mistake. The text names the template and the line.
    #[error("the template cannot be used: {0}")]
    Mistake(#[from] minijinja::Error),
}

/// The templates, read once.
#[derive(Debug)]
pub(crate) struct Templates(Environment<'static>);

impl Templates {
    /// Reads the built-in templates, and over them those of `folder`.
    ///
    /// # Errors
    ///
    /// [`TemplateError`] that names the file.
    pub(crate) fn load(folder: Option<&Path>) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment
            .set_auto_escape_callback(|name| if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None });
        environment.set_formatter(write_value);
        for (name, text) in BUILT_IN {
            let replaced = folder.map(|folder| replacement(&folder.join(name))).transpose()?.flatten();
            match replaced {
                Some(own) => environment.add_template_owned(name, own)?,
                None => environment.add_template(name, text)?,
            }
        }
        Ok(Self(environment))
    }

    /// Fills in a template.
    ///
    /// # Errors
    ///
    /// A mistake in an operator's template that shows only now: an unknown variable, too much work.
    pub(crate) fn render(&self, name: &str, values: &impl Serialize) -> Result<String, minijinja::Error> {
        self.0.get_template(name)?.render(Serde(values))
    }
}

fn replacement(path: &Path) -> Result<Option<String>, TemplateError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TemplateError::Unreadable { path: path.display().to_string(), source }),
    }
}

/// Escapes what HTML needs escaped and nothing else: the engine's own way turns each slash of a link into `&#x2f;`.
fn write_value(output: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), minijinja::Error> {
    if !matches!(state.auto_escape(), AutoEscape::Html) || value.is_safe() {
        return minijinja::escape_formatter(output, state, &Value::from_safe_string(value.to_string()));
    }
    if value.is_undefined() {
        return minijinja::escape_formatter(output, state, value);
    }
    let mut escaped = String::new();
    for c in value.to_string().chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    output.write_str(&escaped).map_err(|error| {
        minijinja::Error::new(minijinja::ErrorKind::WriteFailure, "the page could not be written").with_source(error)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn values() -> serde_json::Value {
        json!({
            "link": "https://id.test/x?a=1&b=2", "server_name": "<b>id</b>", "hours": 24, "title": "T", "ok": true,
            "text": "\"'<script>", "sid": "s", "token": "t", "client_secret": "c", "action": "/a",
        })
    }

    #[test]
    fn html_is_escaped_and_text_is_not() {
        let templates = Templates::load(None).unwrap();
        let html = templates.render("verification_mail.html", &values()).unwrap();
        assert!(html.contains("https://id.test/x?a=1&amp;b=2"), "{html}");
        assert!(html.contains("&lt;b&gt;id&lt;/b&gt;") && !html.contains("<b>id"), "{html}");
        let text = templates.render("verification_mail.txt", &values()).unwrap();
        assert!(text.contains("https://id.test/x?a=1&b=2") && text.contains("<b>id</b>"), "{text}");
        let page = templates.render("page_message.html", &values()).unwrap();
        assert!(page.contains("&quot;&#39;&lt;script&gt;"), "{page}");
    }

    #[test]
    fn an_operators_template_takes_the_place_of_a_built_in_one() {
        let folder = std::env::temp_dir().join(waypost_shared::random::token());
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("verification_subject.txt"), "Ours").unwrap();
        let subject = Templates::load(Some(&folder)).unwrap().render("verification_subject.txt", &values());
        fs::write(folder.join("verification_subject.txt"), "{% if %}").unwrap();
        let broken = Templates::load(Some(&folder)).unwrap_err().to_string();
        fs::write(folder.join("verification_subject.txt"), "{% for a in range(100000) %}{{ a }}{% endfor %}").unwrap();
        let endless = Templates::load(Some(&folder)).unwrap().render("verification_subject.txt", &values());
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(subject.unwrap(), "Ours");
        assert!(broken.contains("verification_subject.txt:1"), "{broken}");
        assert!(endless.is_err());
    }
}
