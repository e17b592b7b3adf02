//! Errors name the key and the fix, and the sample matches the defaults.

#![allow(clippy::unwrap_used)]

use std::{fs, path::Path};

use tempfile::TempDir;
use waypost_shared::config::keys;

use super::*;

/// A temporary folder with one key of each kind.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path();
        fs::write(folder.join("key.p8"), crate::jwt::tests::p8()).unwrap();
        fs::write(folder.join("other-key.p8"), crate::jwt::tests::p8()).unwrap();
        fs::write(folder.join("no-key.p8"), "hello").unwrap();
        fs::write(folder.join("rsa.p8"), crate::jwt::tests::RSA_PEM).unwrap();
        let account = serde_json::json!({"client_email": "a@b", "private_key": crate::jwt::tests::RSA_PEM});
        fs::write(folder.join("account.json"), account.to_string()).unwrap();
        Self(temporary)
    }

    /// The apps' push services, or the error with the folder's path stripped.
    fn validate(&self, toml: &str) -> Result<Vec<ProviderConfig>, String> {
        let folder = self.0.path().display().to_string();
        let file = self.0.path().join("waypost.toml");
        fs::write(&file, toml.replace("DIR", &folder)).unwrap();
        let checked = Config::load(Some(&file), []).and_then(|loaded| loaded.config.validate(&loaded.source));
        checked.map_err(|error| error.to_string().replace(&format!("{folder}/"), ""))
    }
}

const APNS: &str =
    "[[apps]]\nid = 'ios'\n[apps.apns]\ntopic = 't'\nkey_file = 'DIR/key.p8'\nkey_id = 'K'\nteam_id = 'T'\n";
const FCM: &str = "[[apps]]\nid = 'android'\n[apps.fcm]\nproject_id = 'p'\nservice_account_file = 'DIR/account.json'\n";
const WEBPUSH: &str =
    "[[apps]]\nid = 'web'\n[apps.webpush]\nvapid_key_file = 'DIR/key.p8'\nvapid_contact = 'ops@example.com'\n";

#[test]
fn the_sample_holds_the_defaults() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.sample.toml");
    assert_eq!(Config::load(Some(&sample), []).unwrap().config, Config::default());
}

#[test]
fn the_sample_shows_every_key() {
    assert_eq!(keys::gaps::<Config>(include_str!("../../config.sample.toml")), Vec::<String>::new());
}

/// A reload either applies a changed secret or names it; none is ignored silently.
#[test]
fn no_change_of_a_secret_is_lost_at_a_reload() {
    let secrets: Vec<_> = keys::keys_of::<Config>().into_iter().filter(|key| key.is_secret).collect();
    let names: Vec<_> = secrets.iter().map(keys::Key::dotted).collect();
    assert_eq!(names, ["outbound.proxy_url", "traces.headers.*", "seen.redis_url", "seen.secret"]);
    for key in secrets {
        let with = |value: &str| keys::only::<Config>(&key, value).unwrap();
        let before = with("swordfish");
        let mut now = with("swordfish");
        assert_eq!(now.keep_what_a_start_reads(&before), Vec::<&str>::new(), "{}", key.dotted());
        assert_eq!(now, before);
        let mut now = with("herring");
        assert_ne!(now, before, "{}", key.dotted());
        let is_named = !now.keep_what_a_start_reads(&before).is_empty();
        // A named key keeps its old value; any other is applied.
        assert_eq!(now == before, is_named, "{}", key.dotted());
        assert_eq!(is_named, key.path[0] == "seen", "{}", key.dotted());
    }
}

#[test]
fn an_app_of_each_kind_is_understood() {
    let providers = Folder::new().validate(&format!("{APNS}{FCM}{WEBPUSH}")).unwrap();
    let names: Vec<_> = providers.iter().map(ProviderConfig::name).collect();
    assert_eq!(names, ["apns", "fcm", "webpush"]);
    let ProviderConfig::Apns(apns, _) = &providers[0] else { panic!("the first is APNs") };
    assert_eq!((apns.endpoint.as_str(), apns.push_type()), ("https://api.push.apple.com", PushType::Alert));
    let ProviderConfig::WebPush(webpush, _) = &providers[2] else { panic!("the third is web push") };
    assert_eq!(webpush.vapid_contact, "mailto:ops@example.com");
}

#[test]
fn unifiedpush_needs_nothing_but_its_table() {
    let toml = "[[apps]]\nid = 'up'\n[apps.unifiedpush]\n";
    let providers = Folder::new().validate(toml).unwrap();
    let ProviderConfig::UnifiedPush(unifiedpush, key) = &providers[0] else { panic!("it is UnifiedPush") };
    assert!(key.is_none());
    assert_eq!(*unifiedpush, WebPushConfig::default());
    let providers = Folder::new()
        .validate(&format!("{toml}vapid_key_file = 'DIR/key.p8'\nvapid_contact = 'ops@example.com'\n"))
        .unwrap();
    let ProviderConfig::UnifiedPush(unifiedpush, key) = &providers[0] else { panic!("it is UnifiedPush") };
    assert!(key.is_some());
    assert_eq!(unifiedpush.vapid_contact, "mailto:ops@example.com");
    assert_eq!(
        Folder::new().validate(&format!("{toml}vapid_contact = 'ops@example.com'\n")).unwrap_err(),
        "waypost.toml:3: apps.0.unifiedpush.vapid_key_file: is missing; set it to the PEM file of the VAPID key"
    );
}

#[test]
fn an_app_has_one_push_service() {
    let folder = Folder::new();
    for (toml, expected) in [
        (
            "[log]\n[[apps]]\nid = 'a'\n".to_owned(),
            "waypost.toml:2: apps.0: has no push service; put [apps.apns], [apps.fcm], [apps.webpush] or \
             [apps.unifiedpush] below its keys, with the keys of that service",
        ),
        (
            format!("{APNS}[apps.fcm]\nproject_id = 'p'\nworkload_identity = true\n"),
            "waypost.toml:8: apps.0.fcm: this app has [apps.apns] too; keep one of them, and add another entry for the other",
        ),
        (
            format!("{FCM}key_id = 'K'\n"),
            "waypost.toml:6: apps.0.fcm.key_id: unknown key `key_id`; known keys are project_id, \
             service_account_file, workload_identity, endpoint, token_uri, metadata_uri, profile, options",
        ),
        (
            "[[apps]]\nid = 'a'\n[apps.fmc]\n".to_owned(),
            "waypost.toml:3: apps.0.fmc: unknown key `fmc`; did you mean `fcm`?",
        ),
        (
            "[[apps]]\n[apps.unifiedpush]\n".to_owned(),
            "waypost.toml:1: apps.0.id: is missing; set it to the app_id of the app's pushers, or a pattern with * and ?",
        ),
    ] {
        assert_eq!(folder.validate(&toml).unwrap_err(), expected);
    }
}

#[test]
fn the_flat_form_is_rejected_with_the_new_one_spelled_out() {
    let folder = Folder::new();
    let flat = "[[apps]]\nid = 'ios'\ncontent = 'full'\ntopic = 't'\ntype = 'apns'\nkey_file = 'swordfish'\n";
    let moves = "move these keys, with their values, to the end of the entry, under the header of their table:";
    for (toml, expected) in [
        (
            flat.to_owned(),
            format!(
                "waypost.toml:5: apps.0.type: each push service has its own table now; remove `type`, and \
                 {moves}\n[apps.apns]\ntopic = …\nkey_file = …"
            ),
        ),
        // All entries at once.
        (
            format!("{WEBPUSH}[[apps]]\nid = 'a'\ntype = 'fcm'\nproject_id = 'p'\n[[apps]]\ntype = 'unifiedpush'\n"),
            format!(
                "waypost.toml:8: apps.1.type: each push service has its own table now; remove `type`, and \
                 {moves}\n[apps.fcm]\nproject_id = …\n\
                 waypost.toml:11: apps.2.type: each push service has its own table now; remove `type`, and \
                 write at the end of the entry:\n[apps.unifiedpush]"
            ),
        ),
        // A key next to the table, or without any table.
        (
            "[[apps]]\nid = 'a'\nttl_secs = 5\n[apps.unifiedpush]\n".to_owned(),
            format!(
                "waypost.toml:3: apps.0.ttl_secs: each push service has its own table now; \
                 {moves}\n[apps.unifiedpush]\nttl_secs = …"
            ),
        ),
        (
            "[[apps]]\nid = 'a'\nproject_id = 'p'\n".to_owned(),
            format!(
                "waypost.toml:3: apps.0.project_id: each push service has its own table now; \
                 {moves}\n[apps.fcm]\nproject_id = …"
            ),
        ),
        // One of another service.
        (
            format!("{flat}project_id = 'p'\n"),
            format!(
                "waypost.toml:5: apps.0.type: each push service has its own table now; remove `type`, \
                 `project_id`, and {moves}\n[apps.apns]\ntopic = …\nkey_file = …"
            ),
        ),
        // A type that Sygnal's users may have.
        (
            flat.replace("'apns'", "'gcm'"),
            format!(
                "waypost.toml:5: apps.0.type: each push service has its own table now (gcm was Google's, and was \
                 shut down in 2024); remove `type`, and {moves}\n[apps.apns]\ntopic = …\nkey_file = …"
            ),
        ),
        (
            "[[apps]]\nid = 'a'\ntype = 'pigeon'\n".to_owned(),
            "waypost.toml:3: apps.0.type: is no longer a key; use the table of the push service instead: \
             [apps.apns], [apps.fcm], [apps.webpush] or [apps.unifiedpush]"
                .to_owned(),
        ),
    ] {
        assert_eq!(folder.validate(&toml).unwrap_err(), expected);
    }
}

#[test]
fn the_environment_sets_keys_of_a_table() {
    let folder = Folder::new();
    let file = folder.0.path().join("waypost.toml");
    fs::write(&file, "[[apps]]\nid = 'android'\n").unwrap();
    let load = |variables: &[(&str, &str)]| {
        let environment = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(Some(&file), environment).map_err(|error| error.to_string())
    };
    let loaded = load(&[
        ("WAYPOST_APPS__0__FCM__PROJECT_ID", "p"),
        ("WAYPOST_APPS__0__FCM__WORKLOAD_IDENTITY", "true"),
        ("WAYPOST_APPS__0__MAX_IN_FLIGHT", "7"),
    ])
    .unwrap();
    let expected = FcmConfig { project_id: "p".to_owned(), workload_identity: true, ..FcmConfig::default() };
    let [app] = &loaded.config.apps[..] else { panic!("there is one app") };
    assert_eq!((app.fcm.as_ref(), app.max_in_flight), (Some(&expected), 7));
    assert_eq!(
        load(&[("WAYPOST_APPS__0__PROJECT_ID", "swordfish")]).unwrap_err(),
        "environment variable WAYPOST_APPS__0__PROJECT_ID: each push service has its own table now; move these \
         keys, with their values, to the end of the entry, under the header of their table:\n[apps.fcm]\nproject_id = …"
    );
}

#[test]
fn impossible_limits_and_holds_are_rejected() {
    let folder = Folder::new();
    for (toml, expected) in [
        (
            "[limits]\nper_app = { burst = 5 }\n",
            "waypost.toml:2: limits.per_app: needs refill_secs of 0.000001 or more, or burst = 0 for no limit",
        ),
        ("[hold]\nshare_percent = 100\n", "waypost.toml:2: hold.share_percent: must be 0 to 99"),
        ("[hold]\nhold_secs = 0\n", "waypost.toml:2: hold.hold_secs: must be 1 to 2678400"),
        (
            "[[apps]]\nid = 'up'\nmax_in_flight = 0\n[apps.unifiedpush]\n",
            "waypost.toml:3: apps.0.max_in_flight: must be 1 to 1000000",
        ),
    ] {
        assert_eq!(folder.validate(toml).unwrap_err(), expected);
    }
    assert!(folder.validate("[limits]\nper_app = { burst = 0 }\n[hold]\nmin_gone = 0\n").is_ok());
}

#[test]
fn replicas_share_a_memory_and_a_secret() {
    let folder = Folder::new();
    fs::write(folder.0.path().join("secret"), "0123456789abcdef\n").unwrap();
    for (toml, expected) in [
        (
            "[seen]\nredis_url = 'redis://cache'\n",
            "waypost.toml:1: seen.secret: is missing; set it to a secret that all replicas share, such as the output of `openssl rand -hex 32`",
        ),
        (
            "[seen]\nredis_url = 'http://swordfish@cache'\nsecret_file = 'DIR/secret'\n",
            "waypost.toml:2: seen.redis_url: must be a URL such as redis://user:password@redis.example.com:6379/0, redis+sentinel://… or redis+cluster://…; use rediss for TLS",
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
fn an_app_for_calls_gets_the_voip_topic() {
    let toml = APNS.replace("'ios'", "'org.example.ios.voip'");
    let apps = Folder::new().validate(&toml).unwrap();
    let ProviderConfig::Apns(apns, _) = &apps[0] else { panic!("it is APNs") };
    assert_eq!((apns.topic.as_str(), apns.push_type()), ("t.voip", PushType::Voip));
}

#[test]
fn a_mistake_is_named_with_its_fix() {
    let folder = Folder::new();
    for (toml, expected) in [
        (
            APNS.replace("key.p8", "rsa.p8"),
            "waypost.toml:5: apps.0.apns.key_file: rsa.p8 is not a P-256 key that includes its public key",
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
            FCM.replace("project_id = 'p'\n", ""),
            "waypost.toml:3: apps.0.fcm.project_id: is missing; set it to the id of the Firebase project",
        ),
        (
            APNS.replace("key.p8", "no-key.p8"),
            "waypost.toml:5: apps.0.apns.key_file: no-key.p8 is not a private key in PEM form (-----BEGIN PRIVATE KEY-----)",
        ),
        (
            format!("{FCM}options = {{ topic = 'all' }}\n"),
            "waypost.toml:6: apps.0.fcm.options.topic: is set by the gateway for each push; remove it",
        ),
        (
            format!("{APNS}{APNS}"),
            "waypost.toml:9: apps.1.id: an app_id can match both this and apps.0.id, and neither is longer; make one of them more specific",
        ),
        (
            format!("{}{}", APNS.replace("'ios'", "'a*x'"), APNS.replace("'ios'", "'?b*'")),
            "waypost.toml:9: apps.1.id: an app_id can match both this and apps.0.id, and neither is longer; make one of them more specific",
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
            "waypost.toml:2: seen.delivered_ttl_secs: must be 1 or more: homeservers retry events, and no device may get one twice",
        ),
        (
            format!("{APNS}{}", APNS.replace("'ios'", "'other'").replace("key.p8", "other-key.p8")),
            "waypost.toml:12: apps.1.apns.key_file: holds a different key than that of apps.0, which has the same key_id and team_id",
        ),
        (
            format!("{FCM}options = {{ android = {{ ttl = '{}' }} }}\n", "9".repeat(3072 - 21)),
            "waypost.toml:6: apps.0.fcm.options: takes 3073 bytes; at most 3072 leave room for events",
        ),
    ] {
        assert_eq!(folder.validate(&toml).unwrap_err(), expected);
    }
}

#[test]
fn a_services_address_is_normalized_for_requests() {
    let folder = Folder::new();
    let endpoint = |text: &str| {
        let apps = folder.validate(&format!("{APNS}endpoint = '{text}'\n"))?;
        let ProviderConfig::Apns(apns, _) = &apps[0] else { panic!("it is APNs") };
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
        let problem = "must be a URL such as https://push.example.com, without user, query or fragment";
        assert_eq!(endpoint(text), Err(format!("waypost.toml:8: apps.0.apns.endpoint: {problem}")), "{text}");
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
fn host_patterns_are_normalized_like_urls() {
    let toml = format!("{WEBPUSH}allowed_endpoints = ['*.Push.Example.', 'a.example']\n");
    let apps = Folder::new().validate(&toml).unwrap();
    let ProviderConfig::WebPush(webpush, _) = &apps[0] else { panic!("it is web push") };
    let expected = ["*.push.example", "a.example"].map(crate::glob::Glob::new);
    assert_eq!(webpush.allowed_endpoints, expected);
}

#[test]
fn patterns_may_overlap_if_one_is_more_specific() {
    let toml = format!("{}{}", APNS.replace("'ios'", "'org.*'"), APNS.replace("'ios'", "'org.example.*'"));
    assert_eq!(Folder::new().validate(&toml).unwrap().len(), 2);
    let toml = format!("{}{}", APNS.replace("'ios'", "'a?'"), APNS.replace("'ios'", "'ab'"));
    assert_eq!(Folder::new().validate(&toml).unwrap().len(), 2);
}
