//! Versions, ping, health, restart.

use serde_json::json;
use waypost_tests::http::Api;
use waypost_tests::identity::TestIdentity;
use waypost_tests::on_each_database;

use super::{ALICE, EMAIL, failure};

on_each_database! {
    async fn versions_are_all_that_are_served(database: Database) {
        let t = TestIdentity::start(database).await;
        let versions = t.api.get("/_matrix/identity/versions", None).await.ok();
        let expected: Vec<String> = (1..=19).map(|minor| format!("v1.{minor}")).collect();
        assert_eq!(versions, json!({"versions": expected}));
    }

    async fn ping_is_an_empty_object(database: Database) {
        let t = TestIdentity::start(database).await;
        let reply = t.get("", None).await;
        assert_eq!(reply.ok(), json!({}));
        assert_eq!(reply.header("access-control-allow-origin"), "*");
        assert!(reply.header("content-type").starts_with("application/json"));
        assert_eq!(t.get("/", None).await.failure(), failure(404, "M_UNRECOGNIZED"));
    }

    async fn operations_are_on_their_own_listener(database: Database) {
        let t = TestIdentity::start(database).await;
        let operations = Api::new(&t.server.operations);
        assert_eq!(operations.get("/health/live", None).await.status, 200);
        assert_eq!(operations.get("/health/ready", None).await.status, 200);
        let metrics = operations.get("/metrics", None).await;
        assert_eq!(metrics.status, 200);
        assert!(metrics.text.contains("# TYPE"), "{}", metrics.text);
        assert_eq!(t.api.get("/metrics", None).await.failure(), failure(404, "M_UNRECOGNIZED"));
        assert_eq!(t.api.get("/health/ready", None).await.failure(), failure(404, "M_UNRECOGNIZED"));
    }

    async fn everything_is_there_after_a_kill(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        t.publish(&token, EMAIL, ALICE).await;
        let pepper = t.pepper(&token).await;
        let key = t.get("/pubkey/ed25519:0", None).await.ok();

        let t = t.restart().await;
        assert_eq!(t.pepper(&token).await, pepper);
        assert_eq!(t.get("/pubkey/ed25519:0", None).await.ok(), key);
        assert_eq!(t.who_is(&token, EMAIL).await.as_deref(), Some(ALICE));
    }

    async fn sigterm_ends_it_well(database: Database) {
        let t = TestIdentity::start(database).await;
        assert!(t.server.stop().await.success());
    }

    async fn no_address_and_no_token_is_logged(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        t.publish(&token, EMAIL, ALICE).await;
        let log = t.server.log_text();
        assert!(!log.contains(EMAIL), "the address is in the log");
        assert!(!log.contains(&token), "the access token is in the log");
        assert!(!log.contains("openid-"), "the OpenID token is in the log");
        assert!(!log.contains("secret.17"), "the client secret is in the log");
    }
}
