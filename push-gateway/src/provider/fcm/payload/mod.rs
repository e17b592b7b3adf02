//! The message for Android apps: a flat map of strings (docs/payloads.md, "FCM").

use serde_json::{Map, Value, json};

use super::fluffychat;
use crate::{
    config::FcmProfile,
    fit,
    notification::{Device, ENCRYPTED_KEYS, Kind, Notification, Priority},
    outcome::Ended,
    upstream::too_large,
};

/// Google's limit for a message, in bytes.
const MAX_MESSAGE: usize = 4096;
/// The most bytes of a single text. Longer ones are truncated even if there is room, as apps are used to from Sygnal.
const MAX_TEXT: usize = 1024;
/// Marks the end of a truncated text.
const MARK: &str = "…";
/// The key of an encrypted event's ciphertext.
const EVENT_CIPHERTEXT: &str = "content_ciphertext";

/// Ids, counts and values that only work whole: never truncated.
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

/// The common part of all messages of an app.
#[derive(Debug)]
pub(super) struct Template {
    options: Map<String, Value>,
    profile: FcmProfile,
}

impl Template {
    pub(super) fn new(options: Map<String, Value>, profile: FcmProfile) -> Self {
        Self { options, profile }
    }

    /// Builds the request body for one device.
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

/// The data that the app reads; `own` takes precedence.
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
            // The key is not logged: the app chose it, so it may be of any length.
            tracing::warn!(provider = "fcm", "default_payload of a pusher contains a key reserved by FCM; key omitted");
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

/// Truncates each text that is too long, then the longest ones until the data fits.
fn fitted(mut data: Map<String, Value>, max_data: usize) -> Result<Map<String, Value>, Ended> {
    cut_long(&mut data);
    if excess(&data, max_data) > 0 && data.remove(EVENT_CIPHERTEXT).is_some() {
        // A truncated ciphertext is useless; without it the app fetches the event by its id.
        cut_long(&mut data);
    }
    let excess = excess(&data, max_data);
    if excess == 0 || fit::shrink(texts(&mut data), excess, MARK) {
        return Ok(data);
    }
    Err(too_large(MAX_MESSAGE))
}

/// The number of bytes over the limit.
fn excess(data: &Map<String, Value>, max_data: usize) -> usize {
    json!(data).to_string().len().saturating_sub(max_data)
}

fn cut_long(data: &mut Map<String, Value>) {
    for text in texts(data) {
        fit::cut(text, MAX_TEXT, MARK);
    }
}

/// Whether Google reserves the key: FCM refuses a message that contains one.
fn is_reserved(key: &str) -> bool {
    matches!(key, "from" | "message_type") || key.starts_with("google.") || key.starts_with("gcm.")
}

/// Converts a value to a string, since FCM's data contains only strings.
fn text(value: Value) -> Value {
    match value {
        Value::String(_) => value,
        other => other.to_string().into(),
    }
}

/// The texts that may be truncated. The entries needed to decrypt a ciphertext are useless in part, like the ciphertext
/// itself.
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
mod tests;
