//! Reads the credential files that the entries of `[[apps]]` name, and checks what else the types cannot rule out.

use std::{collections::HashMap, fs, path::Path};

use http::Uri;
use serde::Deserialize;
use serde_json::json;
use url::Url;
use waypost_shared::config::{
    file::{ConfigError, Source},
    secret::SecretString,
};

use super::{ApnsConfig, AppConfig, Environment, FcmConfig, WebPushConfig};
use crate::jwt::{Es256Key, Rs256Key};

/// Upper bound of `max_in_flight`: no machine can hold more.
const MOST_IN_FLIGHT: usize = 1_000_000;
/// The metadata server of Google Cloud, which issues tokens for the machine's service account.
const METADATA_URI: &str = "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token";
/// Keys of an FCM message that `options` may not set: the recipient, and the notification itself.
const OWN_FCM_KEYS: [&str; 4] = ["token", "topic", "condition", "data"];
/// Limit on an FCM app's `options`, in bytes: leaves 1024 of the 4096 that Google accepts for the event.
const MAX_FCM_OPTIONS: usize = 3072;

/// An app's push service: its table, with addresses and topics normalized for requests, and its credentials.
#[derive(Debug)]
pub(crate) enum ProviderConfig {
    Apns(ApnsConfig, ApnsCredentials),
    Fcm(FcmConfig, FcmCredentials),
    WebPush(WebPushConfig, Es256Key),
    /// Signed only if the operator configured a key.
    UnifiedPush(WebPushConfig, Option<Es256Key>),
}

impl ProviderConfig {
    /// The name of its table.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Apns(..) => "apns",
            Self::Fcm(..) => "fcm",
            Self::WebPush(..) => "webpush",
            Self::UnifiedPush(..) => "unifiedpush",
        }
    }
}

/// How to authenticate to Apple.
#[derive(Debug)]
pub(crate) enum ApnsCredentials {
    /// A signing key of the team `team_id`.
    Token(Es256Key),
    /// A certificate for the app, and its key, in PEM.
    Certificate { chain: String, key: SecretString },
}

/// How to authenticate to Google.
#[derive(Debug)]
pub(crate) enum FcmCredentials {
    /// A service account's key, exchanged for tokens.
    ServiceAccount { key: Rs256Key, key_id: Option<String>, email: String, token_uri: String },
    /// The identity of the machine.
    WorkloadIdentity { metadata_uri: String },
}

/// The relevant fields of a service account's key file.
#[derive(Deserialize)]
struct ServiceAccount {
    client_email: String,
    private_key: String,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

/// Checks all apps and reads their credentials. Returns one provider per entry, or all mistakes together.
pub(in crate::config) fn read(apps: &[AppConfig], source: &Source) -> Result<Vec<ProviderConfig>, ConfigError> {
    let mut errors = Vec::new();
    let providers: Vec<_> = apps
        .iter()
        .enumerate()
        .map(|(position, app)| Entry { app, position, table: None, source, errors: &mut errors }.provider())
        .collect();
    errors.extend(two_keys_of_one_name(&providers, source));
    if errors.is_empty() { Ok(providers.into_iter().flatten().collect()) } else { Err(ConfigError::merge(errors)) }
}

/// Reports entries with different keys under the same ids: apps with the same ids share a token, so one of them would
/// use the other's.
fn two_keys_of_one_name(providers: &[Option<ProviderConfig>], source: &Source) -> Vec<ConfigError> {
    let mut known = HashMap::new();
    let mut errors = Vec::new();
    for (position, provider) in providers.iter().enumerate() {
        let Some(ProviderConfig::Apns(apns, ApnsCredentials::Token(key))) = provider else { continue };
        let public_key = key.public_key();
        let name = (&apns.key_id, &apns.team_id);
        let (earlier, earlier_key) = known.entry(name).or_insert_with(|| (position, public_key.clone()));
        if *earlier_key != public_key {
            let problem =
                format!("holds a different key than that of apps.{earlier}, which has the same key_id and team_id");
            errors.push(source.error(&format!("apps.{position}.apns.key_file"), problem));
        }
    }
    errors
}

/// The entry being checked.
struct Entry<'a> {
    app: &'a AppConfig,
    position: usize,
    /// The table that error messages name; None for the entry itself.
    table: Option<&'static str>,
    source: &'a Source,
    errors: &'a mut Vec<ConfigError>,
}

impl Entry<'_> {
    /// None if there is at least one error.
    fn provider(mut self) -> Option<ProviderConfig> {
        let app = self.app;
        self.needed("id", &app.id, "the app_id of the app's pushers, or a pattern with * and ?");
        if !(1..=MOST_IN_FLIGHT).contains(&app.max_in_flight) {
            self.wrong("max_in_flight", &format!("must be 1 to {MOST_IN_FLIGHT}"));
        }
        let tables = [
            ("apns", app.apns.is_some()),
            ("fcm", app.fcm.is_some()),
            ("webpush", app.webpush.is_some()),
            ("unifiedpush", app.unifiedpush.is_some()),
        ];
        let present: Vec<_> = tables.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect();
        match present[..] {
            [table] => self.table = Some(table),
            [first, second, ..] => {
                let problem =
                    format!("this app has [apps.{first}] too; keep one of them, and add another entry for the other");
                self.wrong(second, &problem);
                return None;
            }
            [] => {
                let problem = "has no push service; put [apps.apns], [apps.fcm], [apps.webpush] or [apps.unifiedpush] \
                               below its keys, with the keys of that service";
                self.errors.push(self.source.error(&format!("apps.{}", self.position), problem));
                return None;
            }
        }
        if let Some(apns) = &app.apns {
            return self.apns(apns);
        }
        if let Some(fcm) = &app.fcm {
            return self.fcm(fcm);
        }
        if let Some(webpush) = &app.webpush {
            let (webpush, key) = self.vapid(webpush)?;
            return Some(ProviderConfig::WebPush(webpush, key));
        }
        let unifiedpush = app.unifiedpush.as_ref()?;
        if unifiedpush.vapid_key_file.is_none() && unifiedpush.vapid_contact.is_empty() {
            return Some(ProviderConfig::UnifiedPush(unifiedpush.clone(), None));
        }
        let (unifiedpush, key) = self.vapid(unifiedpush)?;
        Some(ProviderConfig::UnifiedPush(unifiedpush, Some(key)))
    }

    fn apns(&mut self, config: &ApnsConfig) -> Option<ProviderConfig> {
        let mut apns = config.clone();
        if self.needed("topic", &apns.topic, "the app's bundle id")
            && !apns.topic.bytes().all(|byte| byte.is_ascii_graphic())
        {
            self.wrong("topic", "must be the app's bundle id, such as org.example.app");
        }
        if apns.is_for_calls(&self.app.id) && !apns.topic.ends_with(".voip") {
            apns.topic.push_str(".voip");
        }
        let credentials = self.apns_credentials(config);
        let default = match config.environment {
            Environment::Production => "https://api.push.apple.com",
            Environment::Sandbox => "https://api.sandbox.push.apple.com",
        };
        apns.endpoint = self.uri("endpoint", &config.endpoint, default)?;
        Some(ProviderConfig::Apns(apns, credentials?))
    }

    fn apns_credentials(&mut self, config: &ApnsConfig) -> Option<ApnsCredentials> {
        match (&config.key_file, &config.certificate_file) {
            (Some(_), Some(_)) => {
                self.wrong("certificate_file", "key_file is set too; keep one of them");
                None
            }
            (None, None) => {
                self.wrong("key_file", "is missing; set it with key_id and team_id, or set certificate_file");
                None
            }
            (Some(file), None) => {
                self.needed("key_id", &config.key_id, "the id of the key in key_file");
                self.needed("team_id", &config.team_id, "the id of your team at Apple");
                self.es256("key_file", file).map(ApnsCredentials::Token)
            }
            (None, Some(file)) => {
                let chain = self.read("certificate_file", file);
                // One file may hold both, as with Sygnal.
                let key = match &config.certificate_key_file {
                    Some(file) => self.read("certificate_key_file", file),
                    None => chain.clone(),
                };
                Some(ApnsCredentials::Certificate { chain: chain?, key: SecretString::from(key?) })
            }
        }
    }

    fn fcm(&mut self, config: &FcmConfig) -> Option<ProviderConfig> {
        let mut fcm = config.clone();
        self.needed("project_id", &fcm.project_id, "the id of the Firebase project");
        for key in OWN_FCM_KEYS.into_iter().filter(|key| fcm.options.contains_key(*key)) {
            self.wrong(&format!("options.{key}"), "is set by the gateway for each push; remove it");
        }
        let taken = json!(fcm.options).to_string().len();
        if taken > MAX_FCM_OPTIONS {
            let problem = format!("takes {taken} bytes; at most {MAX_FCM_OPTIONS} leave room for events");
            self.wrong("options", &problem);
        }
        let credentials = match (&config.service_account_file, config.workload_identity) {
            (Some(_), true) => {
                self.wrong("workload_identity", "service_account_file is set too; keep one of them");
                None
            }
            (None, false) => {
                self.wrong("service_account_file", "is missing; set it, or workload_identity = true");
                None
            }
            (None, true) => self
                .uri("metadata_uri", &config.metadata_uri, METADATA_URI)
                .map(|metadata_uri| FcmCredentials::WorkloadIdentity { metadata_uri }),
            (Some(file), false) => self.service_account(config, file),
        };
        fcm.endpoint = self.uri("endpoint", &config.endpoint, "https://fcm.googleapis.com")?;
        Some(ProviderConfig::Fcm(fcm, credentials?))
    }

    fn service_account(&mut self, config: &FcmConfig, file: &Path) -> Option<FcmCredentials> {
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
        let token_uri = self.uri("token_uri", &config.token_uri, own)?;
        Some(FcmCredentials::ServiceAccount {
            key,
            key_id: account.private_key_id,
            email: account.client_email,
            token_uri,
        })
    }

    /// The table with the contact normalized to a URL, and the VAPID key.
    fn vapid(&mut self, config: &WebPushConfig) -> Option<(WebPushConfig, Es256Key)> {
        let mut webpush = config.clone();
        let what = "a mail address or https URL where push services reach you";
        if self.needed("vapid_contact", &config.vapid_contact, what) {
            let contact = &config.vapid_contact;
            if contact.contains('@') && !contact.starts_with("mailto:") && !contact.starts_with("https:") {
                webpush.vapid_contact = format!("mailto:{contact}");
            }
            if !["mailto:", "https:"].iter().any(|scheme| webpush.vapid_contact.starts_with(scheme)) {
                self.wrong("vapid_contact", "must be a mail address or an https URL");
            }
        }
        let Some(file) = &config.vapid_key_file else {
            self.wrong("vapid_key_file", "is missing; set it to the PEM file of the VAPID key");
            return None;
        };
        self.es256("vapid_key_file", file).map(|key| (webpush, key))
    }

    /// Reports an empty value as missing. True if there is one.
    fn needed(&mut self, key: &str, value: &str, what: &str) -> bool {
        if value.is_empty() {
            self.wrong(key, &format!("is missing; set it to {what}"));
        }
        !value.is_empty()
    }

    /// A service's address: the configured one, or the default if that is empty.
    fn uri(&mut self, key: &str, configured: &str, default: &str) -> Option<String> {
        let normal = normal_uri(if configured.is_empty() { default } else { configured });
        if normal.is_none() {
            let problem = "must be a URL such as https://push.example.com, without user, query or fragment";
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
        let place = match self.table {
            Some(table) => format!("apps.{}.{table}.{key}", self.position),
            None => format!("apps.{}.{key}", self.position),
        };
        self.errors.push(self.source.error(&place, problem));
    }
}

/// Normalizes a service's address for requests: host names in ASCII, no trailing slash. None if it is not a valid URL,
/// or has parts that a path cannot be appended to.
fn normal_uri(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let is_plain =
        url.username().is_empty() && url.password().is_none() && url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "https" | "http") || !url.has_host() || !is_plain {
        return None;
    }
    let uri = url.as_str().trim_end_matches('/');
    // The URI library has to accept it too, since it builds the request.
    uri.parse::<Uri>().is_ok().then(|| uri.to_owned())
}
