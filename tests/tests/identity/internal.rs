//! The internal listener: bind, unbind, erase, with a secret.

use serde_json::{Value, json};
use waypost_tests::database::Database;
use waypost_tests::http::Reply;
use waypost_tests::identity::{INTERNAL_SECRET, SERVER_NAME, TERMS_URLS, TestIdentity, internal, terms};
use waypost_tests::matrix::verify_signed_json;
use waypost_tests::on_each_database;
use waypost_tests::process::{IDENTITY, TempFolder, run, text};

use super::{ALICE, BOB, EMAIL, SECRET, failure};

const BASE: &str = "/_matrix/identity/internal";

async fn call(t: &TestIdentity, path: &str, body: &Value) -> Reply {
    t.internal_api().await.post(&format!("{BASE}{path}"), Some(INTERNAL_SECRET), body).await
}

fn address(medium: &str, address: &str, mxid: &str) -> Value {
    json!({"medium": medium, "address": address, "mxid": mxid})
}

on_each_database! {
    async fn binding_publishes_an_address_on_the_operators_word(database: Database) {
        let t = TestIdentity::start_with(database, internal).await;
        let token = t.register(BOB).await;
        let signed = call(&t, "/bind", &address("email", "Alice@Example.com", ALICE)).await.ok();
        let key = t.get("/pubkey/ed25519:0", None).await.ok();
        verify_signed_json(&signed, SERVER_NAME, "ed25519:0", key["public_key"].as_str().unwrap()).unwrap();
        assert_eq!((&signed["address"], &signed["mxid"]), (&json!(EMAIL), &json!(ALICE)));
        assert_eq!(t.who_is(&token, EMAIL).await.as_deref(), Some(ALICE));
        let number = call(&t, "/bind", &address("msisdn", "+18005552067", ALICE)).await.ok();
        assert_eq!(number["address"], "18005552067");
    }

    async fn unbinding_takes_it_back_from_its_owner_only(database: Database) {
        let t = TestIdentity::start_with(database, internal).await;
        let token = t.register(BOB).await;
        call(&t, "/bind", &address("email", EMAIL, ALICE)).await.ok();
        assert_eq!(call(&t, "/unbind", &address("email", EMAIL, BOB)).await.ok(), json!({}));
        assert_eq!(t.who_is(&token, EMAIL).await.as_deref(), Some(ALICE));
        assert_eq!(call(&t, "/unbind", &address("email", EMAIL, ALICE)).await.ok(), json!({}));
        assert_eq!(t.who_is(&token, EMAIL).await, None);
        let t = t.restart().await;
        assert_eq!(t.who_is(&token, EMAIL).await, None);
    }

    async fn erasing_removes_everything_and_says_what(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            internal(settings);
            terms(settings);
            settings.set("limits.mail_per_account", "burst", 100).set("limits.mail_per_account", "refill_secs", 600);
        })
        .await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        let other = t.register(ALICE).await;
        for token in [&alice, &bob] {
            t.accept_terms(token).await;
        }
        t.publish(&alice, EMAIL, ALICE).await;
        t.publish(&alice, "alice@work.example.com", ALICE).await;
        t.publish(&bob, "bob@example.com", BOB).await;
        // A session for an address that is nobody's yet cannot be told to be hers.
        t.open_session(&alice, "later@example.com", SECRET).await;

        let invite = json!({"medium": "email", "address": "carol@example.com", "room_id": "!room:hs.test", "sender": ALICE});
        let invite = t.post("/store-invite", Some(&alice), &invite).await.ok();
        let ephemeral = invite["public_keys"][1]["public_key"].as_str().unwrap().to_owned();
        let still_valid = async || {
            t.get(&format!("/pubkey/ephemeral/isvalid?public_key={ephemeral}"), None).await.ok()["valid"].clone()
        };
        assert_eq!(still_valid().await, true);

        let mut answer = call(&t, "/erase", &json!({"mxid": ALICE})).await.ok();
        // Whether her homeserver had been told of her binds already is a matter of time.
        assert!(answer["erased"].as_object_mut().unwrap().remove("outbox").is_some());
        assert_eq!(still_valid().await, false);
        assert_eq!(answer, json!({"erased": {
            "invites": 1,
            "address_books": 0,
            "ephemeral_keys": 1,
            "associations": 2,
            "validation_sessions": 2,
            "access_tokens": 2,
            "accepted_terms": 1,
            "accounts": 1,
            "budgets": 1,
        }}));
        for token in [&alice, &other] {
            assert_eq!(t.get("/account", Some(token)).await.failure(), failure(401, "M_UNAUTHORIZED"));
        }
        assert_eq!(t.lookup(&bob, &[EMAIL, "alice@work.example.com"]).await, json!({}));
        assert_eq!(t.who_is(&bob, "bob@example.com").await.as_deref(), Some(BOB));

        // Again there is nothing; and she may come back.
        let nothing = call(&t, "/erase", &json!({"mxid": ALICE})).await.ok();
        assert!(nothing["erased"].as_object().unwrap().values().all(|count| count == 0), "{nothing}");
        let token = t.register(ALICE).await;
        assert_eq!(t.get("/account", Some(&token)).await.failure(), failure(403, "M_TERMS_NOT_SIGNED"));
        assert_eq!(t.post("/terms", Some(&token), &json!({"user_accepts": [TERMS_URLS[1]]})).await.status, 200);
        t.publish(&token, EMAIL, ALICE).await;
        assert_eq!(t.who_is(&bob, EMAIL).await.as_deref(), Some(ALICE));
        assert!(!t.server.log_text().contains(EMAIL), "the address is in the log");
    }

    async fn the_secret_is_needed(database: Database) {
        let t = TestIdentity::start_with(database, internal).await;
        let token = t.register(ALICE).await;
        let api = t.internal_api().await;
        let almost = &INTERNAL_SECRET[1..];
        for secret in [None, Some(""), Some("wrong"), Some(almost), Some(token.as_str())] {
            for path in ["/bind", "/unbind", "/erase"] {
                let reply = api.post(&format!("{BASE}{path}"), secret, &address("email", EMAIL, ALICE)).await;
                assert_eq!(reply.failure(), failure(401, "M_UNAUTHORIZED"), "{path} {secret:?}");
            }
        }
        assert_eq!(t.who_is(&token, EMAIL).await, None);
        assert!(!t.server.log_text().contains(INTERNAL_SECRET), "the secret is in the log");
    }

    async fn nothing_of_it_is_public(database: Database) {
        let t = TestIdentity::start_with(database, internal).await;
        for path in ["/bind", "/unbind", "/erase"] {
            let body = address("email", EMAIL, ALICE);
            let reply = t.api.post(&format!("{BASE}{path}"), Some(INTERNAL_SECRET), &body).await;
            assert_eq!(reply.failure(), failure(404, "M_UNRECOGNIZED"), "{path}");
        }
        // And nothing else is internal.
        let reply = t.internal_api().await.get("/_matrix/identity/v2", Some(INTERNAL_SECRET)).await;
        assert_eq!(reply.failure(), failure(404, "M_UNRECOGNIZED"));
    }

    async fn what_is_missing_or_wrong_is_named(database: Database) {
        let t = TestIdentity::start_with(database, internal).await;
        for path in ["/bind", "/unbind"] {
            let reply = call(&t, path, &json!({})).await;
            assert_eq!(reply.failure(), failure(400, "M_MISSING_PARAMS"));
            for body in [
                address("fax", EMAIL, ALICE),
                address("email", "alice", ALICE),
                address("msisdn", EMAIL, ALICE),
                address("email", EMAIL, "alice"),
                json!({"medium": "email", "address": 5, "mxid": ALICE}),
            ] {
                assert_eq!(call(&t, path, &body).await.failure(), failure(400, "M_INVALID_PARAM"), "{body}");
            }
        }
        assert_eq!(call(&t, "/erase", &json!({})).await.failure(), failure(400, "M_MISSING_PARAMS"));
        assert_eq!(call(&t, "/erase", &json!({"mxid": "alice"})).await.failure(), failure(400, "M_INVALID_PARAM"));
    }
}

#[tokio::test]
async fn nothing_of_an_erased_user_is_left_in_the_files_of_sqlite() {
    let t = TestIdentity::start_with(Database::Sqlite, internal).await;
    let token = t.register(ALICE).await;
    t.publish(&token, EMAIL, ALICE).await;
    let calls = t.homeserver.onbind();
    calls.wait_for("onbind", |_| !calls.is_empty()).await;
    let mentioned = || {
        let files = std::fs::read_dir(t.server.folder.path().join("data")).unwrap();
        files
            .filter(|file| {
                let bytes = std::fs::read(file.as_ref().unwrap().path()).unwrap();
                bytes.windows(ALICE.len()).any(|window| window == ALICE.as_bytes())
            })
            .count()
    };
    assert!(mentioned() > 0);
    call(&t, "/erase", &json!({"mxid": ALICE})).await.ok();
    assert_eq!(mentioned(), 0);
}

#[test]
fn there_is_no_internal_listener_without_a_secret() {
    let folder = TempFolder::new();
    let file = folder.write("waypost.toml", "[listen]\ninternal = \"127.0.0.1:0\"\n");
    let output = run(IDENTITY, &["--config", &text(&file), "serve"]);
    assert_eq!(output.status.code(), Some(2));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("internal.secret: is needed"), "{message}");
}
