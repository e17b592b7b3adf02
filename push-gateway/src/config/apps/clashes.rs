//! Entries that are good by themselves and get in each other's way.

use std::collections::HashMap;

use waypost_shared::config_file::{ConfigError, Source};

use crate::{
    config::{ApnsCredentials, AppConfig, AppSection, ProviderConfig},
    glob::Glob,
};

/// Pairs of entries that one `app_id` could belong to both of.
pub(super) fn ambiguous(sections: &[AppSection], source: &Source) -> Vec<ConfigError> {
    let globs: Vec<_> = sections.iter().map(|section| section.id.as_deref().map(Glob::new)).collect();
    let mut errors = Vec::new();
    for (later, glob) in globs.iter().enumerate() {
        let clash = globs[..later].iter().position(|earlier| match (earlier, glob) {
            (Some(a), Some(b)) if a.is_exact() || b.is_exact() => a == b,
            (Some(a), Some(b)) => a.len() == b.len() && a.overlaps(b),
            _ => false,
        });
        if let Some(earlier) = clash {
            let problem = format!(
                "an app_id can match this and apps.{earlier}.id, and neither is longer; make one of them more particular"
            );
            errors.push(source.error(&format!("apps.{later}.id"), problem));
        }
    }
    errors
}

/// Entries that call two keys by one name: apps share the token of a name, so one of them would use the other's.
pub(super) fn two_keys_of_one_name(apps: &[AppConfig], source: &Source) -> Vec<ConfigError> {
    let mut known = HashMap::new();
    let mut errors = Vec::new();
    for app in apps {
        let ProviderConfig::Apns(apns) = &app.provider else { continue };
        let ApnsCredentials::Token { key, key_id, team_id } = &apns.credentials else { continue };
        let public_key = key.public_key();
        let (earlier, earlier_key) =
            known.entry((key_id, team_id)).or_insert_with(|| (app.position, public_key.clone()));
        if *earlier_key != public_key {
            let problem =
                format!("holds another key than that of apps.{earlier}, which has the same key_id and team_id");
            errors.push(source.error(&format!("apps.{}.key_file", app.position), problem));
        }
    }
    errors
}
