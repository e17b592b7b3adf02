//! What is not a request gets a Matrix error and changes nothing (docs/compatibility.md, "Errors").

use ::http::Method;
use bytes::Bytes;
use serde_json::json;
use waypost_tests::identity::{TestIdentity, V2};
use waypost_tests::on_each_database;

use super::{ALICE, EMAIL, ROOM, SECRET, failure};

/// Every POST endpoint.
const POSTS: [&str; 12] = [
    "/account/register",
    "/account/logout",
    "/terms",
    "/lookup",
    "/validate/email/requestToken",
    "/validate/email/submitToken",
    "/validate/msisdn/requestToken",
    "/validate/msisdn/submitToken",
    "/3pid/bind",
    "/3pid/unbind",
    "/store-invite",
    "/sign-ed25519",
];

on_each_database! {
    async fn what_is_no_json_is_m_not_json(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        for path in POSTS.into_iter().filter(|path| *path != "/account/logout") {
            for body in ["{", "not json", "{\"a\":1}x", "{'a':1}", "{\"a\":NaN}"] {
                let reply = t.post_text(path, Some(&token), body).await;
                assert_eq!(reply.failure(), failure(400, "M_NOT_JSON"), "{path} {body}");
            }
            for body in ["[]", "\"text\"", "1", "null"] {
                let reply = t.post_text(path, Some(&token), body).await;
                assert_eq!(reply.failure(), failure(400, "M_BAD_JSON"), "{path} {body}");
            }
        }
        assert_eq!(t.get("/account", Some(&token)).await.ok(), json!({"user_id": ALICE}));
    }

    async fn invalid_utf_8_is_400(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let body = Bytes::from_static(b"{\"sid\":\"\xff\xfe\"}");
        let reply = t.api.call(Method::POST, &format!("{V2}/3pid/bind"), Some(&token), body).await;
        assert_eq!(reply.failure(), failure(400, "M_NOT_JSON"));
    }

    async fn deep_json_is_refused(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let deep = format!("{{\"addresses\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        for path in POSTS.into_iter().filter(|path| *path != "/account/logout") {
            let reply = t.post_text(path, Some(&token), &deep).await;
            assert_eq!(reply.status, 400, "{path}: {}", reply.text);
        }
        assert_eq!(t.get("", None).await.ok(), json!({}));
    }

    async fn an_oversized_body_is_413(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("server", "max_body_bytes", 1024);
        })
        .await;
        let token = t.register(ALICE).await;
        let reply = t.post("/lookup", Some(&token), &json!({"pepper": "x".repeat(4096)})).await;
        assert_eq!(reply.failure(), failure(413, "M_TOO_LARGE"));
        assert_eq!(t.get("/account", Some(&token)).await.status, 200);
    }

    async fn wrong_types_are_400_and_never_500(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let values = [json!(null), json!(5), json!(-1.5), json!(true), json!([]), json!({}), json!(["a"]), json!("\u{0}")];
        let keys = [
            "access_token", "token_type", "matrix_server_name", "expires_in", "user_accepts", "algorithm", "pepper",
            "addresses", "client_secret", "email", "send_attempt", "next_link", "sid", "token", "mxid",
        ];
        for path in POSTS.into_iter().filter(|path| *path != "/account/logout") {
            for value in &values {
                if path == "/terms" && value.is_array() {
                    // A list of nothing, or of URLs that nobody offers, is of the right type.
                    continue;
                }
                let body: serde_json::Map<_, _> = keys.iter().map(|key| ((*key).to_owned(), value.clone())).collect();
                let reply = t.post(path, Some(&token), &body.into()).await;
                assert_eq!(reply.status, 400, "{path} {value}: {}", reply.text);
                assert!(reply.errcode().starts_with("M_"), "{path} {value}: {}", reply.text);
            }
        }
        assert!(t.smtp.mails.is_empty());
        assert!(t.homeserver.server.requests.len() == 1, "only the registration at the start");
    }

    async fn each_parameter_of_a_wrong_type_is_named(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let pepper = t.pepper(&token).await;
        // Each request lacks nothing, so that the one parameter is what it is refused for.
        for (path, good) in [
            ("/account/register", json!({"access_token": "a", "matrix_server_name": "hs.test"})),
            ("/terms", json!({"user_accepts": ["https://id.test/privacy"]})),
            ("/lookup", json!({"algorithm": "sha256", "pepper": pepper, "addresses": ["a"]})),
            (
                "/validate/email/requestToken",
                json!({
                    "client_secret": SECRET, "email": EMAIL, "send_attempt": 1, "next_link": "", "brand": "", "lang": "",
                }),
            ),
            ("/validate/email/submitToken", json!({"client_secret": SECRET, "sid": "1", "token": "a"})),
            (
                "/validate/msisdn/requestToken",
                json!({
                    "client_secret": SECRET, "country": "GB", "phone_number": "07700900001", "send_attempt": 1,
                    "next_link": "", "brand": "", "lang": "",
                }),
            ),
            ("/validate/msisdn/submitToken", json!({"client_secret": SECRET, "sid": "1", "token": "123456"})),
            ("/3pid/bind", json!({"client_secret": SECRET, "sid": "1", "mxid": ALICE})),
            (
                "/3pid/unbind",
                json!({
                    "client_secret": SECRET, "sid": "1", "mxid": ALICE,
                    "threepid": {"medium": "email", "address": EMAIL},
                }),
            ),
            (
                "/store-invite",
                json!({
                    "medium": "email", "address": EMAIL, "room_id": ROOM, "sender": ALICE, "room_avatar_url": "",
                    "room_name": "", "room_type": "", "sender_display_name": "", "org.matrix.web_client_location": "",
                }),
            ),
            ("/sign-ed25519", json!({"mxid": ALICE, "token": "a", "private_key": "a"})),
        ] {
            for key in good.as_object().unwrap().keys() {
                for wrong in [json!(1.5), json!(true), json!([5]), json!("a\u{0}")] {
                    if key == "pepper" && wrong.is_string() {
                        // Any text may be a pepper, and this one is unknown.
                        continue;
                    }
                    let mut body = good.clone();
                    body[key] = wrong;
                    let reply = t.post(path, Some(&token), &body).await;
                    assert_eq!(reply.failure(), failure(400, "M_INVALID_PARAM"), "{path} {body}");
                    assert!(reply.text.contains(&format!("`{key}`")), "{path} {key}: {}", reply.text);
                }
            }
        }
        assert!(t.smtp.mails.is_empty());
        assert!(t.homeserver.server.requests.len() == 1, "only the registration at the start");
    }

    async fn what_two_readers_could_read_in_two_ways_is_refused(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        let many_digits = format!("{{\"sid\":{}}}", "9".repeat(5000));
        for body in [
            // Half a character, a mark before the text, numbers that no number is.
            "{\"sid\":\"\\ud800\",\"client_secret\":\"a\",\"mxid\":\"@alice:hs.test\"}",
            "\u{feff}{}",
            "{\"sid\":1e999}",
            &many_digits,
        ] {
            for path in ["/3pid/bind", "/lookup"] {
                let reply = t.post_text(path, Some(&token), body).await;
                assert_eq!(reply.failure(), failure(400, "M_NOT_JSON"), "{path} {body}");
            }
        }
        let pepper = t.pepper(&token).await;
        let twice = format!(r#"{{"addresses":["a"],"addresses":["b"],"algorithm":"sha256","pepper":"{pepper}"}}"#);
        assert_eq!(t.post_text("/lookup", Some(&token), &twice).await.failure(), failure(400, "M_BAD_JSON"));
        let twice = "/3pid/getValidated3pid?sid=1&sid=2&client_secret=a";
        assert_eq!(t.get(twice, Some(&token)).await.failure(), failure(400, "M_MISSING_PARAMS"));
    }

    async fn unknown_paths_are_404(database: Database) {
        let t = TestIdentity::start(database).await;
        let paths = [
            "/", "/_matrix", "/_matrix/identity", "/_matrix/identity/v3", "/_matrix/identity/v2/nope",
            "/_matrix/identity/v2/account/", "/_matrix/identity/v2/lookup/", "/_matrix/identity/v2//account",
            "/_matrix/identity/api/v1/lookup", "/_matrix/identity/versions/", "/_matrix/identity/v2/pubkey",
        ];
        for path in paths {
            let reply = t.api.get(path, None).await;
            assert_eq!(reply.failure(), failure(404, "M_UNRECOGNIZED"), "{path}");
            assert_eq!(reply.header("access-control-allow-origin"), "*", "{path}");
        }
    }

    async fn wrong_methods_are_405(database: Database) {
        let t = TestIdentity::start(database).await;
        for (method, path) in [
            (Method::GET, "/lookup"),
            (Method::GET, "/3pid/bind"),
            (Method::GET, "/account/register"),
            (Method::POST, "/account"),
            (Method::POST, "/hash_details"),
            (Method::PUT, "/terms"),
            (Method::DELETE, "/account"),
            (Method::PATCH, ""),
            (Method::POST, "/pubkey/ed25519:0"),
        ] {
            let reply = t.api.call(method.clone(), &format!("{V2}{path}"), None, Bytes::new()).await;
            assert_eq!(reply.failure(), failure(405, "M_UNRECOGNIZED"), "{method} {path}");
            assert_eq!(reply.header("access-control-allow-origin"), "*", "{method} {path}");
        }
    }

    async fn options_need_no_token(database: Database) {
        let t = TestIdentity::start(database).await;
        for path in ["/lookup", "/account", "/3pid/bind", "/terms"] {
            let reply = t.api.call(Method::OPTIONS, &format!("{V2}{path}"), None, Bytes::new()).await;
            assert!([200, 204].contains(&reply.status), "{path}: {}", reply.status);
            assert_eq!(reply.header("access-control-allow-origin"), "*", "{path}");
            assert!(reply.header("access-control-allow-headers").to_ascii_lowercase().contains("authorization"), "{path}");
        }
    }

    async fn errors_carry_cors_headers_too(database: Database) {
        let t = TestIdentity::start(database).await;
        let reply = t.get("/account", None).await;
        assert_eq!(reply.failure(), failure(401, "M_UNAUTHORIZED"));
        assert_eq!(reply.header("access-control-allow-origin"), "*");
        assert!(reply.header("content-type").starts_with("application/json"));
    }
}
