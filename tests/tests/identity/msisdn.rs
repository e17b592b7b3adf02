//! Proving a phone number: requestToken, the gateway, submitToken, the page.

use std::collections::BTreeMap;

use ::http::{Method, Request};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::json;
use waypost_tests::ca::{Alpn, Ca};
use waypost_tests::database::Database;
use waypost_tests::homeserver::Homeserver;
use waypost_tests::http::Reply;
use waypost_tests::identity::{HOMESERVER, SERVER_NAME, TestIdentity, V2};
use waypost_tests::matrix::{lookup_hash, verify_signed_json};
use waypost_tests::on_each_database;
use waypost_tests::process::{TempFolder, text};
use waypost_tests::settings::Settings;
use waypost_tests::tls_server::{Answer, TlsServer};

use super::{ALICE, BOB, SECRET, failure};

/// The number of the specification's example.
const NUMBER: &str = "07700900001";
/// The same, as it is bound.
const MSISDN: &str = "447700900001";
const REQUEST: &str = "/validate/msisdn/requestToken";
const SUBMIT: &str = "/validate/msisdn/submitToken";
/// The operators' manual, whose examples are tried here.
const MANUAL: &str = include_str!("../../../docs/sms.md");

/// A server with a gateway that answers so.
pub(super) async fn start_with(
    database: Database,
    answers: Vec<Answer>,
    change: impl FnOnce(&mut Settings),
) -> (TestIdentity, TlsServer) {
    let ca = Ca::new();
    let homeserver = Homeserver::start(&ca, &[HOMESERVER]).await;
    let answers = std::sync::Arc::new(std::sync::Mutex::new(answers));
    // The last answer is the one that stays.
    let gateway = TlsServer::start(ca.leaf(&["127.0.0.1"], Alpn::Both), move |_| {
        let mut answers = answers.lock().unwrap();
        let answer = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
        async move { answer }
    })
    .await;
    let url = format!("{}/sms", gateway.url());
    let t = TestIdentity::start_around(database, ca, homeserver, |settings| {
        settings.set("sms", "transport", "http").set("sms.http", "url", url).set(
            "sms.http",
            "body",
            r#"{"to": "{{ to }}", "text": "{{ text }}", "code": "{{ code }}"}"#,
        );
        change(settings);
    })
    .await;
    (t, gateway)
}

async fn start(database: Database) -> (TestIdentity, TlsServer) {
    start_with(database, vec![Answer::empty(202)], |_| {}).await
}

/// Asks for a code for the number; returns the session and the code that went out.
async fn open(t: &TestIdentity, gateway: &TlsServer, token: &str, secret: &str) -> (String, String) {
    let reply = t.request_sms(token, NUMBER, "GB", secret, 1).await.ok();
    let sid = reply["sid"].as_str().expect("requestToken answers a sid").to_owned();
    let sent = gateway.requests.all().last().expect("a message went out").json();
    (sid, sent["code"].as_str().expect("the message has a code").to_owned())
}

async fn submit(t: &TestIdentity, token: &str, sid: &str, secret: &str, code: &str) -> Reply {
    t.post(SUBMIT, Some(token), &json!({"sid": sid, "client_secret": secret, "token": code})).await
}

async fn validated(t: &TestIdentity, token: &str, sid: &str) -> Reply {
    t.get(&format!("/3pid/getValidated3pid?sid={sid}&client_secret={SECRET}"), Some(token)).await
}

/// A code of six digits that is not this one.
fn wrong(code: &str) -> &'static str {
    if code == "000000" { "000001" } else { "000000" }
}

on_each_database! {
    async fn a_number_is_proven_published_and_found(database: Database) {
        let (t, gateway) = start(database).await;
        let token = t.register(ALICE).await;
        let reply = t.request_sms(&token, NUMBER, "GB", SECRET, 1).await.ok();
        let sid = reply["sid"].as_str().unwrap().to_owned();
        assert_eq!(
            reply,
            json!({"success": true, "sid": sid, "msisdn": MSISDN, "intl_fmt": "+44 7700 900001"})
        );
        assert!(sid.len() >= 16 && sid.chars().all(|c| c.is_ascii_alphanumeric() || ".=_-".contains(c)), "{sid}");

        let sent = gateway.requests.all();
        assert_eq!((sent.len(), &sent[0].method, sent[0].path.as_str()), (1, &Method::POST, "/sms"));
        assert_eq!(sent[0].header("content-type"), "application/json");
        let message = sent[0].json();
        assert_eq!(message["to"], "+447700900001");
        let code = message["code"].as_str().unwrap();
        assert!(code.len() == 6 && code.bytes().all(|c| c.is_ascii_digit()), "{code}");
        let words = message["text"].as_str().unwrap();
        assert!(words.contains(code) && words.contains(SERVER_NAME) && words.len() <= 160, "{words}");

        assert_eq!(validated(&t, &token, &sid).await.failure(), failure(400, "M_SESSION_NOT_VALIDATED"));
        // Again and again, as clients retry.
        for _ in 0..2 {
            assert_eq!(submit(&t, &token, &sid, SECRET, code).await.ok(), json!({"success": true}));
        }
        let answer = validated(&t, &token, &sid).await.ok();
        assert_eq!((&answer["medium"], &answer["address"]), (&json!("msisdn"), &json!(MSISDN)));

        let signed = t.bind(&token, &sid, SECRET, ALICE).await.ok();
        assert_eq!((&signed["medium"], &signed["address"]), (&json!("msisdn"), &json!(MSISDN)));
        let key = t.get("/pubkey/ed25519:0", None).await.ok();
        verify_signed_json(&signed, SERVER_NAME, "ed25519:0", key["public_key"].as_str().unwrap()).unwrap();
        let pepper = t.pepper(&token).await;
        let hash = lookup_hash(MSISDN, "msisdn", &pepper);
        let body = json!({"algorithm": "sha256", "pepper": pepper, "addresses": [hash]});
        assert_eq!(t.post("/lookup", Some(&token), &body).await.ok(), json!({"mappings": {hash: ALICE}}));
        let log = t.server.log_text();
        assert!(!log.contains("7700900001"), "the number is in the log");
    }

    async fn clients_write_numbers_in_their_ways(database: Database) {
        let (t, gateway) = start(database).await;
        let token = t.register(ALICE).await;
        let bodies = [
            // matrix-js-sdk, with a string as send_attempt.
            json!({"client_secret": "a", "country": "GB", "phone_number": "07700 900001", "send_attempt": "1"}),
            // iOS, without a country.
            json!({"client_secret": "b", "country": "", "phone_number": "+447700900001", "send_attempt": 1}),
            json!({"client_secret": "c", "country": "", "phone_number": "447700900001", "send_attempt": 1}),
            // Typed with its country in front, in a form for another country.
            json!({"client_secret": "d", "country": "US", "phone_number": "+44 (0) 7700-900001", "send_attempt": 1}),
        ];
        for (number, body) in bodies.iter().enumerate() {
            let reply = t.post(REQUEST, Some(&token), body).await.ok();
            assert_eq!(reply["msisdn"], MSISDN, "{body}");
            assert_eq!(gateway.requests.len(), number + 1);
        }
        // A form, as drafts of the specification had it.
        let form = "client_secret=e&country=GB&phone_number=07700900001&send_attempt=1";
        let request = Request::post(t.api.absolute(&format!("{V2}{REQUEST}")))
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Bytes::from(form))
            .unwrap();
        assert_eq!(t.api.send(request).await.ok()["msisdn"], MSISDN);
    }

    async fn what_is_no_number_gets_no_message(database: Database) {
        let (t, gateway) = start(database).await;
        let token = t.register(ALICE).await;
        for (number, country) in [("", "GB"), ("alice", "GB"), ("0123", "GB"), (NUMBER, ""), (NUMBER, "UK"), ("+999123456789", "")] {
            let reply = t.request_sms(&token, number, country, SECRET, 1).await;
            assert_eq!(reply.failure(), failure(400, "M_INVALID_ADDRESS"), "{number:?} {country:?}");
        }
        let reply = t.post(REQUEST, Some(&token), &json!({})).await;
        assert_eq!(reply.failure(), failure(400, "M_MISSING_PARAMS"));
        for name in ["client_secret", "country", "phone_number", "send_attempt"] {
            assert!(reply.text.contains(name), "{name}: {}", reply.text);
        }
        for value in [json!(5), json!([]), json!({}), json!(true)] {
            let body = json!({"client_secret": SECRET, "country": value, "phone_number": value, "send_attempt": 1});
            assert_eq!(t.post(REQUEST, Some(&token), &body).await.failure(), failure(400, "M_INVALID_PARAM"), "{value}");
        }
        assert_eq!(t.post(REQUEST, None, &json!({})).await.failure(), failure(401, "M_UNAUTHORIZED"));
        assert!(gateway.requests.is_empty());
    }

    async fn the_same_attempt_never_sends_twice(database: Database) {
        let (t, gateway) = start(database).await;
        let token = t.register(ALICE).await;
        let (sid, code) = open(&t, &gateway, &token, SECRET).await;
        for (number, country) in [(NUMBER, "GB"), ("+447700900001", "")] {
            let reply = t.request_sms(&token, number, country, SECRET, 1).await.ok();
            assert_eq!((&reply["sid"], &reply["msisdn"]), (&json!(sid), &json!(MSISDN)));
        }
        assert_eq!(gateway.requests.len(), 1);
        // A higher one does, with the same code: either message may be the one that is read.
        t.request_sms(&token, NUMBER, "GB", SECRET, 2).await.ok();
        let sent = gateway.requests.all();
        assert_eq!((sent.len(), sent[1].json()["code"].as_str()), (2, Some(code.as_str())));
    }

    async fn a_wrong_code_proves_nothing(database: Database) {
        let (t, gateway) = start(database).await;
        let token = t.register(ALICE).await;
        let (sid, code) = open(&t, &gateway, &token, SECRET).await;
        for (sid, secret, code, errcode) in [
            (sid.as_str(), SECRET, wrong(&code), "M_TOKEN_INCORRECT"),
            (sid.as_str(), SECRET, "", "M_TOKEN_INCORRECT"),
            (sid.as_str(), "another_secret", code.as_str(), "M_INVALID_PARAM"),
            ("another_sid", SECRET, code.as_str(), "M_INVALID_PARAM"),
        ] {
            let reply = submit(&t, &token, sid, secret, code).await;
            assert_eq!(reply.failure(), failure(400, errcode), "{errcode}");
            assert_eq!(reply.json()["success"], false);
        }
        // Its code is for its own endpoint.
        let body = json!({"sid": sid, "client_secret": SECRET, "token": code});
        let reply = t.post("/validate/email/submitToken", Some(&token), &body).await;
        assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"));
        assert_eq!(validated(&t, &token, &sid).await.failure(), failure(400, "M_SESSION_NOT_VALIDATED"));
        // People type it in groups.
        let grouped = format!(" {} {}", &code[..3], &code[3..]);
        submit(&t, &token, &sid, SECRET, &grouped).await.ok();
    }

    async fn guessing_ends_the_session_and_a_new_one_begins(database: Database) {
        let (t, gateway) = start_with(database, vec![Answer::empty(202)], |settings| {
            settings.set("validation", "max_attempts", 3);
        })
        .await;
        let token = t.register(ALICE).await;
        let (sid, code) = open(&t, &gateway, &token, SECRET).await;
        for _ in 0..3 {
            let reply = submit(&t, &token, &sid, SECRET, wrong(&code)).await;
            assert_eq!(reply.failure(), failure(400, "M_TOKEN_INCORRECT"));
        }
        assert_eq!(submit(&t, &token, &sid, SECRET, &code).await.failure(), failure(400, "M_SESSION_EXPIRED"));
        assert_ne!(validated(&t, &token, &sid).await.status, 200);
        // "Send again" in the app: another session, whose code can be tried.
        let reply = t.request_sms(&token, NUMBER, "GB", SECRET, 2).await.ok();
        let other = reply["sid"].as_str().unwrap();
        assert_ne!(other, sid);
        let code = gateway.requests.all()[1].json()["code"].as_str().unwrap().to_owned();
        submit(&t, &token, other, SECRET, &code).await.ok();
    }

    async fn many_guesses_at_once_are_not_more_guesses(database: Database) {
        let (t, gateway) = start_with(database, vec![Answer::empty(202)], |settings| {
            settings.set("validation", "max_attempts", 5);
        })
        .await;
        let token = t.register(ALICE).await;
        let (sid, code) = open(&t, &gateway, &token, SECRET).await;
        let guesses = (0..40).map(|_| submit(&t, &token, &sid, SECRET, wrong(&code)));
        let mut answers: BTreeMap<String, usize> = BTreeMap::new();
        for reply in join_all(guesses).await {
            *answers.entry(reply.errcode()).or_default() += 1;
        }
        let expected = [("M_SESSION_EXPIRED".to_owned(), 35), ("M_TOKEN_INCORRECT".to_owned(), 5)];
        assert_eq!(answers, BTreeMap::from(expected));
        assert_eq!(submit(&t, &token, &sid, SECRET, &code).await.failure(), failure(400, "M_SESSION_EXPIRED"));
    }

    async fn codes_are_counted_over_all_sessions(database: Database) {
        // The first three guesses in a session are not charged to its number.
        for (limit, guesses) in [("sms_codes_per_number", 4), ("sms_codes_per_source", 1)] {
            let (t, gateway) = start_with(database, vec![Answer::empty(202)], |settings| {
                settings.set("validation", "max_attempts", 10);
                settings.set(&format!("limits.{limit}"), "burst", 2);
                settings.set(&format!("limits.{limit}"), "refill_secs", 600.0);
            })
            .await;
            let token = t.register(ALICE).await;
            for secret in ["one", "two"] {
                let (sid, code) = open(&t, &gateway, &token, secret).await;
                for _ in 0..guesses {
                    let reply = submit(&t, &token, &sid, secret, wrong(&code)).await;
                    assert_eq!(reply.failure(), failure(400, "M_TOKEN_INCORRECT"), "{limit}");
                }
            }
            let (sid, code) = open(&t, &gateway, &token, "three").await;
            for _ in 1..guesses {
                submit(&t, &token, &sid, "three", wrong(&code)).await;
            }
            let reply = submit(&t, &token, &sid, "three", &code).await;
            assert_eq!(reply.failure(), failure(429, "M_LIMIT_EXCEEDED"), "{limit}");
            assert!(reply.json()["retry_after_ms"].as_i64().unwrap() > 0);
        }
    }

    async fn a_stranger_cannot_keep_a_number_from_its_owner(database: Database) {
        let (t, gateway) = start_with(database, vec![Answer::empty(202)], |settings| {
            settings.set("limits.sms_codes_per_number", "burst", 1);
            settings.set("limits.sms_codes_per_number", "refill_secs", 600.0);
            settings.set("limits.sms_codes_per_source", "burst", 10);
            settings.set("limits.sms_codes_per_source", "refill_secs", 600.0);
        })
        .await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        let (sid, code) = open(&t, &gateway, &bob, "bobs_secret").await;
        for _ in 0..5 {
            submit(&t, &bob, &sid, "bobs_secret", wrong(&code)).await;
        }
        // The owner mistypes it twice, and is right; a right code costs nobody anything.
        let (sid, code) = open(&t, &gateway, &alice, "alices_secret").await;
        for _ in 0..2 {
            let reply = submit(&t, &alice, &sid, "alices_secret", wrong(&code)).await;
            assert_eq!(reply.failure(), failure(400, "M_TOKEN_INCORRECT"));
        }
        for _ in 0..10 {
            submit(&t, &alice, &sid, "alices_secret", &code).await.ok();
        }
    }

    async fn each_budget_has_an_end(database: Database) {
        // Which of three further requests are still answered: the same number again, another number of its country, a
        // number of another country, each by Bob.
        for (limit, answered) in [
            ("sms_per_number", [429, 200, 200]),
            ("sms_per_country", [429, 429, 200]),
            ("sms_per_account", [200, 200, 200]),
            ("sms_per_source", [429, 429, 429]),
            ("sms_per_stranger", [429, 429, 429]),
            ("sms_of_strangers", [429, 429, 429]),
            ("sms_total", [429, 429, 429]),
        ] {
            let (t, _gateway) = start_with(database, vec![Answer::empty(202)], |settings| {
                // Bob asks from the same source and has an account of his own, which needs three.
                let burst = if limit == "sms_per_account" { 3 } else { 1 };
                settings.set(&format!("limits.{limit}"), "burst", burst);
                settings.set(&format!("limits.{limit}"), "refill_secs", 600.0);
            })
            .await;
            let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
            t.request_sms(&alice, NUMBER, "GB", SECRET, 1).await.ok();
            for ((number, country), status) in
                [(NUMBER, "GB"), ("07700900002", "GB"), ("8005552067", "US")].into_iter().zip(answered)
            {
                let reply = t.request_sms(&bob, number, country, "bobs_secret", 1).await;
                assert_eq!(reply.status, status, "{limit} {number}: {}", reply.text);
                if status == 429 {
                    assert_eq!(reply.errcode(), "M_LIMIT_EXCEEDED");
                    assert!(reply.header("retry-after").parse::<u64>().unwrap() > 0);
                }
            }
            if limit == "sms_per_account" {
                let reply = t.request_sms(&bob, "07700900003", "GB", "bobs_secret", 1).await;
                assert_eq!(reply.failure(), failure(429, "M_LIMIT_EXCEEDED"));
                t.request_sms(&alice, "07700900003", "GB", SECRET, 1).await.ok();
            }
        }
    }

    async fn who_has_no_budget_left_uses_up_nobody_elses(database: Database) {
        let (t, _gateway) = start_with(database, vec![Answer::empty(202)], |settings| {
            for limit in ["sms_per_account", "sms_per_number"] {
                settings.set(&format!("limits.{limit}"), "burst", 1);
                settings.set(&format!("limits.{limit}"), "refill_secs", 600.0);
            }
        })
        .await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        t.request_sms(&bob, "07700900002", "GB", SECRET, 1).await.ok();
        for attempt in 1..4 {
            assert_eq!(t.request_sms(&bob, NUMBER, "GB", SECRET, attempt).await.status, 429);
        }
        t.request_sms(&alice, NUMBER, "GB", SECRET, 1).await.ok();
    }

    async fn only_allowed_countries_are_written_to(database: Database) {
        let (t, gateway) = start_with(database, vec![Answer::empty(202)], |settings| {
            settings.set("sms", "countries_allowed", vec!["GB", "+1"]);
            settings.set("sms", "countries_denied", vec!["JM"]);
        })
        .await;
        let token = t.register(ALICE).await;
        for (number, status) in [
            ("+447700900001", 200),
            ("+18005552067", 200),
            // Shares +1, and is denied.
            ("+18765550123", 400),
            ("+4915123456789", 400),
            // Premium rate, and whoever has the number earns by it.
            ("+449001234567", 400),
        ] {
            let reply = t.request_sms(&token, number, "", SECRET, 1).await;
            assert_eq!(reply.status, status, "{number}: {}", reply.text);
            if status == 400 {
                assert_eq!(reply.errcode(), "M_DESTINATION_REJECTED", "{number}");
            }
        }
        assert_eq!(gateway.requests.len(), 2);
    }

    async fn what_is_no_phone_of_a_person_has_to_be_named(database: Database) {
        let special = ["+447012345678", "+491805123456", "+447640123456"];
        let nowhere = ["+870773111632", "+881612345678", "+8821633312345"];
        for (allowed, statuses) in [(vec![], [400, 400, 400]), (vec!["+881", "GB", "DE"], [400, 200, 400])] {
            let (t, _gateway) = start_with(database, vec![Answer::empty(202)], |settings| {
                settings.set("sms", "countries_allowed", allowed);
            })
            .await;
            let token = t.register(ALICE).await;
            for number in special {
                let reply = t.request_sms(&token, number, "", SECRET, 1).await;
                assert_eq!(reply.failure(), failure(400, "M_DESTINATION_REJECTED"), "{number}");
            }
            for (number, status) in nowhere.into_iter().zip(statuses) {
                let reply = t.request_sms(&token, number, "", SECRET, 1).await;
                assert_eq!(reply.status, status, "{number}: {}", reply.text);
            }
        }
    }

    async fn without_a_gateway_nothing_is_promised(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let reply = t.request_sms(&token, NUMBER, "GB", SECRET, 1).await;
        assert_eq!(reply.failure(), failure(400, "M_DESTINATION_REJECTED"));
    }

    async fn a_message_that_did_not_go_out_is_told_and_may_be_tried_again(database: Database) {
        let answers = vec![
            Answer::empty(500),
            Answer::text(401, "no such account for +447700900001"),
            Answer::text(200, "ERROR 7"),
            Answer::Hang,
            Answer::text(200, "OK 1"),
        ];
        let (t, gateway) = start_with(database, answers, |settings| {
            settings.set("sms", "timeout_secs", 1);
            settings.set("sms.http", "success_contains", "OK");
        })
        .await;
        let token = t.register(ALICE).await;
        for _ in 0..4 {
            let reply = t.request_sms(&token, NUMBER, "GB", SECRET, 1).await;
            assert_eq!(reply.failure(), failure(400, "M_SEND_ERROR"));
        }
        t.request_sms(&token, NUMBER, "GB", SECRET, 1).await.ok();
        assert_eq!(gateway.requests.len(), 5);
        let log = t.server.log_text();
        assert!(log.contains("status 401"), "{log}");
        assert!(!log.contains("7700900001"), "the number is in the log");
    }

    async fn a_gateway_that_is_not_who_it_says_gets_nothing(database: Database) {
        let (ca, other) = (Ca::new(), Ca::new());
        let homeserver = Homeserver::start(&ca, &[HOMESERVER]).await;
        let gateway = TlsServer::start(other.leaf(&["127.0.0.1"], Alpn::Both), |_| async { Answer::empty(202) }).await;
        let url = gateway.url();
        let t = TestIdentity::start_around(database, ca, homeserver, |settings| {
            settings.set("sms", "transport", "http").set("sms.http", "url", url).set("sms.http", "body", "{}");
        })
        .await;
        let token = t.register(ALICE).await;
        let reply = t.request_sms(&token, NUMBER, "GB", SECRET, 1).await;
        assert_eq!(reply.failure(), failure(400, "M_SEND_ERROR"));
        assert!(gateway.requests.is_empty());
    }

    async fn the_log_transport_writes_the_code_to_the_log(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("sms", "transport", "log");
        })
        .await;
        let token = t.register(ALICE).await;
        let sid = t.request_sms(&token, NUMBER, "GB", SECRET, 1).await.ok()["sid"].as_str().unwrap().to_owned();
        let line = t.server.wait_for_log("the code", |line| line["code"].is_string()).await;
        submit(&t, &token, &sid, SECRET, line["code"].as_str().unwrap()).await.ok();
        assert!(!t.server.log_text().contains("7700900001"), "the number is in the log");
    }

    async fn the_page_has_a_button_too(database: Database) {
        let (t, gateway) = start(database).await;
        let token = t.register(ALICE).await;
        let (sid, code) = open(&t, &gateway, &token, SECRET).await;
        let link = format!("{V2}{SUBMIT}?token={code}&client_secret={SECRET}&sid={sid}");
        for method in [Method::HEAD, Method::GET] {
            let page = t.api.call(method.clone(), &link, None, Bytes::new()).await;
            assert_eq!(page.status, 200, "{method}");
            assert_eq!(validated(&t, &token, &sid).await.failure(), failure(400, "M_SESSION_NOT_VALIDATED"), "{method}");
        }
        let page = t.api.get(&link, None).await;
        assert!(page.header("content-type").starts_with("text/html"));
        assert!(page.text.contains("+447700900001") && page.text.contains(SUBMIT), "{}", page.text);
        let fields = [("token", code.as_str()), ("client_secret", SECRET), ("sid", sid.as_str())];
        let pressed = t.api.post_form(&format!("{V2}{SUBMIT}"), &fields).await;
        assert_eq!(pressed.status, 200, "{}", pressed.text);
        assert!(pressed.text.contains("phone number"), "{}", pressed.text);
        assert_eq!(validated(&t, &token, &sid).await.status, 200);
        let fields = [("token", wrong(&code)), ("client_secret", SECRET), ("sid", sid.as_str())];
        let page = t.api.post_form(&format!("{V2}{SUBMIT}"), &fields).await;
        assert_eq!(page.status, 400);
        assert!(page.header("content-type").starts_with("text/html"));
    }

    async fn a_message_speaks_the_readers_language(database: Database) {
        let (t, gateway) = start(database).await;
        let token = t.register(ALICE).await;
        let body = json!({"client_secret": SECRET, "country": "GB", "phone_number": NUMBER, "send_attempt": 1, "lang": "de"});
        t.post(REQUEST, Some(&token), &body).await.ok();
        let words = gateway.requests.all()[0].json()["text"].as_str().unwrap().to_owned();
        assert!(words.contains("Ihr Code"), "{words}");
    }

    async fn the_manuals_gateways_get_what_they_want(database: Database) {
        let (to_form, said) = ("%2B447700900001", "is your code for id.test");
        for (heading, host, path, authorization) in [
            // base64 of "AC0123456789abcdef0123456789abcdef:swordfish" and "abcd1234:swordfish".
            ("Twilio", "https://api.twilio.com", "/2010-04-01/Accounts/AC0123456789abcdef0123456789abcdef/Messages.json",
                "Basic QUMwMTIzNDU2Nzg5YWJjZGVmMDEyMzQ1Njc4OWFiY2RlZjpzd29yZGZpc2g="),
            ("Vonage", "https://api.nexmo.com", "/v1/messages", "Basic YWJjZDEyMzQ6c3dvcmRmaXNo"),
            ("Infobip", "https://example.api.infobip.com", "/sms/3/messages", "swordfish"),
            ("Amazon SNS, and others that sign their requests",
                "https://example.execute-api.eu-central-1.amazonaws.com", "/prod/sms", ""),
        ] {
            let (t, gateway, _folder) = of_manual(database, heading, host).await;
            let token = t.register(ALICE).await;
            t.request_sms(&token, NUMBER, "GB", SECRET, 1).await.ok();
            let sent = gateway.requests.all().remove(0);
            assert_eq!((sent.path.as_str(), sent.header("authorization")), (path, authorization), "{heading}");
            match heading {
                "Twilio" => {
                    assert_eq!(sent.header("content-type"), "application/x-www-form-urlencoded");
                    let body = String::from_utf8(sent.body.to_vec()).unwrap();
                    assert!(body.starts_with(&format!("To={to_form}&From=%2B15005550006&Body=")), "{body}");
                    let fields: BTreeMap<_, _> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
                    assert!(fields["Body"].contains(said), "{body}");
                }
                "Vonage" => {
                    let mut body = sent.json();
                    let words = body.as_object_mut().unwrap().remove("text").unwrap();
                    assert!(words.as_str().unwrap().contains(said), "{words}");
                    assert_eq!(body, json!({"message_type": "text", "channel": "sms", "from": "Matrix", "to": MSISDN}));
                }
                "Infobip" => {
                    let body = sent.json();
                    let words = body["messages"][0]["content"]["text"].clone();
                    assert!(words.as_str().unwrap().contains(said), "{body}");
                    assert_eq!(body, json!({"messages": [
                        {"sender": "Matrix", "destinations": [{"to": MSISDN}], "content": {"text": words}},
                    ]}));
                }
                _ => {
                    assert_eq!(sent.header("x-api-key"), "swordfish");
                    let body = sent.json();
                    let words = body["Message"].clone();
                    assert!(words.as_str().unwrap().contains(said), "{body}");
                    assert_eq!(body, json!({"PhoneNumber": "+447700900001", "Message": words}));
                }
            }
            assert!(!t.server.log_text().contains("swordfish"), "{heading}: the secret is in the log");
        }
    }

    async fn openmarket_gets_its_own_format(database: Database) {
        let (t, gateway, _folder) = of_manual(database, "OpenMarket", "https://smsc.openmarket.com").await;
        let token = t.register(ALICE).await;
        for (number, country, msisdn, source) in [
            // The digits' sum is 32, even: the first of two.
            (NUMBER, "GB", MSISDN, json!({"ton": 1, "address": "447700900000"})),
            ("07700900002", "GB", "447700900002", json!({"ton": 3, "address": "12345"})),
            ("8005552067", "US", "18005552067", json!({"ton": 5, "address": "Matrix"})),
        ] {
            t.request_sms(&token, number, country, SECRET, 1).await.ok();
            let sent = gateway.requests.all().pop().unwrap();
            assert_eq!((&sent.method, sent.path.as_str()), (&Method::POST, "/sms/v4/mt"));
            // base64 of "account:swordfish".
            assert_eq!(sent.header("authorization"), "Basic YWNjb3VudDpzd29yZGZpc2g=");
            let body = sent.json();
            let content = body["mobileTerminate"]["message"]["content"].clone();
            assert!(content.as_str().unwrap().contains("is your code"), "{body}");
            assert_eq!(body, json!({"mobileTerminate": {
                "message": {"content": content, "type": "text"},
                "destination": {"address": msisdn},
                "source": source,
            }}));
        }
    }
}

/// A server with the manual's example below `heading`, whose gateway at `host` is played by a stand-in. The secret that
/// the example reads from a file is `swordfish`.
async fn of_manual(database: Database, heading: &str, host: &str) -> (TestIdentity, TlsServer, TempFolder) {
    let folder = TempFolder::new();
    let secret = text(&folder.write("secret", "swordfish\n"));
    let (_, section) = MANUAL.split_once(&format!("# {heading}\n")).expect("the manual has the heading");
    let (_, example) = section.split_once("```toml\n").expect("the section has an example");
    let (example, _) = example.split_once("```").expect("the example ends");

    let ca = Ca::new();
    let homeserver = Homeserver::start(&ca, &[HOMESERVER]).await;
    let gateway = TlsServer::start(ca.leaf(&["127.0.0.1"], Alpn::Both), |_| async { Answer::empty(202) }).await;
    let mut example = example.replace("/run/secrets/sms", &secret);
    if example.contains(host) {
        example = example.replace(host, &gateway.url());
    } else {
        // OpenMarket's address is a default.
        example = format!("{example}\n[sms.openmarket]\nurl = \"{}/sms/v4/mt\"\n", gateway.url());
    }
    let t = TestIdentity::start_around(database, ca, homeserver, |settings| {
        settings.append(&example);
    })
    .await;
    (t, gateway, folder)
}
