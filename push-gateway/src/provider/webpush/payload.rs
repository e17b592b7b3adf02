//! What a web app reads: JSON, encrypted (docs/payloads.md, "WebPush").

use serde_json::{Map, Value};

use crate::{
    fit,
    notification::{Device, Kind, Notification},
    provider::Unsent,
};

/// The texts of a full notification, as Sygnal's apps know them.
const FULL_KEYS: [&str; 7] =
    ["room_id", "room_name", "room_alias", "event_id", "sender", "sender_display_name", "type"];

/// Builds the plaintext for one device, `max_bytes` long at the most.
pub(super) fn build(
    notification: &Notification,
    device: &Device,
    kind: Kind,
    max_bytes: usize,
) -> Result<Vec<u8>, Unsent> {
    if kind == Kind::CountsOnly && notification.counts.badge().is_none() {
        return Err(Unsent::NothingToSay);
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
        add("content", notification.content().map(|content| Value::Object(without_html(content))));
    }
    add("unread", notification.counts.unread.map(Value::from));
    add("missed_calls", notification.counts.missed_calls.map(Value::from));
    for (key, part) in notification.encrypted_parts() {
        add(key, Some(part.clone()));
    }
    fitted(Value::Object(payload), max_bytes)
}

/// A notification shows plain text, and HTML takes most of the room.
fn without_html(content: &Map<String, Value>) -> Map<String, Value> {
    content
        .iter()
        .filter(|(key, _)| *key != "formatted_body")
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

fn fitted(mut payload: Value, max_bytes: usize) -> Result<Vec<u8>, Unsent> {
    loop {
        let body = payload.to_string();
        let Some(excess) = body.len().checked_sub(max_bytes).filter(|excess| *excess > 0) else {
            return Ok(body.into_bytes());
        };
        if fit::shrink(texts(&mut payload), excess, "") {
            continue;
        }
        // What else is in a content must not be cut (ciphertext, ids, keys); without it the app fetches the event.
        let removed = payload.as_object_mut().and_then(|payload| payload.remove("content"));
        if removed.is_none() {
            return Err(Unsent::too_large(max_bytes));
        }
    }
}

/// The texts that may be cut: what people read.
fn texts(payload: &mut Value) -> Vec<&mut String> {
    let Value::Object(payload) = payload else { return Vec::new() };
    payload
        .iter_mut()
        .filter_map(|(key, value)| match (key.as_str(), value) {
            ("room_name" | "room_alias" | "sender_display_name", Value::String(text)) => Some(text),
            ("content", Value::Object(content)) => match content.get_mut("body") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

    use serde_json::json;

    use super::*;
    use crate::notification::tests::notification;

    fn built(mut value: Value, default_payload: Value, kind: Kind) -> Result<Value, Unsent> {
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
    fn ids_and_counts_are_all_that_the_default_tells() {
        assert_eq!(
            built(event(json!({"body": "hi"})), json!({}), Kind::IdsOnly).unwrap(),
            json!({"event_id": "$e", "room_id": "!r", "unread": 0, "missed_calls": 3})
        );
        let counts = json!({"counts": {"unread": 4}});
        assert_eq!(built(counts, json!({"s": 1}), Kind::CountsOnly).unwrap(), json!({"s": 1, "unread": 4}));
        assert_eq!(built(json!({}), json!({"s": 1}), Kind::CountsOnly), Err(Unsent::NothingToSay));
    }

    #[test]
    fn a_long_body_is_cut_and_ciphertext_is_whole_or_absent() {
        let cut =
            built(event(json!({"body": "é".repeat(60_000), "msgtype": "m.text"})), json!({}), Kind::Full).unwrap();
        let body = cut["content"]["body"].as_str().unwrap();
        assert!(body.len() > 3000 && "é".repeat(60_000).starts_with(body));
        assert_eq!((&cut["content"]["msgtype"], &cut["room_name"]), (&json!("m.text"), &json!("Ops")));

        let sealed = |length: usize| built(event(json!({"ciphertext": "c".repeat(length)})), json!({}), Kind::Full);
        assert_eq!(sealed(3000).unwrap()["content"]["ciphertext"], "c".repeat(3000));
        assert_eq!(sealed(4000).unwrap()["content"], Value::Null);
    }
}
