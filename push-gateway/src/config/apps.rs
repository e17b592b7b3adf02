//! The entries of `[[apps]]`: what all apps have, and a table for each push service.

pub(super) mod ambiguous;
pub(super) mod credentials;
pub(super) mod flat;

use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::glob::Glob;

/// An entry of `[[apps]]`. Exactly one of its tables is there, which the types cannot tell.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AppConfig {
    /// An `app_id`, or a pattern of several. Needed.
    pub(crate) id: String,
    /// What the push service may see. Default `ids_only`.
    pub(crate) content: Content,
    /// Pushes that are under way at the same time. Default 1000.
    pub(crate) max_in_flight: usize,
    pub(crate) apns: Option<ApnsConfig>,
    pub(crate) fcm: Option<FcmConfig>,
    pub(crate) webpush: Option<WebPushConfig>,
    pub(crate) unifiedpush: Option<WebPushConfig>,
}

impl Default for AppConfig {
    fn default() -> Self {
        Self {
            id: String::new(),
            content: Content::IdsOnly,
            // A provider that answers in 50 ms takes 20,000 a second of these; and they are a quarter of the
            // connections that homeservers may have open by default.
            max_in_flight: 1000,
            apns: None,
            fcm: None,
            webpush: None,
            unifiedpush: None,
        }
    }
}

/// The table `[apps.apns]`: Apple's service.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ApnsConfig {
    /// The app's bundle id. Needed.
    pub(crate) topic: String,
    /// Which of Apple's services the app's tokens belong to. Default production.
    pub(crate) environment: Environment,
    /// Another address than that of `environment`. Default empty.
    pub(crate) endpoint: String,
    /// A signing key of the team. This with its ids, or a certificate.
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) key_id: String,
    pub(crate) team_id: String,
    /// A certificate for the app.
    pub(crate) certificate_file: Option<PathBuf>,
    /// Its key. Default: it is in `certificate_file` too.
    pub(crate) certificate_key_file: Option<PathBuf>,
    /// Whether pushkeys are base64 of the device token. Default true.
    pub(crate) convert_device_token_to_hex: bool,
    /// Whether the number on the app's icon is set. Default true.
    pub(crate) send_badge_counts: bool,
    /// Default `alert`, and `voip` for calls.
    pub(crate) push_type: Option<PushType>,
    /// Whether a new push replaces the one before of the same room. Default false.
    pub(crate) collapse: bool,
}

impl Default for ApnsConfig {
    fn default() -> Self {
        Self {
            topic: String::new(),
            environment: Environment::Production,
            endpoint: String::new(),
            key_file: None,
            key_id: String::new(),
            team_id: String::new(),
            certificate_file: None,
            certificate_key_file: None,
            convert_device_token_to_hex: true,
            send_badge_counts: true,
            push_type: None,
            collapse: false,
        }
    }
}

impl ApnsConfig {
    /// Whether the topic, or the app of this id, is one for calls: PushKit wants `.voip` at the end.
    pub(super) fn is_for_calls(&self, id: &str) -> bool {
        match self.push_type {
            Some(push_type) => push_type == PushType::Voip,
            None => self.topic.ends_with(".voip") || id.ends_with(".voip"),
        }
    }

    /// The configured type, or the one that the topic wants.
    pub(crate) fn push_type(&self) -> PushType {
        let default = if self.topic.ends_with(".voip") { PushType::Voip } else { PushType::Alert };
        self.push_type.unwrap_or(default)
    }
}

/// The table `[apps.fcm]`: Google's service.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FcmConfig {
    /// The id of the Firebase project. Needed.
    pub(crate) project_id: String,
    /// The key file of a service account. This, or `workload_identity`.
    pub(crate) service_account_file: Option<PathBuf>,
    /// Whether the identity of the Google machine that this runs on is used. Default false.
    pub(crate) workload_identity: bool,
    /// Another address than Google's. Default empty.
    pub(crate) endpoint: String,
    /// Another address for tokens of the service account than the one in its file. Default empty.
    pub(crate) token_uri: String,
    /// Another address for tokens of the machine than Google's. Default empty.
    pub(crate) metadata_uri: String,
    /// How the app reads its messages. Default `sygnal`.
    pub(crate) profile: FcmProfile,
    /// What each message holds besides. Default nothing.
    pub(crate) options: Map<String, Value>,
}

impl Default for FcmConfig {
    fn default() -> Self {
        Self {
            project_id: String::new(),
            service_account_file: None,
            workload_identity: false,
            endpoint: String::new(),
            token_uri: String::new(),
            metadata_uri: String::new(),
            profile: FcmProfile::Sygnal,
            options: Map::new(),
        }
    }
}

/// The tables `[apps.webpush]`, for services that browsers choose, and `[apps.unifiedpush]`, for servers that people
/// choose.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WebPushConfig {
    /// The key that messages are signed with. Needed for web push; UnifiedPush may do without both.
    pub(crate) vapid_key_file: Option<PathBuf>,
    /// A mail address or https URL to ask about them.
    pub(crate) vapid_contact: String,
    /// Hosts that may be pushed to; empty for all. Default empty.
    #[serde(deserialize_with = "hosts")]
    pub(crate) allowed_endpoints: Vec<Glob>,
    /// Seconds that a message is kept for a device that is away. Default 900 for web push, and a day for UnifiedPush.
    pub(crate) ttl_secs: Option<u64>,
    /// Whether updates of counts alone are left out. Default false.
    pub(crate) events_only: bool,
}

/// Patterns of hosts, as URLs have them: in lower case, without the dot that may end a name.
fn hosts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Glob>, D::Error> {
    let hosts = Vec::<String>::deserialize(deserializer)?;
    let glob = |host: String| {
        let host = host.to_lowercase();
        Glob::new(host.strip_suffix('.').unwrap_or(&host))
    };
    Ok(hosts.into_iter().map(glob).collect())
}

/// How much of an event the provider may see.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Content {
    /// Ids and counts; the app fetches the event itself.
    IdsOnly,
    /// All that the homeserver sent.
    Full,
}

/// Which of Apple's services a device's token belongs to.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Environment {
    /// Apps from the store and TestFlight.
    Production,
    /// Apps that were installed from Xcode.
    Sandbox,
}

/// The values of `apns-push-type` that make sense here.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PushType {
    /// Shown to the user.
    Alert,
    /// Wakes the app in silence.
    Background,
    /// Rings.
    Voip,
}

/// How an FCM app reads its messages.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FcmProfile {
    /// As Sygnal sends them, for Element and most others.
    Sygnal,
    /// As hedwig sends them: counts and devices as JSON, and what iOS shows.
    FluffyChat,
}
