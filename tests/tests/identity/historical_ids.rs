//! Users whose ids are older than the rule which characters an id has.
//!
//! Source: Appendices, "Historical User IDs".

use serde_json::json;
use waypost_tests::identity::{HOMESERVER, SERVER_NAME, TestIdentity};
use waypost_tests::matrix::verify_signed_json;
use waypost_tests::on_each_database;

use super::unbind::{self, URI};
use super::{BOB, SECRET, failure};

/// User ids, each with what logs and commands show in its place.
const USERS: [(&str, &str); 4] = [
    ("@:hs.test", "@:hs.test"),
    ("@Alice+tag/a=b:hs.test", "@Alice+tag/a=b:hs.test"),
    ("@Ärzte 😀:hs.test", r"@\u{c4}rzte\u{20}\u{1f600}:hs.test"),
    ("@a\r\nERROR \"b\"\t\u{1b}[31m'\\\u{85}:hs.test", r#"@a\r\nERROR\u{20}\"b\"\t\u{1b}[31m\'\\\u{85}:hs.test"#),
];

/// The address of the user with this number.
fn email(number: usize) -> String {
    format!("user{number}@example.com")
}

on_each_database! {
    async fn a_historical_id_registers_binds_and_unbinds(database: Database) {
        let t = TestIdentity::start(database).await;
        let bob = t.register(BOB).await;
        let key = t.get("/pubkey/ed25519:0", None).await.ok();
        for (number, (user_id, shown)) in USERS.into_iter().enumerate() {
            let token = t.register(user_id).await;
            assert_eq!(t.get("/account", Some(&token)).await.ok(), json!({"user_id": user_id}));
            let sid = t.validate(&token, &email(number), SECRET).await;
            assert_eq!(t.bind(&token, &sid, SECRET, BOB).await.failure(), failure(403, "M_UNAUTHORIZED"));
            let signed = t.bind(&token, &sid, SECRET, user_id).await.ok();
            verify_signed_json(&signed, SERVER_NAME, "ed25519:0", key["public_key"].as_str().unwrap()).unwrap();
            assert_eq!(signed["mxid"], user_id);
            assert_eq!(t.who_is(&bob, &email(number)).await.as_deref(), Some(user_id));

            let told = t.homeserver.onbind();
            told.wait_for(&format!("onbind {number}"), |told| told["mxid"] == user_id).await;
            let bound = |line: &serde_json::Value| line["message"] == "threepid bound" && line["mxid"] == shown;
            t.server.wait_for_log(shown, bound).await;
            let (code, printed) = t.command(&["association", "show", "--medium", "email", "--address", &email(number)]);
            assert_eq!((code, printed.split("  since").next()), (Some(0), Some(shown)));
            let (code, printed) = t.command(&["association", "list", "--mxid", user_id]);
            assert_eq!(code, Some(0));
            assert!(printed.starts_with(&format!("email {}  since", email(number))), "{printed}");
        }

        // The index is filled from the database.
        let t = t.restart().await;
        for (number, (user_id, _)) in USERS.into_iter().enumerate() {
            assert_eq!(t.who_is(&bob, &email(number)).await.as_deref(), Some(user_id));
        }
        for (number, (user_id, _)) in USERS.into_iter().enumerate() {
            let content = unbind::body(user_id, &email(number));
            let header = t.homeserver.x_matrix(URI, &content, "destination_is", SERVER_NAME);
            assert_eq!(unbind::unbind(&t, &content, &[&header]).await.ok(), json!({}));
            assert_eq!(t.who_is(&bob, &email(number)).await, None);
        }
        let t = t.restart().await;
        for number in 0..USERS.len() {
            assert_eq!(t.who_is(&bob, &email(number)).await, None);
        }
    }

    async fn what_no_user_id_ever_was_is_refused(database: Database) {
        let t = TestIdentity::start(database).await;
        let long = format!("@{}:{HOMESERVER}", "a".repeat(255 - HOMESERVER.len() - 1));
        for user_id in ["@alice", "alice:hs.test", "@a\0:hs.test", "@alice:hs test", long.as_str()] {
            let openid = t.homeserver.issue(user_id);
            let reply = t.register_with(&openid, HOMESERVER).await;
            assert_eq!(reply.failure(), failure(401, "M_UNAUTHORIZED"), "{user_id:?}");
        }
        let longest = long.replacen('a', "", 1);
        assert_eq!(longest.len(), 255);
        t.register(&longest).await;
    }
}
