//! An app's configuration after it was checked: one that can only be right.

use serde_json::{Map, Value};
use waypost_shared::secret::SecretString;

use super::{Content, FcmProfile, PushType};
use crate::{
    glob::Glob,
    jwt::{Es256Key, Rs256Key},
};

/// An app that can be pushed to.
#[derive(Debug)]
pub(crate) struct AppConfig {
    /// Its number in the file, for errors that are found later.
    pub(crate) position: usize,
    /// An `app_id`, or a pattern of several.
    pub(crate) id: String,
    pub(crate) content: Content,
    /// Pushes that are under way at the same time.
    pub(crate) max_in_flight: usize,
    pub(crate) provider: ProviderConfig,
}

/// Whom an app's pushes go to, and as whom.
#[derive(Debug)]
pub(crate) enum ProviderConfig {
    Apns(ApnsConfig),
    Fcm(FcmConfig),
    WebPush(WebPushConfig),
    UnifiedPush(UnifiedPushConfig),
}

impl ProviderConfig {
    /// As `type` names it.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Apns(_) => "apns",
            Self::Fcm(_) => "fcm",
            Self::WebPush(_) => "webpush",
            Self::UnifiedPush(_) => "unifiedpush",
        }
    }
}

/// Apple's service.
#[derive(Debug)]
pub(crate) struct ApnsConfig {
    pub(crate) topic: String,
    /// Without a slash at its end.
    pub(crate) endpoint: String,
    pub(crate) credentials: ApnsCredentials,
    pub(crate) convert_device_token_to_hex: bool,
    pub(crate) send_badge_counts: bool,
    pub(crate) push_type: PushType,
    pub(crate) collapse: bool,
}

/// How Apple knows who is calling.
#[derive(Debug)]
pub(crate) enum ApnsCredentials {
    /// A signing key of the team.
    Token { key: Es256Key, key_id: String, team_id: String },
    /// A certificate for the app, and its key, in PEM.
    Certificate { chain: String, key: SecretString },
}

/// Google's service.
#[derive(Debug)]
pub(crate) struct FcmConfig {
    pub(crate) project_id: String,
    /// Without a slash at its end.
    pub(crate) endpoint: String,
    pub(crate) credentials: FcmCredentials,
    pub(crate) profile: FcmProfile,
    /// What the operator wants in each message.
    pub(crate) options: Map<String, Value>,
}

/// How Google knows who is calling.
#[derive(Debug)]
pub(crate) enum FcmCredentials {
    /// A service account's key, exchanged for tokens.
    ServiceAccount { key: Rs256Key, key_id: Option<String>, email: String, token_uri: String },
    /// The machine's own identity.
    WorkloadIdentity { metadata_uri: String },
}

/// Browsers' services.
#[derive(Debug)]
pub(crate) struct WebPushConfig {
    pub(crate) vapid_key: Es256Key,
    /// `mailto:` or `https:`.
    pub(crate) vapid_contact: String,
    /// Hosts that may be pushed to; empty for all.
    pub(crate) allowed_endpoints: Vec<Glob>,
    pub(crate) ttl_secs: u64,
    pub(crate) events_only: bool,
}

/// Push servers that people choose.
#[derive(Debug)]
pub(crate) struct UnifiedPushConfig {
    /// The key that messages are signed with, and whom to ask about them, where the operator wants that.
    pub(crate) vapid: Option<(Es256Key, String)>,
    /// Hosts that may be pushed to; empty for all.
    pub(crate) allowed_endpoints: Vec<Glob>,
    pub(crate) ttl_secs: u64,
    pub(crate) events_only: bool,
}
