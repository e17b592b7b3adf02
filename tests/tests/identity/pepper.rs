//! Rotating the pepper: nobody who follows the specification notices.

use serde_json::{Value, json};
use waypost_tests::database::Database;
use waypost_tests::http::Reply;
use waypost_tests::identity::TestIdentity;
use waypost_tests::matrix::lookup_hash;
use waypost_tests::on_each_database;
use waypost_tests::process::{Server, eventually};
use waypost_tests::record::PATIENCE;
use waypost_tests::settings::Settings;

use super::{ALICE, BOB, EMAIL, failure};

/// A new pepper is handed out as soon as it is ready.
fn at_once(settings: &mut Settings) {
    settings.set("lookup", "pepper_lead_secs", 0);
}

fn rotate(server: &Server) -> String {
    let output = server.run(&["pepper", "rotate"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().next().unwrap().to_owned()
}

async fn ready(server: &Server, times: usize) {
    let is_ready = |line: &Value| line["message"] == "a new pepper is ready";
    server
        .wait_for_log("the new pepper", |line| {
            is_ready(line) && server.logs().iter().filter(|line| is_ready(line)).count() >= times
        })
        .await;
}

async fn lookup_with(t: &TestIdentity, token: &str, email: &str, pepper: &str) -> Reply {
    let hash = lookup_hash(email, "email", pepper);
    t.post("/lookup", Some(token), &json!({"algorithm": "sha256", "pepper": pepper, "addresses": [hash]})).await
}

on_each_database! {
    async fn both_peppers_are_answered_after_a_rotation(database: Database) {
        let t = TestIdentity::start_with(database, at_once).await;
        let token = t.register(ALICE).await;
        t.publish(&token, EMAIL, ALICE).await;
        let old = t.pepper(&token).await;
        let new = rotate(&t.server);
        ready(&t.server, 1).await;
        assert_ne!(new, old);
        assert_eq!(t.pepper(&token).await, new);
        // What was bound before, and what is bound now, under either.
        t.publish(&token, "alice@work.example.com", ALICE).await;
        for pepper in [&old, &new] {
            for email in [EMAIL, "alice@work.example.com"] {
                let found = lookup_with(&t, &token, email, pepper).await.ok();
                assert_eq!(found, json!({"mappings": {lookup_hash(email, "email", pepper): ALICE}}));
            }
        }
        // A hash is looked for under its own pepper only.
        let body = json!({"algorithm": "sha256", "pepper": new, "addresses": [lookup_hash(EMAIL, "email", &old)]});
        assert_eq!(t.post("/lookup", Some(&token), &body).await.ok(), json!({"mappings": {}}));
    }

    async fn the_error_names_the_new_pepper_when_the_old_one_is_over(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            at_once(settings);
            settings.set("lookup", "previous_pepper_secs", 0);
        })
        .await;
        let token = t.register(ALICE).await;
        let old = t.pepper(&token).await;
        let new = rotate(&t.server);
        ready(&t.server, 1).await;
        let reply = lookup_with(&t, &token, EMAIL, &old).await;
        assert_eq!(reply.failure(), failure(400, "M_INVALID_PEPPER"));
        assert_eq!(reply.json()["lookup_pepper"], new.as_str());
    }

    async fn a_new_pepper_is_answered_before_it_is_handed_out(database: Database) {
        // Every replica has prepared for it before a client can have it from another one.
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("lookup", "pepper_lead_secs", 3600);
        })
        .await;
        let token = t.register(ALICE).await;
        t.publish(&token, EMAIL, ALICE).await;
        let old = t.pepper(&token).await;
        let new = rotate(&t.server);
        ready(&t.server, 1).await;
        assert_eq!(t.pepper(&token).await, old);
        let found = lookup_with(&t, &token, EMAIL, &new).await.ok();
        assert_eq!(found["mappings"].as_object().unwrap().len(), 1);
        // One rotation at a time.
        let again = t.server.run(&["pepper", "rotate"]);
        assert_eq!(again.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&again.stderr).contains("in progress"));
        // It outlives a restart, and so does the old one.
        let t = t.restart().await;
        assert_eq!(t.pepper(&token).await, old);
        assert_eq!(lookup_with(&t, &token, EMAIL, &new).await.status, 200);
    }

    async fn nobody_notices_two_rotations_under_load(database: Database) {
        let t = TestIdentity::start_with(database, at_once).await;
        let token = t.register(ALICE).await;
        t.publish(&token, EMAIL, ALICE).await;
        for rotation in 1..=2 {
            let new = rotate(&t.server);
            // A client that asks for the pepper and then looks up, over and over, until the new one is there.
            let seen = || async {
                let pepper = t.pepper(&token).await;
                let found = lookup_with(&t, &token, EMAIL, &pepper).await.ok();
                assert_eq!(found["mappings"].as_object().unwrap().len(), 1);
                (pepper == new).then_some(())
            };
            eventually(PATIENCE, "the new pepper", seen).await;
            ready(&t.server, rotation).await;
        }
        let list = String::from_utf8(t.server.run(&["pepper", "list"]).stdout).unwrap();
        assert_eq!(list.lines().count(), 3, "{list}");
        assert_eq!(list.matches("in force since").count(), 1, "{list}");
        assert_eq!(list.matches("accepted until").count(), 2, "{list}");
    }

    async fn one_rebound_after_a_rotation_is_the_new_owners_under_both(database: Database) {
        let t = TestIdentity::start_with(database, at_once).await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        t.publish(&alice, EMAIL, ALICE).await;
        let old = t.pepper(&alice).await;
        let new = rotate(&t.server);
        let sid = t.validate(&bob, EMAIL, "another_secret").await;
        t.bind(&bob, &sid, "another_secret", BOB).await.ok();
        ready(&t.server, 1).await;
        for pepper in [&old, &new] {
            let found = lookup_with(&t, &bob, EMAIL, pepper).await.ok();
            assert_eq!(found, json!({"mappings": {lookup_hash(EMAIL, "email", pepper): BOB}}));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_replica_takes_the_new_pepper_up_too() {
    let mut t = TestIdentity::start_with(Database::Postgres, at_once).await;
    let second = t.second_replica().await;
    let token = t.register(ALICE).await;
    t.publish(&token, EMAIL, ALICE).await;
    let new = rotate(&t.server);
    ready(&t.server, 1).await;
    ready(&second, 1).await;
    for base in [t.server.public.clone(), second.public.clone()] {
        t.api = waypost_tests::http::Api::new(&base);
        assert_eq!(t.pepper(&token).await, new);
        assert_eq!(lookup_with(&t, &token, EMAIL, &new).await.status, 200);
    }
}
