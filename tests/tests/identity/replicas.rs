//! Two replicas on one PostgreSQL: what one does, the other knows.

use std::time::Duration;

use serde_json::json;
use waypost_tests::database::Database;
use waypost_tests::http::Api;
use waypost_tests::identity::{INTERNAL_SECRET, Link, TestIdentity, V2, internal, terms};
use waypost_tests::matrix::lookup_hash;
use waypost_tests::process::{Server, eventually};

use super::{ALICE, BOB, EMAIL, SECRET, failure, invitation};

/// What one replica does has to be known to the other within this.
const SOON: Duration = Duration::from_secs(1);

/// Two replicas: the first one's client is the harness's own, until it is exchanged for the second one's.
async fn two() -> (TestIdentity, Server, Api, Api) {
    let t = TestIdentity::start_with(Database::Postgres, |settings| {
        internal(settings);
        // So that what is known soon is known by being told, and not because it was forgotten.
        settings.set("tokens", "cache_secs", 600);
    })
    .await;
    let second = t.second_replica().await;
    let apis = (t.api.clone(), Api::new(&second.public));
    (t, second, apis.0, apis.1)
}

/// Waits until the replica that is talked to answers so.
async fn finds(t: &TestIdentity, token: &str, email: &str, expected: Option<&str>) {
    eventually(SOON, "the other replica", || async {
        (t.who_is(token, email).await.as_deref() == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_begun_on_one_proven_on_the_other_and_bound_on_the_first() {
    let (mut t, _second, first, other) = two().await;
    let token = t.register(ALICE).await;
    let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
    let link = Link::parse(&mail.link());

    t.api = other.clone();
    assert_eq!(t.press_button(&link).await.status, 200);
    // The same attempt mails once, whoever is asked.
    assert_eq!(t.request_email(&token, EMAIL, SECRET, 1).await.ok()["sid"], sid.as_str());
    assert_eq!(t.smtp.count_for(EMAIL), 1);

    t.api = first;
    t.bind(&token, &sid, SECRET, ALICE).await.ok();
    t.api = other;
    finds(&t, &token, EMAIL, Some(ALICE)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_is_killed_in_between_and_the_other_goes_on() {
    let (mut t, _second, _, other) = two().await;
    let token = t.register(ALICE).await;
    t.publish(&token, "alice@work.example.com", ALICE).await;
    let (sid, mail) = t.open_session(&token, EMAIL, SECRET).await;
    t.server.kill();

    t.api = other;
    finds(&t, &token, "alice@work.example.com", Some(ALICE)).await;
    assert_eq!(t.press_button(&Link::parse(&mail.link())).await.status, 200);
    t.bind(&token, &sid, SECRET, ALICE).await.ok();
    assert_eq!(t.who_is(&token, EMAIL).await.as_deref(), Some(ALICE));
    // It comes back and knows what it missed.
    let t = t.restart().await;
    assert_eq!(t.who_is(&token, EMAIL).await.as_deref(), Some(ALICE));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_of_mails_is_one_for_both() {
    let mut t = TestIdentity::start_with(Database::Postgres, |settings| {
        settings.set("limits.mail_per_address", "burst", 2).set("limits.mail_per_address", "refill_secs", 600.0);
    })
    .await;
    let second = t.second_replica().await;
    let (first, other) = (t.api.clone(), Api::new(&second.public));
    let token = t.register(ALICE).await;
    for (api, secret, status) in
        [(&first, "one", 200), (&other, "two", 200), (&first, "three", 429), (&other, "four", 429)]
    {
        t.api = api.clone();
        assert_eq!(t.request_email(&token, EMAIL, secret, 1).await.status, status, "{secret}");
    }
    assert_eq!(t.smtp.count_for(EMAIL), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_attempt_at_both_at_once_mails_once() {
    let (t, _second, first, other) = two().await;
    let token = t.register(ALICE).await;
    let path = format!("{V2}/validate/email/requestToken");
    for number in 0..10 {
        let body = json!({"client_secret": format!("secret{number}"), "email": EMAIL, "send_attempt": 1});
        let (one, two) = tokio::join!(first.post(&path, Some(&token), &body), other.post(&path, Some(&token), &body));
        assert_eq!(one.ok()["sid"], two.ok()["sid"]);
        t.smtp.mail_for(EMAIL, number + 1).await;
        assert_eq!(t.smtp.count_for(EMAIL), number + 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terms_that_are_accepted_on_one_are_accepted_on_the_other() {
    let mut t = TestIdentity::start_with(Database::Postgres, terms).await;
    let second = t.second_replica().await;
    let (first, other) = (t.api.clone(), Api::new(&second.public));
    let token = t.register(ALICE).await;
    t.api = other.clone();
    assert_eq!(t.get("/account", Some(&token)).await.failure(), failure(403, "M_TERMS_NOT_SIGNED"));
    t.api = first;
    t.accept_terms(&token).await;
    t.api = other;
    assert_eq!(t.get("/account", Some(&token)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_changes_hands_on_both() {
    let (mut t, _second, first, other) = two().await;
    let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
    t.publish(&alice, EMAIL, ALICE).await;
    t.api = other;
    finds(&t, &bob, EMAIL, Some(ALICE)).await;
    let sid = t.validate(&bob, EMAIL, "another_secret").await;
    t.bind(&bob, &sid, "another_secret", BOB).await.ok();
    t.api = first;
    finds(&t, &bob, EMAIL, Some(BOB)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invite_goes_to_exactly_one_of_two_binds_at_once() {
    let (mut t, _second, first, other) = two().await;
    let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
    let path = |end: &str| format!("{V2}{end}");
    let (binding, inviting) = (path("/3pid/bind"), path("/store-invite"));
    for number in 0..10 {
        let email = format!("carol{number}@example.com");
        let mut invite = invitation();
        invite["address"] = json!(email);
        let mut stored = Vec::new();
        for _ in 0..2 {
            let answer = t.post("/store-invite", Some(&bob), &invite).await.ok();
            stored.push(answer["token"].as_str().unwrap().to_owned());
        }
        let (ours, theirs) = (format!("alices{number}"), format!("bobs{number}"));
        let bind = |sid: String, secret: &str, mxid: &str| json!({"sid": sid, "client_secret": secret, "mxid": mxid});
        let by_alice = bind(t.validate(&alice, &email, &ours).await, &ours, ALICE);
        let by_bob = bind(t.validate(&bob, &email, &theirs).await, &theirs, BOB);
        // And another invite, which comes before one of the binds or after both.
        let (one, two, late) = tokio::join!(
            first.post(&binding, Some(&alice), &by_alice),
            other.post(&binding, Some(&bob), &by_bob),
            other.post(&inviting, Some(&bob), &invite),
        );
        match late.status {
            200 => stored.push(late.json()["token"].as_str().unwrap().to_owned()),
            _ => assert_eq!(late.failure(), failure(400, "M_THREEPID_IN_USE")),
        }
        let mut handed_out = Vec::new();
        for signed in [one.ok(), two.ok()] {
            for invite in signed["invites"].as_array().into_iter().flatten() {
                handed_out.push(invite["token"].as_str().unwrap().to_owned());
            }
        }
        stored.sort_unstable();
        handed_out.sort_unstable();
        assert_eq!(handed_out, stored, "{email}");
        // Whoever was last, both replicas agree on it.
        eventually(SOON, "the same owner on both", || async {
            let mut owners = Vec::new();
            for api in [&first, &other] {
                let pepper = api.get(&path("/hash_details"), Some(&bob)).await.ok()["lookup_pepper"].clone();
                let hash = lookup_hash(&email, "email", pepper.as_str().unwrap());
                let body = json!({"algorithm": "sha256", "pepper": pepper, "addresses": [hash]});
                owners.push(api.post(&path("/lookup"), Some(&bob), &body).await.ok()["mappings"].clone());
            }
            (owners[0] == owners[1]).then_some(())
        })
        .await;
    }
    t.api = other;
    assert!(t.who_is(&bob, "carol0@example.com").await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logging_out_on_one_is_401_on_the_other() {
    let (mut t, _second, first, other) = two().await;
    let token = t.register(ALICE).await;
    t.api = other.clone();
    // Now the other one has it in its cache.
    assert_eq!(t.get("/account", Some(&token)).await.status, 200);
    t.api = first;
    t.post("/account/logout", Some(&token), &json!({})).await.ok();
    t.api = other;
    eventually(SOON, "the logout", || async {
        (t.get("/account", Some(&token)).await.failure() == failure(401, "M_UNAUTHORIZED")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn somebody_erased_on_one_is_gone_from_the_other() {
    let (mut t, _second, _, other) = two().await;
    let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
    t.publish(&alice, EMAIL, ALICE).await;
    let internal = t.internal_api().await;
    t.api = other;
    finds(&t, &alice, EMAIL, Some(ALICE)).await;
    let body = json!({"mxid": ALICE});
    internal.post("/_matrix/identity/internal/erase", Some(INTERNAL_SECRET), &body).await.ok();
    finds(&t, &bob, EMAIL, None).await;
    eventually(SOON, "the end of her token", || async {
        (t.get("/account", Some(&alice)).await.status == 401).then_some(())
    })
    .await;
}
