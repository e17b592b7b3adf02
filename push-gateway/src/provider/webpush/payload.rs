//! The message for web apps: JSON, sent encrypted (docs/payloads.md, "WebPush").

use serde_json::Value;

use crate::{
    fit,
    notification::{Device, Kind, Notification},
    outcome::Ended,
    upstream::too_large,
};

/// The texts in a full notification, as in Sygnal.
const FULL_KEYS: [&str; 7] =
    ["room_id", "room_name", "room_alias", "event_id", "sender", "sender_display_name", "type"];

/// Builds the plaintext for one device, at most `max_bytes` long.
pub(super) fn build(
    notification: &Notification,
    device: &Device,
    kind: Kind,
    max_bytes: usize,
) -> Result<Vec<u8>, Ended> {
    if kind == Kind::CountsOnly && notification.counts.badge().is_none() {
        return Err(Ended::Dropped);
    }
    let mut payload = device.default_payload();
    let mut add = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            payload.insert(key.to_owned(), value);
        }
    };
    let keys: &[&str] = match kind {
        Kind::Full => &FULL_KEYS,
        Kind::IdsOnly => &["room_id", "event_id"],
        Kind::CountsOnly => &[],
    };
    for key in keys {
        add(key, notification.text(key).map(Value::from));
    }
    if kind == Kind::Full {
        add("membership", notification.membership().map(Value::from));
        add("user_is_target", notification.user_is_target().map(Value::from));
        add("content", notification.content().map(|content| Value::Object(fit::without_html(content))));
    }
    add("unread", notification.counts.unread.map(Value::from));
    add("missed_calls", notification.counts.missed_calls.map(Value::from));
    for (key, part) in notification.encrypted_parts() {
        add(key, Some(part.clone()));
    }
    fit::notification(payload, max_bytes).map(String::into_bytes).ok_or_else(|| too_large(max_bytes))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

    use serde_json::json;

    use super::*;
    use crate::{
        arbitrary::{Random, assert_only_cut, least},
        notification::tests::notification,
    };

    fn built(mut value: Value, default_payload: Value, kind: Kind) -> Result<Value, Ended> {
        value["devices"] = json!([{"app_id": "a", "pushkey": "k", "data": {"default_payload": default_payload}}]);
        let notification = notification(value);
        let plaintext = build(&notification, &notification.devices[0], kind, 3993)?;
        assert!(plaintext.len() <= 3993);
        Ok(serde_json::from_slice(&plaintext).unwrap())
    }

    fn event(content: Value) -> Value {
        json!({
            "event_id": "$e", "room_id": "!r", "type": "m.room.message", "sender": "@tom:hs",
            "sender_display_name": "Major Tom", "room_name": "Ops", "room_alias": "#ops:hs", "membership": "join",
            "user_is_target": false, "content": content, "counts": {"unread": 0, "missed_calls": 3},
        })
    }

    #[test]
    fn a_full_event_carries_its_content_without_html() {
        let content = json!({"body": "hi", "formatted_body": "<b>hi</b>", "format": "org.matrix.custom.html"});
        assert_eq!(
            built(event(content), json!({"session": "s", "room_id": "not this"}), Kind::Full).unwrap(),
            json!({
                "session": "s", "event_id": "$e", "room_id": "!r", "type": "m.room.message", "sender": "@tom:hs",
                "sender_display_name": "Major Tom", "room_name": "Ops", "room_alias": "#ops:hs", "membership": "join",
                "user_is_target": false, "content": {"body": "hi", "format": "org.matrix.custom.html"}, "unread": 0,
                "missed_calls": 3,
            })
        );
    }

    #[test]
    fn by_default_only_ids_and_counts_are_sent() {
        assert_eq!(
            built(event(json!({"body": "hi"})), json!({}), Kind::IdsOnly).unwrap(),
            json!({"event_id": "$e", "room_id": "!r", "unread": 0, "missed_calls": 3})
        );
        let counts = json!({"counts": {"unread": 4}});
        assert_eq!(built(counts, json!({"s": 1}), Kind::CountsOnly).unwrap(), json!({"s": 1, "unread": 4}));
        assert_eq!(built(json!({}), json!({"s": 1}), Kind::CountsOnly), Err(Ended::Dropped));
    }

    #[test]
    fn a_long_body_is_truncated_but_a_ciphertext_is_complete_or_absent() {
        let cut =
            built(event(json!({"body": "é".repeat(60_000), "msgtype": "m.text"})), json!({}), Kind::Full).unwrap();
        let body = cut["content"]["body"].as_str().unwrap();
        assert!(body.len() > 3000 && "é".repeat(60_000).starts_with(body));
        assert_eq!((&cut["content"]["msgtype"], &cut["room_name"]), (&json!("m.text"), &json!("Ops")));

        let sealed = |length: usize| built(event(json!({"ciphertext": "c".repeat(length)})), json!({}), Kind::Full);
        assert_eq!(sealed(3000).unwrap()["content"]["ciphertext"], "c".repeat(3000));
        assert_eq!(sealed(4000).unwrap()["content"], Value::Null);
    }

    #[test]
    fn any_message_fits_and_only_readable_texts_are_truncated() {
        let may_be_cut =
            |place: &str| matches!(place, ".room_name" | ".room_alias" | ".sender_display_name" | ".content.body");
        let mut random = Random(13);
        let (mut cut, mut without_content, mut refused) = (0, 0, 0);
        for round in 0..1000 {
            let notification = random.notification(&json!({}));
            let device = &notification.devices[0];
            let kind = [Kind::Full, Kind::IdsOnly, Kind::CountsOnly][random.below(3)];
            let built = build(&notification, device, kind, 3993);
            let whole = match build(&notification, device, kind, usize::MAX) {
                Ok(whole) => whole,
                Err(nothing) => {
                    assert_eq!(built, Err(nothing), "{round}");
                    continue;
                }
            };
            let mut value: Value = serde_json::from_slice(&whole).unwrap();
            let (with_content, _) = least(&value, &may_be_cut);
            if with_content > 3993 && value.as_object_mut().unwrap().remove("content").is_some() {
                without_content += 1;
            }
            let (least, texts) = least(&value, &may_be_cut);
            let Ok(plaintext) = built else {
                assert!(least > 3993, "{round}: it could be cut to {least} bytes");
                refused += 1;
                continue;
            };
            assert!(plaintext.len() <= 3993 && least <= 3993, "{round}");
            let sent: Value = serde_json::from_slice(&plaintext).unwrap();
            assert_only_cut(&value, &sent, "", &may_be_cut, "");
            if value.to_string().len() <= 3993 {
                assert_eq!(sent, value, "{round}: what fits is not touched");
            } else {
                cut += 1;
                assert!(plaintext.len() + 7 * texts > 3993, "{round}: {} bytes", plaintext.len());
            }
        }
        assert!(cut > 5 && without_content > 3 && refused > 5, "{cut} {without_content} {refused}");
    }
}
