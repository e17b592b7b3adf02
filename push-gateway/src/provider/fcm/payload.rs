//! What an app on Android reads: a flat map of texts (docs/payloads.md, "FCM").

use serde_json::{Map, Value, json};

use super::fluffychat;
use crate::{
    config::FcmProfile,
    fit,
    notification::{Device, ENCRYPTED_KEYS, Kind, Notification, Priority},
    outcome::Ended,
    upstream::too_large,
};

/// Bytes of a message: Google's limit.
const MAX_MESSAGE: usize = 4096;
/// Bytes of one text: longer ones are cut whether or not the rest leaves room, as Sygnal's apps know it.
const MAX_TEXT: usize = 1024;
/// What a cut text ends with.
const MARK: &str = "…";
/// The key under which an encrypted event's content arrives.
const EVENT_CIPHERTEXT: &str = "content_ciphertext";

/// Ids, counts and what is as good as an id: never cut.
const WHOLE: [&str; 10] = [
    "event_id",
    "room_id",
    "sender",
    "type",
    "membership",
    "prio",
    "unread",
    "missed_calls",
    fluffychat::COUNTS,
    fluffychat::DEVICES,
];

/// What each message of an app has in common.
#[derive(Debug)]
pub(super) struct Template {
    options: Map<String, Value>,
    profile: FcmProfile,
}

impl Template {
    pub(super) fn new(options: Map<String, Value>, profile: FcmProfile) -> Self {
        Self { options, profile }
    }

    /// Builds the request's body for one device.
    pub(super) fn build(&self, notification: &Notification, device: &Device, kind: Kind) -> Result<Vec<u8>, Ended> {
        let mut message = self.options.clone();
        let mut own = Map::new();
        if self.profile == FcmProfile::FluffyChat {
            fluffychat::show(&mut message, notification, device, kind);
            own = fluffychat::data(notification, device);
        }
        let taken = if message.is_empty() { 0 } else { json!(message).to_string().len() };
        let data = data(notification, device, kind, own)?;
        let data = fitted(data, MAX_MESSAGE.saturating_sub(taken))?;
        let is_urgent = notification.prio == Priority::High && kind != Kind::CountsOnly;
        let priority = if is_urgent { "high" } else { "normal" };
        match message.get_mut("android") {
            Some(Value::Object(android)) => drop(android.insert("priority".to_owned(), priority.into())),
            _ => drop(message.insert("android".to_owned(), json!({"priority": priority}))),
        }
        message.insert("token".to_owned(), device.pushkey.expose().into());
        message.insert("data".to_owned(), Value::Object(data));
        Ok(json!({"message": message}).to_string().into_bytes())
    }
}

/// What the app reads, `own` last.
fn data(
    notification: &Notification,
    device: &Device,
    kind: Kind,
    own: Map<String, Value>,
) -> Result<Map<String, Value>, Ended> {
    if kind == Kind::CountsOnly && notification.counts.badge().is_none() {
        return Err(Ended::Dropped);
    }
    let mut data = Map::new();
    for (key, value) in device.default_payload() {
        if is_reserved(&key) {
            // The key is the app's own choice and no secret, but nobody knows how long it is.
            tracing::warn!(provider = "fcm", "a pusher's default_payload has a key that FCM reserves; left out");
            continue;
        }
        data.insert(key, text(value));
    }
    let keys: &[&str] = match kind {
        Kind::Full => &["event_id", "type", "sender", "room_id", "room_name", "room_alias", "sender_display_name"],
        Kind::IdsOnly => &["event_id", "room_id"],
        Kind::CountsOnly => &[],
    };
    for key in keys {
        if let Some(value) = notification.text(key) {
            data.insert((*key).to_owned(), value.into());
        }
    }
    if kind == Kind::Full {
        if let Some(membership) = notification.membership() {
            data.insert("membership".to_owned(), membership.into());
        }
        for (key, value) in notification.content().into_iter().flatten() {
            data.insert(format!("content_{key}"), text(value.clone()));
        }
    }
    for (key, part) in notification.encrypted_parts() {
        data.insert(key.to_owned(), text(part.clone()));
    }
    data.insert("prio".to_owned(), notification.prio.as_str().into());
    let counts = [("unread", notification.counts.unread), ("missed_calls", notification.counts.missed_calls)];
    for (key, count) in counts {
        if let Some(count) = count {
            data.insert(key.to_owned(), count.to_string().into());
        }
    }
    data.extend(own);
    Ok(data)
}

/// Cuts each text that is too long, and then the longest ones until all fit.
fn fitted(mut data: Map<String, Value>, max_data: usize) -> Result<Map<String, Value>, Ended> {
    cut_long(&mut data);
    if excess(&data, max_data) > 0 && data.remove(EVENT_CIPHERTEXT).is_some() {
        // A part of a ciphertext is of no use; without it the app fetches the event by its id.
        cut_long(&mut data);
    }
    let excess = excess(&data, max_data);
    if excess == 0 || fit::shrink(texts(&mut data), excess, MARK) {
        return Ok(data);
    }
    Err(too_large(MAX_MESSAGE))
}

/// Bytes that are too many.
fn excess(data: &Map<String, Value>, max_data: usize) -> usize {
    json!(data).to_string().len().saturating_sub(max_data)
}

fn cut_long(data: &mut Map<String, Value>) {
    for text in texts(data) {
        fit::cut(text, MAX_TEXT, MARK);
    }
}

/// Keys that Google keeps for itself: a message with one of them is refused.
fn is_reserved(key: &str) -> bool {
    matches!(key, "from" | "message_type") || key.starts_with("google.") || key.starts_with("gcm.")
}

/// FCM's data holds texts only.
fn text(value: Value) -> Value {
    match value {
        Value::String(_) => value,
        other => other.to_string().into(),
    }
}

/// The texts that may be cut. Beside a ciphertext stands what it is opened with, which is of no use in part either.
fn texts(data: &mut Map<String, Value>) -> Vec<&mut String> {
    let is_sealed = data.contains_key(EVENT_CIPHERTEXT);
    let may_be_cut = |key: &str| {
        !(WHOLE.contains(&key) || ENCRYPTED_KEYS.contains(&key) || is_sealed && key.starts_with("content_"))
    };
    data.iter_mut()
        .filter(|(key, _)| may_be_cut(key))
        .filter_map(|(_, value)| match value {
            Value::String(text) => Some(text),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
#[path = "payload_tests.rs"]
mod tests;
