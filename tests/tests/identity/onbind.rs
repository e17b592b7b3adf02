//! Each bind is told to the user's homeserver, until it hears.

use std::time::Duration;

use serde_json::{Value, json};
use waypost_tests::ca::Ca;
use waypost_tests::homeserver::Homeserver;
use waypost_tests::identity::{HOMESERVER, INTERNAL_SECRET, SERVER_NAME, TestIdentity, internal};
use waypost_tests::matrix::verify_signed_json;
use waypost_tests::on_each_database;
use waypost_tests::tls_server::Answer;

use super::{ALICE, BOB, EMAIL, invitation};

const PATH: &str = "/_matrix/federation/v1/3pid/onbind";

/// What came to onbind: methods, in order.
fn methods(t: &TestIdentity) -> Vec<String> {
    let requests = t.homeserver.server.requests.all();
    requests.iter().filter(|request| request.path == PATH).map(|request| request.method.to_string()).collect()
}

/// The call of onbind with this number, from 1.
async fn call(t: &TestIdentity, number: usize) -> Value {
    let calls = t.homeserver.onbind();
    calls.wait_for(&format!("onbind {number}"), |_| calls.len() >= number).await;
    calls.all()[number - 1].clone()
}

/// Waits for a line of the log; what it says has been stored then.
async fn logged(t: &TestIdentity, begin: &str) {
    let fits = |line: &Value| line["message"].as_str().is_some_and(|message| message.starts_with(begin));
    t.server.wait_for_log(begin, fits).await;
}

on_each_database! {
    async fn every_bind_is_told_with_its_invites(database: Database) {
        let t = TestIdentity::start(database).await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        let key = t.get("/pubkey/ed25519:0", None).await.ok();
        let key = key["public_key"].as_str().unwrap();

        let plain = t.publish(&bob, "bob@example.com", BOB).await;
        let told = call(&t, 1).await;
        verify_signed_json(&told, SERVER_NAME, "ed25519:0", key).unwrap();
        assert_eq!(told["invites"], json!([]));
        for name in ["medium", "address", "mxid", "ts", "not_before", "not_after"] {
            assert_eq!(told[name], plain[name], "{name}");
        }

        let token = t.post("/store-invite", Some(&bob), &invitation()).await.ok()["token"].clone();
        let with_invite = t.publish(&alice, EMAIL, ALICE).await;
        let told = call(&t, 2).await;
        assert_eq!(told, with_invite);
        assert_eq!(told["invites"][0]["token"], token);
        assert_eq!(methods(&t), ["POST", "POST"]);
        let requests = t.homeserver.server.requests.all();
        let request = requests.iter().find(|request| request.path == PATH).unwrap();
        assert_eq!(request.header("content-type"), "application/json");
        assert_eq!(request.sni.as_deref(), Some("hs.test"));
    }

    async fn a_server_that_takes_put_only_gets_put(database: Database) {
        let t = TestIdentity::start(database).await;
        let alice = t.register(ALICE).await;
        for (number, status) in [404, 405].into_iter().enumerate() {
            t.homeserver.onbind_script().once("POST", Answer::empty(status));
            t.publish(&alice, &format!("alice{number}@example.com"), ALICE).await;
            call(&t, 2 * number + 2).await;
        }
        assert_eq!(methods(&t), ["POST", "PUT", "POST", "PUT"]);
    }

    async fn what_fails_is_tried_again(database: Database) {
        let t = TestIdentity::start(database).await;
        let alice = t.register(ALICE).await;
        t.homeserver.onbind_script().once("POST", Answer::empty(500));
        t.homeserver.onbind_script().once("POST", Answer::Reset);
        t.publish(&alice, EMAIL, ALICE).await;
        let first = call(&t, 1).await;
        assert_eq!(call(&t, 3).await, first);
        // Nothing else comes: another bind is next.
        t.publish(&alice, "second@example.com", ALICE).await;
        assert_eq!(call(&t, 4).await["address"], "second@example.com");
    }

    async fn a_server_that_hangs_holds_up_nobody(database: Database) {
        let t = TestIdentity::start(database).await;
        let alice = t.register(ALICE).await;
        t.homeserver.onbind_script().once("POST", Answer::Hang);
        t.publish(&alice, EMAIL, ALICE).await;
        call(&t, 1).await;
        t.publish(&alice, "second@example.com", ALICE).await;
        assert_eq!(call(&t, 2).await["address"], "second@example.com");
    }

    async fn many_calls_of_one_that_hangs_leave_room_for_another(database: Database) {
        let ca = Ca::new();
        let hanging = Homeserver::start(&ca, &[HOMESERVER]).await;
        let other = Homeserver::start(&ca, &["other.test"]).await;
        let t = TestIdentity::start_around(database, ca, hanging, |settings| {
            internal(settings);
            settings.set("outbox", "at_once", 4);
            settings.set("homeservers.overrides", "other.test", other.server.address.to_string());
        })
        .await;
        t.homeserver.onbind_script().always("POST", Answer::Hang);
        let api = t.internal_api().await;
        let bind = async |address: &str, mxid: &str| {
            let body = json!({"medium": "email", "address": address, "mxid": mxid});
            api.post("/_matrix/identity/internal/bind", Some(INTERNAL_SECRET), &body).await.ok()
        };
        for number in 0..8 {
            bind(&format!("alice{number}@example.com"), ALICE).await;
        }
        // Three of four calls are under way, and the rest waits.
        call(&t, 3).await;
        bind("carol@example.com", "@carol:other.test").await;
        let told = other.onbind();
        // A call that hangs takes 15 s.
        let told = tokio::time::timeout(Duration::from_secs(10), told.wait_for("onbind", |_| true)).await.unwrap();
        assert_eq!(told["address"], "carol@example.com");
        assert_eq!(t.homeserver.onbind().len(), 3);
    }

    async fn what_was_not_told_survives_a_restart(database: Database) {
        let t = TestIdentity::start(database).await;
        let alice = t.register(ALICE).await;
        t.homeserver.onbind_script().always("POST", Answer::empty(503));
        t.publish(&alice, EMAIL, ALICE).await;
        logged(&t, "a homeserver could not be notified").await;
        let t = t.restart().await;
        let before = t.homeserver.onbind().len();
        t.homeserver.onbind_script().forget("POST");
        assert_eq!(call(&t, before + 1).await["address"], EMAIL);
    }

    async fn what_is_given_up_is_counted_and_can_be_tried_again(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("outbox", "retry_for_secs", 0);
        })
        .await;
        let alice = t.register(ALICE).await;
        t.homeserver.onbind_script().once("POST", Answer::empty(500));
        t.publish(&alice, EMAIL, ALICE).await;
        logged(&t, "gave up notifying a homeserver").await;
        let metrics = t.api.get(&format!("{}/metrics", t.server.operations), None).await.text;
        assert!(metrics.contains("waypost_identity_onbinds_total{outcome=\"dead\"} 1"), "{metrics}");

        let (code, listed) = t.command(&["outbox", "list"]);
        assert_eq!(code, Some(0));
        assert!(listed.contains(ALICE) && listed.contains("The homeserver answered 500"), "{listed}");
        assert!(listed.ends_with("1 given up, 0 waiting\n") && !listed.contains(EMAIL), "{listed}");
        for unknown in ["unknown", "-hyphen"] {
            assert_eq!(t.command(&["outbox", "retry", unknown]).0, Some(1), "{unknown}");
        }
        assert_eq!(t.command(&["outbox", "retry"]).0, Some(0));
        assert_eq!(call(&t, 2).await["address"], EMAIL);
        assert!(!t.server.log_text().contains(EMAIL), "the address is in the log");
    }

    async fn a_bind_does_not_wait_for_its_homeserver(database: Database) {
        let t = TestIdentity::start(database).await;
        let alice = t.register(ALICE).await;
        t.homeserver.onbind_script().always("POST", Answer::Hang);
        let bound = waypost_tests::process::timed(t.publish(&alice, EMAIL, ALICE)).await;
        // A call that hangs takes 15 s.
        assert!(bound.1 < Duration::from_secs(10), "{:?}", bound.1);
    }
}
