//! Entries whose pushes go to addresses that strangers choose: web push and UnifiedPush.

use super::Entry;
use crate::{
    config::{UnifiedPushConfig, WebPushConfig},
    glob::Glob,
    jwt::Es256Key,
};

/// Seconds that a web push service keeps a message for a device that is away: Sygnal's default.
const DEFAULT_WEBPUSH_TTL_SECS: u64 = 15 * 60;
/// The same for UnifiedPush, whose devices are phones: as long as Synapse keeps trying, one day.
const DEFAULT_UNIFIEDPUSH_TTL_SECS: u64 = 24 * 60 * 60;

impl Entry<'_> {
    pub(super) fn webpush(&mut self) -> Option<WebPushConfig> {
        let (vapid_key, vapid_contact) = self.vapid()?;
        Some(WebPushConfig {
            vapid_key,
            vapid_contact,
            allowed_endpoints: self.allowed_endpoints(),
            ttl_secs: self.section.ttl_secs.unwrap_or(DEFAULT_WEBPUSH_TTL_SECS),
            events_only: self.section.events_only.unwrap_or(false),
        })
    }

    pub(super) fn unifiedpush(&mut self) -> Option<UnifiedPushConfig> {
        let is_signed = self.section.vapid_key_file.is_some() || self.section.vapid_contact.is_some();
        let vapid = if is_signed { Some(self.vapid()?) } else { None };
        Some(UnifiedPushConfig {
            vapid,
            allowed_endpoints: self.allowed_endpoints(),
            ttl_secs: self.section.ttl_secs.unwrap_or(DEFAULT_UNIFIEDPUSH_TTL_SECS),
            events_only: self.section.events_only.unwrap_or(false),
        })
    }

    /// The key that messages are signed with, and whom to ask about them.
    fn vapid(&mut self) -> Option<(Es256Key, String)> {
        let section = self.section;
        let what = "a mail address or https URL where push services reach you";
        let contact = self.needed("vapid_contact", section.vapid_contact.as_ref(), what);
        let file = self.needed("vapid_key_file", section.vapid_key_file.as_ref(), "the PEM file of the VAPID key");
        let key = file.and_then(|file| self.es256("vapid_key_file", file));
        let contact = match contact?.as_str() {
            contact if contact.starts_with("mailto:") || contact.starts_with("https:") => contact.to_owned(),
            contact if contact.contains('@') => format!("mailto:{contact}"),
            _ => {
                self.wrong("vapid_contact", "must be a mail address or an https URL");
                return None;
            }
        };
        Some((key?, contact))
    }

    fn allowed_endpoints(&self) -> Vec<Glob> {
        self.section.allowed_endpoints.iter().flatten().map(|host| host_pattern(host)).collect()
    }
}

/// A pattern of hosts, as URLs have them: in lower case, without the dot that may end a name.
fn host_pattern(host: &str) -> Glob {
    let host = host.to_lowercase();
    Glob::new(host.strip_suffix('.').unwrap_or(&host))
}
