//! Mistakes are named by key and fix, and the sample holds the defaults.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use waypost_shared::{
    config_file::{self, Loaded},
    random,
};

use super::*;

/// A folder of its own for each test, with a key of each kind.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("waypost-{}", random::token()));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("key.p8"), crate::jwt::tests::p8()).unwrap();
        fs::write(folder.join("no-key.p8"), "hello").unwrap();
        let account = serde_json::json!({"client_email": "a@b", "private_key": crate::jwt::tests::RSA_PEM});
        fs::write(folder.join("account.json"), account.to_string()).unwrap();
        Self(folder)
    }

    /// The checked apps, or what is wrong, with the folder's name left out.
    fn validate(&self, toml: &str) -> Result<Vec<AppConfig>, String> {
        let folder = self.0.display().to_string();
        let file = self.0.join("waypost.toml");
        fs::write(&file, toml.replace("DIR", &folder)).unwrap();
        let loaded: Loaded<Config> = config_file::load(Some(&file), []).unwrap();
        let checked = loaded.config.validate(&loaded.source);
        checked.map_err(|error| error.to_string().replace(&format!("{folder}/"), ""))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

const APNS: &str =
    "[[apps]]\nid = 'ios'\ntype = 'apns'\ntopic = 't'\nkey_file = 'DIR/key.p8'\nkey_id = 'K'\nteam_id = 'T'\n";
const FCM: &str =
    "[[apps]]\nid = 'android'\ntype = 'fcm'\nproject_id = 'p'\nservice_account_file = 'DIR/account.json'\n";
const WEBPUSH: &str =
    "[[apps]]\nid = 'web'\ntype = 'webpush'\nvapid_key_file = 'DIR/key.p8'\nvapid_contact = 'ops@example.com'\n";

#[test]
fn the_sample_holds_the_defaults() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.sample.toml");
    let loaded: Loaded<Config> = config_file::load(Some(&sample), []).unwrap();
    assert_eq!(format!("{:#?}", loaded.config), format!("{:#?}", Config::default()));
}

#[test]
fn an_app_of_each_kind_is_understood() {
    let apps = Folder::new().validate(&format!("{APNS}{FCM}{WEBPUSH}")).unwrap();
    let names: Vec<_> = apps.iter().map(|app| (app.id.as_str(), app.provider.name(), app.content)).collect();
    let ids_only = Content::IdsOnly;
    assert_eq!(names, [("ios", "apns", ids_only), ("android", "fcm", ids_only), ("web", "webpush", ids_only)]);
    let ProviderConfig::Apns(apns) = &apps[0].provider else { panic!("the first is APNs") };
    assert_eq!((apns.endpoint.as_str(), apns.push_type), ("https://api.push.apple.com", PushType::Alert));
    let ProviderConfig::WebPush(webpush) = &apps[2].provider else { panic!("the third is web push") };
    assert_eq!(webpush.vapid_contact, "mailto:ops@example.com");
}

#[test]
fn an_app_for_calls_has_calls_topic() {
    let toml = APNS.replace("'ios'", "'org.example.ios.voip'");
    let apps = Folder::new().validate(&toml).unwrap();
    let ProviderConfig::Apns(apns) = &apps[0].provider else { panic!("it is APNs") };
    assert_eq!((apns.topic.as_str(), apns.push_type), ("t.voip", PushType::Voip));
}

#[test]
fn a_mistake_is_named_with_its_fix() {
    let folder = Folder::new();
    for (toml, expected) in [
        (
            APNS.replace("'apns'", "'gcm'"),
            "waypost.toml:3: apps.0.type: Google shut the gcm service down in 2024; set type = \"fcm\" with project_id and service_account_file",
        ),
        (
            FCM.replace("project_id = 'p'\n", ""),
            "waypost.toml:1: apps.0.project_id: is missing; set it to the id of the Firebase project",
        ),
        (
            format!("{FCM}key_id = 'K'\n"),
            "waypost.toml:6: apps.0.key_id: belongs to type = \"apns\" and this app has type = \"fcm\"; remove it",
        ),
        (
            APNS.replace("key.p8", "no-key.p8"),
            "waypost.toml:5: apps.0.key_file: no-key.p8 is not a private key in PEM form (-----BEGIN PRIVATE KEY-----)",
        ),
        (
            format!("{FCM}options = {{ topic = 'all' }}\n"),
            "waypost.toml:6: apps.0.options.topic: is set by the gateway for each push; remove it",
        ),
        (
            format!("{APNS}{APNS}"),
            "waypost.toml:9: apps.1.id: an app_id can match this and apps.0.id, and neither is longer; make one of them more particular",
        ),
        (
            format!("{}{}", APNS.replace("'ios'", "'a*x'"), APNS.replace("'ios'", "'?b*'")),
            "waypost.toml:9: apps.1.id: an app_id can match this and apps.0.id, and neither is longer; make one of them more particular",
        ),
        (
            "[notify]\nbudget_secs = 60".to_owned(),
            "waypost.toml:2: notify.budget_secs: must be 1 to 25: homeservers stop waiting soon after",
        ),
        (
            "[server]\nmax_body_bytes = 1000".to_owned(),
            "waypost.toml:2: server.max_body_bytes: must be 262144 or more: homeservers send whole events",
        ),
    ] {
        assert_eq!(folder.validate(&toml).unwrap_err(), expected);
    }
}

#[test]
fn patterns_that_differ_may_overlap_when_one_is_longer() {
    let toml = format!("{}{}", APNS.replace("'ios'", "'org.*'"), APNS.replace("'ios'", "'org.example.*'"));
    assert_eq!(Folder::new().validate(&toml).unwrap().len(), 2);
    let toml = format!("{}{}", APNS.replace("'ios'", "'a?'"), APNS.replace("'ios'", "'ab'"));
    assert_eq!(Folder::new().validate(&toml).unwrap().len(), 2);
}
