//! Mails: how they reach the mail server, in whose name and in which language they speak.

use ::http::Request;
use bytes::Bytes;
use serde_json::{Value, json};
use waypost_tests::ca::{Alpn, Ca};
use waypost_tests::database::Database;
use waypost_tests::homeserver::Homeserver;
use waypost_tests::http::Reply;
use waypost_tests::identity::{HOMESERVER, Link, TestIdentity, V2};
use waypost_tests::on_each_database;
use waypost_tests::process::{TempFolder, text};
use waypost_tests::settings::Settings;
use waypost_tests::smtp::{Demands, Mail, Smtp, Tls};

use super::{ALICE, BOB, EMAIL, SECRET, failure, invitation};

const REQUEST: &str = "/validate/email/requestToken";
/// The mail server's user.
const USER: &str = "waypost";
/// And the password.
const PASSWORD: &str = "sword fish";

/// When the mail server encrypts.
#[derive(Clone, Copy)]
enum Encryption {
    Starttls,
    Immediate,
}

/// An identity server and a mail server that encrypts and wants a login. Its certificate is of the trusted root, or of
/// another one.
async fn start(
    database: Database,
    encryption: Encryption,
    trusted: bool,
    change: impl FnOnce(&mut Settings),
) -> (TestIdentity, Smtp) {
    let ca = Ca::new();
    let homeserver = Homeserver::start(&ca, &[HOMESERVER]).await;
    let stranger = Ca::new();
    let certificate = if trusted { &ca } else { &stranger }.leaf(&["127.0.0.1"], Alpn::Http1);
    let (tls, name) = match encryption {
        Encryption::Starttls => (Tls::Starttls(certificate), "starttls"),
        Encryption::Immediate => (Tls::Immediate(certificate), "tls"),
    };
    let smtp = Smtp::start_with(Demands { tls, login: Some((USER.to_owned(), PASSWORD.to_owned())) }).await;
    let port = smtp.port();
    let t = TestIdentity::start_around(database, ca, homeserver, |settings| {
        settings
            .set("email", "smtp_port", port)
            .set("email", "smtp_tls", name)
            .set("email", "smtp_username", USER)
            .set("email", "smtp_password", PASSWORD);
        change(settings);
    })
    .await;
    (t, smtp)
}

/// A server with these files in its template folder.
async fn with_templates(database: Database, files: &[(&str, &str)]) -> (TestIdentity, TempFolder) {
    let folder = TempFolder::new();
    for (name, words) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, words).unwrap();
    }
    let templates = text(folder.path());
    let t = TestIdentity::start_with(database, |settings| {
        settings.set("email", "template_dir", templates);
    })
    .await;
    (t, folder)
}

/// requestToken with further parameters, a query and Accept-Language.
async fn request(t: &TestIdentity, token: &str, secret: &str, query: &str, language: &str, more: Value) -> Reply {
    let mut body = json!({"client_secret": secret, "email": EMAIL, "send_attempt": 1});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    let request = Request::post(t.api.absolute(&format!("{V2}{REQUEST}{query}")))
        .header("authorization", format!("Bearer {token}"))
        .header("accept-language", language)
        .body(Bytes::from(body.to_string()))
        .unwrap();
    t.api.send(request).await
}

/// The mail that a request leads to.
async fn mail(t: &TestIdentity, token: &str, query: &str, language: &str, more: Value) -> Mail {
    let seen = t.smtp.count_for(EMAIL);
    request(t, token, &format!("secret.{seen}"), query, language, more).await.ok();
    t.smtp.mail_for(EMAIL, seen + 1).await
}

on_each_database! {
    async fn mail_goes_out_encrypted_and_with_a_login(database: Database) {
        for encryption in [Encryption::Starttls, Encryption::Immediate] {
            let (t, smtp) = start(database, encryption, true, |_| {}).await;
            let token = t.register(ALICE).await;
            t.request_email(&token, EMAIL, SECRET, 1).await.ok();
            let mail = smtp.mail_for(EMAIL, 1).await;
            assert_eq!((mail.encrypted, mail.user.as_deref()), (true, Some(USER)));
            assert_eq!(mail.from, "noreply@id.test");
            assert!(!t.server.log_text().contains(PASSWORD), "the password is in the log");
        }
    }

    async fn a_mail_server_with_a_strangers_certificate_gets_nothing(database: Database) {
        for encryption in [Encryption::Starttls, Encryption::Immediate] {
            let (t, smtp) = start(database, encryption, false, |_| {}).await;
            let token = t.register(ALICE).await;
            let reply = t.request_email(&token, EMAIL, SECRET, 1).await;
            assert_eq!(reply.failure(), failure(400, "M_EMAIL_SEND_ERROR"));
            assert!(smtp.mails.is_empty());
        }
    }

    async fn a_mail_server_that_does_not_encrypt_gets_nothing(database: Database) {
        // Somebody on the way may have cut STARTTLS out of what the server offers.
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("email", "smtp_tls", "starttls");
        })
        .await;
        let token = t.register(ALICE).await;
        let reply = t.request_email(&token, EMAIL, SECRET, 1).await;
        assert_eq!(reply.failure(), failure(400, "M_EMAIL_SEND_ERROR"));
        assert!(t.smtp.mails.is_empty());
    }

    async fn a_wrong_password_is_told_and_may_be_mended(database: Database) {
        let (t, smtp) = start(database, Encryption::Starttls, true, |settings| {
            settings.set("email", "smtp_password", "wrong");
        })
        .await;
        let token = t.register(ALICE).await;
        let reply = t.request_email(&token, EMAIL, SECRET, 1).await;
        assert_eq!(reply.failure(), failure(400, "M_EMAIL_SEND_ERROR"));
        assert!(smtp.mails.is_empty());
        // The operator learns why, the client does not.
        t.server.wait_for_log("the reason", |line| line.to_string().contains("SMTP status 535")).await;
        assert!(!reply.text.contains("535"), "{}", reply.text);
    }

    async fn a_password_may_stand_in_a_file(database: Database) {
        let folder = TempFolder::new();
        let file = text(&folder.write("password", &format!("{PASSWORD}\n")));
        let (t, smtp) = start(database, Encryption::Immediate, true, |settings| {
            settings.remove("email", "smtp_password").set("email", "smtp_password_file", file);
        })
        .await;
        let token = t.register(ALICE).await;
        t.request_email(&token, EMAIL, SECRET, 1).await.ok();
        assert_eq!(smtp.mail_for(EMAIL, 1).await.user.as_deref(), Some(USER));
    }

    async fn a_mail_speaks_the_readers_language(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        for (query, language, more, german) in [
            ("", "de-DE,de;q=0.9,en;q=0.8", json!({}), true),
            ("", "en", json!({"lang": "de"}), true),
            ("?lang=de", "en", json!({}), true),
            ("", "de", json!({"lang": "en"}), false),
            ("", "fr", json!({}), false),
            ("", "../../etc/passwd", json!({"lang": "../de"}), false),
            ("", "en;q=0.1, de;q=0.2", json!({"lang": null}), true),
        ] {
            let mail = mail(&t, &token, query, language, more.clone()).await;
            let what = format!("{query} {language} {more}");
            let html = mail.message().find("text/html").unwrap();
            assert_eq!(mail.text().contains("bestätigen"), german, "{what}: {}", mail.text());
            assert!(html.contains(if german { "<html lang=\"de\">" } else { "<html lang=\"en\">" }), "{what}: {html}");
            // What is not ASCII is encoded in a header (RFC 2047).
            let subject = mail.message().header("subject").to_owned();
            assert_eq!(subject.starts_with("=?utf-8?"), german, "{what}: {subject}");
            assert!(mail.raw.is_ascii(), "{what}");
        }
    }

    async fn a_mail_says_what_to_do_and_what_if_it_was_not_you(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let english = mail(&t, &token, "", "en", json!({})).await;
        let german = mail(&t, &token, "", "de", json!({})).await;
        for (mail, not_you) in [(english, "Wasn't you?"), (german, "Sie waren es nicht?")] {
            for part in ["text/plain", "text/html"] {
                let words = mail.message().find(part).unwrap();
                for expected in ["id.test", EMAIL, not_you, "24"] {
                    assert!(words.contains(expected), "{part} {expected}: {words}");
                }
                // Nothing that tells anybody that it was read.
                assert!(!words.contains("<img") && !words.contains("<script"), "{part}: {words}");
            }
        }
    }

    async fn a_brand_is_chosen_by_name(database: Database) {
        let (t, _folder) = with_templates(database, &[
            ("acme/verification_subject.txt", "Acme wants to know"),
            ("acme/verification_subject.de.txt", "Acme will es wissen"),
            ("acme/mail_layout.html", "<html lang=\"{{ lang }}\"><h1>ACME</h1>{% block title %}{% endblock %}{% block content %}{% endblock %}</html>"),
            ("verification_subject.txt", "Ours"),
        ])
        .await;
        let token = t.register(ALICE).await;
        for (query, language, more, subject, branded) in [
            ("?brand=acme", "en", json!({}), "Acme wants to know", true),
            ("", "de", json!({"brand": "acme"}), "Acme will es wissen", true),
            ("?brand=unknown", "en", json!({"brand": "acme"}), "Acme wants to know", true),
            ("", "en", json!({}), "Ours", false),
            // What the operator wrote comes before what is built in.
            ("", "de", json!({}), "Ours", false),
            ("?brand=unknown", "en", json!({}), "Ours", false),
            ("?brand=../acme", "en", json!({}), "Ours", false),
            ("?brand=%2Fetc", "en", json!({}), "Ours", false),
            ("?brand=.", "en", json!({}), "Ours", false),
        ] {
            let mail = mail(&t, &token, query, language, more.clone()).await;
            let what = format!("{query} {language} {more}");
            assert_eq!(mail.message().header("subject"), subject, "{what}");
            let html = mail.message().find("text/html").unwrap();
            assert_eq!(html.contains("ACME"), branded, "{what}: {html}");
            // The link leads to the same page in the same dress.
            assert_eq!(Link::parse(&mail.link()).path_and_query.contains("brand=acme"), branded, "{what}");
        }
        let reply = request(&t, &token, "another", "", "en", json!({"brand": 5})).await;
        assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"));
    }

    async fn an_invitation_is_in_the_brand_and_the_language_of_its_query(database: Database) {
        let (t, _folder) = with_templates(database, &[
            ("acme/invitation_subject.txt", "Acme invites you"),
            ("acme/invitation_subject.de.txt", "Acme bittet Sie herein"),
        ])
        .await;
        let token = t.register(BOB).await;
        for (number, (query, language, subject, german)) in [
            ("", "en", "Bob Smith invited you to the room Bob's Emporium on Matrix", false),
            ("?brand=acme", "en", "Acme invites you", false),
            ("?brand=acme&lang=de", "en", "Acme bittet Sie herein", true),
            // The homeserver's language is not that of the one who is invited.
            ("?brand=acme", "de", "Acme invites you", false),
            ("?brand=..%2Facme&lang=..%2Fde", "en", "Bob Smith invited you to the room Bob's Emporium on Matrix", false),
        ]
        .into_iter()
        .enumerate()
        {
            let request = Request::post(t.api.absolute(&format!("{V2}/store-invite{query}")))
                .header("authorization", format!("Bearer {token}"))
                .header("accept-language", language)
                .body(Bytes::from(invitation().to_string()))
                .unwrap();
            t.api.send(request).await.ok();
            let mail = t.smtp.mail_for(EMAIL, number + 1).await;
            assert_eq!(mail.message().header("subject"), subject, "{query} {language}");
            for part in ["text/plain", "text/html"] {
                let words = mail.message().find(part).unwrap();
                assert_eq!(words.contains("Einladung"), german, "{query} {language} {part}: {words}");
                // People are spoken to as in all other mails.
                assert!(!words.contains("dich") && !words.contains(" du "), "{query} {language} {part}: {words}");
            }
        }
    }

    async fn an_operators_mistake_is_told_to_the_operator_alone(database: Database) {
        let (t, _folder) = with_templates(database, &[("verification_subject.txt", "{{ no_such_thing }}")]).await;
        let token = t.register(ALICE).await;
        let reply = t.request_email(&token, EMAIL, SECRET, 1).await;
        assert_eq!(reply.failure(), failure(500, "M_UNKNOWN"));
        assert!(!reply.text.contains("verification_subject"), "{}", reply.text);
        t.server.wait_for_log("the template's name", |line| line.to_string().contains("verification_subject.txt")).await;
        assert!(t.smtp.mails.is_empty());
    }
}
