//! From an entry of `[[apps]]` as it is written to one that can only be right.

mod clashes;
mod webpush;

use std::{fs, path::Path};

use http::Uri;
use serde::Deserialize;
use serde_json::json;
use url::Url;
use waypost_shared::{
    config_file::{ConfigError, Source},
    secret::SecretString,
};

use super::{
    ApnsConfig, ApnsCredentials, AppConfig, AppSection, Content, Environment, FcmConfig, FcmCredentials, FcmProfile,
    ProviderConfig, PushType,
};
use crate::jwt::{Es256Key, Rs256Key};

/// Pushes of one app that are under way at the same time: what a provider that answers in 50 ms takes of 20,000 a
/// second, and a quarter of the connections that homeservers may have open by default.
const DEFAULT_MAX_IN_FLIGHT: usize = 1000;
/// No machine has room for more, and a semaphore takes no more than this either.
const MOST_IN_FLIGHT: usize = 1_000_000;
/// Where Google's machines tell a program who it is.
const METADATA_URI: &str = "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token";
/// Keys of an FCM message that no configuration may set: who gets it, and what the homeserver said.
const OWN_FCM_KEYS: [&str; 4] = ["token", "topic", "condition", "data"];
/// Bytes of an FCM app's options: of the 4096 that Google takes, 1024 are left for the event.
const MAX_FCM_OPTIONS: usize = 3072;

/// The parts of a service account's file that matter.
#[derive(Deserialize)]
struct ServiceAccount {
    client_email: String,
    private_key: String,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

/// Checks all apps and reads their keys; all mistakes come at once.
pub(super) fn validate(sections: &[AppSection], source: &Source) -> Result<Vec<AppConfig>, ConfigError> {
    let mut errors = clashes::ambiguous(sections, source);
    let mut apps = Vec::new();
    for (position, section) in sections.iter().enumerate() {
        let mut entry = Entry { section, position, source, errors: &mut errors };
        apps.extend(entry.app());
    }
    errors.extend(clashes::two_keys_of_one_name(&apps, source));
    if errors.is_empty() { Ok(apps) } else { Err(ConfigError::merge(errors)) }
}

/// One entry under examination.
struct Entry<'a> {
    section: &'a AppSection,
    position: usize,
    source: &'a Source,
    errors: &'a mut Vec<ConfigError>,
}

impl Entry<'_> {
    /// `None` means that there is at least one error.
    fn app(&mut self) -> Option<AppConfig> {
        let section = self.section;
        let id = self.needed("id", section.id.as_ref(), "the app_id of the app's pushers, or a pattern with * and ?");
        let Some(kind) = section.kind.as_deref() else {
            self.wrong("type", "is missing; set it to \"apns\", \"fcm\", \"webpush\" or \"unifiedpush\"");
            return None;
        };
        let provider = match kind {
            "apns" => self.apns().map(ProviderConfig::Apns),
            "fcm" => self.fcm().map(ProviderConfig::Fcm),
            "webpush" => self.webpush().map(ProviderConfig::WebPush),
            "unifiedpush" => self.unifiedpush().map(ProviderConfig::UnifiedPush),
            "gcm" => {
                let is_apples =
                    section.topic.is_some() || section.key_file.is_some() || section.certificate_file.is_some();
                let fix = if is_apples {
                    "this app has keys of APNs; set type = \"apns\" (gcm was Google's, and was shut down in 2024)"
                } else {
                    "Google shut the gcm service down in 2024; set type = \"fcm\" with project_id and service_account_file"
                };
                self.wrong("type", fix);
                return None;
            }
            _ => {
                self.wrong("type", "is none of \"apns\", \"fcm\", \"webpush\" and \"unifiedpush\"");
                return None;
            }
        };
        self.refuse_keys_of_others(kind);
        let content = section.content.unwrap_or(Content::IdsOnly);
        let max_in_flight = section.max_in_flight.unwrap_or(DEFAULT_MAX_IN_FLIGHT);
        if !(1..=MOST_IN_FLIGHT).contains(&max_in_flight) {
            self.wrong("max_in_flight", &format!("must be 1 to {MOST_IN_FLIGHT}"));
        }
        Some(AppConfig { position: self.position, id: id?.clone(), content, max_in_flight, provider: provider? })
    }

    fn apns(&mut self) -> Option<ApnsConfig> {
        let section = self.section;
        let topic = self.needed("topic", section.topic.as_ref(), "the app's bundle id");
        let credentials = self.apns_credentials();
        let default = match section.environment.unwrap_or(Environment::Production) {
            Environment::Production => "https://api.push.apple.com",
            Environment::Sandbox => "https://api.sandbox.push.apple.com",
        };
        let endpoint = self.uri("endpoint", section.endpoint.as_deref(), default);
        let mut topic = topic?.clone();
        if topic.is_empty() || !topic.bytes().all(|byte| byte.is_ascii_graphic()) {
            self.wrong("topic", "must be the app's bundle id, such as org.example.app");
            return None;
        }
        let rings = topic.ends_with(".voip") || section.id.as_ref().is_some_and(|id| id.ends_with(".voip"));
        let push_type = section.push_type.unwrap_or(if rings { PushType::Voip } else { PushType::Alert });
        if push_type == PushType::Voip && !topic.ends_with(".voip") {
            topic.push_str(".voip");
        }
        Some(ApnsConfig {
            topic,
            endpoint: endpoint?,
            credentials: credentials?,
            convert_device_token_to_hex: section.convert_device_token_to_hex.unwrap_or(true),
            send_badge_counts: section.send_badge_counts.unwrap_or(true),
            push_type,
            collapse: section.collapse.unwrap_or(false),
        })
    }

    fn apns_credentials(&mut self) -> Option<ApnsCredentials> {
        let section = self.section;
        match (&section.key_file, &section.certificate_file) {
            (Some(_), Some(_)) => {
                self.wrong("certificate_file", "key_file is set too; keep one of them");
                None
            }
            (None, None) => {
                self.wrong("key_file", "is missing; set it with key_id and team_id, or set certificate_file");
                None
            }
            (Some(file), None) => {
                let key_id = self.needed("key_id", section.key_id.as_ref(), "the id of the key in key_file");
                let team_id = self.needed("team_id", section.team_id.as_ref(), "the id of your team at Apple");
                let key = self.es256("key_file", file);
                Some(ApnsCredentials::Token { key: key?, key_id: key_id?.clone(), team_id: team_id?.clone() })
            }
            (None, Some(file)) => {
                let chain = self.read("certificate_file", file);
                // One file may hold both, as Sygnal's does.
                let key = match &section.certificate_key_file {
                    Some(file) => self.read("certificate_key_file", file),
                    None => chain.clone(),
                };
                Some(ApnsCredentials::Certificate { chain: chain?, key: SecretString::from(key?) })
            }
        }
    }

    fn fcm(&mut self) -> Option<FcmConfig> {
        let section = self.section;
        let project_id = self.needed("project_id", section.project_id.as_ref(), "the id of the Firebase project");
        let endpoint = self.uri("endpoint", section.endpoint.as_deref(), "https://fcm.googleapis.com");
        let options = section.options.clone().unwrap_or_default();
        for key in OWN_FCM_KEYS.into_iter().filter(|key| options.contains_key(*key)) {
            self.wrong(&format!("options.{key}"), "is set by the gateway for each push; remove it");
        }
        let taken = json!(options).to_string().len();
        if taken > MAX_FCM_OPTIONS {
            let problem = format!("takes {taken} bytes; {MAX_FCM_OPTIONS} at the most leave room for events");
            self.wrong("options", &problem);
        }
        let credentials = match (&section.service_account_file, section.workload_identity.unwrap_or(false)) {
            (Some(_), true) => {
                self.wrong("workload_identity", "service_account_file is set too; keep one of them");
                None
            }
            (None, false) => {
                self.wrong("service_account_file", "is missing; set it, or workload_identity = true");
                None
            }
            (None, true) => self
                .uri("metadata_uri", section.metadata_uri.as_deref(), METADATA_URI)
                .map(|metadata_uri| FcmCredentials::WorkloadIdentity { metadata_uri }),
            (Some(file), false) => self.service_account(file),
        };
        Some(FcmConfig {
            project_id: project_id?.clone(),
            endpoint: endpoint?,
            credentials: credentials?,
            profile: section.profile.unwrap_or(FcmProfile::Sygnal),
            options,
        })
    }

    fn service_account(&mut self, file: &Path) -> Option<FcmCredentials> {
        let text = self.read("service_account_file", file)?;
        let Ok(account) = serde_json::from_str::<ServiceAccount>(&text) else {
            let problem = "is not the JSON key file of a service account, with client_email and private_key";
            self.wrong("service_account_file", problem);
            return None;
        };
        let key = match Rs256Key::from_pem(&account.private_key) {
            Ok(key) => key,
            Err(error) => {
                self.wrong("service_account_file", &format!("its private_key {error}"));
                return None;
            }
        };
        let own = account.token_uri.as_deref().unwrap_or("https://oauth2.googleapis.com/token");
        let token_uri = self.uri("token_uri", self.section.token_uri.as_deref(), own)?;
        Some(FcmCredentials::ServiceAccount {
            key,
            key_id: account.private_key_id,
            email: account.client_email,
            token_uri,
        })
    }

    /// A key of another provider is a mistake, and most likely in `type`.
    fn refuse_keys_of_others(&mut self, kind: &str) {
        let section = self.section;
        let keys: [(&str, bool, &[&str]); 24] = [
            ("endpoint", section.endpoint.is_some(), &["apns", "fcm"]),
            ("topic", section.topic.is_some(), &["apns"]),
            ("environment", section.environment.is_some(), &["apns"]),
            ("key_file", section.key_file.is_some(), &["apns"]),
            ("key_id", section.key_id.is_some(), &["apns"]),
            ("team_id", section.team_id.is_some(), &["apns"]),
            ("certificate_file", section.certificate_file.is_some(), &["apns"]),
            ("certificate_key_file", section.certificate_key_file.is_some(), &["apns"]),
            ("convert_device_token_to_hex", section.convert_device_token_to_hex.is_some(), &["apns"]),
            ("send_badge_counts", section.send_badge_counts.is_some(), &["apns"]),
            ("push_type", section.push_type.is_some(), &["apns"]),
            ("collapse", section.collapse.is_some(), &["apns"]),
            ("project_id", section.project_id.is_some(), &["fcm"]),
            ("service_account_file", section.service_account_file.is_some(), &["fcm"]),
            ("token_uri", section.token_uri.is_some(), &["fcm"]),
            ("workload_identity", section.workload_identity.is_some(), &["fcm"]),
            ("metadata_uri", section.metadata_uri.is_some(), &["fcm"]),
            ("options", section.options.is_some(), &["fcm"]),
            ("profile", section.profile.is_some(), &["fcm"]),
            ("vapid_key_file", section.vapid_key_file.is_some(), &["webpush", "unifiedpush"]),
            ("vapid_contact", section.vapid_contact.is_some(), &["webpush", "unifiedpush"]),
            ("allowed_endpoints", section.allowed_endpoints.is_some(), &["webpush", "unifiedpush"]),
            ("ttl_secs", section.ttl_secs.is_some(), &["webpush", "unifiedpush"]),
            ("events_only", section.events_only.is_some(), &["webpush", "unifiedpush"]),
        ];
        for (key, is_set, kinds) in keys {
            if is_set && !kinds.contains(&kind) {
                let owners = kinds.join("\" or \"");
                self.wrong(
                    key,
                    &format!("belongs to type = \"{owners}\" and this app has type = \"{kind}\"; remove it"),
                );
            }
        }
    }

    fn needed<'v, T>(&mut self, key: &str, value: Option<&'v T>, what: &str) -> Option<&'v T> {
        if value.is_none() {
            self.wrong(key, &format!("is missing; set it to {what}"));
        }
        value
    }

    /// An address of a service: the configured one (empty is not set), else the default.
    fn uri(&mut self, key: &str, configured: Option<&str>, default: &str) -> Option<String> {
        let uri = configured.filter(|uri| !uri.is_empty()).unwrap_or(default);
        let normal = normal_uri(uri);
        if normal.is_none() {
            let problem = "must be a URL such as https://push.example.com, without user, query and fragment";
            self.wrong(key, problem);
        }
        normal
    }

    fn es256(&mut self, key: &str, file: &Path) -> Option<Es256Key> {
        let pem = self.read(key, file)?;
        Es256Key::from_pem(&pem).map_err(|error| self.wrong(key, &format!("{} {error}", file.display()))).ok()
    }

    fn read(&mut self, key: &str, file: &Path) -> Option<String> {
        fs::read_to_string(file)
            .map_err(|error| self.wrong(key, &format!("{} cannot be read: {error}", file.display())))
            .ok()
    }

    fn wrong(&mut self, key: &str, problem: &str) {
        self.errors.push(self.source.error(&format!("apps.{}.{key}", self.position), problem));
    }
}

/// A service's address as requests are made with it: names in ASCII, no slash at the end. None when it is none, or
/// has parts that a path cannot be appended to.
fn normal_uri(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let is_plain =
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "https" | "http") || !url.has_host() || !is_plain {
        return None;
    }
    let uri = url.as_str().trim_end_matches('/');
    // Another library's opinion, but the one that counts when the request is made.
    uri.parse::<Uri>().is_ok().then(|| uri.to_owned())
}
