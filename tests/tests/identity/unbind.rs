//! unbind, by a session or by the signature of the user's homeserver (docs/security.md, identity server, 9).

use ::http::{Method, Request};
use bytes::Bytes;
use serde_json::{Value, json};
use waypost_tests::homeserver::key_answer;
use waypost_tests::http::Reply;
use waypost_tests::identity::{HOMESERVER, Link, SERVER_NAME, TestIdentity, V2};
use waypost_tests::jwt::now_secs;
use waypost_tests::on_each_database;
use waypost_tests::tls_server::Answer;

use super::{ALICE, BOB, EMAIL, SECRET, failure};

pub(super) const URI: &str = "/_matrix/identity/v2/3pid/unbind";

/// What Synapse sends.
pub(super) fn body(mxid: &str, address: &str) -> Value {
    json!({"mxid": mxid, "threepid": {"medium": "email", "address": address}})
}

/// Calls unbind with these Authorization headers.
pub(super) async fn unbind(t: &TestIdentity, content: &Value, headers: &[&str]) -> Reply {
    let mut request = Request::builder().method(Method::POST).uri(t.api.absolute(URI));
    for header in headers {
        request = request.header("authorization", *header);
    }
    t.api.send(request.body(Bytes::from(content.to_string())).unwrap()).await
}

/// Alice's token, with her address bound.
async fn bound(t: &TestIdentity) -> String {
    let alice = t.register(ALICE).await;
    t.publish(&alice, EMAIL, ALICE).await;
    alice
}

on_each_database! {
    async fn a_session_unbinds_its_address(database: Database) {
        let t = TestIdentity::start(database).await;
        let alice = t.register(ALICE).await;
        let sid = t.validate(&alice, EMAIL, SECRET).await;
        t.bind(&alice, &sid, SECRET, ALICE).await.ok();
        let mut content = body(ALICE, "Alice@Example.com");
        content["sid"] = json!(sid);
        content["client_secret"] = json!(SECRET);
        // No access token, and once more: what is not bound is no mistake.
        for _ in 0..2 {
            assert_eq!(unbind(&t, &content, &[]).await.ok(), json!({}));
            assert_eq!(t.who_is(&alice, EMAIL).await, None);
        }
        let t = t.restart().await;
        assert_eq!(t.who_is(&alice, EMAIL).await, None);
        t.bind(&alice, &sid, SECRET, ALICE).await.ok();
        assert_eq!(t.who_is(&alice, EMAIL).await.as_deref(), Some(ALICE));
    }

    async fn a_session_is_good_for_its_own_address_only(database: Database) {
        let t = TestIdentity::start(database).await;
        let alice = bound(&t).await;
        let sid = t.validate(&alice, "other@example.com", SECRET).await;
        let (open, _) = t.open_session(&alice, EMAIL, "another_secret").await;
        for (sid, secret, expected) in [
            (sid.as_str(), SECRET, failure(403, "M_FORBIDDEN")),
            (sid.as_str(), "wrong", failure(404, "M_NO_VALID_SESSION")),
            ("unknown", SECRET, failure(404, "M_NO_VALID_SESSION")),
            (open.as_str(), "another_secret", failure(400, "M_SESSION_NOT_VALIDATED")),
        ] {
            let mut content = body(ALICE, EMAIL);
            content["sid"] = json!(sid);
            content["client_secret"] = json!(secret);
            assert_eq!(unbind(&t, &content, &[]).await.failure(), expected, "{sid} {secret}");
        }
        let mut half = body(ALICE, EMAIL);
        half["sid"] = json!(sid);
        assert_eq!(unbind(&t, &half, &[]).await.failure(), failure(400, "M_MISSING_PARAMS"));
        assert_eq!(t.who_is(&alice, EMAIL).await.as_deref(), Some(ALICE));
    }

    async fn the_users_homeserver_unbinds(database: Database) {
        let t = TestIdentity::start(database).await;
        let alice = t.register(ALICE).await;
        let sid = t.validate(&alice, EMAIL, SECRET).await;
        let content = body(ALICE, EMAIL);
        let good = |name: &str| t.homeserver.x_matrix(URI, &content, name, SERVER_NAME);
        // Synapse signs `destination_is`, the specification has `destination`.
        let (synapse, specified) = (good("destination_is"), good("destination"));
        let unknown_key = synapse.replace("ed25519:a_hs", "ed25519:new");
        let unquoted = specified.replace('"', "");
        let spaced = synapse.replace(',', " ,  ");
        let without_destination = synapse.replace(&format!(",destination=\"{SERVER_NAME}\""), "");
        for headers in [
            vec![synapse.as_str()],
            vec![specified.as_str()],
            vec![unknown_key.as_str(), synapse.as_str()],
            vec![unquoted.as_str()],
            vec![spaced.as_str()],
            vec![without_destination.as_str()],
        ] {
            t.bind(&alice, &sid, SECRET, ALICE).await.ok();
            assert_eq!(unbind(&t, &content, &headers).await.ok(), json!({}), "{headers:?}");
            assert_eq!(t.who_is(&alice, EMAIL).await, None, "{headers:?}");
        }
        let requests = t.homeserver.server.requests.all();
        let keys = requests.iter().filter(|request| request.path == "/_matrix/key/v2/server").count();
        assert_eq!(keys, 1, "keys are kept for as long as they are valid");
    }

    async fn many_requests_of_a_homeserver_at_once_fetch_its_keys_once(database: Database) {
        let t = TestIdentity::start(database).await;
        let content = body(ALICE, EMAIL);
        let header = t.homeserver.x_matrix(URI, &content, "destination_is", SERVER_NAME);
        let headers = [header.as_str()];
        let calls = (0..8).map(|_| unbind(&t, &content, &headers));
        for reply in futures_util::future::join_all(calls).await {
            assert_eq!(reply.ok(), json!({}));
        }
        let requests = t.homeserver.server.requests.all();
        let keys = requests.iter().filter(|request| request.path == "/_matrix/key/v2/server").count();
        assert_eq!(keys, 1);
    }

    async fn a_forged_request_unbinds_nothing(database: Database) {
        let t = TestIdentity::start(database).await;
        let alice = bound(&t).await;
        let content = body(ALICE, EMAIL);
        let sign = |content: &Value, destination: &str| {
            t.homeserver.x_matrix(URI, content, "destination_is", destination)
        };
        let good = sign(&content, SERVER_NAME);
        let another_user = body("@alice:evil.test", EMAIL);
        for (content, header, status, errcode) in [
            // Nothing that proves anything.
            (&content, String::new(), 401, "M_UNAUTHORIZED"),
            (&content, format!("Bearer {alice}"), 401, "M_UNAUTHORIZED"),
            (&content, "X-Matrix nonsense".to_owned(), 401, "M_UNAUTHORIZED"),
            // For another server, another request, another path.
            (&content, sign(&content, "other.test"), 403, "M_FORBIDDEN"),
            (&content, sign(&content, "other.test").replace("other.test", SERVER_NAME), 403, "M_FORBIDDEN"),
            (&content, sign(&body(BOB, EMAIL), SERVER_NAME), 403, "M_FORBIDDEN"),
            (&content, t.homeserver.x_matrix("/other", &content, "destination_is", SERVER_NAME), 403, "M_FORBIDDEN"),
            (&content, good.replace("sig=\"", "sig=\"AAAA"), 403, "M_FORBIDDEN"),
            // A server for another one's user.
            (&another_user, sign(&another_user, SERVER_NAME), 403, "M_FORBIDDEN"),
            (&content, good.replace(HOMESERVER, "evil.test"), 403, "M_FORBIDDEN"),
        ] {
            let reply = unbind(&t, content, &[&header]).await;
            assert_eq!(reply.failure(), failure(status, errcode), "{content} {header}");
        }
        assert_eq!(t.who_is(&alice, EMAIL).await.as_deref(), Some(ALICE));
    }

    async fn keys_that_cannot_be_believed_unbind_nothing(database: Database) {
        for answer in [
            key_answer(HOMESERVER, (now_secs() - 1) * 1000),
            key_answer("other.test", (now_secs() + 1000) * 1000),
            Answer::text(200, "<html>"),
            Answer::empty(404),
        ] {
            let t = TestIdentity::start(database).await;
            let alice = bound(&t).await;
            t.homeserver.keys(answer);
            let content = body(ALICE, EMAIL);
            let header = t.homeserver.x_matrix(URI, &content, "destination_is", SERVER_NAME);
            assert_eq!(unbind(&t, &content, &[&header]).await.failure(), failure(502, "M_UNKNOWN"));
            assert_eq!(t.who_is(&alice, EMAIL).await.as_deref(), Some(ALICE));
        }
    }

    async fn a_binding_of_somebody_else_stays(database: Database) {
        let t = TestIdentity::start(database).await;
        let alice = bound(&t).await;
        for content in [body(BOB, EMAIL), body(BOB, "nobody@example.com")] {
            let header = t.homeserver.x_matrix(URI, &content, "destination_is", SERVER_NAME);
            assert_eq!(unbind(&t, &content, &[&header]).await.ok(), json!({}));
        }
        assert_eq!(t.who_is(&alice, EMAIL).await.as_deref(), Some(ALICE));
    }

    async fn what_is_missing_or_wrong_is_named(database: Database) {
        let t = TestIdentity::start(database).await;
        let reply = unbind(&t, &json!({}), &[]).await;
        assert_eq!(reply.failure(), failure(400, "M_MISSING_PARAMS"));
        for name in ["mxid", "threepid"] {
            assert!(reply.text.contains(name), "{name}: {}", reply.text);
        }
        for (content, expected) in [
            (json!({"mxid": ALICE, "threepid": {}}), failure(400, "M_MISSING_PARAMS")),
            (json!({"mxid": ALICE, "threepid": "email"}), failure(400, "M_INVALID_PARAM")),
            (json!({"mxid": ALICE, "threepid": {"medium": "fax", "address": "1"}}), failure(400, "M_INVALID_PARAM")),
            (json!({"mxid": ALICE, "threepid": {"medium": 5, "address": "1"}}), failure(400, "M_INVALID_PARAM")),
            (body(ALICE, "alice"), failure(400, "M_INVALID_EMAIL")),
            (body("alice", EMAIL), failure(400, "M_INVALID_PARAM")),
        ] {
            assert_eq!(unbind(&t, &content, &[]).await.failure(), expected, "{content}");
        }
    }

    async fn too_many_are_429(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("limits.unbind_per_source", "burst", 1);
            settings.set("limits.unbind_per_source", "refill_secs", 600.0);
        })
        .await;
        let content = body(ALICE, EMAIL);
        let header = t.homeserver.x_matrix(URI, &content, "destination_is", SERVER_NAME);
        unbind(&t, &content, &[&header]).await.ok();
        assert_eq!(unbind(&t, &content, &[&header]).await.failure(), failure(429, "M_LIMIT_EXCEEDED"));
    }

    async fn a_server_may_be_called_by_its_address(database: Database) {
        // Synapse takes the name that its users gave, which may have a port and a path.
        for name in ["id.example.com:8443", "id.example.com/identity"] {
            let t = TestIdentity::start_with(database, |settings| {
                settings.set("identity", "public_base_url", format!("https://{name}/"));
            })
            .await;
            let alice = t.register(ALICE).await;
            let sid = {
                let (sid, mail) = t.open_session(&alice, EMAIL, SECRET).await;
                // Behind the proxy that takes the path away.
                let link = Link::parse(&mail.link());
                assert!(link.url.starts_with(&format!("https://{name}{V2}/validate/")), "{}", link.url);
                let path = link.path[link.path.find(V2).unwrap()..].to_owned();
                assert_eq!(t.press_button(&Link { path, ..link }).await.status, 200);
                sid
            };
            t.bind(&alice, &sid, SECRET, ALICE).await.ok();
            let content = body(ALICE, EMAIL);
            let header = t.homeserver.x_matrix(URI, &content, "destination_is", "id.example.com");
            assert_eq!(unbind(&t, &content, &[&header]).await.failure(), failure(403, "M_FORBIDDEN"), "{name}");
            let header = t.homeserver.x_matrix(URI, &content, "destination_is", name);
            unbind(&t, &content, &[&header]).await.ok();
            assert_eq!(t.who_is(&alice, EMAIL).await, None);
        }
    }
}
