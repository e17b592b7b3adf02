//! Complete payloads, derived by hand from docs/payloads.md.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

use super::*;
use crate::{
    arbitrary::{Random, assert_only_cut, least},
    notification::tests::notification,
};

const OPTIONS: Options = Options { send_badge_counts: true, max_bytes: 4096 };

/// The payload for a notification to a single device whose pusher has `default_payload`.
fn built(mut value: Value, default_payload: Value, kind: Kind, options: Options) -> Result<Payload, Ended> {
    value["devices"] = json!([{"app_id": "a", "pushkey": "k", "data": {"default_payload": default_payload}}]);
    let notification = notification(value);
    build(&notification, &notification.devices[0], kind, options)
}

fn payload(value: Value, default_payload: Value, kind: Kind) -> Value {
    let payload = built(value, default_payload, kind, OPTIONS).unwrap();
    assert!(!payload.wakes_nobody);
    serde_json::from_slice(&payload.body).unwrap()
}

#[test]
fn element_x_gets_the_ids_merged_into_its_default_payload() {
    let default = json!({
        "aps": {"mutable-content": 1, "alert": {"loc-key": "Notification", "loc-args": []}},
        "pusher_notification_client_identifier": "c",
    });
    let value = json!({"event_id": "$e", "room_id": "!r", "prio": "high", "counts": {"unread": 0, "missed_calls": 2}});
    assert_eq!(
        payload(value, default, Kind::IdsOnly),
        json!({
            "aps": {"mutable-content": 1, "alert": {"loc-key": "Notification", "loc-args": []}},
            "pusher_notification_client_identifier": "c",
            "room_id": "!r", "event_id": "$e", "unread_count": 0, "missed_calls": 2,
        })
    );
    let without_counts = payload(json!({"event_id": "$e", "room_id": "!r"}), json!({}), Kind::IdsOnly);
    assert_eq!(without_counts, json!({"room_id": "!r", "event_id": "$e"}));
}

#[test]
fn counts_alone_only_set_the_badge() {
    let counts = json!({"counts": {"unread": 3, "missed_calls": 1}});
    let default = json!({"aps": {"mutable-content": 1}});
    let sent = built(counts.clone(), default, Kind::CountsOnly, OPTIONS).unwrap();
    assert_eq!(sent, Payload { body: br#"{"aps":{"badge":4}}"#.to_vec(), wakes_nobody: true });
    let zero = built(json!({"counts": {"unread": 0}}), json!({}), Kind::CountsOnly, OPTIONS).unwrap();
    assert_eq!(zero.body, br#"{"aps":{"badge":0}}"#);
    let off = Options { send_badge_counts: false, ..OPTIONS };
    assert_eq!(built(counts, json!({}), Kind::CountsOnly, off), Err(Ended::Dropped));
    assert_eq!(built(json!({}), json!({}), Kind::CountsOnly, OPTIONS), Err(Ended::Dropped));
}

#[test]
fn each_event_type_has_its_own_alert() {
    let message = |msgtype: &str| json!({"msgtype": msgtype, "body": "hi"});
    let cases = [
        ("m.room.message", message("m.text"), "MSG_FROM_USER_IN_ROOM_WITH_CONTENT", json!(["Major Tom", "Ops", "hi"])),
        ("m.room.message", message("m.emote"), "ACTION_FROM_USER_IN_ROOM", json!(["Ops", "Major Tom", "hi"])),
        ("m.room.message", message("m.image"), "IMAGE_FROM_USER_IN_ROOM", json!(["Major Tom", "hi", "Ops"])),
        ("m.room.message", json!({}), "MSG_FROM_USER_IN_ROOM", json!(["Major Tom", "Ops"])),
        ("m.room.encrypted", json!({"body": "x"}), "MSG_FROM_USER_IN_ROOM", json!(["Major Tom", "Ops"])),
        ("m.call.invite", json!({"offer": {"sdp": "v=0\r\nm=video 9"}}), "VIDEO_CALL_FROM_USER", json!(["Major Tom"])),
        ("m.call.invite", json!({"offer": {"sdp": "m=audio"}}), "VOICE_CALL_FROM_USER", json!(["Major Tom"])),
        ("m.room.member", json!({"membership": "invite"}), "USER_INVITE_TO_NAMED_ROOM", json!(["Major Tom", "Ops"])),
        ("org.example.new", json!({}), "MSG_FROM_USER", json!(["Major Tom"])),
    ];
    for (kind, content, loc_key, loc_args) in cases {
        let value = json!({
            "event_id": "$e", "room_id": "!r", "type": kind, "sender": "@tom:hs", "sender_display_name": "Major Tom",
            "room_name": "Ops", "user_is_target": true, "content": content, "counts": {"unread": 2, "missed_calls": 1},
        });
        assert_eq!(
            payload(value, json!({"aps": {"sound": "x", "alert": {"title": "t"}}}), Kind::Full),
            json!({
                "aps": {"sound": "x", "alert": {"title": "t", "loc-key": loc_key, "loc-args": loc_args}, "badge": 3},
                "room_id": "!r", "event_id": "$e",
            }),
            "{kind}"
        );
    }
}

#[test]
fn rooms_without_a_name_have_their_own_alerts() {
    let message = |msgtype: &str| json!({"msgtype": msgtype, "body": "hi"});
    for (kind, content, loc_key, loc_args) in [
        ("m.room.message", message("m.text"), "MSG_FROM_USER_WITH_CONTENT", json!(["@tom:hs", "hi"])),
        ("m.room.message", message("m.emote"), "ACTION_FROM_USER", json!(["@tom:hs", "hi"])),
        ("m.room.message", message("m.image"), "IMAGE_FROM_USER", json!(["@tom:hs", "hi"])),
        ("m.room.encrypted", json!({}), "MSG_FROM_USER", json!(["@tom:hs"])),
        ("m.room.member", json!({"membership": "invite"}), "USER_INVITE_TO_CHAT", json!(["@tom:hs"])),
    ] {
        let value = json!({
            "event_id": "$e", "type": kind, "sender": "@tom:hs", "room_alias": "", "user_is_target": true,
            "content": content,
        });
        let expected = json!({"aps": {"alert": {"loc-key": loc_key, "loc-args": loc_args}}, "event_id": "$e"});
        assert_eq!(payload(value, json!({"aps": {"alert": "text"}}), Kind::Full), expected, "{kind}");
    }
}

#[test]
fn a_room_without_a_name_goes_by_its_alias() {
    let message = |names: Value| {
        let mut value = json!({
            "event_id": "$e", "type": "m.room.message", "sender": "@tom:hs", "content": {"body": "hi"},
        });
        value.as_object_mut().unwrap().extend(names.as_object().unwrap().clone());
        payload(value, json!({}), Kind::Full)["aps"]["alert"]["loc-args"].clone()
    };
    assert_eq!(message(json!({"room_alias": "#ops:hs"})), json!(["@tom:hs", "#ops:hs", "hi"]));
    assert_eq!(message(json!({"room_name": "", "room_alias": "#ops:hs"})), json!(["@tom:hs", "#ops:hs", "hi"]));
    assert_eq!(message(json!({"room_name": "Ops", "room_alias": "#ops:hs"})), json!(["@tom:hs", "Ops", "hi"]));
}

#[test]
fn someone_elses_membership_only_sets_the_badge() {
    let value = json!({
        "event_id": "$e", "type": "m.room.member", "sender": "@tom:hs", "membership": "join", "counts": {"unread": 1},
    });
    let sent = built(value, json!({"aps": {"sound": "x"}}), Kind::Full, OPTIONS).unwrap();
    assert_eq!(sent, Payload { body: br#"{"aps":{"badge":1}}"#.to_vec(), wakes_nobody: true });
}

#[test]
fn the_longest_text_is_truncated_until_the_payload_fits() {
    for unit in ["a", "é", "😀", "\"", "\u{1}"] {
        let value = json!({
            "event_id": "$e", "room_id": "!r", "type": "m.room.message", "sender": "@tom:hs", "room_name": "Ops",
            "content": {"msgtype": "m.text", "body": unit.repeat(60_000)},
        });
        let sent = built(value, json!({}), Kind::Full, OPTIONS).unwrap();
        // Less room is left than the next character needs.
        assert!((4091..=4096).contains(&sent.body.len()), "{unit:?}: {}", sent.body.len());
        let sent: Value = serde_json::from_slice(&sent.body).unwrap();
        let args = &sent["aps"]["alert"]["loc-args"];
        assert_eq!((&args[0], &args[1]), (&json!("@tom:hs"), &json!("Ops")));
        assert!(unit.repeat(60_000).starts_with(args[2].as_str().unwrap()));
    }
}

#[test]
fn ids_and_ciphertext_are_never_truncated() {
    let default = json!({"aps": {"alert": {"body": "x".repeat(3000)}}});
    let value = json!({"event_id": "$e", "ciphertext": "c".repeat(3000)});
    let sent = payload(value, default.clone(), Kind::IdsOnly);
    assert_eq!(sent["ciphertext"], "c".repeat(3000));
    let too_much = json!({"event_id": "$e", "ciphertext": "c".repeat(5000)});
    assert!(matches!(built(too_much, default, Kind::IdsOnly, OPTIONS), Err(Ended::With(_))));
}

#[test]
fn any_payload_fits_and_only_readable_texts_are_truncated() {
    let may_be_cut = |place: &str| matches!(place, ".aps.alert" | ".aps.alert.body" | ".aps.alert.loc-args[]");
    let mut random = Random(11);
    let (mut cut, mut refused) = (0, 0);
    for round in 0..1000 {
        let notification = random.notification(&json!({}));
        let device = &notification.devices[0];
        let kind = [Kind::Full, Kind::IdsOnly, Kind::CountsOnly][random.below(3)];
        let max_bytes = [4096, 5120][random.below(2)];
        let options = |max_bytes: usize| Options { send_badge_counts: true, max_bytes };
        let whole = match build(&notification, device, kind, options(usize::MAX)) {
            Ok(whole) => whole,
            Err(nothing) => {
                assert_eq!(build(&notification, device, kind, options(max_bytes)), Err(nothing), "{round}");
                continue;
            }
        };
        let value: Value = serde_json::from_slice(&whole.body).unwrap();
        let (least, texts) = least(&value, &may_be_cut);
        let Ok(sent) = build(&notification, device, kind, options(max_bytes)) else {
            assert!(least > max_bytes, "{round}: it could be cut to {least} bytes");
            refused += 1;
            continue;
        };
        assert!(sent.body.len() <= max_bytes && least <= max_bytes, "{round}");
        if whole.body.len() <= max_bytes {
            assert_eq!(sent, whole, "{round}: what fits is not touched");
            continue;
        }
        cut += 1;
        assert_only_cut(&value, &serde_json::from_slice(&sent.body).unwrap(), "", &may_be_cut, "");
        // No more than needed is removed: at most one six-byte character per text beyond the excess, plus rounding.
        assert!(sent.body.len() + 7 * texts > max_bytes, "{round}: {} bytes", sent.body.len());
    }
    assert!(cut > 5 && refused > 5, "{cut} were cut and {refused} refused");
}
