//! Terms of service.

use serde_json::{Value, json};
use waypost_tests::identity::{TERMS_URLS, TestIdentity, terms};
use waypost_tests::on_each_database;

use super::{ALICE, failure};

on_each_database! {
    async fn a_server_without_policies_asks_for_nothing(database: Database) {
        let t = TestIdentity::start(database).await;
        assert_eq!(t.get("/terms", None).await.ok(), json!({"policies": {}}));
        let token = t.register(ALICE).await;
        assert_eq!(t.get("/hash_details", Some(&token)).await.status, 200);
    }

    async fn policies_are_offered_to_everybody(database: Database) {
        let t = TestIdentity::start_with(database, terms).await;
        assert_eq!(
            t.get("/terms", None).await.ok(),
            json!({"policies": {"privacy_policy": {
                "version": "1",
                "en": {"name": "Privacy Policy", "url": TERMS_URLS[0]},
                "de": {"name": "Datenschutz", "url": TERMS_URLS[1]},
            }}})
        );
    }

    async fn nothing_works_before_they_are_accepted(database: Database) {
        let t = TestIdentity::start_with(database, terms).await;
        let token = t.register(ALICE).await;
        for path in ["/account", "/hash_details", "/3pid/getValidated3pid?sid=1&client_secret=a"] {
            assert_eq!(t.get(path, Some(&token)).await.failure(), failure(403, "M_TERMS_NOT_SIGNED"), "{path}");
        }
        // Terms are looked at before the body.
        for path in [
            "/lookup",
            "/3pid/bind",
            "/validate/email/requestToken",
            "/validate/email/submitToken",
            "/validate/msisdn/requestToken",
            "/validate/msisdn/submitToken",
            "/store-invite",
            "/sign-ed25519",
        ] {
            let reply = t.post(path, Some(&token), &Value::Null).await;
            assert_eq!(reply.failure(), failure(403, "M_TERMS_NOT_SIGNED"), "{path}");
        }
        // Keys are for everybody, and who takes something back has agreed to nothing before.
        assert_eq!(t.get("/pubkey/ed25519:0", Some(&token)).await.status, 200);
        let reply = t.post("/3pid/unbind", Some(&token), &json!({})).await;
        assert_eq!(reply.failure(), failure(400, "M_MISSING_PARAMS"));
        t.accept_terms(&token).await;
        assert_eq!(t.get("/account", Some(&token)).await.ok(), json!({"user_id": ALICE}));
        assert_eq!(t.get("/hash_details", Some(&token)).await.status, 200);
    }

    async fn any_language_of_a_policy_will_do(database: Database) {
        let t = TestIdentity::start_with(database, terms).await;
        let token = t.register(ALICE).await;
        let body = json!({"user_accepts": [TERMS_URLS[1]]});
        assert_eq!(t.post("/terms", Some(&token), &body).await.ok(), json!({}));
        assert_eq!(t.get("/account", Some(&token)).await.status, 200);
    }

    async fn acceptance_is_the_users_not_the_tokens(database: Database) {
        let t = TestIdentity::start_with(database, terms).await;
        let first = t.register(ALICE).await;
        t.accept_terms(&first).await;
        let second = t.register(ALICE).await;
        assert_eq!(t.get("/account", Some(&second)).await.status, 200);
        let t = t.restart().await;
        assert_eq!(t.get("/account", Some(&second)).await.status, 200);
    }

    async fn every_policy_has_to_be_accepted(database: Database) {
        let other = "https://id.test/terms.html";
        let t = TestIdentity::start_with(database, |settings| {
            terms(settings);
            settings.set("terms.policies.terms_of_service", "version", "2");
            settings.set("terms.policies.terms_of_service.languages.en", "name", "Terms");
            settings.set("terms.policies.terms_of_service.languages.en", "url", other);
        })
        .await;
        let token = t.register(ALICE).await;
        t.accept_terms(&token).await;
        assert_eq!(t.get("/account", Some(&token)).await.failure(), failure(403, "M_TERMS_NOT_SIGNED"));
        let body = json!({"user_accepts": [other]});
        t.post("/terms", Some(&token), &body).await.ok();
        assert_eq!(t.get("/account", Some(&token)).await.status, 200);
    }

    async fn a_new_version_asks_again(database: Database) {
        let t = TestIdentity::start_with(database, terms).await;
        let token = t.register(ALICE).await;
        t.accept_terms(&token).await;
        let t = t
            .restart_with(|config| {
                let newer = config.replace("version = \"1\"", "version = \"2\"");
                assert_ne!(newer, config);
                newer
            })
            .await;
        assert_eq!(t.get("/account", Some(&token)).await.failure(), failure(403, "M_TERMS_NOT_SIGNED"));
        // At the same address as before.
        t.accept_terms(&token).await;
        assert_eq!(t.get("/account", Some(&token)).await.status, 200);
    }

    async fn one_url_may_come_as_a_string(database: Database) {
        let t = TestIdentity::start_with(database, terms).await;
        let token = t.register(ALICE).await;
        let body = json!({"user_accepts": TERMS_URLS[0]});
        assert_eq!(t.post("/terms", Some(&token), &body).await.ok(), json!({}));
        assert_eq!(t.get("/account", Some(&token)).await.status, 200);
    }

    async fn logging_out_needs_no_acceptance(database: Database) {
        let t = TestIdentity::start_with(database, terms).await;
        let token = t.register(ALICE).await;
        assert_eq!(t.post("/account/logout", Some(&token), &json!({})).await.ok(), json!({}));
    }

    async fn a_wrong_acceptance_is_400_and_accepts_nothing(database: Database) {
        let t = TestIdentity::start_with(database, terms).await;
        let token = t.register(ALICE).await;
        let missing = t.post("/terms", Some(&token), &json!({})).await;
        assert_eq!(missing.failure(), failure(400, "M_MISSING_PARAMS"));
        for wrong in [json!(5), json!({}), json!([5]), json!(null)] {
            let reply = t.post("/terms", Some(&token), &json!({"user_accepts": wrong})).await;
            assert_eq!(reply.status, 400, "{wrong}: {}", reply.text);
        }
        let many = json!({"user_accepts": vec![TERMS_URLS[0]; 65]});
        assert_eq!(t.post("/terms", Some(&token), &many).await.failure(), failure(400, "M_INVALID_PARAM"));
        // One that nobody offers takes the others with it.
        for wrong in [json!("https://evil.test/"), json!([TERMS_URLS[0], "https://evil.test/"])] {
            let reply = t.post("/terms", Some(&token), &json!({"user_accepts": wrong})).await;
            assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"), "{wrong}");
        }
        assert_eq!(t.post("/terms", Some(&token), &json!({"user_accepts": []})).await.ok(), json!({}));
        assert_eq!(t.get("/account", Some(&token)).await.failure(), failure(403, "M_TERMS_NOT_SIGNED"));
    }

    async fn one_url_many_times_is_accepted_once_and_not_without_end(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            terms(settings);
            settings.set("limits.terms_per_account", "burst", 2);
            settings.set("limits.terms_per_account", "refill_secs", 600);
        })
        .await;
        let token = t.register(ALICE).await;
        let body = json!({"user_accepts": vec![TERMS_URLS[0]; 64]});
        for _ in 0..2 {
            t.post("/terms", Some(&token), &body).await.ok();
        }
        assert_eq!(t.post("/terms", Some(&token), &body).await.failure(), failure(429, "M_LIMIT_EXCEEDED"));
        t.get("/account", Some(&token)).await.ok();
    }
}
