//! Whoever can make up ports, sub-domains, spellings and tags counts as one, in budgets, lists and shares
//! (docs/security.md, "What counts as one").

use std::time::Duration;

use serde_json::json;
use waypost_tests::ca::Ca;
use waypost_tests::database::Database;
use waypost_tests::homeserver::Homeserver;
use waypost_tests::identity::TestIdentity;
use waypost_tests::matrix::lookup_hash;
use waypost_tests::on_each_database;
use waypost_tests::process::timed;
use waypost_tests::settings::Settings;
use waypost_tests::tls_server::Answer;

use super::{ALICE, BOB, SECRET, failure, invitation};

/// What the owner of `hs.test` can call a homeserver.
const NAMES: [&str; 5] = ["hs.test", "hs.test:8448", "HS.test", "hs.test.", "sub.hs.test"];
/// Somebody else's.
const OTHER: &str = "other.test";

/// A server around one homeserver that answers to all names.
async fn start(database: Database, change: impl FnOnce(&mut Settings)) -> TestIdentity {
    let ca = Ca::new();
    let homeserver = Homeserver::start(&ca, &["hs.test", "sub.hs.test", OTHER]).await;
    let address = homeserver.server.address.to_string();
    TestIdentity::start_around(database, ca, homeserver, |settings| {
        for name in NAMES.into_iter().chain([OTHER]) {
            settings.set("homeservers.overrides", name, address.as_str());
        }
        change(settings);
    })
    .await
}

async fn register(t: &TestIdentity, server_name: &str) -> String {
    let openid = t.homeserver.issue(&format!("@eve:{server_name}"));
    let reply = t.register_with(&openid, server_name).await.ok();
    reply["token"].as_str().unwrap().to_owned()
}

on_each_database! {
    async fn homeservers_of_one_owner_share_the_budgets_of_lookups(database: Database) {
        for limit in ["lookup_per_homeserver", "addresses_per_stranger"] {
            let t = start(database, |settings| {
                settings.set(&format!("limits.{limit}"), "burst", NAMES.len());
                settings.set(&format!("limits.{limit}"), "refill_secs", 600);
            })
            .await;
            let mut tokens = Vec::new();
            for name in NAMES {
                tokens.push(register(&t, name).await);
            }
            let pepper = t.pepper(&tokens[0]).await;
            let body = json!({
                "algorithm": "sha256", "pepper": pepper, "addresses": [lookup_hash("a@example.com", "email", &pepper)],
            });
            let other_body = json!({
                "algorithm": "sha256", "pepper": pepper, "addresses": [lookup_hash("b@example.com", "email", &pepper)],
            });
            for (name, token) in NAMES.iter().zip(&tokens) {
                assert_eq!(t.post("/lookup", Some(token), &body).await.status, 200, "{limit} {name}");
            }
            for (name, token) in NAMES.iter().zip(&tokens) {
                let reply = t.post("/lookup", Some(token), &other_body).await;
                assert_eq!(reply.failure(), failure(429, "M_LIMIT_EXCEEDED"), "{limit} {name}");
            }
            let other = register(&t, OTHER).await;
            assert_eq!(t.post("/lookup", Some(&other), &body).await.status, 200, "{limit}");
        }
    }

    async fn customers_of_a_hosting_provider_have_budgets_of_their_own(database: Database) {
        let t = start(database, |settings| {
            settings.set("outbound", "hosting_suffixes", vec!["hs.test"]);
            settings.set("limits.lookup_per_homeserver", "burst", 1);
            settings.set("limits.lookup_per_homeserver", "refill_secs", 600);
        })
        .await;
        let (provider, customer) = (register(&t, "hs.test").await, register(&t, "sub.hs.test").await);
        let body = json!({"algorithm": "sha256", "pepper": t.pepper(&provider).await, "addresses": ["a"]});
        for token in [&provider, &customer] {
            assert_eq!(t.post("/lookup", Some(token), &body).await.status, 200);
            assert_eq!(t.post("/lookup", Some(token), &body).await.status, 429);
        }
    }

    async fn a_blocked_homeserver_is_blocked_by_every_name(database: Database) {
        let t = start(database, |settings| {
            settings.set("invites.blocked", "homeservers", vec!["hs.test"]);
        })
        .await;
        let invite = async |sender_name: &str, room: &str| {
            let token = register(&t, sender_name).await;
            let mut body = invitation();
            body["sender"] = json!(format!("@eve:{sender_name}"));
            body["room_id"] = json!(room);
            t.post("/store-invite", Some(&token), &body).await
        };
        for name in NAMES {
            let reply = invite(name, "!room:other.test").await;
            assert_eq!(reply.failure(), failure(403, "M_UNAUTHORIZED"), "{name}");
            let reply = invite(OTHER, &format!("!room:{name}")).await;
            assert_eq!(reply.failure(), failure(403, "M_UNAUTHORIZED"), "{name}");
        }
        assert!(t.smtp.mails.is_empty());
        invite(OTHER, "!room:other.test").await.ok();
    }

    async fn an_allowed_homeserver_is_allowed_however_its_name_is_written(database: Database) {
        let t = start(database, |settings| {
            settings.set("homeservers", "allow", vec!["hs.test"]);
        })
        .await;
        for name in ["hs.test", "hs.test:8448", "HS.test", "hs.test."] {
            register(&t, name).await;
        }
        // Another server of the same owner is not on the list.
        for name in ["hs.test:8449", "sub.hs.test", OTHER] {
            let reply = t.register_with(&t.homeserver.issue(&format!("@eve:{name}")), name).await;
            assert_eq!(reply.failure(), failure(403, "M_UNAUTHORIZED"), "{name}");
        }
    }

    async fn the_tags_of_an_address_share_its_budgets(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            for limit in ["limits.mail_per_address", "limits.invite_per_address"] {
                settings.set(limit, "burst", 2);
                settings.set(limit, "refill_secs", 600);
            }
        })
        .await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        let invite = async |address: &str| {
            let mut body = invitation();
            body["address"] = json!(address);
            t.post("/store-invite", Some(&bob), &body).await
        };
        for (number, address) in ["victim+1@example.com", "Victim+2@example.com"].into_iter().enumerate() {
            t.request_email(&alice, address, &format!("{SECRET}{number}"), 1).await.ok();
            invite(address).await.ok();
        }
        for address in ["victim+3@example.com", "victim@example.com", "victim+4@EXAMPLE.com"] {
            let reply = t.request_email(&alice, address, SECRET, 1).await;
            assert_eq!(reply.failure(), failure(429, "M_LIMIT_EXCEEDED"), "{address}");
            assert_eq!(invite(address).await.failure(), failure(429, "M_LIMIT_EXCEEDED"), "{address}");
        }
        assert_eq!(t.smtp.mails.len(), 4);
        // The tag is still part of the address, which the mail goes to.
        assert_eq!(t.smtp.count_for("victim+1@example.com"), 2);
        t.request_email(&alice, "other+1@example.com", SECRET, 1).await.ok();
        invite("other+1@example.com").await.ok();
    }

    async fn homeservers_of_one_owner_leave_room_to_tell_others_of_their_bindings(database: Database) {
        let ca = Ca::new();
        let names: Vec<_> = (0..6).map(|number| format!("{number}.hs.test")).collect();
        let all: Vec<_> = names.iter().map(String::as_str).collect();
        let hanging = Homeserver::start(&ca, &all).await;
        hanging.onbind_script().always("POST", Answer::Hang);
        let homeserver = Homeserver::start(&ca, &[OTHER]).await;
        let (slow, quick) = (hanging.server.address.to_string(), homeserver.server.address.to_string());
        let t = TestIdentity::start_around(database, ca, homeserver, |settings| {
            settings.set("outbox", "at_once", 4);
            settings.set("homeservers.overrides", OTHER, quick);
            for name in &names {
                settings.set("homeservers.overrides", name, slow.as_str());
            }
        })
        .await;
        for name in &names {
            let mxid = format!("@eve:{name}");
            let token = t.register_with(&hanging.issue(&mxid), name).await.ok();
            t.publish(token["token"].as_str().unwrap(), &format!("eve@{name}"), &mxid).await;
        }
        hanging.onbind().wait_for("three calls", |_| hanging.onbind().len() == 3).await;
        let token = register(&t, OTHER).await;
        let told = async {
            t.publish(&token, "eve@other.test", "@eve:other.test").await;
            t.homeserver.onbind().wait_for("the other's call", |_| true).await;
        };
        let ((), took) = timed(told).await;
        assert!(took < Duration::from_secs(10), "{took:?}");
        assert_eq!(hanging.onbind().len(), 3, "three of four calls at once are the owner's share");
    }
}
