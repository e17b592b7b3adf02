//! The message for UnifiedPush apps: the homeserver's own notification (docs/payloads.md, "UnifiedPush").

use serde_json::{Map, Value};

use crate::{
    fit,
    notification::{Kind, Notification},
    outcome::Ended,
    upstream::too_large,
};

/// Bytes around the notification: `{"notification":` and `}`.
const AROUND: usize = 17;

/// Builds the message, at most `max_bytes` long. It omits `devices`: the recipient knows its own device, and the
/// pusher's data came from it.
pub(super) fn build(notification: &Notification, kind: Kind, max_bytes: usize) -> Result<Vec<u8>, Ended> {
    let inner = match kind {
        Kind::Full => full(notification),
        Kind::IdsOnly => parts(notification, &["event_id", "room_id"]),
        Kind::CountsOnly if notification.counts.badge().is_none() => return Err(Ended::Dropped),
        Kind::CountsOnly => parts(notification, &[]),
    };
    let inner = fit::notification(inner, max_bytes - AROUND).ok_or_else(|| too_large(max_bytes))?;
    Ok(format!("{{\"notification\":{inner}}}").into_bytes())
}

/// The whole notification as the homeserver sent it, without HTML.
fn full(notification: &Notification) -> Map<String, Value> {
    let mut inner = notification.as_it_came().clone();
    if let Some(content) = notification.content() {
        inner.insert("content".to_owned(), Value::Object(fit::without_html(content)));
    }
    inner
}

/// The given texts, the counts, the priority, and the parts encrypted for the app.
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
    use crate::{
        arbitrary::{Random, assert_only_cut, least},
        notification::tests::notification,
    };

    fn built(mut value: Value, kind: Kind) -> Result<Value, Ended> {
        value["devices"] = json!([{"app_id": "a", "pushkey": "https://push.example/up", "data": {"secret": 1}}]);
        let message = build(&notification(value), kind, 4096)?;
        assert!(message.len() <= 4096);
        Ok(serde_json::from_slice(&message).unwrap())
    }

    #[test]
    fn element_x_gets_ids_and_counts() {
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
    fn a_full_event_is_sent_as_received_without_html() {
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
    fn counts_alone_are_sent_if_there_are_any() {
        let counts = json!({"id": "", "type": null, "sender": "", "counts": {"unread": 3, "missed_calls": 1}});
        assert_eq!(
            built(counts, Kind::CountsOnly).unwrap(),
            json!({"notification": {"counts": {"unread": 3, "missed_calls": 1}, "prio": "high"}})
        );
        assert_eq!(built(json!({}), Kind::CountsOnly), Err(Ended::Dropped));
    }

    #[test]
    fn a_long_event_is_truncated_but_an_encrypted_notification_never_is() {
        let long = json!({"event_id": "$e", "type": "m", "content": {"body": "日".repeat(20_000)}});
        let cut = built(long, Kind::Full).unwrap();
        let body = cut["notification"]["content"]["body"].as_str().unwrap();
        assert!(body.len() > 3900 && body.chars().all(|character| character == '日'), "{}", body.len());

        let sealed = |length: usize| built(json!({"ciphertext": "c".repeat(length)}), Kind::IdsOnly);
        assert_eq!(sealed(4000).unwrap()["notification"]["ciphertext"], "c".repeat(4000));
        assert!(matches!(sealed(4090), Err(Ended::With(_))));
    }

    #[test]
    fn any_message_fits_and_only_readable_texts_are_truncated() {
        let may_be_cut = |place: &str| {
            let key = place.strip_prefix(".notification.").unwrap_or_default();
            matches!(key, "room_name" | "room_alias" | "sender_display_name" | "content.body")
        };
        let mut random = Random(14);
        let (mut cut, mut without_content, mut refused) = (0, 0, 0);
        for round in 0..1000 {
            let notification = random.notification(&json!({"of": "the pusher's own"}));
            let kind = [Kind::Full, Kind::Full, Kind::IdsOnly, Kind::CountsOnly][random.below(4)];
            let built = build(&notification, kind, 4096);
            let whole = match build(&notification, kind, usize::MAX) {
                Ok(whole) => whole,
                Err(nothing) => {
                    assert_eq!(built, Err(nothing), "{round}");
                    continue;
                }
            };
            let mut value: Value = serde_json::from_slice(&whole).unwrap();
            assert_eq!(value["notification"]["devices"], Value::Null, "{round}");
            let (with_content, _) = least(&value, &may_be_cut);
            let inner = value["notification"].as_object_mut().unwrap();
            if with_content > 4096 && inner.remove("content").is_some() {
                without_content += 1;
            }
            let (least, texts) = least(&value, &may_be_cut);
            let Ok(message) = built else {
                assert!(least > 4096, "{round}: it could be cut to {least} bytes");
                refused += 1;
                continue;
            };
            assert!(message.len() <= 4096 && least <= 4096, "{round}");
            let sent: Value = serde_json::from_slice(&message).unwrap();
            assert_only_cut(&value, &sent, "", &may_be_cut, "");
            if value.to_string().len() <= 4096 {
                assert_eq!(sent, value, "{round}: what fits is not touched");
            } else {
                cut += 1;
                assert!(message.len() + 7 * texts > 4096, "{round}: {} bytes", message.len());
            }
        }
        assert!(cut > 5 && without_content > 3 && refused > 5, "{cut} {without_content} {refused}");
    }
}
