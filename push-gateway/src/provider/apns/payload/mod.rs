//! The three kinds of payload for iOS apps (docs/payloads.md, "APNs").

use serde_json::{Map, Value, json};

use crate::{
    fit,
    notification::{Device, Kind, Notification},
    outcome::Ended,
    upstream::too_large,
};

/// An app's payload options.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    /// Whether to set the app's badge.
    pub(super) send_badge_counts: bool,
    /// The most bytes a payload may have.
    pub(super) max_bytes: usize,
}

/// A serialised payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Payload {
    pub(super) body: Vec<u8>,
    /// Whether it only sets the badge.
    pub(super) wakes_nobody: bool,
}

/// The text of an alert: a key into the app's own translations, and the arguments.
struct Alert<'n> {
    loc_key: &'static str,
    loc_args: Vec<&'n str>,
}

/// Builds the payload for one device.
pub(super) fn build(
    notification: &Notification,
    device: &Device,
    kind: Kind,
    options: Options,
) -> Result<Payload, Ended> {
    let payload = match kind {
        Kind::CountsOnly => return badge_only(notification, options),
        Kind::IdsOnly => ids_only(notification, device),
        Kind::Full => match alert(notification) {
            Some(alert) => full(notification, device, &alert, options),
            None => return badge_only(notification, options),
        },
    };
    fitted(payload, options.max_bytes).map(|body| Payload { body, wakes_nobody: false })
}

fn badge_only(notification: &Notification, options: Options) -> Result<Payload, Ended> {
    let badge = notification.counts.badge().filter(|_| options.send_badge_counts).ok_or(Ended::Dropped)?;
    let body = json!({"aps": {"badge": badge}}).to_string().into_bytes();
    Ok(Payload { body, wakes_nobody: true })
}

fn ids_only(notification: &Notification, device: &Device) -> Map<String, Value> {
    let mut payload = device.default_payload();
    add_ids(&mut payload, notification);
    if let Some(unread) = notification.counts.unread {
        payload.insert("unread_count".to_owned(), unread.into());
    }
    if let Some(missed_calls) = notification.counts.missed_calls {
        payload.insert("missed_calls".to_owned(), missed_calls.into());
    }
    for (key, part) in notification.encrypted_parts() {
        payload.insert(key.to_owned(), part.clone());
    }
    payload
}

fn full(notification: &Notification, device: &Device, text: &Alert<'_>, options: Options) -> Map<String, Value> {
    let mut payload = device.default_payload();
    let aps = object_in(&mut payload, "aps");
    let alert = object_in(aps, "alert");
    alert.insert("loc-key".to_owned(), text.loc_key.into());
    alert.insert("loc-args".to_owned(), json!(text.loc_args));
    if let Some(badge) = notification.counts.badge().filter(|_| options.send_badge_counts) {
        aps.insert("badge".to_owned(), badge.into());
    }
    add_ids(&mut payload, notification);
    payload
}

fn add_ids(payload: &mut Map<String, Value>, notification: &Notification) {
    for key in ["room_id", "event_id"] {
        if let Some(id) = notification.text(key) {
            payload.insert(key.to_owned(), id.into());
        }
    }
}

/// The object at `key`; any other value is replaced by an empty object.
fn object_in<'m>(map: &'m mut Map<String, Value>, key: &str) -> &'m mut Map<String, Value> {
    let value = map.entry(key).or_insert(Value::Null);
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(object) => object,
        _ => unreachable!("it was made an object above"),
    }
}

/// The alert for an event; none if the event deserves no alert.
fn alert(notification: &Notification) -> Option<Alert<'_>> {
    let from = notification.sender_name();
    let room = notification.room_name();
    let alert = |loc_key, loc_args| Some(Alert { loc_key, loc_args });
    match notification.text("type")? {
        "m.room.message" => match (notification.content_text("body"), notification.content_text("msgtype")) {
            (Some(body), Some("m.emote")) => match room {
                Some(room) => alert("ACTION_FROM_USER_IN_ROOM", vec![room, from, body]),
                None => alert("ACTION_FROM_USER", vec![from, body]),
            },
            (Some(body), Some("m.image")) => match room {
                Some(room) => alert("IMAGE_FROM_USER_IN_ROOM", vec![from, body, room]),
                None => alert("IMAGE_FROM_USER", vec![from, body]),
            },
            (Some(body), _) => match room {
                Some(room) => alert("MSG_FROM_USER_IN_ROOM_WITH_CONTENT", vec![from, room, body]),
                None => alert("MSG_FROM_USER_WITH_CONTENT", vec![from, body]),
            },
            (None, _) => message_without_body(from, room),
        },
        "m.room.encrypted" => message_without_body(from, room),
        "m.call.invite" => {
            let sdp = notification.content().and_then(|content| content.get("offer")?.get("sdp")?.as_str());
            let is_video = sdp.is_some_and(|sdp| sdp.contains("m=video"));
            alert(if is_video { "VIDEO_CALL_FROM_USER" } else { "VOICE_CALL_FROM_USER" }, vec![from])
        }
        "m.room.member" => {
            let is_invited = notification.user_is_target() == Some(true) && notification.membership() == Some("invite");
            match room {
                _ if !is_invited => None,
                Some(room) => alert("USER_INVITE_TO_NAMED_ROOM", vec![from, room]),
                None => alert("USER_INVITE_TO_CHAT", vec![from]),
            }
        }
        // An unknown event type, but the user's push rules ask for a notification.
        _ => alert("MSG_FROM_USER", vec![from]),
    }
}

fn message_without_body<'n>(from: &'n str, room: Option<&'n str>) -> Option<Alert<'n>> {
    Some(match room {
        Some(room) => Alert { loc_key: "MSG_FROM_USER_IN_ROOM", loc_args: vec![from, room] },
        None => Alert { loc_key: "MSG_FROM_USER", loc_args: vec![from] },
    })
}

/// Serialises the payload, truncating texts as needed.
fn fitted(payload: Map<String, Value>, max_bytes: usize) -> Result<Vec<u8>, Ended> {
    let mut payload = Value::Object(payload);
    let body = payload.to_string();
    let Some(excess) = body.len().checked_sub(max_bytes).filter(|excess| *excess > 0) else {
        return Ok(body.into_bytes());
    };
    if fit::shrink(texts(&mut payload), excess, "") {
        Ok(payload.to_string().into_bytes())
    } else {
        Err(too_large(max_bytes))
    }
}

/// The texts that may be truncated: those people read, never ids, counts or ciphertext.
fn texts(payload: &mut Value) -> Vec<&mut String> {
    match payload.get_mut("aps").and_then(|aps| aps.get_mut("alert")) {
        Some(Value::String(text)) => vec![text],
        Some(Value::Object(alert)) => {
            let mut texts = Vec::new();
            for (key, value) in alert {
                match (key.as_str(), value) {
                    ("body", Value::String(text)) => texts.push(text),
                    ("loc-args", Value::Array(args)) => texts.extend(args.iter_mut().filter_map(|arg| match arg {
                        Value::String(text) => Some(text),
                        _ => None,
                    })),
                    _ => {}
                }
            }
            texts
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
