//! FluffyChat's additions to the message, as its own gateway, hedwig, sends them (docs/payloads.md, "FCM").

use serde_json::{Map, Value, json};

use crate::notification::{Device, Kind, Notification};

/// Key of the counts, as JSON text.
pub(super) const COUNTS: &str = "counts";
/// Key of the single device, as JSON text: a list, as in the specification.
pub(super) const DEVICES: &str = "devices";
/// The text shown until the app has fetched the event; `<count>` stands for the badge.
const TITLE: &str = "<count> unread";
const BODY: &str = "Open the app to read";

/// The additional entries of the data.
pub(super) fn data(notification: &Notification, device: &Device) -> Map<String, Value> {
    let mut data = Map::new();
    let counts = notification.counts.to_object();
    if !counts.is_empty() {
        data.insert(COUNTS.to_owned(), Value::Object(counts).to_string().into());
    }
    let mut described = json!({"app_id": device.app_id, "pushkey": device.pushkey.expose()});
    if let Some(set_ms) = device.pushkey_ts_ms {
        described["pushkey_ts"] = (set_ms / 1000).into();
    }
    // The default payload is merged into the data already.
    let mut pusher = device.data.clone();
    pusher.remove("default_payload");
    if !pusher.is_empty() {
        described["data"] = Value::Object(pusher);
    }
    data.insert(DEVICES.to_owned(), Value::Array(vec![described]).to_string().into());
    data
}

/// Sets what the system itself does with the message. Android wakes the app and leaves everything to it; iOS shows a
/// notification, which the app may replace, and sets the badge.
pub(super) fn show(message: &mut Map<String, Value>, notification: &Notification, device: &Device, kind: Kind) {
    if device.data_text("data_message") != Some("ios") {
        message.remove("notification");
        message.remove("apns");
        return;
    }
    let badge = notification.counts.badge();
    let mut aps = Map::new();
    aps.insert("content-available".to_owned(), 1.into());
    if let Some(badge) = badge {
        aps.insert("badge".to_owned(), badge.into());
    }
    if kind == Kind::CountsOnly {
        message.remove("notification");
    } else {
        aps.insert("mutable-content".to_owned(), 1.into());
        aps.insert("sound".to_owned(), "default".into());
        let count = badge.unwrap_or(0).to_string();
        let configured = message.get("notification");
        let text = |key: &str, default: &str| {
            let text = configured.and_then(|texts| texts[key].as_str()).unwrap_or(default);
            Value::from(text.replace("<count>", &count))
        };
        let texts = json!({"title": text("title", TITLE), "body": text("body", BODY)});
        message.insert("notification".to_owned(), texts);
    }
    // The operator's `options.apns.payload.aps` takes precedence.
    let mut place = message.entry("apns").or_insert_with(|| json!({}));
    for key in ["payload", "aps"] {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[key];
    }
    if let Value::Object(configured) = place.take() {
        aps.extend(configured);
    }
    *place = Value::Object(aps);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

    use super::*;
    use crate::notification::tests::notification;

    fn shown(mut value: Value, data_message: Value, options: Value) -> Value {
        let Value::Object(mut message) = options else { panic!("options are an object") };
        value["devices"] = json!([{"app_id": "a", "pushkey": "k", "data": {"data_message": data_message}}]);
        let notification = notification(value);
        let kind = if notification.text("event_id").is_some() { Kind::IdsOnly } else { Kind::CountsOnly };
        show(&mut message, &notification, &notification.devices[0], kind);
        Value::Object(message)
    }

    #[test]
    fn counts_and_devices_are_json_text() {
        let notification = notification(json!({
            "counts": {"unread": 2},
            "devices": [{
                "app_id": "im.fluffychat.DEVICE", "pushkey": "k", "pushkey_ts": 1_700_000_000,
                "data": {"data_message": "android", "default_payload": {"a": 1}},
            }],
        }));
        let data = data(&notification, &notification.devices[0]);
        assert_eq!(data["counts"], "{\"unread\":2}");
        let devices: Value = serde_json::from_str(data["devices"].as_str().unwrap()).unwrap();
        assert_eq!(
            devices,
            json!([{
                "app_id": "im.fluffychat.DEVICE", "pushkey": "k", "pushkey_ts": 1_700_000_000,
                "data": {"data_message": "android"},
            }])
        );
    }

    #[test]
    fn android_itself_shows_nothing() {
        let event = json!({"event_id": "$e", "counts": {"unread": 2}});
        let options = json!({"notification": {"title": "x"}, "apns": {}, "android": {"ttl": "60s"}});
        for data_message in [json!("android"), json!(true), json!(null)] {
            let message = shown(event.clone(), data_message, options.clone());
            assert_eq!(message, json!({"android": {"ttl": "60s"}}));
        }
    }

    #[test]
    fn ios_shows_a_notification_and_the_badge() {
        let event = json!({"event_id": "$e", "counts": {"unread": 2, "missed_calls": 1}});
        assert_eq!(
            shown(event.clone(), json!("ios"), json!({})),
            json!({
                "notification": {"title": "3 unread", "body": "Open the app to read"},
                "apns": {"payload": {"aps": {
                    "badge": 3, "content-available": 1, "mutable-content": 1, "sound": "default",
                }}},
            })
        );
        let options = json!({
            "notification": {"title": "<count> neue Nachrichten"},
            "apns": {"headers": {"apns-priority": "5"}, "payload": {"aps": {"sound": "ping"}}},
        });
        assert_eq!(
            shown(event, json!("ios"), options),
            json!({
                "notification": {"title": "3 neue Nachrichten", "body": "Open the app to read"},
                "apns": {
                    "headers": {"apns-priority": "5"},
                    "payload": {"aps": {"badge": 3, "content-available": 1, "mutable-content": 1, "sound": "ping"}},
                },
            })
        );
    }

    #[test]
    fn on_ios_counts_alone_are_silent() {
        let message = shown(json!({"counts": {"unread": 0}}), json!("ios"), json!({"notification": {"title": "x"}}));
        assert_eq!(message, json!({"apns": {"payload": {"aps": {"badge": 0, "content-available": 1}}}}));
    }
}
