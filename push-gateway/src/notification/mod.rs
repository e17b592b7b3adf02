//! The request: a notification about one event, and the devices to send it to.
//!
//! Source: Push Gateway API, `POST /_matrix/push/v1/notify`. Where deployed homeservers deviate from it, this follows
//! the homeservers (null for absent, an empty `sender` and `id`, missing `tweaks`).

mod size;

use serde_json::{Map, Value};
use waypost_shared::source::RequestSource;

use crate::{
    config::{Content, NotifyConfig},
    pushkey::PushKey,
};

/// Sygnal's id for an event that does not exist; Element X sends it whenever its user presses "test".
const TEST_EVENT_ID: &str = "$THIS_IS_A_FAKE_EVENT_ID";

/// The fields of an encrypted notification (MSC3013). Passed on unchanged.
pub(crate) const ENCRYPTED_KEYS: [&str; 3] = ["ciphertext", "ephemeral", "mac"];

/// Event types that ring. The last two are what Element Call sends until MSC3401 and MSC4075 are stable.
const CALL_EVENTS: [&str; 5] = [
    "m.call.invite",
    "m.call.member",
    "m.rtc.notification",
    "org.matrix.msc3401.call.member",
    "org.matrix.msc4075.rtc.notification",
];

/// Optional string fields of a notification.
const TEXT_KEYS: [&str; 8] =
    ["event_id", "room_id", "type", "sender", "sender_display_name", "room_name", "room_alias", "membership"];

/// Limit on an `app_id`, in bytes. The specification allows 64 characters; this is lenient.
const MAX_APP_ID: usize = 255;
/// Limit on a pushkey, in bytes. The specification allows 512, but a UnifiedPush endpoint may be longer.
const MAX_PUSHKEY: usize = 2048;
/// A `pushkey_ts` above this is in milliseconds: as seconds it would be in the year 5138.
const LARGEST_SECONDS: i64 = 100_000_000_000;

/// Why a request is not a valid notification. Names the field, never its value: pushkeys are secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidNotification {
    /// `notification` itself is not an object.
    #[error("`notification` must be an object")]
    NotAnObject,
    /// A required field is missing.
    #[error("Missing parameters: {0}")]
    Missing(String),
    /// A field has the wrong type or an impossible value.
    #[error("`{field}` {must}")]
    Invalid {
        /// The field's path, such as `notification.devices[0].pushkey`.
        field: String,
        /// What it must be.
        must: &'static str,
    },
    /// More devices than the limit, which is given.
    #[error("`notification.devices` may name at most {0} devices")]
    TooManyDevices(usize),
}

/// The notification's `prio`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// The default, also for unknown values.
    High,
    /// May wait until the device next wakes up.
    Low,
}

impl Priority {
    /// The specification's spelling.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Low => "low",
        }
    }
}

/// Unread counts. `None` leaves a count as it is, 0 clears it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Unread messages in all rooms.
    pub(crate) unread: Option<i64>,
    /// Missed calls in all rooms.
    pub(crate) missed_calls: Option<i64>,
}

impl Counts {
    /// The number for the app's icon, if the request has any count.
    pub(crate) fn badge(self) -> Option<i64> {
        if self == Self::default() {
            return None;
        }
        Some(self.unread.unwrap_or(0).saturating_add(self.missed_calls.unwrap_or(0)))
    }

    /// The specification's JSON form; absent counts are left out.
    pub(crate) fn to_object(self) -> Map<String, Value> {
        let counts = [("unread", self.unread), ("missed_calls", self.missed_calls)];
        counts.into_iter().filter_map(|(key, count)| Some((key.to_owned(), count?.into()))).collect()
    }
}

/// How much of a notification a device receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sender, room and content.
    Full,
    /// Ids only; the app fetches the event itself.
    IdsOnly,
    /// No event: only the counts changed.
    CountsOnly,
}

/// One device of a request.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// Selects the `apps` entry.
    pub(crate) app_id: String,
    pub(crate) pushkey: PushKey,
    /// The latest time at which the pushkey may have been set, in milliseconds since the epoch: the end of the second
    /// that the homeserver sent.
    pub(crate) pushkey_ts_ms: Option<i64>,
    /// The pusher's `data`, as the client stored it.
    pub(crate) data: Map<String, Value>,
    /// What is wrong with this device, if anything. It gets no push then, but the other devices still do.
    pub(crate) fault: Option<InvalidNotification>,
}

impl Device {
    /// The payload that the client wants everything else merged into.
    pub(crate) fn default_payload(&self) -> Map<String, Value> {
        self.data.get("default_payload").and_then(Value::as_object).cloned().unwrap_or_default()
    }

    /// A string from the pusher's data.
    pub(crate) fn data_text(&self, key: &str) -> Option<&str> {
        self.data.get(key).and_then(Value::as_str)
    }

    /// A flag from the pusher's data; off unless it is `true`.
    pub(crate) fn is_on(&self, switch: &str) -> bool {
        self.data.get(switch) == Some(&Value::Bool(true))
    }
}

/// A notification whose known fields have the right types.
#[derive(Clone, Debug)]
pub(crate) struct Notification {
    /// As received, without the devices.
    raw: Map<String, Value>,
    /// The sender of the request.
    pub(crate) source: RequestSource,
    pub(crate) counts: Counts,
    pub(crate) prio: Priority,
    pub(crate) devices: Vec<Device>,
}

impl Notification {
    /// Parses a request body.
    pub(crate) fn parse(
        mut body: Map<String, Value>,
        source: RequestSource,
        limits: &NotifyConfig,
    ) -> Result<Self, InvalidNotification> {
        let mut raw = match body.remove("notification") {
            Some(Value::Object(raw)) => raw,
            None | Some(Value::Null) => return Err(InvalidNotification::Missing("notification".to_owned())),
            Some(_) => return Err(InvalidNotification::NotAnObject),
        };
        let devices = match raw.remove("devices") {
            Some(Value::Array(devices)) => devices,
            None | Some(Value::Null) => return Err(InvalidNotification::Missing("notification.devices".to_owned())),
            Some(_) => return Err(invalid("notification.devices", "must be a list of devices")),
        };
        if devices.len() > limits.max_devices {
            return Err(InvalidNotification::TooManyDevices(limits.max_devices));
        }
        for key in TEXT_KEYS {
            if !matches!(raw.get(key), None | Some(Value::Null | Value::String(_))) {
                return Err(invalid(&format!("notification.{key}"), "must be a string"));
            }
        }
        if !matches!(raw.get("content"), None | Some(Value::Null | Value::Object(_))) {
            return Err(invalid("notification.content", "must be an object"));
        }
        let counts = counts(raw.get("counts"))?;
        keep_what_may_be_an_event(&mut raw);
        let prio = match raw.get("prio").and_then(Value::as_str) {
            Some("low") => Priority::Low,
            _ => Priority::High,
        };
        let devices = devices
            .into_iter()
            .enumerate()
            .map(|(number, device)| device_of(device, &format!("notification.devices[{number}]")))
            .collect::<Result<_, _>>()?;
        Ok(Self { raw, source, counts, prio, devices })
    }

    /// The notification as received, without its devices.
    pub(crate) fn as_it_came(&self) -> &Map<String, Value> {
        &self.raw
    }

    /// A string field of the notification; null and empty count as absent.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.raw.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// The event's content.
    pub(crate) fn content(&self) -> Option<&Map<String, Value>> {
        self.raw.get("content").and_then(Value::as_object)
    }

    /// A string from the event's content; empty counts as absent.
    pub(crate) fn content_text(&self, key: &str) -> Option<&str> {
        self.content()?.get(key)?.as_str().filter(|text| !text.is_empty())
    }

    /// The membership of a member event: Synapse sends it next to the content, the specification has it in the content.
    pub(crate) fn membership(&self) -> Option<&str> {
        self.text("membership").or_else(|| self.content_text("membership"))
    }

    /// Whether the event is about this user's own membership.
    pub(crate) fn user_is_target(&self) -> Option<bool> {
        self.raw.get("user_is_target").and_then(Value::as_bool)
    }

    /// The sender's display name, else the user id.
    pub(crate) fn sender_name(&self) -> &str {
        self.text("sender_display_name").or_else(|| self.text("sender")).unwrap_or_default()
    }

    /// The room's name, else its alias.
    pub(crate) fn room_name(&self) -> Option<&str> {
        self.text("room_name").or_else(|| self.text("room_alias"))
    }

    /// The fields of an encrypted notification, as received; null counts as absent.
    pub(crate) fn encrypted_parts(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        ENCRYPTED_KEYS.into_iter().filter_map(move |key| {
            let part = self.raw.get(key).filter(|part| !part.is_null())?;
            Some((key, part))
        })
    }

    /// Whether the event should ring.
    pub(crate) fn is_call(&self) -> bool {
        self.text("type").is_some_and(|kind| CALL_EVENTS.contains(&kind))
    }

    /// Whether a user pressed "test" and expects to see every push.
    pub(crate) fn is_test(&self) -> bool {
        self.text("event_id") == Some(TEST_EVENT_ID)
    }

    /// How much of this notification `device` receives from an app configured with `content`.
    pub(crate) fn kind(&self, content: Content, device: &Device) -> Kind {
        // The ciphertext may be an event, and only the app can show it.
        if self.text("ciphertext").is_some() {
            return Kind::IdsOnly;
        }
        if self.text("event_id").is_none() {
            return Kind::CountsOnly;
        }
        let wants_ids = device.data_text("format") == Some("event_id_only");
        match content {
            Content::Full if self.text("type").is_some() && !wants_ids => Kind::Full,
            Content::Full | Content::IdsOnly => Kind::IdsOnly,
        }
    }
}

/// Makes what is kept no larger than an event. Long texts are cut first, then the content is dropped: no push could show
/// it, and its app can fetch what there is. At last only the fields that the specification knows are kept.
fn keep_what_may_be_an_event(raw: &mut Map<String, Value>) {
    if size::object_fits(raw) {
        return;
    }
    raw.values_mut().for_each(size::shorten);
    if raw.get("content").is_some_and(|content| !size::value_fits(content)) {
        raw.remove("content");
    }
    if !size::object_fits(raw) {
        let is_known = |key: &str| TEXT_KEYS.contains(&key) || ENCRYPTED_KEYS.contains(&key);
        raw.retain(|key, value| is_known(key) && value.is_string());
    }
}

fn device_of(device: Value, place: &str) -> Result<Device, InvalidNotification> {
    let Value::Object(mut device) = device else {
        return Err(invalid(place, "must be an object"));
    };
    let mut app_id = required(&mut device, place, "app_id")?;
    let pushkey = required(&mut device, place, "pushkey")?;
    if pushkey.is_empty() {
        return Err(invalid(&format!("{place}.pushkey"), "must not be empty"));
    }
    let pushkey_ts_ms = match device.get("pushkey_ts") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let time = integer(value).ok_or_else(|| invalid(&format!("{place}.pushkey_ts"), "must be an integer"))?;
            Some(if time > LARGEST_SECONDS { time } else { time.saturating_mul(1000).saturating_add(999) })
        }
    };
    if !matches!(device.get("tweaks"), None | Some(Value::Null | Value::Object(_))) {
        return Err(invalid(&format!("{place}.tweaks"), "must be an object"));
    }
    // Invalid pusher data affects this device alone: the others still get their push.
    let (data, fault) = match device.remove("data") {
        None | Some(Value::Null) => (Map::new(), None),
        Some(Value::Object(data)) => {
            let is_good = matches!(data.get("default_payload"), None | Some(Value::Null | Value::Object(_)));
            let fault = (!is_good).then(|| invalid(&format!("{place}.data.default_payload"), "must be an object"));
            if size::object_fits(&data) {
                (data, fault)
            } else {
                (Map::new(), Some(invalid(&format!("{place}.data"), "must be at most 65536 bytes and 4096 values")))
            }
        }
        Some(_) => (Map::new(), Some(invalid(&format!("{place}.data"), "must be an object"))),
    };
    let fault = too_long(place, &app_id, &pushkey).or(fault);
    if app_id.len() > MAX_APP_ID {
        // Patterns are not matched against a text that may be as long as the body.
        app_id.clear();
    }
    Ok(Device { app_id, pushkey: pushkey.into(), pushkey_ts_ms, data, fault })
}

/// Checks the lengths of a device's `app_id` and pushkey. On the 400 that follows a homeserver retries for a while and
/// gives up on the event, which never deletes the pusher; a 200 would hide the mistake.
fn too_long(place: &str, app_id: &str, pushkey: &str) -> Option<InvalidNotification> {
    if app_id.len() > MAX_APP_ID {
        return Some(invalid(&format!("{place}.app_id"), "must be at most 255 bytes"));
    }
    if pushkey.len() > MAX_PUSHKEY {
        return Some(invalid(&format!("{place}.pushkey"), "must be at most 2048 bytes"));
    }
    None
}

fn required(device: &mut Map<String, Value>, place: &str, key: &str) -> Result<String, InvalidNotification> {
    match device.remove(key) {
        None | Some(Value::Null) => Err(InvalidNotification::Missing(format!("{place}.{key}"))),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(invalid(&format!("{place}.{key}"), "must be a string")),
    }
}

fn counts(value: Option<&Value>) -> Result<Counts, InvalidNotification> {
    let counts = match value {
        None | Some(Value::Null) => return Ok(Counts::default()),
        Some(Value::Object(counts)) => counts,
        Some(_) => return Err(invalid("notification.counts", "must be an object")),
    };
    let count = |key: &str| match counts.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match integer(value) {
            Some(count) => Ok(Some(count)),
            None => Err(invalid(&format!("notification.counts.{key}"), "must be an integer")),
        },
    };
    Ok(Counts { unread: count("unread")?, missed_calls: count("missed_calls")? })
}

/// An integer between -2^53 and 2^53; a zero fraction (`2.0`) is accepted.
fn integer(value: &Value) -> Option<i64> {
    const LARGEST: i64 = 1 << 53;
    let number = match value.as_i64() {
        Some(number) => number,
        None => {
            let number = value.as_f64().filter(|number| number.fract() == 0.0)?;
            // Through text, since a cast would saturate silently.
            format!("{number:.0}").parse().ok()?
        }
    };
    (-LARGEST..=LARGEST).contains(&number).then_some(number)
}

fn invalid(field: &str, must: &'static str) -> InvalidNotification {
    InvalidNotification::Invalid { field: field.to_owned(), must }
}

#[cfg(test)]
pub(crate) mod tests;
