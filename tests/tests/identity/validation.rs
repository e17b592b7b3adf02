//! Proving an email address: requestToken, the mail, the page, submitToken, getValidated3pid.

use ::http::Method;
use bytes::Bytes;
use serde_json::{Value, json};
use waypost_tests::identity::{HOMESERVER, Link, TestIdentity, V2};
use waypost_tests::on_each_database;
use waypost_tests::process::eventually;
use waypost_tests::record::PATIENCE;

use super::{ALICE, BOB, EMAIL, SECRET, failure};

const SUBMIT: &str = "/validate/email/submitToken";

/// What getValidated3pid says of a session.
async fn validated(t: &TestIdentity, token: &str, sid: &str) -> waypost_tests::http::Reply {
    t.get(&format!("/3pid/getValidated3pid?sid={sid}&client_secret={SECRET}"), Some(token)).await
}

fn submission(link: &Link) -> Value {
    json!({"sid": link.sid, "client_secret": link.client_secret, "token": link.token})
}

on_each_database! {
    async fn the_mail_is_a_proper_one(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
        assert!(sid.len() >= 16 && sid.chars().all(|c| c.is_ascii_alphanumeric() || ".=_-".contains(c)), "{sid}");
        assert_eq!(mail.to, [EMAIL]);
        assert_eq!(mail.from, "noreply@id.test");

        let message = mail.message();
        for header in ["From", "To", "Subject", "Date", "Message-ID", "MIME-Version", "Content-Type"] {
            assert_eq!(message.count(header), 1, "{header}");
        }
        assert!(message.header("from").contains("noreply@id.test"));
        assert!(mail.raw.lines().all(|line| line.len() <= 998), "a line is too long");
        let link = Link::parse(&mail.link());
        assert!(link.url.starts_with(&t.server.public), "{}", link.url);
        assert_eq!(link.path, format!("{V2}{SUBMIT}"));
        assert_eq!((link.sid.as_str(), link.client_secret.as_str()), (sid.as_str(), SECRET));
        assert!(link.token.len() >= 22, "128 bits or more");
        // The HTML part leads to the same place.
        let html = message.find("text/html").expect("a mail has an HTML part");
        assert!(html.contains(&link.token));
    }

    async fn the_link_alone_proves_nothing(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let link = Link::parse(&mail.link());
        // Mail scanners do both.
        for method in [Method::HEAD, Method::GET] {
            let page = t.api.call(method.clone(), &link.path_and_query, None, Bytes::new()).await;
            assert_eq!(page.status, 200, "{method}");
            assert_eq!(validated(&t, &token, &sid).await.failure(), failure(400, "M_SESSION_NOT_VALIDATED"), "{method}");
        }
        let pressed = t.press_button(&link).await;
        assert_eq!(pressed.status, 200);
        assert!(pressed.header("content-type").starts_with("text/html"));
        let answer = validated(&t, &token, &sid).await.ok();
        assert_eq!((&answer["medium"], &answer["address"]), (&json!("email"), &json!(EMAIL)));
        let at = answer["validated_at"].as_i64().unwrap();
        assert!((at / 1000 - waypost_tests::jwt::now_secs()).abs() < 600, "{at}");
    }

    async fn the_page_has_a_form_and_tells_nobody(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (_, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let link = Link::parse(&mail.link());
        let page = t.api.get(&link.path_and_query, None).await;
        assert!(page.header("content-type").starts_with("text/html"));
        assert_eq!(page.header("referrer-policy"), "no-referrer");
        assert!(!page.header("content-security-policy").is_empty());
        let text = page.text.to_ascii_lowercase();
        assert!(text.contains("<form") && text.contains("method=\"post\""), "{}", page.text);
        for field in ["name=\"token\"", "name=\"client_secret\"", "name=\"sid\""] {
            assert!(page.text.contains(field), "{field}: {}", page.text);
        }
    }

    async fn the_mail_and_the_page_say_which_account_asks(database: Database) {
        let t = TestIdentity::start(database).await;
        for (number, (user, shown)) in
            [(ALICE, ALICE), ("@login.bank-of-example.com:hs.test", "@…:hs.test")].into_iter().enumerate()
        {
            let token = t.register(user).await;
            let secret = format!("secret{number}");
            t.request_email(&token, EMAIL, &secret, 1).await.ok();
            let mail = t.smtp.mail_for(EMAIL, number + 1).await;
            let html = mail.message().find("text/html").unwrap();
            let page = t.api.get(&Link::parse(&mail.link()).path_and_query, None).await.text;
            for text in [mail.text(), html, page] {
                assert!(text.contains(&format!("Matrix account {shown}")) || text.contains(&format!("account <strong>{shown}<")), "{text}");
                assert!(!text.contains("bank-of"), "{text}");
            }
        }
        // The same session, requested again by somebody else, who knows its secret.
        let bob = t.register(BOB).await;
        t.request_email(&bob, EMAIL, "secret0", 2).await.ok();
        let mail = t.smtp.mail_for(EMAIL, 3).await;
        let page = t.api.get(&Link::parse(&mail.link()).path_and_query, None).await.text;
        assert!(page.contains(BOB) && !page.contains(ALICE), "{page}");
    }

    async fn a_next_link_of_any_length_is_not_kept(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("validation", "next_link_allowed", vec!["https://app.example.com/*"]);
        })
        .await;
        let token = t.register(ALICE).await;
        let ask = async |length: usize| {
            let next = format!("https://app.example.com/{}", "x".repeat(length - "https://app.example.com/".len()));
            let body = json!({"client_secret": SECRET, "email": EMAIL, "send_attempt": 1, "next_link": next});
            t.post("/validate/email/requestToken", Some(&token), &body).await
        };
        assert_eq!(ask(2049).await.failure(), failure(400, "M_INVALID_PARAM"));
        ask(2048).await.ok();
    }

    async fn markup_in_the_link_is_not_markup_on_the_page(database: Database) {
        let t = TestIdentity::start(database).await;
        let evil = "%22%3E%3Cscript%3Ealert(1)%3C/script%3E";
        let page = t.get(&format!("{SUBMIT}?token={evil}&client_secret={evil}&sid={evil}"), None).await;
        assert!(!page.text.contains("<script"), "{}", page.text);
    }

    async fn a_program_submits_json(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let link = Link::parse(&mail.link());
        // Again and again, as clients retry.
        for _ in 0..2 {
            let reply = t.post(SUBMIT, Some(&token), &submission(&link)).await;
            assert_eq!(reply.ok(), json!({"success": true}));
        }
        assert_eq!(validated(&t, &token, &sid).await.status, 200);
    }

    async fn a_wrong_token_is_told_and_proves_nothing(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let link = Link::parse(&mail.link());
        let cases = [("token", "M_TOKEN_INCORRECT"), ("client_secret", "M_INVALID_PARAM"), ("sid", "M_INVALID_PARAM")];
        for (key, errcode) in cases {
            let mut body = submission(&link);
            body[key] = json!("wrong");
            let reply = t.post(SUBMIT, Some(&token), &body).await;
            assert_eq!(reply.failure(), failure(400, errcode), "{key}");
            assert_eq!(reply.json()["success"], false, "{key}");
        }
        let wrong = Link { token: "wrong".to_owned(), ..link };
        let page = t.press_button(&wrong).await;
        assert!((400..500).contains(&page.status), "{}", page.status);
        assert!(page.header("content-type").starts_with("text/html"));
        assert_eq!(validated(&t, &token, &sid).await.failure(), failure(400, "M_SESSION_NOT_VALIDATED"));
    }

    async fn guessing_ends_the_session(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("validation", "max_attempts", 3);
        })
        .await;
        let token = t.register(ALICE).await;
        let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let link = Link::parse(&mail.link());
        let mut guess = submission(&link);
        guess["token"] = json!("wrong");
        for _ in 0..3 {
            t.post(SUBMIT, Some(&token), &guess).await;
        }
        let right = t.post(SUBMIT, Some(&token), &submission(&link)).await;
        assert_eq!(right.status, 400, "{}", right.text);
        assert_ne!(validated(&t, &token, &sid).await.status, 200);
    }

    async fn a_session_that_is_too_old_is_told_everywhere(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("validation", "session_lifetime_secs", 1);
        })
        .await;
        let token = t.register(ALICE).await;
        let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let link = Link::parse(&mail.link());
        let expired = failure(400, "M_SESSION_EXPIRED");
        eventually(PATIENCE, "the session's end", || async {
            (validated(&t, &token, &sid).await.failure() == expired).then_some(())
        })
        .await;

        assert_eq!(t.bind(&token, &sid, SECRET, ALICE).await.failure(), expired);
        let reply = t.post(SUBMIT, Some(&token), &submission(&link)).await;
        assert_eq!((reply.failure(), &reply.json()["success"]), (expired.clone(), &json!(false)));
        let mut unbind = json!({"sid": sid, "client_secret": SECRET, "mxid": ALICE});
        unbind["threepid"] = json!({"medium": "email", "address": EMAIL});
        assert_eq!(t.post("/3pid/unbind", None, &unbind).await.failure(), expired);
        for page in [t.api.get(&link.path_and_query, None).await, t.press_button(&link).await] {
            assert_eq!(page.status, 400);
            assert!(page.text.contains("This link has expired"), "{}", page.text);
        }
        // The app asks again: another session and another mail, whatever it calls the attempt.
        let reply = t.request_email(&token, EMAIL, SECRET, 1).await.ok();
        assert_ne!(reply["sid"], sid.as_str());
        let second = Link::parse(&t.smtp.mail_for(EMAIL, 2).await.link());
        assert_ne!(second.token, link.token);
    }

    async fn the_same_attempt_never_mails_twice(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (sid, first) = t.open_session(&token, EMAIL, SECRET).await;
        for attempt in [1, 1, 0] {
            let reply = t.request_email(&token, EMAIL, SECRET, attempt).await.ok();
            assert_eq!(reply["sid"], sid.as_str());
        }
        // A higher one does, with the same token: either mail may be the one that is read.
        let reply = t.request_email(&token, EMAIL, SECRET, 2).await.ok();
        assert_eq!(reply["sid"], sid.as_str());
        let second = t.smtp.mail_for(EMAIL, 2).await;
        assert_eq!(Link::parse(&second.link()).token, Link::parse(&first.link()).token);
        assert_eq!(t.smtp.count_for(EMAIL), 2);
        // Another secret is another session.
        let (other, _) = t.open_session(&token, EMAIL, "another_secret").await;
        assert_ne!(other, sid);
    }

    async fn attempts_may_be_strings(database: Database) {
        // matrix-js-sdk sends "1".
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let body = json!({"client_secret": SECRET, "email": EMAIL, "send_attempt": "1"});
        t.post("/validate/email/requestToken", Some(&token), &body).await.ok();
        t.smtp.mail_for(EMAIL, 1).await;
        for wrong in [json!("one"), json!({}), json!([1]), json!(true)] {
            let body = json!({"client_secret": SECRET, "email": EMAIL, "send_attempt": wrong});
            let reply = t.post("/validate/email/requestToken", Some(&token), &body).await;
            assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"), "{wrong}");
        }
    }

    async fn addresses_are_folded(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (sid, mail) = t.open_session(&token, "ALICE@Example.COM", SECRET).await;
        t.press_button(&Link::parse(&mail.link())).await;
        assert_eq!(validated(&t, &token, &sid).await.ok()["address"], EMAIL);
    }

    async fn what_is_no_address_gets_no_mail(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let wrong = [
            "", "alice", "@example.com", "alice@", "alice@@example.com", "a@b@c", "alice@example.com\r\nBcc: bob@example.com",
            "alice example@example.com", "<alice@example.com>", "=?utf-8?q?x?=@example.com", "a=?utf-8?q?x?=b@example.com",
        ];
        for email in wrong {
            let reply = t.request_email(&token, email, SECRET, 1).await;
            assert_eq!(reply.failure(), failure(400, "M_INVALID_EMAIL"), "{email:?}");
        }
        // No parameter may hold NUL, whatever it means.
        let reply = t.request_email(&token, "alice@example.com\u{0}", SECRET, 1).await;
        assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"));
        let reply = t.request_email(&token, &format!("{}@example.com", "a".repeat(2000)), SECRET, 1).await;
        assert_eq!(reply.status, 400);
        assert!(t.smtp.mails.is_empty());
    }

    async fn a_client_secret_has_its_alphabet(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let long = "a".repeat(256);
        for secret in ["", "a b", "a/b", "ä", "a\n", long.as_str()] {
            let reply = t.request_email(&token, EMAIL, secret, 1).await;
            assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"), "{secret:?}");
        }
        assert!(t.smtp.mails.is_empty());
        t.request_email(&token, EMAIL, &"a".repeat(255), 1).await.ok();
    }

    async fn what_is_missing_is_named(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let reply = t.post("/validate/email/requestToken", Some(&token), &json!({})).await;
        assert_eq!(reply.failure(), failure(400, "M_MISSING_PARAMS"));
        for name in ["client_secret", "email", "send_attempt"] {
            assert!(reply.text.contains(name), "{name}: {}", reply.text);
        }
    }

    async fn a_mail_that_is_refused_is_told(database: Database) {
        let t = TestIdentity::start(database).await;
        t.smtp.refuse(EMAIL);
        let token = t.register(ALICE).await;
        let reply = t.request_email(&token, EMAIL, SECRET, 1).await;
        assert_eq!(reply.failure(), failure(400, "M_EMAIL_SEND_ERROR"));
        assert!(!t.server.log_text().contains(EMAIL), "the address is in the log");
    }

    async fn too_many_mails_are_429(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("limits.mail_per_address", "burst", 2);
            settings.set("limits.mail_per_address", "refill_secs", 600.0);
        })
        .await;
        let token = t.register(ALICE).await;
        for attempt in 1..=2 {
            t.request_email(&token, EMAIL, SECRET, attempt).await.ok();
        }
        let reply = t.request_email(&token, EMAIL, SECRET, 3).await;
        assert_eq!(reply.failure(), failure(429, "M_LIMIT_EXCEEDED"));
        assert!(reply.json()["retry_after_ms"].as_i64().unwrap() > 0);
        assert!(reply.header("retry-after").parse::<u64>().unwrap() > 0);
        // Spelled otherwise it is the same address; another one is not.
        let reply = t.request_email(&token, "ALICE@example.com", "another_secret", 1).await;
        assert_eq!(reply.status, 429);
        t.request_email(&token, "bob@example.com", SECRET, 1).await.ok();
        assert_eq!(t.smtp.mails.len(), 3);
    }

    async fn each_budget_has_an_end(database: Database) {
        // Which of two further requests are still answered, both by Bob: the same address again, and another one.
        for (limit, answered) in [
            ("mail_per_address", [429, 200]),
            ("mail_per_account", [200, 200]),
            ("mail_per_source", [429, 429]),
            ("mail_per_stranger", [429, 429]),
            ("mail_of_strangers", [429, 429]),
            ("mail_total", [429, 429]),
        ] {
            let t = TestIdentity::start_with(database, |settings| {
                // Bob asks from the same source and has an account of his own, which needs two.
                let burst = if limit == "mail_per_account" { 2 } else { 1 };
                settings.set(&format!("limits.{limit}"), "burst", burst);
                settings.set(&format!("limits.{limit}"), "refill_secs", 600.0);
            })
            .await;
            let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
            t.request_email(&alice, EMAIL, SECRET, 1).await.ok();
            for (email, status) in [EMAIL, "bob@example.com"].into_iter().zip(answered) {
                let reply = t.request_email(&bob, email, "bobs_secret", 1).await;
                assert_eq!(reply.status, status, "{limit} {email}: {}", reply.text);
                if status == 429 {
                    assert_eq!(reply.errcode(), "M_LIMIT_EXCEEDED");
                    assert!(reply.header("retry-after").parse::<u64>().unwrap() > 0);
                }
            }
            if limit == "mail_per_account" {
                let reply = t.request_email(&bob, "bob@work.example.com", "bobs_secret", 1).await;
                assert_eq!(reply.failure(), failure(429, "M_LIMIT_EXCEEDED"));
                t.request_email(&alice, "alice@work.example.com", SECRET, 1).await.ok();
            }
            // The same attempt once more costs nothing.
            t.request_email(&alice, EMAIL, SECRET, 1).await.ok();
        }
    }

    async fn a_homeserver_that_the_operator_names_has_no_budget_of_strangers(database: Database) {
        for key in ["allow", "trusted"] {
            let t = TestIdentity::start_with(database, |settings| {
                settings.set("homeservers", key, vec![HOMESERVER]);
                for limit in ["mail_per_stranger", "mail_of_strangers", "invite_per_stranger", "invite_of_strangers"] {
                    settings.set(&format!("limits.{limit}"), "burst", 1);
                    settings.set(&format!("limits.{limit}"), "refill_secs", 600.0);
                }
            })
            .await;
            let alice = t.register(ALICE).await;
            for email in [EMAIL, "bob@example.com"] {
                t.request_email(&alice, email, SECRET, 1).await.ok();
            }
        }
    }

    async fn a_mail_that_the_server_does_not_take_gives_its_budgets_back(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            for limit in ["mail_per_address", "mail_per_account", "mail_per_source", "mail_per_stranger", "mail_total"] {
                settings.set(&format!("limits.{limit}"), "burst", 1);
                settings.set(&format!("limits.{limit}"), "refill_secs", 600.0);
            }
        })
        .await;
        let alice = t.register(ALICE).await;
        t.smtp.defer(EMAIL);
        for _ in 0..3 {
            let reply = t.request_email(&alice, EMAIL, SECRET, 1).await;
            assert_eq!(reply.failure(), failure(400, "M_EMAIL_SEND_ERROR"));
        }
        t.smtp.accept(EMAIL);
        t.request_email(&alice, EMAIL, SECRET, 1).await.ok();
        assert_eq!(t.request_email(&alice, EMAIL, SECRET, 2).await.status, 429);
        // One that is refused for its address is charged: whoever asks chooses it.
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("limits.mail_total", "burst", 1).set("limits.mail_total", "refill_secs", 600.0);
        })
        .await;
        let alice = t.register(ALICE).await;
        t.smtp.refuse(EMAIL);
        assert_eq!(t.request_email(&alice, EMAIL, SECRET, 1).await.failure(), failure(400, "M_EMAIL_SEND_ERROR"));
        assert_eq!(t.request_email(&alice, EMAIL, SECRET, 1).await.status, 429);
    }

    async fn next_link_is_followed_where_it_is_allowed(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("validation", "next_link_allowed", vec!["https://app.example.com/*"]);
        })
        .await;
        let token = t.register(ALICE).await;
        let next = "https://app.example.com/done?a=b";
        let body = json!({"client_secret": SECRET, "email": EMAIL, "send_attempt": 1, "next_link": next});
        t.post("/validate/email/requestToken", Some(&token), &body).await.ok();
        let link = Link::parse(&t.smtp.mail_for(EMAIL, 1).await.link());
        let pressed = t.press_button(&link).await;
        assert!((300..400).contains(&pressed.status), "{}: {}", pressed.status, pressed.text);
        assert!(pressed.header("location").starts_with(next), "{}", pressed.header("location"));

        let wrong = ["https://evil.test/", "https://app.example.com.evil.test/", "http://app.example.com/", "javascript:alert(1)",
            "data:text/html,x", "file:///etc/passwd", "https://app.example.com@evil.test/", "//evil.test/"];
        for next in wrong {
            let body = json!({"client_secret": SECRET, "email": EMAIL, "send_attempt": 2, "next_link": next});
            let reply = t.post("/validate/email/requestToken", Some(&token), &body).await;
            assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"), "{next}");
        }
        assert_eq!(t.smtp.mails.len(), 1);
    }

    async fn the_link_is_enough_where_an_operator_says_so(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("validation", "confirm", "link");
        })
        .await;
        let token = t.register(ALICE).await;
        let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let link = Link::parse(&mail.link());
        t.api.call(Method::HEAD, &link.path_and_query, None, Bytes::new()).await;
        assert_eq!(validated(&t, &token, &sid).await.failure(), failure(400, "M_SESSION_NOT_VALIDATED"));
        assert_eq!(t.api.get(&link.path_and_query, None).await.status, 200);
        assert_eq!(validated(&t, &token, &sid).await.status, 200);
    }
}
