//! register, account, logout.

use ::http::Request;
use bytes::Bytes;
use serde_json::{Value, json};
use waypost_tests::ca::Ca;
use waypost_tests::homeserver::Homeserver;
use waypost_tests::identity::{HOMESERVER, SERVER_NAME, TestIdentity};
use waypost_tests::on_each_database;
use waypost_tests::tls_server::Answer;

use super::{ALICE, BOB, SECRET, failure, invitation};

/// A user of another homeserver.
const EVE: &str = "@eve:other.test";

on_each_database! {
    async fn register_answers_the_token_under_both_names(database: Database) {
        let t = TestIdentity::start(database).await;
        let openid = t.homeserver.issue(ALICE);
        let reply = t.register_with(&openid, HOMESERVER).await.ok();
        let token = reply["token"].as_str().unwrap();
        assert!(token.len() >= 22, "128 bits or more: {token}");
        assert_eq!(reply, json!({"token": token, "access_token": token}));
        let account = t.get("/account", Some(token)).await.ok();
        assert_eq!(account, json!({"user_id": ALICE}));
    }

    async fn the_homeserver_is_asked_over_tls_for_its_name(database: Database) {
        let t = TestIdentity::start(database).await;
        t.register(ALICE).await;
        let request = &t.homeserver.server.requests.all()[0];
        assert_eq!(request.path, "/_matrix/federation/v1/openid/userinfo");
        assert_eq!(request.sni.as_deref(), Some(HOMESERVER));
        assert!(request.host.starts_with(HOMESERVER), "{}", request.host);
    }

    async fn the_token_may_come_in_the_query(database: Database) {
        // Removed in v1.20, and Synapse still does it.
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let reply = t.get(&format!("/account?access_token={token}"), None).await;
        assert_eq!(reply.ok(), json!({"user_id": ALICE}));
    }

    async fn synapse_asks_for_the_pepper_with_its_token_in_the_query(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let details = t.get(&format!("/hash_details?access_token={token}"), None).await.ok();
        assert_eq!(details, t.get("/hash_details", Some(&token)).await.ok());
        // A good header is enough, a bad one is not mended by the query.
        assert_eq!(t.get("/hash_details?access_token=unknown", Some(&token)).await.ok(), details);
        let reply = t.get(&format!("/hash_details?access_token={token}"), Some("unknown")).await;
        assert_eq!(reply.failure(), failure(401, "M_UNAUTHORIZED"));
        assert!(!t.server.log_text().contains(&token), "the token is in the log");
    }

    async fn a_token_in_the_query_counts_for_nothing_where_that_is_switched_off(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("tokens", "allow_in_query", false);
        })
        .await;
        let token = t.register(ALICE).await;
        let reply = t.get(&format!("/hash_details?access_token={token}"), None).await;
        assert_eq!(reply.failure(), failure(401, "M_UNAUTHORIZED"));
        assert_eq!(t.get("/hash_details", Some(&token)).await.status, 200);
        assert!(!t.server.log_text().contains(&token), "the token is in the log");
    }

    async fn tokens_are_their_own(database: Database) {
        let t = TestIdentity::start(database).await;
        let (first, second, bob) = (t.register(ALICE).await, t.register(ALICE).await, t.register(BOB).await);
        assert!(first != second && second != bob);
        assert_eq!(t.post("/account/logout", Some(&first), &json!({})).await.ok(), json!({}));
        assert_eq!(t.get("/account", Some(&first)).await.failure(), failure(401, "M_UNAUTHORIZED"));
        assert_eq!(t.get("/account", Some(&second)).await.ok(), json!({"user_id": ALICE}));
        assert_eq!(t.get("/account", Some(&bob)).await.ok(), json!({"user_id": BOB}));
    }

    async fn no_response_is_kept_by_caches(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (_, mail) = t.open_session(&token, "alice@example.com", "secret").await;
        let link = waypost_tests::identity::Link::parse(&mail.link());
        for path in ["/account", "/hash_details", "/terms", "/nonsense", "/3pid/getValidated3pid?sid=a&client_secret=b"] {
            let reply = t.get(path, Some(&token)).await;
            assert_eq!(reply.header("cache-control"), "no-store", "{path}");
        }
        assert_eq!(t.post("/lookup", Some(&token), &json!({})).await.header("cache-control"), "no-store");
        assert_eq!(t.api.get(&link.path_and_query, None).await.header("cache-control"), "no-store");
        assert_eq!(t.press_button(&link).await.header("cache-control"), "no-store");
    }

    async fn a_user_has_the_newest_fifty_tokens(database: Database) {
        let t = TestIdentity::start(database).await;
        let bob = t.register(BOB).await;
        let first = t.register(ALICE).await;
        t.get("/account", Some(&first)).await.ok();
        let mut tokens = Vec::new();
        for _ in 0..50 {
            tokens.push(t.register(ALICE).await);
        }
        // Also where it was cached a moment ago.
        assert_eq!(t.get("/account", Some(&first)).await.failure(), failure(401, "M_UNAUTHORIZED"));
        for token in tokens.iter().chain([&bob]) {
            t.get("/account", Some(token)).await.ok();
        }
    }

    async fn logout_needs_no_body_and_a_known_token(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        assert_eq!(t.post_text("/account/logout", Some(&token), "").await.ok(), json!({}));
        let again = t.post_text("/account/logout", Some(&token), "").await;
        assert_eq!(again.failure(), failure(401, "M_UNKNOWN_TOKEN"));
    }

    async fn a_token_that_the_homeserver_does_not_know_gets_nothing(database: Database) {
        let t = TestIdentity::start(database).await;
        let reply = t.register_with("never issued", HOMESERVER).await;
        assert!(reply.status == 401 || reply.status == 403, "{}: {}", reply.status, reply.text);
        assert!(reply.json().get("token").is_none());
    }

    async fn a_user_of_another_server_is_refused(database: Database) {
        // OpenID replay: what hs.test says about other servers' users counts for nothing.
        let t = TestIdentity::start(database).await;
        let subjects = [
            json!("@alice:other.test"),
            json!("@alice:hs.test:8448"),
            json!("@alice:hs.test.evil.test"),
            json!("@alice"),
            json!("alice:hs.test"),
            json!(""),
            json!(5),
            json!(null),
            json!(["@alice:hs.test"]),
        ];
        for sub in subjects {
            let openid = t.homeserver.issue_answer(Answer::json(200, &json!({"sub": sub})));
            let reply = t.register_with(&openid, HOMESERVER).await;
            assert!((400..=502).contains(&reply.status), "{sub}: {}", reply.text);
            assert_ne!(reply.status, 500, "{sub}: {}", reply.text);
            assert!(reply.json().get("token").is_none(), "{sub}: {}", reply.text);
        }
    }

    async fn a_homeserver_that_answers_nonsense_is_no_crash_of_ours(database: Database) {
        let t = TestIdentity::start(database).await;
        let answers = [
            Answer::text(200, "<html>"),
            Answer::json(200, &json!([])),
            Answer::json(200, &json!({})),
            Answer::text(200, &"x".repeat(1024 * 1024)),
            Answer::empty(500),
            Answer::empty(302).header("location", "https://127.0.0.1/"),
            Answer::Reset,
        ];
        for answer in answers {
            let openid = t.homeserver.issue_answer(answer.clone());
            let reply = t.register_with(&openid, HOMESERVER).await;
            assert!(reply.status >= 400, "{answer:?}: {}", reply.text);
            assert!(reply.errcode().starts_with("M_"), "{answer:?}: {}", reply.text);
        }
    }

    async fn register_names_what_is_missing(database: Database) {
        let t = TestIdentity::start(database).await;
        let reply = t.post("/account/register", None, &json!({})).await;
        assert_eq!(reply.failure(), failure(400, "M_MISSING_PARAMS"));
        let error = reply.json()["error"].as_str().unwrap_or_default().to_owned();
        assert!(error.contains("access_token") && error.contains("matrix_server_name"), "{error}");
        for (key, value) in [("access_token", json!(5)), ("matrix_server_name", json!(["hs.test"]))] {
            let mut body = json!({"access_token": "a", "token_type": "Bearer", "matrix_server_name": "hs.test", "expires_in": 1});
            body[key] = value;
            let reply = t.post("/account/register", None, &body).await;
            assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"), "{key}");
        }
    }

    async fn an_endless_openid_token_is_called_wrong_itself(database: Database) {
        let t = TestIdentity::start(database).await;
        let reply = t.register_with(&"a".repeat(50_000), HOMESERVER).await;
        assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"));
        assert!(reply.text.contains("`access_token`"), "{}", reply.text);
        assert!(t.homeserver.server.requests.is_empty());
    }

    async fn register_refuses_what_is_no_server_name(database: Database) {
        let t = TestIdentity::start(database).await;
        for name in ["", "a b", "https://hs.test", "hs.test/path", "hs.test:", "hs.test:99999", "hs.test?x", "user@hs.test"] {
            let reply = t.register_with("openid", name).await;
            assert_eq!(reply.status, 400, "{name:?}: {}", reply.text);
        }
        assert!(t.homeserver.server.requests.is_empty());
    }

    async fn only_allowed_homeservers_register_where_there_is_a_list(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("homeservers", "allow", vec!["elsewhere.test"]);
        })
        .await;
        let openid = t.homeserver.issue(ALICE);
        let reply = t.register_with(&openid, HOMESERVER).await;
        assert_eq!(reply.status, 403, "{}", reply.text);
        assert!(t.homeserver.server.requests.is_empty());
    }

    async fn too_many_registrations_are_429_and_ask_nobody(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("limits.register_per_source", "burst", 1);
            settings.set("limits.register_per_source", "refill_secs", 600.0);
        })
        .await;
        t.register(ALICE).await;
        let openid = t.homeserver.issue(BOB);
        let reply = t.register_with(&openid, HOMESERVER).await;
        assert_eq!(reply.failure(), failure(429, "M_LIMIT_EXCEEDED"));
        assert!(reply.json()["retry_after_ms"].as_i64().unwrap() > 0);
        assert_eq!(t.homeserver.server.requests.len(), 1);
    }

    async fn a_homeserver_that_is_taken_off_the_list_has_no_users_here(database: Database) {
        let ca = Ca::new();
        let homeserver = Homeserver::start(&ca, &[HOMESERVER]).await;
        let other = Homeserver::start(&ca, &["other.test"]).await;
        let address = other.server.address.to_string();
        let t = TestIdentity::start_around(database, ca, homeserver, |settings| {
            settings.set("homeservers.overrides", "other.test", address);
        })
        .await;
        let alice = t.register(ALICE).await;
        let openid = other.issue(EVE);
        let eve = t.register_with(&openid, "other.test").await.ok()["token"].as_str().unwrap().to_owned();
        t.publish(&eve, "eve@example.com", EVE).await;
        let sid = t.validate(&eve, "eve@work.example.com", SECRET).await;

        let t = t.restart_with(|config| format!("{config}\n[homeservers]\nallow = [\"{HOMESERVER}\"]\n")).await;
        for path in ["/account", "/hash_details", "/3pid/getValidated3pid?sid=1&client_secret=a"] {
            assert_eq!(t.get(path, Some(&eve)).await.failure(), failure(403, "M_UNAUTHORIZED"), "{path}");
        }
        let mut invite = invitation();
        invite["sender"] = json!(EVE);
        assert_eq!(t.post("/store-invite", Some(&eve), &invite).await.failure(), failure(403, "M_UNAUTHORIZED"));
        let mails = t.smtp.mails.len();
        let reply = t.request_email(&eve, "eve@home.example.com", SECRET, 1).await;
        assert_eq!(reply.failure(), failure(403, "M_UNAUTHORIZED"));
        assert_eq!(t.smtp.mails.len(), mails);
        assert_eq!(t.bind(&eve, &sid, SECRET, EVE).await.failure(), failure(403, "M_UNAUTHORIZED"));
        assert_eq!(t.who_is(&alice, "eve@work.example.com").await, None);

        // Leaving is for her: what she had bound can be taken back, by her homeserver too, and no other is asked for.
        assert_eq!(t.who_is(&alice, "eve@example.com").await.as_deref(), Some(EVE));
        for (address, taken_back) in
            [("alice@example.com", false), ("eve@example.com", true), ("eve@example.com", false)]
        {
            let uri = "/_matrix/identity/v2/3pid/unbind";
            let content = json!({"mxid": EVE, "threepid": {"medium": "email", "address": address}});
            let request = Request::post(t.api.absolute(uri))
                .header("authorization", other.x_matrix(uri, &content, "destination_is", SERVER_NAME))
                .body(Bytes::from(content.to_string()))
                .unwrap();
            let reply = t.api.send(request).await;
            if taken_back {
                assert_eq!(reply.ok(), json!({}));
            } else {
                assert_eq!(reply.failure(), failure(403, "M_UNAUTHORIZED"), "{address}");
            }
        }
        assert_eq!(t.who_is(&alice, "eve@example.com").await, None);
        assert_eq!(t.post("/account/logout", Some(&eve), &json!({})).await.ok(), json!({}));
    }

    async fn every_other_endpoint_wants_a_token(database: Database) {
        let t = TestIdentity::start(database).await;
        for token in [None, Some("unknown"), Some("")] {
            for path in ["/account", "/hash_details", "/3pid/getValidated3pid?sid=1&client_secret=a"] {
                assert_eq!(t.get(path, token).await.failure(), failure(401, "M_UNAUTHORIZED"), "{path} {token:?}");
            }
            // The token is looked at before the body.
            for path in ["/lookup", "/terms", "/3pid/bind", "/validate/email/requestToken"] {
                let reply = t.post(path, token, &Value::Null).await;
                assert_eq!(reply.failure(), failure(401, "M_UNAUTHORIZED"), "{path} {token:?}");
            }
        }
    }
}
