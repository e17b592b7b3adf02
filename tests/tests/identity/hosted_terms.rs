//! Policies that the server shows itself.

use serde_json::json;
use waypost_tests::identity::TestIdentity;
use waypost_tests::on_each_database;
use waypost_tests::process::{IDENTITY, TempFolder, run, text};
use waypost_tests::settings::Settings;

use super::{ALICE, failure};

const POLICY: &str = "terms.policies.privacy_policy";

/// One policy in two languages, both in files of `folder`.
fn hosted(settings: &mut Settings, folder: &TempFolder, version: &str) {
    let en = folder.write("privacy.en.md", "# What we keep\n\nAn address *you* prove.\n\n<script>alert(1)</script>\n");
    let de = folder.write("privacy.de.md", "# Was wir speichern\n\nGrüße.\n");
    settings.set(POLICY, "version", version);
    for (language, name, file) in [("en", "Privacy Policy", en), ("de", "Datenschutz", de)] {
        let section = format!("{POLICY}.languages.{language}");
        settings.set(&section, "name", name).set(&section, "file", text(&file));
    }
}

on_each_database! {
    async fn a_policy_is_a_page_that_clients_find(database: Database) {
        let folder = TempFolder::new();
        let t = TestIdentity::start_with(database, |settings| hosted(settings, &folder, "1.0")).await;
        let offered = t.get("/terms", None).await.ok();
        let base = format!("{}/_waypost/terms/privacy_policy/1.0", t.server.public);
        assert_eq!(offered, json!({"policies": {"privacy_policy": {
            "version": "1.0",
            "en": {"name": "Privacy Policy", "url": format!("{base}/en")},
            "de": {"name": "Datenschutz", "url": format!("{base}/de")},
        }}}));

        let page = t.api.get(&format!("{base}/en"), None).await;
        assert_eq!(page.status, 200);
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
        assert!(page.header("content-security-policy").contains("default-src 'none'"));
        assert!(page.text.contains("<h1>What we keep</h1>"), "{}", page.text);
        assert!(page.text.contains("<em>you</em>") && page.text.contains("<title>Privacy Policy – id.test</title>"));
        // What is HTML in the file is text on the page.
        assert!(!page.text.contains("<script") && page.text.contains("&lt;script&gt;"), "{}", page.text);
        let german = t.api.get(&format!("{base}/de"), None).await;
        assert!(german.text.contains("lang=\"de\"") && german.text.contains("Grüße."), "{}", german.text);

        for path in ["privacy_policy/1.0/fr", "privacy_policy/2.0/en", "other/1.0/en", "privacy_policy/1.0/..%2Fen"] {
            let page = t.api.get(&format!("/_waypost/terms/{path}"), None).await;
            assert_eq!(page.status, 404, "{path}");
            assert!(page.header("content-type").starts_with("text/html"), "{path}");
        }
    }

    async fn accepting_its_url_in_one_language_is_enough(database: Database) {
        let folder = TempFolder::new();
        let t = TestIdentity::start_with(database, |settings| hosted(settings, &folder, "1.0")).await;
        let token = t.register(ALICE).await;
        assert_eq!(t.get("/account", Some(&token)).await.failure(), failure(403, "M_TERMS_NOT_SIGNED"));
        let offered = t.get("/terms", None).await.ok();
        let url = &offered["policies"]["privacy_policy"]["de"]["url"];
        assert_eq!(t.post("/terms", Some(&token), &json!({"user_accepts": [url]})).await.ok(), json!({}));
        assert_eq!(t.get("/account", Some(&token)).await.status, 200);
    }

    async fn an_address_of_the_operators_own_stays(database: Database) {
        let folder = TempFolder::new();
        let t = TestIdentity::start_with(database, |settings| {
            hosted(settings, &folder, "1");
            settings.set("identity", "public_base_url", "https://id.example.com/is/");
            settings.set(&format!("{POLICY}.languages.de"), "url", "https://example.com/datenschutz");
        })
        .await;
        let policy = t.get("/terms", None).await.ok()["policies"]["privacy_policy"].clone();
        assert_eq!(policy["de"]["url"], "https://example.com/datenschutz");
        assert_eq!(policy["en"]["url"], "https://id.example.com/is/_waypost/terms/privacy_policy/1/en");
    }
}

#[test]
fn a_file_that_is_missing_is_named() {
    let folder = TempFolder::new();
    let config = format!(
        "[identity]\ndata_dir = \"{}\"\n[listen]\npublic = \"127.0.0.1:0\"\noperations = \"127.0.0.1:0\"\n[{POLICY}]\n\
         version = \"1\"\nlanguages.en = {{ name = \"Privacy\", file = \"/nowhere/privacy.en.md\" }}\n",
        text(folder.path())
    );
    let file = folder.write("waypost.toml", &config);
    let output = run(IDENTITY, &["--config", &text(&file), "serve"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("/nowhere/privacy.en.md"), "{message}");
}
