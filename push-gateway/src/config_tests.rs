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
        fs::write(folder.join("other-key.p8"), crate::jwt::tests::p8()).unwrap();
        fs::write(folder.join("no-key.p8"), "hello").unwrap();
        fs::write(folder.join("rsa.p8"), crate::jwt::tests::RSA_PEM).unwrap();
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
fn unifiedpush_needs_nothing_but_its_type() {
    let toml = "[[apps]]\nid = 'up'\ntype = 'unifiedpush'\n";
    let apps = Folder::new().validate(toml).unwrap();
    let ProviderConfig::UnifiedPush(unifiedpush) = &apps[0].provider else { panic!("it is UnifiedPush") };
    assert!(unifiedpush.vapid.is_none() && unifiedpush.allowed_endpoints.is_empty());
    assert_eq!((unifiedpush.ttl_secs, unifiedpush.events_only), (86_400, false));
    let apps = Folder::new()
        .validate(&format!("{toml}vapid_key_file = 'DIR/key.p8'\nvapid_contact = 'ops@example.com'\n"))
        .unwrap();
    let ProviderConfig::UnifiedPush(unifiedpush) = &apps[0].provider else { panic!("it is UnifiedPush") };
    assert_eq!(unifiedpush.vapid.as_ref().unwrap().1, "mailto:ops@example.com");
    assert_eq!(
        Folder::new().validate(&format!("{toml}vapid_contact = 'ops@example.com'\n")).unwrap_err(),
        "waypost.toml:1: apps.0.vapid_key_file: is missing; set it to the PEM file of the VAPID key"
    );
}

#[test]
fn limits_and_holds_must_be_possible() {
    let folder = Folder::new();
    for (toml, expected) in [
        (
            "[limits]\nper_app = { burst = 5 }\n",
            "waypost.toml:2: limits.per_app: needs refill_secs of 0.000001 or more, or burst = 0 for no limit",
        ),
        ("[hold]\nshare_percent = 100\n", "waypost.toml:2: hold.share_percent: must be 0 to 99"),
        ("[hold]\nhold_secs = 0\n", "waypost.toml:2: hold.hold_secs: must be 1 to 2678400"),
        (
            "[[apps]]\nid = 'up'\ntype = 'unifiedpush'\nmax_in_flight = 0\n",
            "waypost.toml:4: apps.0.max_in_flight: must be 1 to 1000000",
        ),
    ] {
        assert_eq!(folder.validate(toml).unwrap_err(), expected);
    }
    assert!(folder.validate("[limits]\nper_app = { burst = 0 }\n[hold]\nmin_gone = 0\n").is_ok());
}

#[test]
fn replicas_share_a_memory_and_a_secret() {
    let folder = Folder::new();
    fs::write(folder.0.join("secret"), "0123456789abcdef\n").unwrap();
    for (toml, expected) in [
        (
            "[seen]\nredis_url = 'redis://cache'\n",
            "waypost.toml:1: seen.secret: is missing; set it to a secret that all replicas have, such as of `openssl rand -hex 32`",
        ),
        (
            "[seen]\nredis_url = 'http://swordfish@cache'\nsecret_file = 'DIR/secret'\n",
            "waypost.toml:2: seen.redis_url: must be a URL such as redis://user:password@redis.example.com:6379/0, redis+sentinel://… or redis+cluster://…, or with rediss for TLS",
        ),
        (
            "[seen]\nredis_url = 'redis://cache'\nsecret = 'short'\n",
            "waypost.toml:3: seen.secret: must have 16 bytes or more",
        ),
        (
            "[seen]\nredis_url = 'redis://cache'\nredis_url_file = 'DIR/secret'\n",
            "waypost.toml:2: seen.redis_url: both the value and its `_file` are set; keep one of them",
        ),
    ] {
        assert_eq!(folder.validate(toml).unwrap_err(), expected);
    }
    assert!(folder.validate("[seen]\nredis_url = 'redis://cache'\nsecret_file = 'DIR/secret'\n").is_ok());
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
            "waypost.toml:3: apps.0.type: this app has keys of APNs; set type = \"apns\" (gcm was Google's, and was shut down in 2024)",
        ),
        (
            APNS.replace("key.p8", "rsa.p8"),
            "waypost.toml:5: apps.0.key_file: rsa.p8 is not a key for the curve P-256 with its public key beside it",
        ),
        (
            "[outbound]\nproxy_url = 'swordfish'".to_owned(),
            "waypost.toml:2: outbound.proxy_url: must be http://host:port, with user:password@ before the host if the proxy wants them",
        ),
        (
            "[outbound]\nno_proxy = ['http://example.com']\nproxy_url = 'http://proxy.example:3128'".to_owned(),
            "waypost.toml:2: outbound.no_proxy: `http://example.com` must be a name such as example.com, an address, a range or *",
        ),
        ("[outbound]\nmax_origins = 0".to_owned(), "waypost.toml:2: outbound.max_origins: must be 1 or more"),
        (
            FCM.replace("'fcm'", "'gcm'"),
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
            "[notify]\nbudget_secs = 25".to_owned(),
            "waypost.toml:2: notify.budget_secs: must be 1 to 24: homeservers stop waiting soon after",
        ),
        (
            "[server]\nmax_body_bytes = 1000".to_owned(),
            "waypost.toml:2: server.max_body_bytes: must be 262144 or more: homeservers send whole events",
        ),
        (
            "[server]\nheader_timeout_secs = 0".to_owned(),
            "waypost.toml:2: server.header_timeout_secs: must be 1 to 86400",
        ),
        (
            "[outbound]\nextra_ca_file = '/nowhere/ca.pem'".to_owned(),
            "waypost.toml:2: outbound.extra_ca_file: cannot read /nowhere/ca.pem: No such file or directory (os error 2)",
        ),
        (
            "[seen]\ndelivered_ttl_secs = 0".to_owned(),
            "waypost.toml:2: seen.delivered_ttl_secs: must be 1 or more: homeservers send an event again, and no device may get it twice",
        ),
        (
            format!("{APNS}{}", APNS.replace("'ios'", "'other'").replace("key.p8", "other-key.p8")),
            "waypost.toml:12: apps.1.key_file: holds another key than that of apps.0, which has the same key_id and team_id",
        ),
        (
            format!("{FCM}options = {{ android = {{ ttl = '{}' }} }}\n", "9".repeat(3072 - 21)),
            "waypost.toml:6: apps.0.options: takes 3073 bytes; 3072 at the most leave room for events",
        ),
    ] {
        assert_eq!(folder.validate(&toml).unwrap_err(), expected);
    }
}

#[test]
fn a_services_address_is_kept_as_requests_need_it() {
    let folder = Folder::new();
    let endpoint = |text: &str| {
        let apps = folder.validate(&format!("{APNS}endpoint = '{text}'\n"))?;
        let ProviderConfig::Apns(apns) = &apps[0].provider else { panic!("it is APNs") };
        Ok::<_, String>(apns.endpoint.clone())
    };
    for (text, expected) in [
        ("https://bücher.example", "https://xn--bcher-kva.example"),
        ("HTTPS://Push.Example:8443/base/", "https://push.example:8443/base"),
        ("", "https://api.push.apple.com"),
    ] {
        assert_eq!(endpoint(text), Ok(expected.to_owned()));
    }
    for text in [
        "push.example",
        "ftp://push.example",
        "https://push.example/?a=b",
        "https://push.example/#a",
        "https://user@push.example",
        "https://user:pw@push.example",
    ] {
        let problem = "must be a URL such as https://push.example.com, without user, query and fragment";
        assert_eq!(endpoint(text), Err(format!("waypost.toml:8: apps.0.endpoint: {problem}")), "{text}");
    }
}

#[test]
fn apps_may_share_a_key() {
    let toml = format!("{APNS}{}", APNS.replace("'ios'", "'other'"));
    assert_eq!(Folder::new().validate(&toml).unwrap().len(), 2);
}

#[test]
fn options_may_leave_just_enough_room() {
    let options = format!("options = {{ android = {{ ttl = '{}' }} }}\n", "9".repeat(3072 - 22));
    assert_eq!(Folder::new().validate(&format!("{FCM}{options}")).unwrap().len(), 1);
}

#[test]
fn patterns_of_hosts_are_written_as_urls_have_them() {
    let toml = format!("{WEBPUSH}allowed_endpoints = ['*.Push.Example.', 'a.example']\n");
    let apps = Folder::new().validate(&toml).unwrap();
    let ProviderConfig::WebPush(webpush) = &apps[0].provider else { panic!("it is web push") };
    let expected = ["*.push.example", "a.example"].map(crate::glob::Glob::new);
    assert_eq!(webpush.allowed_endpoints, expected);
}

#[test]
fn patterns_that_differ_may_overlap_when_one_is_longer() {
    let toml = format!("{}{}", APNS.replace("'ios'", "'org.*'"), APNS.replace("'ios'", "'org.example.*'"));
    assert_eq!(Folder::new().validate(&toml).unwrap().len(), 2);
    let toml = format!("{}{}", APNS.replace("'ios'", "'a?'"), APNS.replace("'ios'", "'ab'"));
    assert_eq!(Folder::new().validate(&toml).unwrap().len(), 2);
}
