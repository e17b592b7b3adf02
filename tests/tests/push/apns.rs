//! What goes to APNs (docs/payloads.md, "APNs").

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use serde_json::{Value, json};
use waypost_tests::apns::{ApnsPush, KEY_ID, TEAM_ID};
use waypost_tests::gateway::{IOS, TOPIC, TestGateway, apns_token, event, event_id_only, ios, with};
use waypost_tests::process::text;

async fn sent(gateway: &TestGateway, notification: &Value) -> ApnsPush {
    let before = gateway.apns.pushes().len();
    assert_eq!(gateway.rejected(notification).await, json!([]));
    let pushes = gateway.apns.pushes().all();
    assert_eq!(pushes.len(), before + 1, "one push goes out");
    pushes.last().unwrap().clone()
}

#[tokio::test]
async fn headers_are_those_of_an_alert() {
    let gateway = TestGateway::start().await;
    let push = sent(&gateway, &event("$1", &[ios(&apns_token(1))])).await;
    assert_eq!(push.token, apns_token(1));
    assert_eq!(push.header("apns-topic"), TOPIC);
    assert_eq!(push.header("apns-push-type"), "alert");
    assert_eq!(push.header("apns-priority"), "10");
    assert_eq!(push.header("apns-id").len(), 36, "a UUID");
    assert!(push.header("apns-expiration").parse::<i64>().is_ok());
    assert_eq!(push.header("apns-collapse-id"), "");
}

#[tokio::test]
async fn low_priority_is_5() {
    let gateway = TestGateway::start().await;
    let mut notification = event("$1", &[ios(&apns_token(1))]);
    notification["prio"] = json!("low");
    let push = sent(&gateway, &notification).await;
    assert_eq!(push.header("apns-priority"), "5");
}

#[tokio::test]
async fn one_provider_token_serves_many_pushes() {
    let gateway = TestGateway::start().await;
    let first = sent(&gateway, &event("$1", &[ios(&apns_token(1))])).await;
    let second = sent(&gateway, &event("$2", &[ios(&apns_token(2))])).await;
    let jwt = first.jwt.unwrap();
    assert_eq!(jwt.header["alg"], "ES256");
    assert_eq!(jwt.header["kid"], KEY_ID);
    assert_eq!(jwt.claims["iss"], TEAM_ID);
    assert_eq!(second.jwt.unwrap().claims["iat"], jwt.claims["iat"]);
    assert_eq!(first.headers["authorization"], second.headers["authorization"]);
}

#[tokio::test]
async fn a_full_event_has_the_wording_sygnal_has() {
    let gateway = TestGateway::start().await;
    let push = sent(&gateway, &event("$1", &[ios(&apns_token(1))])).await;
    assert_eq!(
        push.payload,
        json!({
            "aps": {
                "alert": {
                    "loc-key": "MSG_FROM_USER_IN_ROOM_WITH_CONTENT",
                    "loc-args": ["Major Tom", "Mission Control", "I'm floating in a most peculiar way."],
                },
                "badge": 3,
            },
            "room_id": "!slw48wfj34rtnrf:example.com",
            "event_id": "$1",
        })
    );
}

#[tokio::test]
async fn each_kind_of_event_has_its_wording() {
    let gateway = TestGateway::start().await;
    // type, content, room name, loc-key, loc-args: the table of docs/payloads.md, row by row.
    let message = "m.room.message";
    let text = json!({"msgtype": "m.text", "body": "hi"});
    let emote = json!({"msgtype": "m.emote", "body": "waves"});
    let image = json!({"msgtype": "m.image", "body": "cat.png"});
    let voice = json!({"offer": {"sdp": "m=audio 1"}});
    let video = json!({"offer": {"sdp": "m=audio 1\r\nm=video 2"}});
    let cases = [
        (message, text.clone(), Some("Room"), "MSG_FROM_USER_IN_ROOM_WITH_CONTENT", json!(["Tom", "Room", "hi"])),
        (message, text, None, "MSG_FROM_USER_WITH_CONTENT", json!(["Tom", "hi"])),
        (message, emote.clone(), Some("Room"), "ACTION_FROM_USER_IN_ROOM", json!(["Room", "Tom", "waves"])),
        (message, emote, None, "ACTION_FROM_USER", json!(["Tom", "waves"])),
        (message, image.clone(), Some("Room"), "IMAGE_FROM_USER_IN_ROOM", json!(["Tom", "cat.png", "Room"])),
        (message, image, None, "IMAGE_FROM_USER", json!(["Tom", "cat.png"])),
        ("m.room.encrypted", json!({}), Some("Room"), "MSG_FROM_USER_IN_ROOM", json!(["Tom", "Room"])),
        ("m.room.encrypted", json!({}), None, "MSG_FROM_USER", json!(["Tom"])),
        ("m.call.invite", voice, None, "VOICE_CALL_FROM_USER", json!(["Tom"])),
        ("m.call.invite", video, None, "VIDEO_CALL_FROM_USER", json!(["Tom"])),
        ("org.example.other", json!({}), None, "MSG_FROM_USER", json!(["Tom"])),
    ];
    for (number, (kind, content, room, key, arguments)) in cases.into_iter().enumerate() {
        let mut notification = json!({
            "event_id": format!("${number}"),
            "room_id": "!a:hs.test",
            "type": kind,
            "sender": "@tom:hs.test",
            "sender_display_name": "Tom",
            "content": content,
            "devices": [ios(&apns_token(1))],
        });
        if let Some(room) = room {
            notification["room_name"] = json!(room);
        }
        let push = sent(&gateway, &notification).await;
        let alert = json!({"loc-key": key, "loc-args": arguments});
        assert_eq!(push.payload["aps"]["alert"], alert, "case {number}, {kind}");
    }
}

#[tokio::test]
async fn an_invitation_has_its_wording() {
    let gateway = TestGateway::start().await;
    let invite = |id: &str, room: Option<&str>| {
        let mut notification = json!({
            "event_id": id, "room_id": "!a:hs.test", "type": "m.room.member", "sender": "@tom:hs.test",
            "membership": "invite", "user_is_target": true, "content": {"membership": "invite"},
            "devices": [ios(&apns_token(1))],
        });
        if let Some(room) = room {
            notification["room_name"] = json!(room);
        }
        notification
    };
    let named = sent(&gateway, &invite("$1", Some("Room"))).await;
    // There is no display name, so that the sender stands in for it.
    let alert = json!({"loc-key": "USER_INVITE_TO_NAMED_ROOM", "loc-args": ["@tom:hs.test", "Room"]});
    assert_eq!(named.payload["aps"]["alert"], alert);
    let chat = sent(&gateway, &invite("$2", None)).await;
    let alert = json!({"loc-key": "USER_INVITE_TO_CHAT", "loc-args": ["@tom:hs.test"]});
    assert_eq!(chat.payload["aps"]["alert"], alert);
}

#[tokio::test]
async fn event_id_only_is_the_apps_own_payload_and_the_ids() {
    let gateway = TestGateway::start().await;
    let default_payload = json!({
        "aps": {"mutable-content": 1, "alert": {"loc-key": "Notification", "loc-args": []}},
        "pusher_notification_client_identifier": "abc",
    });
    // Element X iOS: docs/payloads.md, "What apps read".
    let device = json!({
        "app_id": IOS,
        "pushkey": apns_token(1),
        "data": {"format": "event_id_only", "default_payload": default_payload},
    });
    let push = sent(&gateway, &event_id_only("$1", &[device])).await;
    assert_eq!(
        push.payload,
        json!({
            "aps": {"mutable-content": 1, "alert": {"loc-key": "Notification", "loc-args": []}},
            "pusher_notification_client_identifier": "abc",
            "room_id": "!slw48wfj34rtnrf:example.com",
            "event_id": "$1",
            "unread_count": 2,
        })
    );
}

#[tokio::test]
async fn by_default_apple_sees_ids_only() {
    let gateway = TestGateway::start_apps(|settings, around| {
        settings.push("apps", &around.apns_app(IOS));
    })
    .await;
    let push = sent(&gateway, &event("$1", &[ios(&apns_token(1))])).await;
    let text = push.payload.to_string();
    assert!(!text.contains("floating") && !text.contains("Major Tom") && !text.contains("Mission"), "{text}");
    assert_eq!(push.payload["event_id"], "$1");
    assert_eq!(push.payload["room_id"], "!slw48wfj34rtnrf:example.com");
}

#[tokio::test]
async fn counts_alone_set_the_badge_silently() {
    let gateway = TestGateway::start().await;
    let device = json!({"app_id": IOS, "pushkey": apns_token(1), "data": {"default_payload": {"aps": {"alert": "!"}}}});
    let push = sent(&gateway, &json!({"counts": {"unread": 0}, "devices": [device]})).await;
    assert_eq!(push.payload, json!({"aps": {"badge": 0}}));
    assert_eq!(push.header("apns-push-type"), "background");
    assert_eq!(push.header("apns-priority"), "5");
}

#[tokio::test]
async fn counts_alone_can_be_turned_off() {
    let gateway = TestGateway::start_apps(|settings, around| {
        settings.push("apps", &with(around.apns_app(IOS), &[("apns.send_badge_counts", json!(false))]));
    })
    .await;
    let notification = json!({"counts": {"unread": 4}, "devices": [ios(&apns_token(1))]});
    assert_eq!(gateway.rejected(&notification).await, json!([]));
    assert!(gateway.apns.pushes().is_empty());
}

#[tokio::test]
async fn a_pushkey_may_be_base64_of_either_alphabet_or_hexadecimal() {
    let gateway = TestGateway::start().await;
    // 0xfb makes both characters in which the alphabets differ.
    let bytes = [0xfb_u8; 32];
    for (number, pushkey) in [STANDARD.encode(bytes), URL_SAFE.encode(bytes), "fb".repeat(32)].iter().enumerate() {
        let push = sent(&gateway, &event(&format!("${number}"), &[ios(pushkey)])).await;
        assert_eq!(push.token, "fb".repeat(32));
    }
}

#[tokio::test]
async fn a_long_message_is_cut_to_4096_bytes_at_a_character() {
    let gateway = TestGateway::start().await;
    let mut notification = event("$1", &[ios(&apns_token(1))]);
    notification["content"]["body"] = json!("日本".repeat(10_000));
    let push = sent(&gateway, &notification).await;
    assert!(push.bytes <= 4096 && push.bytes > 3500, "{} bytes", push.bytes);
    assert_eq!(push.payload["event_id"], "$1");
    let body = push.payload["aps"]["alert"]["loc-args"][2].as_str().unwrap();
    assert!(body.starts_with("日本日本") && !body.contains('\u{fffd}'));
}

#[tokio::test]
async fn what_cannot_be_made_to_fit_is_neither_sent_nor_rejected() {
    let gateway = TestGateway::start().await;
    let mut notification = event_id_only("$1", &[ios(&apns_token(1))]);
    notification["room_id"] = json!(format!("!{}:hs.test", "a".repeat(5000)));
    assert_eq!(gateway.rejected(&notification).await, json!([]));
    assert!(gateway.apns.pushes().is_empty());
}

#[tokio::test]
async fn a_client_certificate_serves_as_credentials() {
    let gateway = TestGateway::start_apps(|settings, around| {
        let (certificate, key) = around.ca.client_certificate("push.example.org");
        let mut app = around.apns_app(IOS);
        app.retain(|(key, _)| !["apns.key_file", "apns.key_id", "apns.team_id"].contains(key));
        app.push(("apns.certificate_file", json!(text(&around.folder.write("client.pem", &certificate)))));
        app.push(("apns.certificate_key_file", json!(text(&around.folder.write("client.key", &key)))));
        settings.push("apps", &app);
    })
    .await;
    let push = sent(&gateway, &event("$1", &[ios(&apns_token(1))])).await;
    assert!(push.client_certificate);
    assert!(push.jwt.is_none());
}
