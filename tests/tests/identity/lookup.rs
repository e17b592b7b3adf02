//! hash_details and lookup.

use serde_json::json;
use waypost_tests::ca::Ca;
use waypost_tests::gateway::metric;
use waypost_tests::homeserver::Homeserver;
use waypost_tests::http::Reply;
use waypost_tests::identity::{HOMESERVER, TestIdentity};
use waypost_tests::matrix::lookup_hash;
use waypost_tests::on_each_database;

use super::{ALICE, BOB, EMAIL, failure};

/// Looks up the addresses with these numbers.
async fn look_up<const N: usize>(t: &TestIdentity, token: &str, numbers: [usize; N]) -> Reply {
    let pepper = t.pepper(token).await;
    let hash = |number| lookup_hash(&format!("{number}@example.com"), "email", &pepper);
    let body = json!({"algorithm": "sha256", "pepper": pepper, "addresses": &numbers.map(hash)[..]});
    t.post("/lookup", Some(token), &body).await
}

on_each_database! {
    async fn hash_details_offer_sha256_and_a_long_pepper(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let details = t.get("/hash_details", Some(&token)).await.ok();
        let pepper = details["lookup_pepper"].as_str().unwrap();
        assert_eq!(details, json!({"algorithms": ["sha256"], "lookup_pepper": pepper}));
        assert!(pepper.len() >= 22, "128 bits or more: {pepper}");
        // Every server has its own.
        let other = TestIdentity::start(database).await;
        let token = other.register(ALICE).await;
        assert_ne!(other.pepper(&token).await, pepper);
    }

    async fn only_who_is_published_is_found(database: Database) {
        let t = TestIdentity::start(database).await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        t.publish(&alice, EMAIL, ALICE).await;
        t.publish(&bob, "bob@example.com", BOB).await;
        let pepper = t.pepper(&bob).await;
        let emails = [EMAIL, "nobody@example.com", "bob@example.com", "ALICE@example.com"];
        let found = t.lookup(&bob, &emails).await;
        let (a, b) = (lookup_hash(EMAIL, "email", &pepper), lookup_hash("bob@example.com", "email", &pepper));
        assert_eq!(found, json!({a: ALICE, b: BOB}));
        // The medium is part of the hash.
        let other = lookup_hash(EMAIL, "msisdn", &pepper);
        let body = json!({"algorithm": "sha256", "pepper": pepper, "addresses": [other]});
        assert_eq!(t.post("/lookup", Some(&bob), &body).await.ok(), json!({"mappings": {}}));
    }

    async fn nobody_asks_for_nobody(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        assert_eq!(t.lookup(&token, &[]).await, json!({}));
    }

    async fn the_same_hash_twice_is_one_answer(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        t.publish(&token, EMAIL, ALICE).await;
        assert_eq!(t.lookup(&token, &[EMAIL, EMAIL]).await.as_object().unwrap().len(), 1);
    }

    async fn a_wrong_pepper_is_answered_with_the_right_one(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let pepper = t.pepper(&token).await;
        let body = json!({"algorithm": "sha256", "pepper": "matrixrocks", "addresses": ["a"]});
        let reply = t.post("/lookup", Some(&token), &body).await;
        assert_eq!(reply.failure(), failure(400, "M_INVALID_PEPPER"));
        // Android reads it from here.
        assert_eq!(reply.json()["algorithm"], "sha256");
        assert_eq!(reply.json()["lookup_pepper"], pepper.as_str());
    }

    async fn other_algorithms_are_refused(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let pepper = t.pepper(&token).await;
        for algorithm in ["none", "sha1", "SHA256", ""] {
            let body = json!({"algorithm": algorithm, "pepper": pepper, "addresses": ["alice@example.com email"]});
            let reply = t.post("/lookup", Some(&token), &body).await;
            assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"), "{algorithm:?}");
        }
    }

    async fn checks_come_in_their_order(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let many = vec!["a"; 20_000];
        // Each request is wrong in this respect and in all later ones: list, algorithm, count, pepper.
        let cases = [
            (json!({"algorithm": "x", "pepper": "x", "addresses": "x"}), failure(400, "M_INVALID_PARAM")),
            (json!({"algorithm": "x", "pepper": "x", "addresses": many}), failure(400, "M_INVALID_PARAM")),
            (json!({"algorithm": "sha256", "pepper": "x", "addresses": many}), failure(400, "M_TOO_LARGE")),
            (json!({"algorithm": "sha256", "pepper": "x", "addresses": ["a"]}), failure(400, "M_INVALID_PEPPER")),
        ];
        for (body, expected) in cases {
            assert_eq!(t.post("/lookup", Some(&token), &body).await.failure(), expected);
        }
    }

    async fn what_is_missing_or_wrong_is_named(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let reply = t.post("/lookup", Some(&token), &json!({})).await;
        assert_eq!(reply.failure(), failure(400, "M_MISSING_PARAMS"));
        for name in ["algorithm", "pepper", "addresses"] {
            assert!(reply.text.contains(name), "{name}: {}", reply.text);
        }
        let pepper = t.pepper(&token).await;
        for addresses in [json!("a"), json!({}), json!(5), json!([5]), json!([{}]), json!([null])] {
            let body = json!({"algorithm": "sha256", "pepper": pepper, "addresses": addresses});
            let reply = t.post("/lookup", Some(&token), &body).await;
            assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"), "{addresses}");
        }
    }

    async fn too_many_lookups_are_429(database: Database) {
        // By whom they are counted, and whether another user of the same homeserver has to wait too.
        for (limit, shared) in [
            ("lookup_per_account", false),
            ("lookup_per_homeserver", true),
            ("addresses_per_account", false),
            ("addresses_per_homeserver", true),
            ("addresses_per_source", true),
            ("addresses_total", true),
        ] {
            let t = TestIdentity::start_with(database, |settings| {
                settings.set("homeservers", "trusted", vec![HOMESERVER]);
                settings.set(&format!("limits.{limit}"), "burst", 2);
                settings.set(&format!("limits.{limit}"), "refill_secs", 600);
            })
            .await;
            let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
            for number in 0..2 {
                assert_eq!(look_up(&t, &alice, [number]).await.status, 200, "{limit}");
            }
            let reply = look_up(&t, &alice, [2]).await;
            assert_eq!(reply.failure(), failure(429, "M_LIMIT_EXCEEDED"), "{limit}");
            assert!(reply.json()["retry_after_ms"].as_i64().unwrap() > 0, "{limit}");
            let status = look_up(&t, &bob, [3]).await.status;
            assert_eq!(status, if shared { 429 } else { 200 }, "{limit}");
        }
    }

    async fn strangers_have_a_budget_each_and_one_together(database: Database) {
        for (limit, others) in [("addresses_per_stranger", 200), ("addresses_of_strangers", 429)] {
            let ca = Ca::new();
            let homeserver = Homeserver::start(&ca, &["hs.test", "other.test", "known.test"]).await;
            let address = homeserver.server.address.to_string();
            let t = TestIdentity::start_around(database, ca, homeserver, |settings| {
                for name in ["other.test", "known.test"] {
                    settings.set("homeservers.overrides", name, address.as_str());
                }
                settings.set("homeservers", "trusted", vec!["Known.test."]);
                settings.set(&format!("limits.{limit}"), "burst", 3);
                settings.set(&format!("limits.{limit}"), "refill_secs", 600);
            })
            .await;
            let register = async |user: &str, server_name: &str| {
                let openid = t.homeserver.issue(&format!("@{user}:{server_name}"));
                t.register_with(&openid, server_name).await.ok()["token"].as_str().unwrap().to_owned()
            };
            let alice = register("alice", "hs.test").await;
            look_up(&t, &alice, [1, 2, 3]).await.ok();
            for user in ["eve", "mallory"] {
                let token = register(user, "hs.test").await;
                assert_eq!(look_up(&t, &token, [4]).await.failure(), failure(429, "M_LIMIT_EXCEEDED"), "{limit}");
            }
            // What she has asked for before costs nothing, in any order, also after a restart.
            look_up(&t, &alice, [3, 1, 2, 2]).await.ok();
            let other = register("eve", "other.test").await;
            assert_eq!(look_up(&t, &other, [5]).await.status, others, "{limit}");
            let known = register("carol", "known.test").await;
            look_up(&t, &known, [6, 7, 8, 9]).await.ok();
            let refused = metric(&t.server, r#"waypost_identity_lookups_refused_total{caller="stranger"}"#).await;
            assert_eq!(refused, Some(if others == 429 { 3.0 } else { 2.0 }));

            let t = t.restart().await;
            look_up(&t, &alice, [1, 2, 3]).await.ok();
            assert_eq!(look_up(&t, &alice, [1, 2, 3, 4]).await.status, 429, "{limit}");
        }
    }

    async fn a_plain_address_is_charged_like_its_hash(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("lookup", "allow_none", true);
            settings.set("limits.addresses_per_account", "burst", 2);
            settings.set("limits.addresses_per_account", "refill_secs", 600);
        })
        .await;
        let token = t.register(ALICE).await;
        let plain = async |addresses: &[&str]| {
            let pepper = t.pepper(&token).await;
            let body = json!({"algorithm": "none", "pepper": pepper, "addresses": addresses});
            t.post("/lookup", Some(&token), &body).await.status
        };
        assert_eq!(plain(&["1@example.com email", "1@EXAMPLE.com email"]).await, 200);
        assert_eq!(look_up(&t, &token, [1, 2]).await.status, 200);
        assert_eq!(plain(&["2@example.com email"]).await, 200);
        assert_eq!(plain(&["3@example.com email"]).await, 429);
    }

    async fn a_plain_lookup_is_answered_as_it_was_sent_where_that_is_allowed(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("lookup", "allow_none", true);
        })
        .await;
        let token = t.register(ALICE).await;
        t.publish(&token, EMAIL, ALICE).await;
        let pepper = t.pepper(&token).await;
        let sent = ["alice@example.com email", "Alice@Example.com email", "alice@example.com email", "bob@example.com email"];
        let body = json!({"algorithm": "none", "pepper": pepper, "addresses": sent});
        let found = t.post("/lookup", Some(&token), &body).await.ok();
        assert_eq!(found, json!({"mappings": {sent[0]: ALICE, sent[1]: ALICE}}));
        assert_eq!(t.post("/lookup", Some(&token), &body).await.text.matches(ALICE).count(), 2);
    }
}
