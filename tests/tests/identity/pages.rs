//! The pages behind links: confirm, done, failed, expired.

use ::http::{Method, Request};
use bytes::Bytes;
use serde_json::json;
use waypost_tests::http::Reply;
use waypost_tests::identity::{Link, SERVER_NAME, TestIdentity, V2};
use waypost_tests::on_each_database;

use super::{ALICE, EMAIL, SECRET};

const SUBMIT: &str = "/validate/email/submitToken";

/// Opens a page with a browser that speaks this language.
async fn open(t: &TestIdentity, path_and_query: &str, language: &str) -> Reply {
    let request =
        Request::get(t.api.absolute(path_and_query)).header("accept-language", language).body(Bytes::new()).unwrap();
    t.api.send(request).await
}

/// What holds for every page: whose it is and in which language, one heading, nothing from elsewhere, nothing kept.
fn check(page: &Reply, status: u16, language: &str) {
    let text = &page.text;
    assert_eq!(page.status, status, "{text}");
    assert_eq!(page.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(page.header("referrer-policy"), "no-referrer");
    assert_eq!(page.header("cache-control"), "no-store");
    assert_eq!(page.header("x-content-type-options"), "nosniff");
    let policy = page.header("content-security-policy");
    for rule in ["default-src 'none'", "form-action 'self'", "base-uri 'none'", "frame-ancestors 'none'"] {
        assert!(policy.contains(rule), "{rule}: {policy}");
    }
    assert!(!policy.contains("script"), "{policy}");

    assert!(text.starts_with("<!doctype html>"), "{text}");
    assert!(text.contains(&format!("<html lang=\"{language}\">")), "{language}: {text}");
    assert!(text.contains("name=\"viewport\"") && text.contains("name=\"color-scheme\""), "{text}");
    assert!(text.contains("prefers-color-scheme: dark"), "{text}");
    for (part, times) in
        [("<h1", 1), ("<main", 1), ("<header", 1), ("<title>", 1), ("<script", 0), ("<img", 0), ("<link", 0)]
    {
        assert_eq!(text.matches(part).count(), times, "{part}: {text}");
    }
    // Whose page it is, before anything else that a person reads, and in the tab.
    let (head, body) = text.split_once("<body>").unwrap();
    assert!(head.contains(&format!("{SERVER_NAME}</title>")), "{head}");
    assert!(body.find(SERVER_NAME) < body.find("<h1"), "{body}");
    assert!(!text.contains("{{") && !text.contains("{%"), "{text}");
}

on_each_database! {
    async fn confirm_and_done(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (_, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let link = Link::parse(&mail.link());
        let page = open(&t, &link.path_and_query, "fr").await;
        check(&page, 200, "en");
        // What is confirmed, how, and what if it was not them.
        for expected in [EMAIL, "<button type=\"submit\">Confirm</button>", "Didn't ask for this?"] {
            assert!(page.text.contains(expected), "{expected}: {}", page.text);
        }
        let done = t.press_button(&link).await;
        check(&done, 200, "en");
        assert!(done.text.contains("is confirmed") && done.text.contains("go back to your Matrix app"), "{}", done.text);
        // Pressed twice is as good.
        check(&t.press_button(&link).await, 200, "en");
    }

    async fn pages_go_on_in_the_mails_language(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let body = json!({"client_secret": SECRET, "email": EMAIL, "send_attempt": 1, "lang": "de"});
        t.post("/validate/email/requestToken", Some(&token), &body).await.ok();
        let link = Link::parse(&t.smtp.mail_for(EMAIL, 1).await.link());
        let page = open(&t, &link.path_and_query, "en").await;
        check(&page, 200, "de");
        assert!(page.text.contains("Bestätigen Sie Ihre E-Mail-Adresse"), "{}", page.text);
        // The form hands the language on.
        assert!(page.text.contains("<input type=\"hidden\" name=\"lang\" value=\"de\">"), "{}", page.text);
        let fields = [
            ("token", link.token.as_str()),
            ("client_secret", link.client_secret.as_str()),
            ("sid", link.sid.as_str()),
            ("brand", ""),
            ("lang", "de"),
        ];
        let done = t.api.post_form(&link.path, &fields).await;
        check(&done, 200, "de");
        assert!(done.text.contains("ist bestätigt"), "{}", done.text);
    }

    async fn a_link_that_does_not_work_says_what_helps(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (sid, _) = t.open_session(&token, EMAIL, SECRET).await;
        for query in [
            String::new(),
            "?token=a".to_owned(),
            format!("?token=a&client_secret=wrong&sid={sid}"),
            "?token=%22%3E%3Cscript%3E&client_secret=a&sid=%3Cscript%3E".to_owned(),
            format!("?token=a&client_secret={SECRET}&sid={sid}&sid={sid}"),
        ] {
            let page = open(&t, &format!("{V2}{SUBMIT}{query}"), "en").await;
            check(&page, 400, "en");
            assert!(page.text.contains("ask for a new message"), "{query}: {}", page.text);
        }
        let page = open(&t, &format!("{V2}{SUBMIT}"), "de-CH").await;
        check(&page, 400, "de");
    }

    async fn a_link_that_has_expired_says_so(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("validation", "max_attempts", 1);
        })
        .await;
        let token = t.register(ALICE).await;
        let (_, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let link = Link::parse(&mail.link());
        let wrong = Link { token: "wrong".to_owned(), ..link.clone() };
        check(&t.press_button(&wrong).await, 400, "en");
        let page = open(&t, &link.path_and_query, "en").await;
        check(&page, 400, "en");
        assert!(page.text.contains("This link has expired") && page.text.contains("24 hours"), "{}", page.text);
        check(&t.press_button(&link).await, 400, "en");
        // A new message helps, as the page says.
        t.request_email(&token, EMAIL, SECRET, 2).await.ok();
        let link = Link::parse(&t.smtp.mail_for(EMAIL, 2).await.link());
        check(&t.press_button(&link).await, 200, "en");
    }

    async fn what_a_stranger_puts_into_a_link_is_text(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (sid, _) = t.open_session(&token, EMAIL, SECRET).await;
        // The session is real, the token is not: it stands in the form.
        let evil = "%22%3E%3Cscript%3Ealert(1)%3C%2Fscript%3E";
        let path = format!("{V2}{SUBMIT}?token={evil}&client_secret={SECRET}&sid={sid}&brand={evil}&lang={evil}");
        let page = open(&t, &path, "en").await;
        check(&page, 200, "en");
        assert!(page.text.contains("&quot;&gt;&lt;script&gt;"), "{}", page.text);
    }

    async fn head_shows_and_does_nothing(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (_, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let link = Link::parse(&mail.link());
        let page = t.api.call(Method::HEAD, &link.path_and_query, None, Bytes::new()).await;
        assert_eq!((page.status, page.text.as_str()), (200, ""));
    }
}
