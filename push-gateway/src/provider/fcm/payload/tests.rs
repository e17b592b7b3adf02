//! Complete messages, derived by hand from docs/payloads.md.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use super::*;
use crate::{
    arbitrary::{Random, assert_only_cut, least},
    notification::tests::notification,
};

/// The message for a notification to a single device whose pusher has `default_payload`.
fn built(mut value: Value, default_payload: Value, kind: Kind, options: Value) -> Result<Value, Ended> {
    value["devices"] = json!([{"app_id": "a", "pushkey": "k", "data": {"default_payload": default_payload}}]);
    let notification = notification(value);
    let Value::Object(options) = options else { panic!("options are an object") };
    let body = Template::new(options, FcmProfile::Sygnal).build(&notification, &notification.devices[0], kind)?;
    Ok(serde_json::from_slice(&body).unwrap())
}

fn data(value: Value, kind: Kind) -> Value {
    built(value, json!({}), kind, json!({})).unwrap()["message"]["data"].clone()
}

#[test]
fn element_x_gets_strings_at_the_top_level() {
    let value = json!({"event_id": "$e", "room_id": "!r", "prio": "high", "counts": {"unread": 0}});
    let default = json!({"cs": "secret", "number": 5, "nested": {"a": [1]}, "event_id": "not this"});
    assert_eq!(
        built(value, default, Kind::IdsOnly, json!({})).unwrap(),
        json!({"message": {
            "token": "k",
            "android": {"priority": "high"},
            "data": {
                "cs": "secret", "number": "5", "nested": "{\"a\":[1]}",
                "event_id": "$e", "room_id": "!r", "prio": "high", "unread": "0",
            },
        }})
    );
}

#[test]
fn a_full_event_carries_its_content() {
    let value = json!({
        "event_id": "$e", "type": "m.room.message", "sender": "@tom:hs", "room_id": "!r", "room_name": "Ops",
        "room_alias": "#ops:hs", "membership": "join", "sender_display_name": "Major Tom", "prio": "low",
        "content": {"msgtype": "m.text", "body": "hi", "m.mentions": {"room": true}},
        "counts": {"unread": 2, "missed_calls": 1},
    });
    assert_eq!(
        built(value, json!({}), Kind::Full, json!({})).unwrap(),
        json!({"message": {
            "token": "k",
            "android": {"priority": "normal"},
            "data": {
                "event_id": "$e", "type": "m.room.message", "sender": "@tom:hs", "room_id": "!r", "room_name": "Ops",
                "room_alias": "#ops:hs", "membership": "join", "sender_display_name": "Major Tom", "prio": "low",
                "content_msgtype": "m.text", "content_body": "hi", "content_m.mentions": "{\"room\":true}",
                "unread": "2", "missed_calls": "1",
            },
        }})
    );
}

#[test]
fn counts_alone_have_normal_priority() {
    let message = built(json!({"counts": {"unread": 0}}), json!({"cs": "s"}), Kind::CountsOnly, json!({})).unwrap();
    assert_eq!(
        message,
        json!({"message": {
            "token": "k", "android": {"priority": "normal"}, "data": {"cs": "s", "prio": "high", "unread": "0"},
        }})
    );
    assert_eq!(built(json!({}), json!({}), Kind::CountsOnly, json!({})), Err(Ended::Dropped));
}

#[test]
fn the_operators_options_are_kept_and_reserved_keys_are_removed() {
    let options = json!({"android": {"ttl": "60s", "priority": "normal"}, "apns": {"payload": {"aps": {"badge": 1}}}});
    let default = json!({
        "from": "x", "google.a": "x", "gcm.b": "x", "message_type": "x", "fine": "y", "token": "z", "collapse_key": "c",
    });
    assert_eq!(
        built(json!({"event_id": "$e"}), default, Kind::IdsOnly, options).unwrap(),
        json!({"message": {
            "token": "k",
            "android": {"ttl": "60s", "priority": "high"},
            "apns": {"payload": {"aps": {"badge": 1}}},
            "data": {"fine": "y", "token": "z", "collapse_key": "c", "event_id": "$e", "prio": "high"},
        }})
    );
}

#[test]
fn a_long_text_is_truncated_at_a_character_boundary_and_marked() {
    let value = json!({"event_id": "$e", "type": "m.room.message", "content": {"body": "é".repeat(600)}});
    // 1024 bytes minus 3 for the mark hold 510 characters of 2 bytes.
    assert_eq!(data(value, Kind::Full)["content_body"], format!("{}…", "é".repeat(510)));
}

#[test]
fn many_texts_are_truncated_until_all_fit() {
    let content: Map<String, Value> = (0..8).map(|n| (format!("key{n}"), "x".repeat(60_000).into())).collect();
    let value = json!({"event_id": "$e".repeat(100), "type": "m", "content": content, "counts": {"unread": 7}});
    let data = data(value, Kind::Full);
    let size = data.to_string().len();
    assert!((4080..=4096).contains(&size), "{size}");
    assert_eq!((&data["event_id"], &data["unread"]), (&json!("$e".repeat(100)), &json!("7")));
}

#[test]
fn decryption_data_is_never_truncated_next_to_its_ciphertext() {
    let (session, sender) = ("s".repeat(1500), "k".repeat(43));
    let event = |length: usize| {
        let content = json!({
            "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "c".repeat(length), "session_id": session,
            "sender_key": sender,
        });
        let room = "r".repeat(900);
        data(json!({"event_id": "$e", "type": "m.room.encrypted", "room_name": room, "content": content}), Kind::Full)
    };
    let whole = event(1000);
    assert_eq!(whole["content_ciphertext"], "c".repeat(1000));
    assert_eq!((&whole["content_session_id"], &whole["content_sender_key"]), (&json!(session), &json!(sender)));
    // Not everything fits: the ciphertext is removed first, and the room name stays.
    let without = event(1600);
    assert_eq!(without["content_ciphertext"], Value::Null);
    assert_eq!(without["room_name"], "r".repeat(900));
    assert_eq!(without["content_algorithm"], "m.megolm.v1.aes-sha2");
}

#[test]
fn a_ciphertext_is_complete_or_absent() {
    let event = |length: usize| {
        let content = json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "c".repeat(length)});
        data(json!({"event_id": "$e", "type": "m.room.encrypted", "content": content}), Kind::Full)
    };
    assert_eq!(event(3000)["content_ciphertext"], "c".repeat(3000));
    let without = event(5000);
    assert_eq!(without["content_ciphertext"], Value::Null);
    assert_eq!(without["event_id"], "$e");

    let pushed = |length: usize| built(json!({"ciphertext": "c".repeat(length)}), json!({}), Kind::IdsOnly, json!({}));
    assert_eq!(pushed(3000).unwrap()["message"]["data"]["ciphertext"], "c".repeat(3000));
    assert!(matches!(pushed(5000), Err(Ended::With(_))));
}

#[test]
fn any_message_fits_and_only_readable_texts_are_truncated() {
    let mut random = Random(12);
    let (mut cut, mut refused) = (0, 0);
    for round in 0..1000 {
        let pusher =
            [json!({}), json!({"data_message": "ios"}), json!({"data_message": true})][random.below(3)].clone();
        let notification = random.notification(&pusher);
        let device = &notification.devices[0];
        let kind = [Kind::Full, Kind::IdsOnly, Kind::CountsOnly][random.below(3)];
        let profile = [FcmProfile::Sygnal, FcmProfile::FluffyChat][random.below(2)];
        // The message around the data, and the data as it would be without a limit.
        let (mut around, mut own) = (Map::new(), Map::new());
        if profile == FcmProfile::FluffyChat {
            fluffychat::show(&mut around, &notification, device, kind);
            own = fluffychat::data(&notification, device);
        }
        let taken = if around.is_empty() { 0 } else { Value::Object(around).to_string().len() };
        let max_data = MAX_MESSAGE - taken;
        let built = Template::new(Map::new(), profile).build(&notification, device, kind);
        let mut whole = match super::data(&notification, device, kind, own) {
            Ok(whole) => whole,
            Err(nothing) => {
                assert_eq!(built, Err(nothing), "{round}");
                continue;
            }
        };

        let unsealed = {
            let mut unsealed = whole.clone();
            unsealed.remove(EVENT_CIPHERTEXT);
            unsealed
        };
        let is_fixed = |place: &str| {
            // A separate list: the one in the code is under test.
            matches!(
                &place[1..],
                "event_id"
                    | "room_id"
                    | "sender"
                    | "type"
                    | "membership"
                    | "prio"
                    | "unread"
                    | "missed_calls"
                    | "counts"
                    | "devices"
                    | "ciphertext"
                    | "ephemeral"
                    | "mac"
            )
        };
        let (least, _) = least(&Value::Object(unsealed.clone()), &|place| !is_fixed(place));
        let Ok(message) = built else {
            assert!(least > max_data, "{round}: it could be cut to {least} bytes");
            refused += 1;
            continue;
        };
        assert!(least <= max_data, "{round}");
        let message: Value = serde_json::from_slice(&message).unwrap();
        assert_eq!(message["message"]["token"], "k", "{round}");
        let sent = &message["message"]["data"];
        assert!(sent.to_string().len() <= max_data, "{round}");
        let is_sealed = sent.get(EVENT_CIPHERTEXT).is_some();
        if whole.contains_key(EVENT_CIPHERTEXT) && !is_sealed {
            whole = unsealed;
        }
        let may_be_cut = |place: &str| !(is_fixed(place) || is_sealed && place.starts_with(".content_"));
        let whole = Value::Object(whole);
        assert_only_cut(&whole, sent, "", &may_be_cut, MARK);
        cut += usize::from(*sent != whole);
        for (key, text) in sent.as_object().unwrap() {
            let text = text.as_str().unwrap();
            assert!(!may_be_cut(&format!(".{key}")) || fit::json_len(text) <= MAX_TEXT, "{round}: {key}");
            assert!(!is_reserved(key), "{round}: {key}");
        }
    }
    assert!(cut > 5 && refused > 5, "{cut} were cut and {refused} refused");
}
