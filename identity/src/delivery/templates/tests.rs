//! Tests of the templates.

#![allow(clippy::unwrap_used)]

use serde_json::json;
use tempfile::TempDir;

use super::*;

fn values() -> serde_json::Value {
    json!({
        "link": "https://id.test/x?a=1&b=2", "server_name": "<b>id</b>", "hours": 24, "address": "\"'<script>",
        "medium": "email", "code": "012345", "sid": "s", "token": "t", "client_secret": "c", "action": "/a",
        "brand": "", "language": "en", "too_often": false, "inviter": "Bob", "sender": "@bob:hs.test",
        "room_name": "", "is_space": false, "account": "@alice:hs.test", "has_name": true,
        "homeserver": "hs.test", "client": "app.test", "days": 7, "title": "T", "html": "", "version": "1",
    })
}

fn english() -> Look {
    Look { brand: None, language: "en".to_owned() }
}

/// A temporary folder with the given files, removed on drop.
struct Folder(TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Self(folder)
    }
}

#[test]
fn html_is_escaped_and_text_is_not() {
    let templates = Templates::load(None, "en").unwrap();
    let html = templates.render(&english(), "verification_mail.html", &values()).unwrap();
    assert!(html.contains("https://id.test/x?a=1&amp;b=2"), "{html}");
    assert!(html.contains("&lt;b&gt;id&lt;/b&gt;") && !html.contains("<b>id"), "{html}");
    let text = templates.render(&english(), "verification_mail.txt", &values()).unwrap();
    assert!(text.contains("https://id.test/x?a=1&b=2") && text.contains("<b>id</b>"), "{text}");
    let page = templates.render(&english(), "page_confirm.html", &values()).unwrap();
    assert!(page.contains("&quot;&#39;&lt;script&gt;"), "{page}");
}

#[test]
fn every_built_in_template_exists_in_both_languages_and_declares_its_own() {
    let templates = Templates::load(None, "en").unwrap();
    for (file, _) in BUILT_IN {
        let (name, _) = split(file);
        // A policy has a language of its own, whatever the reader's.
        if name.ends_with("_layout.html") || name == "page_terms.html" {
            continue;
        }
        for language in ["en", "de"] {
            let look = Look { brand: None, language: language.to_owned() };
            for medium in ["email", "msisdn"] {
                let mut values = values();
                values["medium"] = medium.into();
                let text = templates.render(&look, &name, &values).unwrap();
                if name.ends_with(".html") {
                    assert!(text.contains(&format!("<html lang=\"{language}\">")), "{name} {language}: {text}");
                }
            }
        }
    }
}

#[test]
fn an_operators_template_replaces_the_built_in_one() {
    let render = |text: &str| {
        let folder = Folder::new(&[("verification_subject.txt", text)]);
        Templates::load(Some(folder.0.path()), "en")
            .map(|templates| templates.render(&english(), "verification_subject.txt", &values()))
    };
    assert_eq!(render("Ours").unwrap().unwrap(), "Ours");
    let broken = render("{% if %}").unwrap_err().to_string();
    assert!(broken.contains("verification_subject.txt:1"), "{broken}");
    assert!(render("{% for a in range(100000) %}{{ a }}{% endfor %}").unwrap().is_err());
}

#[test]
fn templates_are_looked_up_by_brand_first_then_by_language() {
    let name = "verification_subject.txt";
    let subject = |files: &[(&str, &str)], brand: Option<&str>, language: &str| {
        let folder = Folder::new(files);
        let templates = Templates::load(Some(folder.0.path()), "en").unwrap();
        let look = templates.look(brand, &[language.to_owned()]);
        templates.render(&look, name, &values()).unwrap().trim().to_owned()
    };
    let mut files = vec![
        ("acme/verification_subject.de.txt", "brand, German"),
        ("acme/verification_subject.txt", "brand"),
        ("verification_subject.de.txt", "German"),
        ("verification_subject.txt", "own"),
    ];
    assert_eq!(subject(&files, Some("acme"), "de-AT"), "brand, German");
    assert_eq!(subject(&files, Some("acme"), "fr"), "brand");
    assert_eq!(subject(&files, None, "de"), "German");
    assert_eq!(subject(&files, Some("unknown"), "de"), "German");
    assert_eq!(subject(&files, None, "fr"), "own");
    files.remove(0);
    assert_eq!(subject(&files, Some("acme"), "de"), "brand");
    files.remove(0);
    files.push(("acme/other.txt", ""));
    assert_eq!(subject(&files, Some("acme"), "de"), "German");
}

#[test]
fn a_brands_layout_wraps_the_built_in_templates() {
    let layout = "<html lang=\"{{ lang }}\">ACME {% block title %}{% endblock %}{% block content %}{% endblock %}";
    let folder = Folder::new(&[("acme/page_layout.html", layout)]);
    let templates = Templates::load(Some(folder.0.path()), "en").unwrap();
    let page =
        templates.render(&templates.look(Some("acme"), &["de".to_owned()]), "page_done.html", &values()).unwrap();
    assert!(page.starts_with("<html lang=\"de\">ACME"), "{page}");
    let page = templates.render(&templates.look(None, &[]), "page_done.html", &values()).unwrap();
    assert!(!page.contains("ACME"), "{page}");
}

#[test]
fn a_brand_is_a_name_never_a_path() {
    let folder = Folder::new(&[("acme/a.txt", ""), (".hidden/a.txt", ""), ("a b/a.txt", "")]);
    let templates = Templates::load(Some(folder.0.path()), "en").unwrap();
    assert_eq!(templates.look(Some("acme"), &[]).brand.as_deref(), Some("acme"));
    for brand in ["", ".", "..", "../acme", "acme/", "/etc", ".hidden", "a b", "ACME", "acme\0"] {
        assert_eq!(templates.look(Some(brand), &[]).brand, None, "{brand:?}");
    }
}

#[test]
fn readers_of_no_available_language_get_the_default() {
    let templates = Templates::load(None, "de").unwrap();
    assert_eq!(templates.look(None, &["fr".to_owned()]).language, "de");
    assert_eq!(templates.look(None, &["en".to_owned()]).language, "en");
    // There are no templates in French, so English is used.
    let templates = Templates::load(None, "fr").unwrap();
    let page = templates.render(&templates.look(None, &[]), "page_done.html", &values()).unwrap();
    assert!(page.contains("<html lang=\"en\">"), "{page}");
}
