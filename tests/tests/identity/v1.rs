//! The older API: what Synapse's SMS delegate, Dendrite and Android call, and who else may.

use ::http::Request;
use bytes::Bytes;
use serde_json::{Value, json};
use waypost_tests::http::Reply;
use waypost_tests::identity::{Link, SERVER_NAME, TestIdentity};
use waypost_tests::matrix::verify_signed_json;
use waypost_tests::on_each_database;
use waypost_tests::settings::Settings;
use waypost_tests::tls_server::Answer;

use super::msisdn::start_with;
use super::{ALICE, BOB, EMAIL, ROOM, SECRET, failure, invitation};

const V1: &str = "/_matrix/identity/api/v1";
const SMS_REQUEST: &str = "/validate/msisdn/requestToken";
const SMS_SUBMIT: &str = "/validate/msisdn/submitToken";
const MAIL_REQUEST: &str = "/validate/email/requestToken";

/// Lists the address that tests call from.
fn listed(settings: &mut Settings) {
    settings.set("v1", "allow", vec!["127.0.0.0/8"]);
}

/// For Dendrite.
fn full(settings: &mut Settings) {
    listed(settings);
    settings.set("v1", "mode", "full");
}

async fn get(t: &TestIdentity, path: &str) -> Reply {
    t.api.get(&format!("{V1}{path}"), None).await
}

/// As Synapse sends it.
async fn post(t: &TestIdentity, path: &str, body: &Value) -> Reply {
    t.api.post(&format!("{V1}{path}"), None, body).await
}

/// As Dendrite sends it.
async fn form(t: &TestIdentity, path: &str, fields: &[(&str, &str)]) -> Reply {
    t.api.post_form(&format!("{V1}{path}"), fields).await
}

/// Any body of any type.
async fn send(t: &TestIdentity, path: &str, content_type: Option<&str>, body: &'static [u8]) -> Reply {
    let mut request = Request::post(t.api.absolute(&format!("{V1}{path}")));
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    t.api.send(request.body(Bytes::from_static(body)).unwrap()).await
}

async fn validated(t: &TestIdentity, sid: &str) -> Reply {
    get(t, &format!("/3pid/getValidated3pid?sid={sid}&client_secret={SECRET}")).await
}

/// What Synapse makes of its client's request.
fn sms_request(number: &str, secret: &str) -> Value {
    json!({"country": "GB", "phone_number": number, "client_secret": secret, "send_attempt": 1})
}

/// Everything that is not for all, with a body that lacks nothing.
fn for_homeservers_only() -> [(&'static str, Value); 2] {
    [
        (SMS_REQUEST, sms_request("07700900001", SECRET)),
        (SMS_SUBMIT, json!({"client_secret": SECRET, "sid": "1", "token": "123456"})),
    ]
}

/// What only `full` has.
fn for_dendrite_only() -> [(&'static str, Value); 4] {
    [
        (MAIL_REQUEST, json!({"client_secret": SECRET, "email": EMAIL, "send_attempt": 1})),
        ("/validate/email/submitToken", json!({"client_secret": SECRET, "sid": "1", "token": "a"})),
        ("/3pid/bind", json!({"sid": "1", "client_secret": SECRET, "mxid": ALICE})),
        ("/store-invite", invitation()),
    ]
}

/// Bob invites Alice: token, private key and the ephemeral public key.
async fn invited(t: &TestIdentity) -> (String, String, String) {
    let bob = t.register(BOB).await;
    let answer = t.post("/store-invite", Some(&bob), &invitation()).await.ok();
    let link = t.smtp.mail_for(EMAIL, 1).await.link();
    let (_, query) = link.split_once('?').unwrap();
    let sign = url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "signurl").unwrap().1;
    let sign = url::Url::parse(&sign).unwrap();
    let find = |name: &str| sign.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
    let public_key = answer["public_keys"][1]["public_key"].as_str().unwrap().to_owned();
    (find("token"), find("private_key"), public_key)
}

on_each_database! {
    async fn what_is_harmless_is_there_for_all(database: Database) {
        let t = TestIdentity::start(database).await;
        let ping = get(&t, "").await;
        assert_eq!(ping.header("access-control-allow-origin"), "*");
        assert_eq!(ping.ok(), json!({}));
        let key = get(&t, "/pubkey/ed25519:0").await.ok();
        assert_eq!(key, t.get("/pubkey/ed25519:0", None).await.ok());
        let escaped = key["public_key"].as_str().unwrap().replace('+', "%2B");
        let valid = get(&t, &format!("/pubkey/isvalid?public_key={escaped}")).await.ok();
        assert_eq!(valid, json!({"valid": true}));
        let (_, _, ephemeral) = invited(&t).await;
        let valid = get(&t, &format!("/pubkey/ephemeral/isvalid?public_key={ephemeral}")).await.ok();
        assert_eq!(valid, json!({"valid": true}));
        assert_eq!(get(&t, "/pubkey/ed25519:9").await.failure(), failure(404, "M_NOT_FOUND"));
    }

    async fn by_default_the_rest_is_for_nobody(database: Database) {
        let t = TestIdentity::start(database).await;
        for (path, body) in for_homeservers_only() {
            assert_eq!(post(&t, path, &body).await.failure(), failure(403, "M_FORBIDDEN"), "{path}");
        }
        assert_eq!(validated(&t, "1").await.failure(), failure(403, "M_FORBIDDEN"));
    }

    async fn minimal_has_no_lookup_and_no_bind(database: Database) {
        let t = TestIdentity::start_with(database, listed).await;
        let lookup = get(&t, &format!("/lookup?medium=email&address={EMAIL}")).await;
        assert_eq!(lookup.failure(), failure(404, "M_UNRECOGNIZED"));
        for (path, body) in for_dendrite_only() {
            assert_eq!(post(&t, path, &body).await.failure(), failure(404, "M_UNRECOGNIZED"), "{path}");
        }
        assert!(t.smtp.mails.is_empty());
    }

    async fn off_is_off(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            listed(settings);
            settings.set("v1", "mode", "off");
        })
        .await;
        for path in ["", "/pubkey/ed25519:0", "/pubkey/isvalid?public_key=a", "/lookup", "/3pid/getValidated3pid"] {
            assert_eq!(get(&t, path).await.failure(), failure(404, "M_UNRECOGNIZED"), "{path}");
        }
        for (path, body) in for_homeservers_only().into_iter().chain(for_dendrite_only()) {
            assert_eq!(post(&t, path, &body).await.failure(), failure(404, "M_UNRECOGNIZED"), "{path}");
        }
        let sign = post(&t, "/sign-ed25519?mxid=a&token=b&private_key=c", &json!({})).await;
        assert_eq!(sign.failure(), failure(404, "M_UNRECOGNIZED"));
    }

    async fn full_is_for_listed_addresses_only(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("v1", "mode", "full").set("v1", "allow", vec!["10.0.0.0/8", "2001:db8::/32"]);
        })
        .await;
        for (path, body) in for_homeservers_only().into_iter().chain(for_dendrite_only()) {
            let reply = post(&t, path, &body).await;
            assert_eq!(reply.failure(), failure(403, "M_FORBIDDEN"), "{path}");
            assert!(!reply.text.contains("10.0.0"), "{}", reply.text);
        }
        for path in ["/lookup?medium=email&address=a%40b", "/3pid/getValidated3pid?sid=1&client_secret=a"] {
            assert_eq!(get(&t, path).await.failure(), failure(403, "M_FORBIDDEN"), "{path}");
        }
        assert_eq!(get(&t, "").await.ok(), json!({}));
        // Whom a stranger claims to be does not matter.
        let request = Request::get(t.api.absolute(&format!("{V1}/lookup?medium=email&address=a%40b")))
            .header("x-forwarded-for", "10.0.0.1")
            .body(Bytes::new())
            .unwrap();
        assert_eq!(t.api.send(request).await.failure(), failure(403, "M_FORBIDDEN"));
        assert!(t.smtp.mails.is_empty());
    }

    async fn a_browser_on_a_listed_network_is_not_a_listed_caller(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("v1", "mode", "full").set("v1", "allow", vec!["127.0.0.0/8"]);
        })
        .await;
        let get = async |headers: &[(&str, &str)]| {
            let mut request = Request::get(t.api.absolute(&format!("{V1}/lookup?medium=email&address=a%40b.test")));
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            t.api.send(request.body(Bytes::new()).unwrap()).await
        };
        get(&[("user-agent", "Synapse/1.140.0"), ("accept-language", "de")]).await.ok();
        // What browsers send, alone or in company, also by DNS rebinding and over plain HTTP.
        for header in [
            ("origin", "http://evil.example"),
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-mode", "cors"),
            ("sec-ch-ua", "x"),
            ("referer", "http://evil.example/"),
            ("cookie", "a=b"),
            ("upgrade-insecure-requests", "1"),
            ("user-agent", "Mozilla/5.0 (X11; Linux x86_64)"),
        ] {
            let reply = get(&[header, ("host", "evil.example")]).await;
            assert_eq!(reply.failure(), failure(403, "M_FORBIDDEN"), "{header:?}");
        }
    }

    async fn full_is_for_users_of_allowed_homeservers_only(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            full(settings);
            settings.set("homeservers", "allow", vec!["hs.test"]);
        })
        .await;
        let fields = [("client_secret", SECRET), ("email", EMAIL), ("send_attempt", "1")];
        form(&t, MAIL_REQUEST, &fields).await.ok();
        let link = Link::parse(&t.smtp.mail_for(EMAIL, 1).await.link());
        assert_eq!(t.press_button(&link).await.status, 200);
        let bind = [("sid", link.sid.as_str()), ("client_secret", SECRET), ("mxid", "@eve:other.test")];
        assert_eq!(form(&t, "/3pid/bind", &bind).await.failure(), failure(403, "M_UNAUTHORIZED"));
        let path = "/lookup?medium=email&address=alice%40example.com";
        assert_eq!(get(&t, path).await.ok(), json!({}));

        let mut invite = invitation();
        invite["address"] = json!("bob@example.com");
        invite["sender"] = json!("@eve:other.test");
        assert_eq!(post(&t, "/store-invite", &invite).await.failure(), failure(403, "M_UNAUTHORIZED"));
        assert_eq!(t.smtp.mails.len(), 1);
        let bind = [("sid", link.sid.as_str()), ("client_secret", SECRET), ("mxid", ALICE)];
        assert_eq!(form(&t, "/3pid/bind", &bind).await.ok()["mxid"], ALICE);
    }

    async fn a_proxys_word_counts_where_it_is_trusted(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("v1", "mode", "full").set("v1", "allow", vec!["10.0.0.0/8"]);
            settings.set("server", "trusted_proxies", vec!["127.0.0.0/8"]);
        })
        .await;
        for (caller, status) in [("10.1.2.3", 200), ("192.0.2.1", 403)] {
            let request = Request::get(t.api.absolute(&format!("{V1}/lookup?medium=email&address=a%40b")))
                .header("x-forwarded-for", caller)
                .body(Bytes::new())
                .unwrap();
            assert_eq!(t.api.send(request).await.status, status, "{caller}");
        }
    }

    async fn synapse_has_text_messages_sent_from_here(database: Database) {
        let (t, gateway) = start_with(database, vec![Answer::empty(202)], |settings| {
            listed(settings);
            // Synapse asks for all its users from one address.
            settings.set("limits.sms_per_source", "burst", 1).set("limits.sms_per_source", "refill_secs", 600);
            settings.set("limits.sms_codes_per_source", "burst", 1);
            settings.set("limits.sms_codes_per_source", "refill_secs", 600);
        })
        .await;
        let reply = post(&t, SMS_REQUEST, &sms_request("07700900001", SECRET)).await.ok();
        let sid = reply["sid"].as_str().unwrap().to_owned();
        assert_eq!(
            reply,
            json!({"success": true, "sid": sid, "msisdn": "447700900001", "intl_fmt": "+44 7700 900001"})
        );
        let code = gateway.requests.all()[0].json()["code"].as_str().unwrap().to_owned();
        assert_eq!(validated(&t, &sid).await.failure(), failure(400, "M_SESSION_NOT_VALIDATED"));

        let wrong = if code == "000000" { "000001" } else { "000000" };
        let refused = post(&t, SMS_SUBMIT, &json!({"client_secret": SECRET, "sid": sid, "token": wrong})).await;
        assert_eq!(refused.failure(), failure(400, "M_TOKEN_INCORRECT"));
        assert_eq!(refused.json()["success"], false);
        let right = post(&t, SMS_SUBMIT, &json!({"client_secret": SECRET, "sid": sid, "token": code})).await;
        assert_eq!(right.ok(), json!({"success": true}));
        let answer = validated(&t, &sid).await.ok();
        assert_eq!((&answer["medium"], &answer["address"]), (&json!("msisdn"), &json!("447700900001")));
        assert!(answer["validated_at"].is_i64(), "{answer}");

        // Another of its users.
        post(&t, SMS_REQUEST, &sms_request("07700900002", "another_secret")).await.ok();
        assert_eq!(gateway.requests.len(), 2);
        assert!(!t.server.log_text().contains("770090000"), "a number is in the log");
    }

    async fn a_number_is_protected_from_its_homeserver_too(database: Database) {
        let (t, gateway) = start_with(database, vec![Answer::empty(202)], |settings| {
            listed(settings);
            settings.set("limits.sms_per_number", "burst", 1).set("limits.sms_per_number", "refill_secs", 600);
        })
        .await;
        post(&t, SMS_REQUEST, &sms_request("07700900001", "a")).await.ok();
        let reply = post(&t, SMS_REQUEST, &sms_request("07700900001", "b")).await;
        assert_eq!(reply.failure(), failure(429, "M_LIMIT_EXCEEDED"));
        assert_eq!(gateway.requests.len(), 1);
    }

    async fn dendrite_proves_publishes_and_finds(database: Database) {
        let t = TestIdentity::start_with(database, full).await;
        let fields = [("client_secret", SECRET), ("email", "Alice@Example.com"), ("send_attempt", "1")];
        let answer = form(&t, MAIL_REQUEST, &fields).await.ok();
        let sid = answer["sid"].as_str().unwrap().to_owned();
        assert_eq!(answer, json!({"sid": sid}));
        assert_eq!(validated(&t, &sid).await.failure(), failure(400, "M_SESSION_NOT_VALIDATED"));
        let bind = [("sid", sid.as_str()), ("client_secret", SECRET), ("mxid", ALICE)];
        assert_eq!(form(&t, "/3pid/bind", &bind).await.failure(), failure(400, "M_SESSION_NOT_VALIDATED"));

        let link = Link::parse(&t.smtp.mail_for(EMAIL, 1).await.link());
        assert_eq!(t.press_button(&link).await.status, 200);
        let answer = validated(&t, &sid).await.ok();
        assert_eq!((&answer["medium"], &answer["address"]), (&json!("email"), &json!(EMAIL)));

        let path = "/lookup?medium=email&address=alice%40example.com";
        assert_eq!(get(&t, path).await.ok(), json!({}));
        let signed = form(&t, "/3pid/bind", &bind).await.ok();
        let key = get(&t, "/pubkey/ed25519:0").await.ok();
        let key = key["public_key"].as_str().unwrap();
        verify_signed_json(&signed, SERVER_NAME, "ed25519:0", key).unwrap();
        assert_eq!((&signed["address"], &signed["mxid"]), (&json!(EMAIL), &json!(ALICE)));

        let found = get(&t, path).await.ok();
        verify_signed_json(&found, SERVER_NAME, "ed25519:0", key).unwrap();
        assert_eq!(found, signed, "the same association, by the same key");
        for (path, expected) in [
            ("/lookup?medium=email&address=ALICE%40example.com", found),
            ("/lookup?medium=email&address=bob%40example.com", json!({})),
            ("/lookup?medium=email&address=nonsense", json!({})),
            ("/lookup?medium=fax&address=alice%40example.com", json!({})),
        ] {
            assert_eq!(get(&t, path).await.ok(), expected, "{path}");
        }
        assert_eq!(get(&t, "/lookup?medium=email").await.failure(), failure(400, "M_MISSING_PARAMS"));
        assert!(!t.server.log_text().to_lowercase().contains(EMAIL), "the address is in the log");
    }

    async fn dendrite_submits_the_token_itself(database: Database) {
        let t = TestIdentity::start_with(database, full).await;
        let fields = [("client_secret", SECRET), ("email", EMAIL), ("send_attempt", "1")];
        form(&t, MAIL_REQUEST, &fields).await.ok();
        let link = Link::parse(&t.smtp.mail_for(EMAIL, 1).await.link());
        let fields = [("sid", link.sid.as_str()), ("client_secret", SECRET), ("token", link.token.as_str())];
        assert_eq!(form(&t, "/validate/email/submitToken", &fields).await.ok(), json!({"success": true}));
        assert_eq!(validated(&t, &link.sid).await.status, 200);
        let bind = [("sid", link.sid.as_str()), ("client_secret", SECRET), ("mxid", "alice")];
        assert_eq!(form(&t, "/3pid/bind", &bind).await.failure(), failure(400, "M_INVALID_PARAM"));
    }

    async fn dendrite_invites(database: Database) {
        let t = TestIdentity::start_with(database, full).await;
        let fields = [
            ("medium", "email"), ("address", EMAIL), ("room_id", ROOM), ("sender", BOB),
            ("sender_display_name", "Bob Smith"),
        ];
        let answer = form(&t, "/store-invite", &fields).await.ok();
        assert_eq!(answer["display_name"], "ali...@exa...");
        assert_eq!(answer["public_key"], get(&t, "/pubkey/ed25519:0").await.ok()["public_key"]);
        let ephemeral = answer["public_keys"][1]["public_key"].as_str().unwrap();
        let valid = get(&t, &format!("/pubkey/ephemeral/isvalid?public_key={ephemeral}")).await.ok();
        assert_eq!(valid, json!({"valid": true}));
        assert_eq!(t.smtp.count_for(EMAIL), 1);

        let mut other = fields;
        other[3] = ("sender", "bob");
        assert_eq!(form(&t, "/store-invite", &other).await.failure(), failure(400, "M_INVALID_PARAM"));
        // What waited comes with the bind.
        let alice = t.register(ALICE).await;
        let signed = t.publish(&alice, EMAIL, ALICE).await;
        assert_eq!(signed["invites"][0]["token"], answer["token"]);
    }

    async fn an_invite_is_signed_however_it_is_asked_for(database: Database) {
        let t = TestIdentity::start(database).await;
        let (token, private_key, public_key) = invited(&t).await;
        let public_key = public_key.replace('-', "+").replace('_', "/");
        let query = format!("/sign-ed25519?mxid=%40alice%3Ahs.test&token={token}&private_key={private_key}");
        let fields = [("mxid", ALICE), ("token", token.as_str()), ("private_key", private_key.as_str())];
        let object = json!({"mxid": ALICE, "token": token, "private_key": private_key});
        for reply in [
            // Android.
            send(&t, &query, None, b"").await,
            send(&t, &query, Some("application/json"), b"").await,
            // Element Web.
            send(&t, &query, Some("application/json"), b"null").await,
            form(&t, "/sign-ed25519", &fields).await,
            post(&t, "/sign-ed25519", &object).await,
        ] {
            let mut signed = reply.ok();
            verify_signed_json(&signed, SERVER_NAME, "ed25519:0", &public_key).unwrap();
            signed.as_object_mut().unwrap().remove("signatures");
            assert_eq!(signed, json!({"mxid": ALICE, "sender": BOB, "token": token}));
        }
        // Which of two it should be nobody can know.
        let twice = send(&t, &format!("{query}&mxid=%40eve%3Ahs.test"), None, b"").await;
        assert_eq!(twice.failure(), failure(400, "M_MISSING_PARAMS"));
        let twice = send(&t, &query, Some("application/x-www-form-urlencoded"), b"mxid=%40eve%3Ahs.test").await;
        assert_eq!(twice.failure(), failure(400, "M_MISSING_PARAMS"));
        assert!(twice.text.contains("mxid"), "{}", twice.text);
        let unknown = query.replace(&token, "unknown");
        assert_eq!(send(&t, &unknown, None, b"").await.failure(), failure(404, "M_UNRECOGNIZED"));
    }

    async fn bodies_are_read_by_their_type(database: Database) {
        let t = TestIdentity::start_with(database, listed).await;
        let object: &[u8] = br#"{"client_secret": "a", "country": "GB", "phone_number": "1", "send_attempt": 1}"#;
        let wrong: &[u8] = br#"{"client_secret": 5, "country": "", "phone_number": "", "send_attempt": 1}"#;
        let cases: [(Option<&str>, &'static [u8], &str); 11] = [
            // Read, and then found to be no number.
            (Some("application/json; charset=utf-8"), object, "M_INVALID_ADDRESS"),
            (None, b"client_secret=a&country=GB&phone_number=1&send_attempt=1", "M_INVALID_ADDRESS"),
            (None, object, "M_MISSING_PARAMS"),
            (Some("text/plain"), object, "M_MISSING_PARAMS"),
            (Some("application/json"), b"[]", "M_MISSING_PARAMS"),
            (Some("application/json"), b"", "M_MISSING_PARAMS"),
            (Some("application/json"), b"{", "M_NOT_JSON"),
            (Some("application/json"), wrong, "M_INVALID_PARAM"),
            (None, b"client_secret=%ff&country=GB&phone_number=1&send_attempt=1", "M_INVALID_PARAM"),
            (None, b"client_secret=\xff&country=GB&phone_number=1&send_attempt=1", "M_INVALID_PARAM"),
            (None, b"client_secret=a&client_secret=b&country=GB&phone_number=1&send_attempt=1", "M_MISSING_PARAMS"),
        ];
        for (content_type, body, errcode) in cases {
            let reply = send(&t, SMS_REQUEST, content_type, body).await;
            assert_eq!(reply.failure(), failure(400, errcode), "{content_type:?} {}", String::from_utf8_lossy(body));
        }
        let path = format!("{SMS_REQUEST}?country=GB&phone_number=1");
        let split = send(&t, &path, None, b"client_secret=a&send_attempt=1").await;
        assert_eq!(split.failure(), failure(400, "M_INVALID_ADDRESS"));
    }
}
