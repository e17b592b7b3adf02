//! The templates of mails, text messages and pages: built in, and each replaceable by an operator's file of the same
//! name.
//!
//! `NAME.de.html` is the German translation of `NAME.html`. A sub-folder of the operator's folder is a brand, which
//! requests select by name. A template is looked up in the brand's folder, then in the operator's, then among the
//! built-in ones, in each place first in the reader's language. An operator's template therefore always wins over a
//! built-in one, whatever its language.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use minijinja::{AutoEscape, Environment, Output, State, UndefinedBehavior, Value, context, value::Serde};
use serde::Serialize;

use crate::domain::language::{self, ENGLISH};

/// Names and texts of all templates. Values in `.html` templates are escaped.
const BUILT_IN: &[(&str, &str)] = &[
    ("mail_layout.html", include_str!("../../../templates/mail_layout.html")),
    ("verification_subject.txt", include_str!("../../../templates/verification_subject.txt")),
    ("verification_subject.de.txt", include_str!("../../../templates/verification_subject.de.txt")),
    ("verification_mail.txt", include_str!("../../../templates/verification_mail.txt")),
    ("verification_mail.de.txt", include_str!("../../../templates/verification_mail.de.txt")),
    ("verification_mail.html", include_str!("../../../templates/verification_mail.html")),
    ("invitation_subject.txt", include_str!("../../../templates/invitation_subject.txt")),
    ("invitation_mail.txt", include_str!("../../../templates/invitation_mail.txt")),
    ("invitation_mail.html", include_str!("../../../templates/invitation_mail.html")),
    ("invitation_subject.de.txt", include_str!("../../../templates/invitation_subject.de.txt")),
    ("invitation_mail.de.txt", include_str!("../../../templates/invitation_mail.de.txt")),
    ("invitation_mail.de.html", include_str!("../../../templates/invitation_mail.de.html")),
    ("verification_mail.de.html", include_str!("../../../templates/verification_mail.de.html")),
    ("verification_sms.txt", include_str!("../../../templates/verification_sms.txt")),
    ("verification_sms.de.txt", include_str!("../../../templates/verification_sms.de.txt")),
    ("page_layout.html", include_str!("../../../templates/page_layout.html")),
    ("page_confirm.html", include_str!("../../../templates/page_confirm.html")),
    ("page_confirm.de.html", include_str!("../../../templates/page_confirm.de.html")),
    ("page_done.html", include_str!("../../../templates/page_done.html")),
    ("page_done.de.html", include_str!("../../../templates/page_done.de.html")),
    ("page_failed.html", include_str!("../../../templates/page_failed.html")),
    ("page_failed.de.html", include_str!("../../../templates/page_failed.de.html")),
    ("page_expired.html", include_str!("../../../templates/page_expired.html")),
    ("page_expired.de.html", include_str!("../../../templates/page_expired.de.html")),
    ("page_missing.html", include_str!("../../../templates/page_missing.html")),
    ("page_missing.de.html", include_str!("../../../templates/page_missing.de.html")),
    ("page_terms.html", include_str!("../../../templates/page_terms.html")),
];

/// Template instructions that one rendering may execute, so that an endless loop in an operator's template cannot block
/// the server.
const FUEL: u64 = 100_000;

/// A template folder that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TemplateError {
    /// A file or folder cannot be read.
    #[error("cannot read the template {path}: {source}")]
    Unreadable {
        /// The file or folder.
        path: String,
        /// The I/O error.
        source: io::Error,
    },
    /// A template has an error. The text names the template and the line.
    #[error("the template cannot be used: {0}")]
    Mistake(#[from] minijinja::Error),
}

/// The brand and language to render in, as [`Templates::look`] chooses them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    /// The sub-folder of the operator's folder; none means no brand.
    pub(crate) brand: Option<String>,
    /// The language tag, in lower case.
    pub(crate) language: String,
}

/// All templates, read once at startup.
#[derive(Debug)]
pub(crate) struct Templates {
    /// By brand; the empty name stands for no brand.
    brands: BTreeMap<String, Brand>,
    default_language: String,
}

/// The complete templates of one brand: `de/page_done.html` is the best text there is for German readers.
#[derive(Debug)]
struct Brand {
    environment: Environment<'static>,
    /// By language and template name: the language that the chosen template is actually written in.
    written_in: BTreeMap<String, BTreeMap<String, String>>,
}

/// Texts by file name.
type Texts = BTreeMap<String, String>;

impl Templates {
    /// Loads the built-in templates, overridden by those in `folder` and its sub-folders. Readers of none of the
    /// available languages get `default_language`.
    pub(crate) fn load(folder: Option<&Path>, default_language: &str) -> Result<Self, TemplateError> {
        let built_in: Texts = BUILT_IN.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        let own = folder.map(texts).transpose()?.unwrap_or_default();
        let mut brands = BTreeMap::from([(String::new(), Brand::build(&Texts::new(), &own, &built_in)?)]);
        for (name, path) in folder.map(brand_folders).transpose()?.unwrap_or_default() {
            let brand = Brand::build(&texts(&path)?, &own, &built_in)?;
            brands.insert(name, brand);
        }
        Ok(Self { brands, default_language: default_language.to_owned() })
    }

    /// The look for a request: `brand` if it exists, and the first of the `preferred` languages with any templates.
    pub(crate) fn look(&self, brand: Option<&str>, preferred: &[String]) -> Look {
        // The name comes from a request: it is only compared with the brands found at startup and never becomes a path.
        let brand = brand.filter(|brand| !brand.is_empty() && self.brands.contains_key(*brand)).map(str::to_owned);
        let known = self.brand(brand.as_deref()).map(|brand| &brand.written_in);
        let language = language::choose(preferred, |language| {
            known.and_then(|known| known.get_key_value(language)).map(|(language, _)| language.as_str())
        });
        Look { brand, language: language.unwrap_or(&self.default_language).to_owned() }
    }

    /// Renders a template. Besides `values` it can use `lang`, the language it is written in.
    ///
    /// # Errors
    ///
    /// An error in an operator's template that only rendering reveals: an unknown variable, or running out of fuel.
    pub(crate) fn render(&self, look: &Look, name: &str, values: &impl Serialize) -> Result<String, minijinja::Error> {
        let unknown = || minijinja::Error::new(minijinja::ErrorKind::TemplateNotFound, "there is no such brand");
        let brand = self.brand(look.brand.as_deref()).ok_or_else(unknown)?;
        // The configured default language may have no templates yet.
        let (language, written_in) = brand
            .written_in
            .get_key_value(&look.language)
            .or_else(|| brand.written_in.get_key_value(ENGLISH))
            .ok_or_else(unknown)?;
        let lang = written_in.get(name).map_or(ENGLISH, String::as_str);
        let values = context! { lang => lang, ..Value::from(Serde(values)) };
        brand.environment.get_template(&format!("{language}/{name}"))?.render(values)
    }

    fn brand(&self, name: Option<&str>) -> Option<&Brand> {
        self.brands.get(name.unwrap_or_default())
    }
}

impl Brand {
    /// Resolves each template in every language found anywhere, from the brand's own texts, the operator's and the
    /// built-in ones.
    fn build(brand: &Texts, own: &Texts, built_in: &Texts) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment
            .set_auto_escape_callback(|name| if name.ends_with(".html") { AutoEscape::Html } else { AutoEscape::None });
        environment.set_formatter(write_value);
        // Templates extend and include others in their own language.
        environment.set_path_join_callback(|name, parent| match parent.split_once('/') {
            Some((language, _)) => format!("{language}/{name}").into(),
            None => name.into(),
        });
        let mut languages = BTreeSet::from([ENGLISH.to_owned()]);
        let mut names = BTreeSet::new();
        for file in brand.keys().chain(own.keys()).chain(built_in.keys()) {
            let (name, language) = split(file);
            names.insert(name);
            languages.extend(language);
        }
        let mut written_in: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for language in languages {
            let of_language = written_in.entry(language.clone()).or_default();
            for name in &names {
                let translated = translated(name, &language);
                let found = [
                    (brand.get(&translated), language.as_str()),
                    (brand.get(name), ENGLISH),
                    (own.get(&translated), language.as_str()),
                    (own.get(name), ENGLISH),
                    (built_in.get(&translated), language.as_str()),
                    (built_in.get(name), ENGLISH),
                ];
                let Some((text, written)) = found.into_iter().find_map(|(text, written)| Some((text?, written))) else {
                    continue;
                };
                environment.add_template_owned(format!("{language}/{name}"), text.clone())?;
                of_language.insert(name.clone(), written.to_owned());
            }
        }
        Ok(Self { environment, written_in })
    }
}

/// `page_done.de.html` is `page_done.html` in `de`.
fn split(file: &str) -> (String, Option<String>) {
    let parts: Vec<_> = file.split('.').collect();
    match parts[..] {
        [stem, language, extension] if language::tag(language).as_deref() == Some(language) => {
            (format!("{stem}.{extension}"), Some(language.to_owned()))
        }
        _ => (file.to_owned(), None),
    }
}

fn translated(name: &str, language: &str) -> String {
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    format!("{stem}.{language}.{extension}")
}

/// The templates in a folder; other files are ignored.
fn texts(folder: &Path) -> Result<Texts, TemplateError> {
    let mut texts = Texts::new();
    for (name, path) in entries(folder)? {
        if !path.is_file() || !(name.ends_with(".html") || name.ends_with(".txt")) {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(|source| unreadable(&path, source))?;
        texts.insert(name, text);
    }
    Ok(texts)
}

/// The sub-folders with valid brand names. Others, such as `..data` in a Kubernetes volume, are ignored.
fn brand_folders(folder: &Path) -> Result<Vec<(String, PathBuf)>, TemplateError> {
    let mut brands = entries(folder)?;
    brands.retain(|(name, path)| is_brand_name(name) && path.is_dir());
    Ok(brands)
}

fn is_brand_name(name: &str) -> bool {
    (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn entries(folder: &Path) -> Result<Vec<(String, PathBuf)>, TemplateError> {
    let read = || -> io::Result<Vec<_>> {
        fs::read_dir(folder)?
            .map(|entry| entry.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())))
            .collect()
    };
    read().map_err(|source| unreadable(folder, source))
}

fn unreadable(path: &Path, source: io::Error) -> TemplateError {
    TemplateError::Unreadable { path: path.display().to_string(), source }
}

/// Escapes only what HTML requires: the engine's own escaping turns each slash of a link into `&#x2f;`.
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
mod tests;
