//! Rejects entries of `[[apps]]` in the form from before each push service had its own table, and spells out the new
//! form.

use std::fmt::Write as _;

use waypost_shared::config::{file::Table, keys::keys_of};

use super::{ApnsConfig, FcmConfig, WebPushConfig};

/// Keys of flat entries, each with what to write instead. Values are not repeated: one may be a secret under the wrong
/// key.
pub(in crate::config) fn problems(config: &Table) -> Vec<(String, String)> {
    let apps = config.get("apps").and_then(|apps| apps.as_array()).into_iter().flatten();
    let entries = apps.enumerate().filter_map(|(position, app)| Some((position, app.as_table()?)));
    entries.filter_map(|(position, app)| problem(position, app)).collect()
}

fn problem(position: usize, app: &Table) -> Option<(String, String)> {
    let services = [
        ("apns", names::<ApnsConfig>()),
        ("fcm", names::<FcmConfig>()),
        ("webpush", names::<WebPushConfig>()),
        ("unifiedpush", names::<WebPushConfig>()),
    ];
    let held = |names: &[&'static str]| -> Vec<&'static str> {
        names.iter().copied().filter(|name| app.contains_key(*name)).collect()
    };
    let kind = app.get("type").map(|kind| kind.as_str().unwrap_or_default());
    let is_moved = |name: &&str| services.iter().any(|(_, names)| names.contains(name));
    let key = match kind {
        Some(_) => "type",
        None => app.keys().map(String::as_str).find(is_moved)?,
    };
    // The service that the entry names, in either form, else the one that most of its keys belong to.
    let named = services.iter().find(|(service, _)| kind == Some(service) || app.contains_key(*service));
    let likely = || {
        let count = |names: &[&'static str]| held(names).len();
        services.iter().rev().filter(|(_, names)| count(names) > 0).max_by_key(|(_, names)| count(names))
    };
    let gcm = if kind == Some("gcm") { " (gcm was Google's, and was shut down in 2024)" } else { "" };
    let place = format!("apps.{position}.{key}");
    let Some((service, names)) = named.or_else(likely) else {
        let tables = "[apps.apns], [apps.fcm], [apps.webpush] or [apps.unifiedpush]";
        return Some((place, format!("is no longer a key{gcm}; use the table of the push service instead: {tables}")));
    };
    let moved = held(names);
    let foreign = app.keys().map(String::as_str).filter(is_moved).filter(|name| !moved.contains(name));
    let removed: Vec<_> = kind.map(|_| "type").into_iter().chain(foreign).collect();
    let mut text = format!("each push service has its own table now{gcm}; ");
    if !removed.is_empty() {
        let _ = write!(text, "remove `{}`, and ", removed.join("`, `"));
    }
    text.push_str(if moved.is_empty() {
        "write at the end of the entry:\n"
    } else {
        "move these keys, with their values, to the end of the entry, under the header of their table:\n"
    });
    let _ = write!(text, "[apps.{service}]");
    for name in moved {
        let _ = write!(text, "\n{name} = …");
    }
    Some((place, text))
}

/// The keys of a table.
fn names<T: serde::de::DeserializeOwned>() -> Vec<&'static str> {
    keys_of::<T>().into_iter().filter(|key| key.path.len() == 1).map(|key| key.path[0]).collect()
}
