//! store-invite, sign-ed25519, the keys of invites, and the commands about them.

use ::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::{Value, json};
use waypost_tests::database::Database;
use waypost_tests::http::Reply;
use waypost_tests::identity::{SERVER_NAME, TestIdentity, V2};
use waypost_tests::matrix::verify_signed_json;
use waypost_tests::on_each_database;

use super::{ALICE, BOB, EMAIL, ROOM, SECRET, failure, invitation};

/// What is in the link of an invitation's mail.
struct RoomLink {
    /// Up to the question mark.
    place: String,
    parameters: Vec<(String, String)>,
    token: String,
    private_key: String,
    /// Path and query of `signurl`.
    sign: String,
}

impl RoomLink {
    fn parse(link: &str) -> Self {
        let (place, query) = link.split_once('?').unwrap();
        let parameters: Vec<(String, String)> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let find = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let sign = url::Url::parse(&find("signurl").unwrap()).unwrap();
        let of_sign = |name: &str| sign.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
        Self {
            place: place.to_owned(),
            token: of_sign("token"),
            private_key: of_sign("private_key"),
            sign: format!("{}?{}", sign.path(), sign.query().unwrap()),
            parameters,
        }
    }

    fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

async fn invite(t: &TestIdentity, token: &str, body: &Value) -> Reply {
    t.post("/store-invite", Some(token), body).await
}

/// Bob invites Alice; what he is answered, and what is in her mail.
async fn invited(t: &TestIdentity) -> (Value, RoomLink) {
    let bob = t.register(BOB).await;
    let answer = invite(t, &bob, &invitation()).await.ok();
    let mail = t.smtp.mail_for(EMAIL, 1).await;
    (answer, RoomLink::parse(&mail.link()))
}

async fn is_valid(t: &TestIdentity, public_key: &str) -> Value {
    let key = public_key.replace('+', "%2B").replace('/', "%2F");
    t.get(&format!("/pubkey/ephemeral/isvalid?public_key={key}"), None).await.ok()["valid"].clone()
}

fn standard(url_safe: &str) -> String {
    STANDARD_NO_PAD.encode(URL_SAFE_NO_PAD.decode(url_safe).unwrap())
}

on_each_database! {
    async fn an_invite_is_answered_and_mailed(database: Database) {
        let t = TestIdentity::start(database).await;
        let (answer, link) = invited(&t).await;
        let token = answer["token"].as_str().unwrap();
        assert!((22..=255).contains(&token.len()), "128 bits or more: {token}");
        assert!(token.chars().all(|c| c.is_ascii_alphanumeric() || ".=_-".contains(c)), "{token}");
        let long_term = t.get("/pubkey/ed25519:0", None).await.ok()["public_key"].clone();
        let ephemeral = answer["public_keys"][1]["public_key"].as_str().unwrap();
        assert_eq!(URL_SAFE_NO_PAD.decode(ephemeral).unwrap().len(), 32);
        let base = format!("{}{V2}", t.server.public);
        assert_eq!(answer, json!({
            "token": token,
            "public_key": long_term,
            "public_keys": [
                {"public_key": long_term, "key_validity_url": format!("{base}/pubkey/isvalid")},
                {"public_key": ephemeral, "key_validity_url": format!("{base}/pubkey/ephemeral/isvalid")},
            ],
            // alice@example.com, three characters of either side.
            "display_name": "ali...@exa...",
        }));
        assert_eq!(is_valid(&t, ephemeral).await, true);
        assert_eq!(is_valid(&t, &standard(ephemeral)).await, true);

        assert_eq!(link.place, "https://app.element.io/#/room/%21something%3Ahs.test");
        assert_eq!(link.token, token);
        assert!(link.sign.starts_with(&format!("{V2}/sign-ed25519?")), "{}", link.sign);
        assert!(link.parameter("signurl").unwrap().starts_with(&t.server.public));
        for (name, value) in [
            ("email", Some(EMAIL)), ("room_name", Some("Bob's Emporium")), ("inviter_name", Some("Bob Smith")),
            ("room_avatar_url", None), ("room_type", None),
        ] {
            assert_eq!(link.parameter(name), value, "{name}");
        }
        let mail = t.smtp.mail_for(EMAIL, 1).await;
        assert_eq!(mail.message().header("subject"), "Bob Smith invited you to the room Bob's Emporium on Matrix");
        assert!(mail.text().contains(BOB), "{}", mail.text());
        let log = t.server.log_text();
        assert!(!log.contains(&link.private_key) && !log.contains(token) && !log.contains(EMAIL));
    }

    async fn a_space_is_called_a_space(database: Database) {
        let t = TestIdentity::start(database).await;
        let bob = t.register(BOB).await;
        let mut body = invitation();
        body["room_type"] = json!("m.space");
        body["room_name"] = json!("");
        body["sender_display_name"] = json!("");
        invite(&t, &bob, &body).await.ok();
        let mail = t.smtp.mail_for(EMAIL, 1).await;
        assert_eq!(mail.message().header("subject"), "Somebody at hs.test invited you to a space on Matrix");
        assert_eq!(RoomLink::parse(&mail.link()).parameter("room_type"), Some("m.space"));
        // Who has no name is named once.
        assert!(mail.text().contains("@bob:hs.test invited you to a space"), "{}", mail.text());
    }

    async fn names_are_no_headers_no_markup_and_no_links(database: Database) {
        let t = TestIdentity::start(database).await;
        let bob = t.register(BOB).await;
        let mut body = invitation();
        body["sender_display_name"] = json!("Win https://evil.test");
        body["room_name"] = json!("<b>a</b>\r\nBcc: c@evil.test");
        invite(&t, &bob, &body).await.ok();
        let mail = t.smtp.mail_for(EMAIL, 1).await;
        assert_eq!(mail.to, [EMAIL]);
        assert_eq!(mail.message().count("bcc"), 0);
        let html = mail.message().find("text/html").unwrap();
        assert!(html.contains("&lt;b&gt;a&lt;/b&gt;") && !html.contains("<b>a"), "{html}");
        for part in [mail.text(), html] {
            assert!(!part.contains("evil.test"), "{part}");
        }
    }

    async fn neither_names_nor_user_ids_say_more_than_who_invites(database: Database) {
        const EVE: &str = "@login.bank-of-example.com:hs.test";
        let t = TestIdentity::start(database).await;
        for (number, (sender, name, subject)) in [
            (BOB, "evil.\u{fe0f}com", "Somebody at hs.test invited you to the room Lunch on Matrix"),
            (BOB, "evil\u{701}com", "Somebody at hs.test invited you to the room Lunch on Matrix"),
            (BOB, "\u{3164}", "Somebody at hs.test invited you to the room Lunch on Matrix"),
            // The mark of an omission is encoded.
            (BOB, "call +1-900-555-0199", "call =?utf-8?b?4oCm?= invited you to the room Lunch on Matrix"),
            (BOB, "Bob \u{202e}Smith", "Bob Smith invited you to the room Lunch on Matrix"),
            (EVE, "", "Somebody at hs.test invited you to the room Lunch on Matrix"),
            ("@your-account-is-locked-call-us:hs.test", "", "Somebody at hs.test invited you to the room Lunch on Matrix"),
        ]
        .into_iter()
        .enumerate()
        {
            let token = t.register(sender).await;
            let mut body = invitation();
            body["sender"] = json!(sender);
            body["sender_display_name"] = json!(name);
            body["room_name"] = json!("Lunch");
            invite(&t, &token, &body).await.ok();
            let mail = t.smtp.mail_for(EMAIL, number + 1).await;
            assert_eq!(mail.message().header("subject"), subject, "{sender} {name:?}");
            let html = mail.message().find("text/html").unwrap();
            for part in [mail.text(), html] {
                for told in ["bank-of-example", "locked", "900-555", "evil"] {
                    assert!(!part.contains(told), "{sender} {name:?}: {part}");
                }
            }
        }
    }

    async fn a_key_goes_to_no_domain_that_folding_made(database: Database) {
        let t = TestIdentity::start(database).await;
        let bob = t.register(BOB).await;
        for address in ["invitee@straße.test", "invitee@ας.test", "invitee@fu\u{df}.example.com"] {
            let mut body = invitation();
            body["address"] = json!(address);
            assert_eq!(invite(&t, &bob, &body).await.failure(), failure(400, "M_INVALID_EMAIL"), "{address}");
            let reply = t.request_email(&bob, address, SECRET, 1).await;
            assert_eq!(reply.failure(), failure(400, "M_INVALID_EMAIL"), "{address}");
        }
        assert!(t.smtp.mails.is_empty());
        // Only the spelling differs.
        let mut body = invitation();
        body["address"] = json!("Invitee@BÜCHER.test");
        invite(&t, &bob, &body).await.ok();
    }

    async fn the_links_signurl_needs_no_token(database: Database) {
        let t = TestIdentity::start(database).await;
        let (answer, link) = invited(&t).await;
        let public_key = standard(answer["public_keys"][1]["public_key"].as_str().unwrap());
        // Element iOS sends no body, Element Web sends null.
        for body in ["", "null", "{}"] {
            let path = format!("{}&mxid=%40alice%3Ahs.test", link.sign);
            let reply = t.api.call(Method::POST, &path, None, Bytes::from(body)).await;
            assert_eq!(reply.header("access-control-allow-origin"), "*");
            let signed = reply.ok();
            verify_signed_json(&signed, SERVER_NAME, "ed25519:0", &public_key).unwrap();
            let mut unsigned = signed;
            unsigned.as_object_mut().unwrap().remove("signatures");
            assert_eq!(unsigned, json!({"mxid": ALICE, "sender": BOB, "token": link.token}), "{body:?}");
        }
    }

    async fn signing_by_body_needs_a_token(database: Database) {
        let t = TestIdentity::start(database).await;
        let (_, link) = invited(&t).await;
        let alice = t.register(ALICE).await;
        for private_key in [link.private_key.clone(), standard(&link.private_key)] {
            let body = json!({"mxid": ALICE, "token": link.token, "private_key": private_key});
            let refused = t.post("/sign-ed25519", None, &body).await;
            assert_eq!(refused.failure(), failure(401, "M_UNAUTHORIZED"));
            assert_eq!(t.post("/sign-ed25519", Some(&alice), &body).await.ok()["sender"], BOB);
        }
    }

    async fn only_the_key_of_a_known_invite_signs(database: Database) {
        let t = TestIdentity::start(database).await;
        let (_, link) = invited(&t).await;
        let alice = t.register(ALICE).await;
        let good = json!({"mxid": ALICE, "token": link.token, "private_key": link.private_key});
        let other = STANDARD_NO_PAD.encode([7; 32]);
        for (key, value, expected) in [
            ("token", "unknown", failure(404, "M_UNRECOGNIZED")),
            ("private_key", other.as_str(), failure(403, "M_FORBIDDEN")),
            ("private_key", "AAAA", failure(400, "M_INVALID_PARAM")),
            ("private_key", "!", failure(400, "M_INVALID_PARAM")),
            ("mxid", "alice", failure(400, "M_INVALID_PARAM")),
        ] {
            let mut body = good.clone();
            body[key] = json!(value);
            assert_eq!(t.post("/sign-ed25519", Some(&alice), &body).await.failure(), expected, "{key} {value}");
        }
    }

    async fn an_invite_is_handed_out_by_exactly_one_bind(database: Database) {
        let t = TestIdentity::start(database).await;
        let (answer, link) = invited(&t).await;
        let alice = t.register(ALICE).await;
        // The case in which it is typed makes no difference.
        let sid = t.validate(&alice, "ALICE@example.com", SECRET).await;
        let signed = t.bind(&alice, &sid, SECRET, ALICE).await.ok();
        let key = t.get("/pubkey/ed25519:0", None).await.ok();
        let key = key["public_key"].as_str().unwrap();
        verify_signed_json(&signed, SERVER_NAME, "ed25519:0", key).unwrap();
        let handed = &signed["invites"][0];
        verify_signed_json(&handed["signed"], SERVER_NAME, "ed25519:0", key).unwrap();
        assert_eq!(signed["invites"], json!([{
            "medium": "email",
            "address": EMAIL,
            "room_id": ROOM,
            "sender": BOB,
            "token": link.token,
            "mxid": ALICE,
            "signed": {"mxid": ALICE, "token": link.token, "signatures": handed["signed"]["signatures"]},
        }]));

        let again = t.bind(&alice, &sid, SECRET, ALICE).await.ok();
        assert_eq!(again.get("invites"), None);
        let body = json!({"mxid": ALICE, "token": link.token, "private_key": link.private_key});
        assert_eq!(t.post("/sign-ed25519", Some(&alice), &body).await.failure(), failure(404, "M_UNRECOGNIZED"));
        // Servers of the room go on asking.
        assert_eq!(is_valid(&t, answer["public_keys"][1]["public_key"].as_str().unwrap()).await, true);
    }

    async fn an_address_that_is_bound_is_told_and_gets_no_mail(database: Database) {
        let t = TestIdentity::start(database).await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        t.publish(&alice, EMAIL, ALICE).await;
        let mut body = invitation();
        body["address"] = json!("Alice@Example.com");
        let reply = invite(&t, &bob, &body).await;
        assert_eq!(reply.failure(), failure(400, "M_THREEPID_IN_USE"));
        assert_eq!(reply.json()["mxid"], ALICE);
        assert_eq!(t.smtp.count_for(EMAIL), 1, "only the mail of the validation");
    }

    async fn what_is_not_right_is_refused(database: Database) {
        let t = TestIdentity::start(database).await;
        let bob = t.register(BOB).await;
        let reply = invite(&t, &bob, &json!({})).await;
        assert_eq!(reply.failure(), failure(400, "M_MISSING_PARAMS"));
        for name in ["medium", "address", "room_id", "sender"] {
            assert!(reply.text.contains(name), "{name}: {}", reply.text);
        }
        for (key, value, expected) in [
            ("sender", json!(ALICE), failure(403, "M_UNAUTHORIZED")),
            ("medium", json!("msisdn"), failure(400, "M_UNRECOGNIZED")),
            ("medium", json!("fax"), failure(400, "M_UNRECOGNIZED")),
            ("address", json!("alice"), failure(400, "M_INVALID_EMAIL")),
            ("room_id", json!("#something:hs.test"), failure(400, "M_INVALID_PARAM")),
            ("room_id", json!("!a b"), failure(400, "M_INVALID_PARAM")),
            ("room_name", json!(5), failure(400, "M_INVALID_PARAM")),
        ] {
            let mut body = invitation();
            body[key] = value;
            assert_eq!(invite(&t, &bob, &body).await.failure(), expected, "{key}");
        }
        assert_eq!(t.post("/store-invite", None, &invitation()).await.failure(), failure(401, "M_UNAUTHORIZED"));
        assert!(t.smtp.mails.is_empty());
    }

    async fn blocked_servers_rooms_and_words_are_refused(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("invites.blocked", "homeservers", vec!["evil.test"]);
            settings.set("invites.blocked", "rooms", vec!["!spam:hs.test"]);
            settings.set("invites.blocked", "words", vec!["Casino", "https"]);
        })
        .await;
        let bob = t.register(BOB).await;
        for (key, value) in [
            ("room_id", "!a:evil.test"), ("room_id", "!spam:hs.test"), ("room_name", "the CASINO"),
            ("room_alias", "#casino:hs.test"),
        ] {
            let mut body = invitation();
            body[key] = json!(value);
            assert_eq!(invite(&t, &bob, &body).await.failure(), failure(403, "M_UNAUTHORIZED"), "{value}");
        }
        assert!(t.smtp.mails.is_empty());
        let mut body = invitation();
        body["org.matrix.web_client_location"] = json!("https://app.hs.test");
        invite(&t, &bob, &body).await.ok();
    }

    async fn a_web_client_is_believed_only_where_it_is_listed(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("invites", "web_client_url", "https://chat.id.test/app/");
            settings.set("invites", "web_clients_allowed", vec!["https://app.hs.test"]);
        })
        .await;
        let bob = t.register(BOB).await;
        let room = "/#/room/%21something%3Ahs.test";
        for (number, (location, place)) in [
            ("https://app.hs.test", "https://app.hs.test"),
            ("https://evil.test", "https://chat.id.test/app"),
            ("javascript:alert(1)", "https://chat.id.test/app"),
            ("", "https://chat.id.test/app"),
        ]
        .into_iter()
        .enumerate()
        {
            let mut body = invitation();
            body["org.matrix.web_client_location"] = json!(location);
            invite(&t, &bob, &body).await.ok();
            let mail = t.smtp.mail_for(EMAIL, number + 1).await;
            assert_eq!(RoomLink::parse(&mail.link()).place, format!("{place}{room}"), "{location}");
        }
    }

    async fn an_invite_whose_mail_is_refused_does_not_exist(database: Database) {
        let t = TestIdentity::start(database).await;
        t.smtp.refuse(EMAIL);
        let bob = t.register(BOB).await;
        assert_eq!(invite(&t, &bob, &invitation()).await.failure(), failure(400, "M_EMAIL_SEND_ERROR"));
        assert_eq!(t.command(&["invites", "list"]), (Some(0), String::new()));
    }

    async fn too_many_invites_are_429(database: Database) {
        let t = TestIdentity::start_with(database, |settings| {
            settings.set("limits.invite_per_account", "burst", 1);
            settings.set("limits.invite_per_account", "refill_secs", 600.0);
        })
        .await;
        let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
        invite(&t, &bob, &invitation()).await.ok();
        let reply = invite(&t, &bob, &invitation()).await;
        assert_eq!(reply.failure(), failure(429, "M_LIMIT_EXCEEDED"));
        let mut body = invitation();
        body["sender"] = json!(ALICE);
        invite(&t, &alice, &body).await.ok();
    }

    async fn invites_have_budgets_of_address_source_and_all(database: Database) {
        // Whether another user may still invite another address.
        for (limit, status) in [
            ("invite_per_address", 200),
            ("invite_per_source", 429),
            ("invite_per_stranger", 429),
            ("invite_of_strangers", 429),
            ("invite_total", 429),
        ] {
            let t = TestIdentity::start_with(database, |settings| {
                settings.set(&format!("limits.{limit}"), "burst", 1);
                settings.set(&format!("limits.{limit}"), "refill_secs", 600.0);
            })
            .await;
            let (alice, bob) = (t.register(ALICE).await, t.register(BOB).await);
            invite(&t, &bob, &invitation()).await.ok();
            let mut body = invitation();
            body["sender"] = json!(ALICE);
            body["address"] = json!("ALICE@example.com");
            assert_eq!(invite(&t, &alice, &body).await.failure(), failure(429, "M_LIMIT_EXCEEDED"), "{limit}");
            assert_eq!(t.smtp.mails.len(), 1, "{limit}");
            body["address"] = json!("carol@example.com");
            assert_eq!(invite(&t, &alice, &body).await.status, status, "{limit}");
            // Invites do not use up the budgets of validations.
            t.request_email(&alice, "carol@example.com", SECRET, 1).await.ok();
        }
    }

    async fn an_operator_lists_revokes_and_expires(database: Database) {
        let t = TestIdentity::start(database).await;
        let (answer, link) = invited(&t).await;
        let ephemeral = answer["public_keys"][1]["public_key"].as_str().unwrap();
        let (code, listed) = t.command(&["invites", "list"]);
        assert_eq!(code, Some(0));
        let expected = format!("{}\t{ROOM}\t{BOB}\tali...@exa...\t0 d old\t", link.token);
        assert!(listed.starts_with(&expected), "{listed}");
        assert!(!listed.contains(EMAIL), "{listed}");

        for unknown in ["unknown", "-hyphen"] {
            assert_eq!(t.command(&["invites", "revoke", unknown]).0, Some(1), "{unknown}");
        }
        assert_eq!(t.command(&["invites", "expire"]).1, "0 invites expired\n");
        assert_eq!(is_valid(&t, ephemeral).await, true);
        assert_eq!(t.command(&["invites", "revoke", &link.token]).0, Some(0));
        assert_eq!(is_valid(&t, ephemeral).await, false);
        let path = format!("{}&mxid=%40alice%3Ahs.test", link.sign);
        let reply = t.api.call(Method::POST, &path, None, Bytes::new()).await;
        assert_eq!(reply.failure(), failure(404, "M_UNRECOGNIZED"));

        let bob = t.register(BOB).await;
        let second = invite(&t, &bob, &invitation()).await.ok();
        let ephemeral = second["public_keys"][1]["public_key"].as_str().unwrap();
        assert_eq!(t.command(&["invites", "expire", "--older-than-days", "0"]).1, "1 invites expired\n");
        assert_eq!(is_valid(&t, ephemeral).await, false);
        let alice = t.register(ALICE).await;
        let sid = t.validate(&alice, EMAIL, SECRET).await;
        assert_eq!(t.bind(&alice, &sid, SECRET, ALICE).await.ok().get("invites"), None);
    }
}

/// docs/security.md, identity server, 10 and 14.
#[tokio::test]
async fn a_copy_of_the_database_shows_no_invite() {
    let t = TestIdentity::start(Database::Sqlite).await;
    let (_, link) = invited(&t).await;
    let mut searched = 0;
    for entry in std::fs::read_dir(t.server.folder.path().join("data")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap_or_default();
        searched += usize::from(bytes.starts_with(b"SQLite format 3"));
        let seed = URL_SAFE_NO_PAD.decode(&link.private_key).unwrap();
        for secret in [EMAIL.as_bytes(), link.token.as_bytes(), link.private_key.as_bytes(), &seed] {
            assert!(!bytes.windows(secret.len()).any(|window| window == secret));
        }
    }
    assert_eq!(searched, 1);
}
