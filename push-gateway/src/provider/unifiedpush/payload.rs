//! What an app reads that is woken by UnifiedPush: the homeserver's own notification (docs/payloads.md, "UnifiedPush").

use serde_json::{Map, Value};

use crate::{
    fit,
    notification::{Kind, Notification},
    provider::Unsent,
};

/// What stands around the notification: `{"notification":` and `}`.
const AROUND: usize = 17;

/// Builds the message, `max_bytes` long at the most. It names no device: whoever gets it knows who it is, and what the
/// pusher's data holds is its own.
pub(super) fn build(notification: &Notification, kind: Kind, max_bytes: usize) -> Result<Vec<u8>, Unsent> {
    let inner = match kind {
        Kind::Full => full(notification),
        Kind::IdsOnly => parts(notification, &["event_id", "room_id"]),
        Kind::CountsOnly if notification.counts.badge().is_none() => return Err(Unsent::NothingToSay),
        Kind::CountsOnly => parts(notification, &[]),
    };
    let inner = fit::notification(inner, max_bytes - AROUND).ok_or_else(|| Unsent::too_large(max_bytes))?;
    Ok(format!("{{\"notification\":{inner}}}").into_bytes())
}

/// All that the homeserver said, as it said it.
fn full(notification: &Notification) -> Map<String, Value> {
    let mut inner = notification.as_it_came().clone();
    if let Some(content) = notification.content() {
        inner.insert("content".to_owned(), Value::Object(fit::without_html(content)));
    }
    inner
}

/// Some texts, the counts, the priority, and what is encrypted for the app.
fn parts(notification: &Notification, keys: &[&str]) -> Map<String, Value> {
    let mut inner = Map::new();
    for key in keys {
        if let Some(text) = notification.text(key) {
            inner.insert((*key).to_owned(), text.into());
        }
    }
    let counts = notification.counts.to_object();
    if !counts.is_empty() {
        inner.insert("counts".to_owned(), Value::Object(counts));
    }
    inner.insert("prio".to_owned(), notification.prio.as_str().into());
    for (key, part) in notification.encrypted_parts() {
        inner.insert(key.to_owned(), part.clone());
    }
    inner
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

    use serde_json::json;

    use super::*;
    use crate::notification::tests::notification;

    fn built(mut value: Value, kind: Kind) -> Result<Value, Unsent> {
        value["devices"] = json!([{"app_id": "a", "pushkey": "https://push.example/up", "data": {"secret": 1}}]);
        let message = build(&notification(value), kind, 4096)?;
        assert!(message.len() <= 4096);
        Ok(serde_json::from_slice(&message).unwrap())
    }

    #[test]
    fn element_x_reads_ids_and_counts() {
        let value = json!({
            "event_id": "$e", "room_id": "!r", "type": "m.room.message", "content": {"body": "hi"}, "prio": "high",
            "counts": {"unread": 0},
        });
        assert_eq!(
            built(value, Kind::IdsOnly).unwrap(),
            json!({"notification": {"event_id": "$e", "room_id": "!r", "counts": {"unread": 0}, "prio": "high"}})
        );
    }

    #[test]
    fn a_full_event_is_what_the_homeserver_said() {
        let value = json!({
            "id": "x", "event_id": "$e", "room_id": "!r", "type": "m.room.message", "sender": "@tom:hs",
            "room_name": "Ops", "content": {"body": "hi", "formatted_body": "<b>hi</b>"}, "new_field": [1],
        });
        assert_eq!(
            built(value, Kind::Full).unwrap(),
            json!({"notification": {
                "id": "x", "event_id": "$e", "room_id": "!r", "type": "m.room.message", "sender": "@tom:hs",
                "room_name": "Ops", "content": {"body": "hi"}, "new_field": [1],
            }})
        );
    }

    #[test]
    fn counts_alone_are_sent_where_there_are_any() {
        let counts = json!({"id": "", "type": null, "sender": "", "counts": {"unread": 3, "missed_calls": 1}});
        assert_eq!(
            built(counts, Kind::CountsOnly).unwrap(),
            json!({"notification": {"counts": {"unread": 3, "missed_calls": 1}, "prio": "high"}})
        );
        assert_eq!(built(json!({}), Kind::CountsOnly), Err(Unsent::NothingToSay));
    }

    #[test]
    fn a_long_event_is_cut_and_an_encrypted_notification_never() {
        let long = json!({"event_id": "$e", "type": "m", "content": {"body": "日".repeat(20_000)}});
        let cut = built(long, Kind::Full).unwrap();
        let body = cut["notification"]["content"]["body"].as_str().unwrap();
        assert!(body.len() > 3900 && body.chars().all(|character| character == '日'), "{}", body.len());

        let sealed = |length: usize| built(json!({"ciphertext": "c".repeat(length)}), Kind::IdsOnly);
        assert_eq!(sealed(4000).unwrap()["notification"]["ciphertext"], "c".repeat(4000));
        assert!(matches!(sealed(4090), Err(Unsent::Settled(_))));
    }
}
