//! The entries of `[[apps]]`: keys common to all apps, and a table for each push service.

pub(super) mod ambiguous;
pub(super) mod credentials;
pub(super) mod flat;

use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::glob::Glob;

/// An entry of `[[apps]]`. Validation makes sure that exactly one of its tables is present.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct AppConfig {
    /// An `app_id`, or a pattern for several. Required.
    pub(crate) id: String,
    /// What the push service may see. Default `ids_only`.
    pub(crate) content: Content,
    /// In-flight cap. Default 1000.
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
            // Enough for 20,000 pushes per second to a provider that answers in 50 ms, and a quarter of the connections
            // that homeservers may have open by default.
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
    /// The app's bundle id. Required.
    pub(crate) topic: String,
    /// The APNs environment of the app's device tokens. Default production.
    pub(crate) environment: Environment,
    /// Overrides the address of `environment`. Default empty.
    pub(crate) endpoint: String,
    /// A signing key of the team. Either this with both ids, or a certificate.
    pub(crate) key_file: Option<PathBuf>,
    pub(crate) key_id: String,
    pub(crate) team_id: String,
    /// A client certificate for the app.
    pub(crate) certificate_file: Option<PathBuf>,
    /// The certificate's key. Default: it is in `certificate_file` too.
    pub(crate) certificate_key_file: Option<PathBuf>,
    /// Whether pushkeys are base64 of the device token. Default true.
    pub(crate) convert_device_token_to_hex: bool,
    /// Whether pushes set the badge on the app's icon. Default true.
    pub(crate) send_badge_counts: bool,
    /// Default `alert`, and `voip` for calls.
    pub(crate) push_type: Option<PushType>,
    /// Whether a push replaces the previous one from the same room. Default false.
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
    /// Whether the app with this id is for calls: PushKit topics end in `.voip`.
    pub(super) fn is_for_calls(&self, id: &str) -> bool {
        match self.push_type {
            Some(push_type) => push_type == PushType::Voip,
            None => self.topic.ends_with(".voip") || id.ends_with(".voip"),
        }
    }

    /// The configured push type, else the one implied by the topic.
    pub(crate) fn push_type(&self) -> PushType {
        let default = if self.topic.ends_with(".voip") { PushType::Voip } else { PushType::Alert };
        self.push_type.unwrap_or(default)
    }
}

/// The table `[apps.fcm]`: Google's service.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct FcmConfig {
    /// The id of the Firebase project. Required.
    pub(crate) project_id: String,
    /// The key file of a service account. Either this or `workload_identity`.
    pub(crate) service_account_file: Option<PathBuf>,
    /// Whether to use the identity of the Google Cloud machine that this runs on. Default false.
    pub(crate) workload_identity: bool,
    /// Overrides FCM's address. Default empty.
    pub(crate) endpoint: String,
    /// Overrides the token address in the service account's file. Default empty.
    pub(crate) token_uri: String,
    /// Overrides the metadata server's token address. Default empty.
    pub(crate) metadata_uri: String,
    /// The message format that the app expects. Default `sygnal`.
    pub(crate) profile: FcmProfile,
    /// Extra fields for every message. Default none.
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

/// The tables `[apps.webpush]` (the browser chooses the push service) and `[apps.unifiedpush]` (the user chooses the
/// server).
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct WebPushConfig {
    /// The VAPID key. Required for web push, with `vapid_contact`; UnifiedPush may omit both.
    pub(crate) vapid_key_file: Option<PathBuf>,
    /// A mail address or https URL where push services reach the operator.
    pub(crate) vapid_contact: String,
    /// Patterns of hosts that may be pushed to; empty allows all. Default empty.
    #[serde(deserialize_with = "hosts")]
    pub(crate) allowed_endpoints: Vec<Glob>,
    /// Seconds to keep a message for a device that is offline. Default 900 for web push, and a day for UnifiedPush.
    pub(crate) ttl_secs: Option<u64>,
    /// Whether to skip updates of counts alone. Default false.
    pub(crate) events_only: bool,
}

/// Normalizes host patterns the way URLs are: lower case, no trailing dot.
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
    /// Everything that the homeserver sent.
    Full,
}

/// The APNs environment of a device token.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Environment {
    /// Apps from the App Store and TestFlight.
    Production,
    /// Apps installed from Xcode.
    Sandbox,
}

/// The supported values of `apns-push-type`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum PushType {
    /// Shown to the user.
    Alert,
    /// Wakes the app silently.
    Background,
    /// Rings.
    Voip,
}

/// The message format that an FCM app expects.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FcmProfile {
    /// Sygnal's format, for Element and most other apps.
    Sygnal,
    /// Hedwig's format: counts and devices as JSON, and an alert for iOS.
    FluffyChat,
}
