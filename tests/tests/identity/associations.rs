//! bind, getValidated3pid, and what is stored of them.

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use waypost_tests::database::Database;
use waypost_tests::identity::{Link, SERVER_NAME, TestIdentity};
use waypost_tests::matrix::verify_signed_json;
use waypost_tests::on_each_database;

use super::{ALICE, BOB, EMAIL, SECRET, failure};

/// 100 years in milliseconds.
const CENTURY_MS: i64 = 100 * 365 * 24 * 60 * 60 * 1000;

on_each_database! {
    async fn bind_answers_a_signed_association(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let before = waypost_tests::jwt::now_secs() * 1000;
        let signed = t.publish(&token, "Alice@Example.COM", ALICE).await;
        let key = t.get("/pubkey/ed25519:0", None).await.ok();
        verify_signed_json(&signed, SERVER_NAME, "ed25519:0", key["public_key"].as_str().unwrap()).unwrap();

        assert_eq!(signed["medium"], "email");
        assert_eq!(signed["address"], EMAIL);
        assert_eq!(signed["mxid"], ALICE);
        let number = |key: &str| signed[key].as_i64().unwrap();
        assert!((before..=before + 600_000).contains(&number("ts")), "{signed}");
        assert!(number("not_before") <= number("ts"));
        assert!((number("not_after") - number("ts") - CENTURY_MS).abs() < 600_000, "{signed}");
        assert_eq!(t.who_is(&token, EMAIL).await.as_deref(), Some(ALICE));
    }

    async fn a_signature_does_not_hold_for_anything_else(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let mut signed = t.publish(&token, EMAIL, ALICE).await;
        let key = t.get("/pubkey/ed25519:0", None).await.ok();
        signed["mxid"] = json!(BOB);
        assert!(verify_signed_json(&signed, SERVER_NAME, "ed25519:0", key["public_key"].as_str().unwrap()).is_err());
    }

    async fn bind_needs_a_completed_validation(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
        let reply = t.bind(&token, &sid, SECRET, ALICE).await;
        assert_eq!(reply.failure(), failure(400, "M_SESSION_NOT_VALIDATED"));
        assert_eq!(t.who_is(&token, EMAIL).await, None);
        t.press_button(&Link::parse(&mail.link())).await;
        t.bind(&token, &sid, SECRET, ALICE).await.ok();
        assert_eq!(t.who_is(&token, EMAIL).await.as_deref(), Some(ALICE));
    }

    async fn bind_is_for_oneself_only(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let sid = t.validate(&token, EMAIL, SECRET).await;
        let reply = t.bind(&token, &sid, SECRET, BOB).await;
        assert_eq!(reply.failure(), failure(403, "M_UNAUTHORIZED"));
        assert_eq!(t.who_is(&token, EMAIL).await, None);
    }

    async fn a_session_opens_with_both_halves_only(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let sid = t.validate(&token, EMAIL, SECRET).await;
        for (sid, secret) in [(sid.as_str(), "another_secret"), ("unknown", SECRET), ("0", SECRET)] {
            let reply = t.bind(&token, sid, secret, ALICE).await;
            assert_eq!(reply.failure(), failure(404, "M_NO_VALID_SESSION"), "{sid} {secret}");
            let reply = t.get(&format!("/3pid/getValidated3pid?sid={sid}&client_secret={secret}"), Some(&token)).await;
            assert_eq!(reply.failure(), failure(404, "M_NO_VALID_SESSION"), "{sid} {secret}");
        }
        assert_eq!(t.who_is(&token, EMAIL).await, None);
    }

    async fn the_newest_owner_of_an_address_wins(database: Database) {
        let t = TestIdentity::start(database).await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        t.publish(&alice, EMAIL, ALICE).await;
        let sid = t.validate(&bob, EMAIL, "bobs_secret").await;
        t.bind(&bob, &sid, "bobs_secret", BOB).await.ok();
        assert_eq!(t.who_is(&alice, EMAIL).await.as_deref(), Some(BOB));
        let t = t.restart().await;
        assert_eq!(t.who_is(&alice, EMAIL).await.as_deref(), Some(BOB));
    }

    async fn bind_may_be_repeated(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let sid = t.validate(&token, EMAIL, SECRET).await;
        for _ in 0..2 {
            t.bind(&token, &sid, SECRET, ALICE).await.ok();
        }
        assert_eq!(t.who_is(&token, EMAIL).await.as_deref(), Some(ALICE));
    }

    async fn too_many_binds_are_429(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("limits.bind_per_account", "burst", 1);
            settings.set("limits.bind_per_account", "refill_secs", 600.0);
        })
        .await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        t.publish(&alice, EMAIL, ALICE).await;
        let sid = t.validate(&alice, "alice@work.example.com", SECRET).await;
        assert_eq!(t.bind(&alice, &sid, SECRET, ALICE).await.failure(), failure(429, "M_LIMIT_EXCEEDED"));
        assert_eq!(t.who_is(&bob, "alice@work.example.com").await, None);
        t.publish(&bob, "bob@example.com", BOB).await;
    }

    async fn every_bind_that_was_acknowledged_is_found(database: Database) {
        let t = TestIdentity::start(database).await;
        // Eight users at once, so that a database with one writer has to cope.
        let names: Vec<String> = (0..8).map(|number| format!("user{number}")).collect();
        let work = names.iter().map(|name| {
            let t = &t;
            async move {
                let user_id = format!("@{name}:hs.test");
                let token = t.register(&user_id).await;
                t.publish(&token, &format!("{name}@example.com"), &user_id).await;
                token
            }
        });
        let tokens = futures_util::future::join_all(work).await;
        for name in &names {
            let found = t.who_is(&tokens[0], &format!("{name}@example.com")).await;
            assert_eq!(found, Some(format!("@{name}:hs.test")));
        }
    }

    async fn what_is_missing_or_wrong_is_named(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let reply = t.post("/3pid/bind", Some(&token), &json!({})).await;
        assert_eq!(reply.failure(), failure(400, "M_MISSING_PARAMS"));
        for name in ["sid", "client_secret", "mxid"] {
            assert!(reply.text.contains(name), "{name}: {}", reply.text);
        }
        let good = json!({"sid": "1", "client_secret": SECRET, "mxid": ALICE});
        for key in ["sid", "client_secret", "mxid"] {
            for wrong in [json!(5), json!([]), json!({}), json!(true)] {
                let mut body = good.clone();
                body[key] = wrong;
                let reply = t.post("/3pid/bind", Some(&token), &body).await;
                assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"), "{body}");
            }
        }
        let reply = t.get("/3pid/getValidated3pid", Some(&token)).await;
        assert_eq!(reply.failure(), failure(400, "M_MISSING_PARAMS"));
    }
}

/// What a client that hung up has bound is in the database, so it has to be in the index too.
#[tokio::test]
async fn a_bind_whose_client_hangs_up_is_whole() {
    let t = TestIdentity::start(Database::Sqlite).await;
    let token = t.register(ALICE).await;
    let address: std::net::SocketAddr = t.server.public.trim_start_matches("http://").parse().unwrap();
    let emails: Vec<String> = (0..30).map(|number| format!("alice{number}@example.com")).collect();
    for (number, email) in emails.iter().enumerate() {
        let secret = format!("secret{number}");
        let sid = t.validate(&token, email, &secret).await;
        let body = json!({"sid": sid, "client_secret": secret, "mxid": ALICE}).to_string();
        let request = format!(
            "POST /_matrix/identity/v2/3pid/bind HTTP/1.1\r\nHost: id.test\r\nAuthorization: Bearer {token}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        drop(stream);
    }
    // There is one writer, and it serves in order: when this one is through, all others are.
    t.publish(&token, "last@example.com", ALICE).await;
    let emails: Vec<&str> = emails.iter().map(String::as_str).collect();
    let before = t.lookup(&token, &emails).await;
    let t = t.restart().await;
    assert_eq!(t.lookup(&token, &emails).await, before);
    assert!(before.as_object().is_some_and(|found| !found.is_empty()), "no bind came through");
}

/// docs/security.md, identity server, 14.
#[tokio::test]
async fn a_copy_of_the_database_shows_no_address_and_no_token() {
    let t = TestIdentity::start(Database::Sqlite).await;
    let token = t.register(ALICE).await;
    let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
    let link = Link::parse(&mail.link());
    t.press_button(&link).await;
    t.bind(&token, &sid, SECRET, ALICE).await.ok();

    let mut searched = 0;
    for entry in std::fs::read_dir(t.server.folder.path().join("data")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // The database, its log of changes, whatever it is called.
        let bytes = std::fs::read(&path).unwrap_or_default();
        if !bytes.starts_with(b"SQLite format 3") && !name.ends_with("-wal") {
            continue;
        }
        searched += 1;
        for secret in [EMAIL, "alice@", "example.com", &token, SECRET, &link.token] {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} can be read in {name}");
        }
    }
    assert!(searched > 0, "there is no database in the data folder");
}
