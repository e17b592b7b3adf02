//! Reading the configuration again, without a restart and without a failed request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};
use waypost_tests::database::Database;
use waypost_tests::fcm;
use waypost_tests::gateway::{ANDROID, TestGateway, android, apns_token, event, ios, unifiedpush_app};
use waypost_tests::http::Api;
use waypost_tests::identity::{TestIdentity, internal};
use waypost_tests::process::{Server, text};

const ALICE: &str = "@alice:hs.test";

/// Waits until the configuration was read so many times, and the last time was taken or refused.
async fn read_again(server: &Server, times: usize, message: &str) {
    let fits = |line: &Value| line["message"].as_str().is_some_and(|said| said.starts_with(message));
    let count = || server.logs().iter().filter(|line| fits(line)).count();
    server.wait_for_log(&format!("{message}, {times}"), |line| fits(line) && count() >= times).await;
}

const TAKEN: &str = "configuration reloaded";
const REFUSED: &str = "new configuration refused";

async fn metrics(server: &Server) -> String {
    Api::new(&server.operations).get("/metrics", None).await.text
}

#[tokio::test]
async fn the_identity_server_takes_a_new_configuration_at_a_hangup() {
    let t = TestIdentity::start(Database::Sqlite).await;
    let token = t.register(ALICE).await;
    let algorithms = async || t.get("/hash_details", Some(&token)).await.ok()["algorithms"].clone();
    assert_eq!(algorithms().await, json!(["sha256"]));

    t.server.change_config(|config| config + "\n[lookup]\nallow_none = true\n\n[v1]\nmode = \"off\"\n");
    t.server.hang_up();
    read_again(&t.server, 1, TAKEN).await;
    assert_eq!(algorithms().await, json!(["sha256", "none"]));
    // What only a start reads is named, and stays as it was.
    let waiting = t.server.wait_for_log("the keys that wait", |line| !line["keys"].is_null()).await;
    assert_eq!(waiting["keys"], "v1.mode");
    assert_eq!(t.api.get("/_matrix/identity/api/v1", None).await.status, 200);
    let counted = metrics(&t.server).await;
    assert!(counted.contains("waypost_identity_configuration_reloads_total{outcome=\"taken\"} 1"), "{counted}");
}

#[tokio::test]
async fn a_bad_configuration_is_refused_and_the_one_before_stays() {
    let t = TestIdentity::start(Database::Sqlite).await;
    let token = t.register(ALICE).await;
    // The second one is good by its types, and cannot be worked with.
    for (times, mistake) in (1..).zip(["template_dirr = \"/nowhere\"", "template_dir = \"/nowhere\""]) {
        let good = std::fs::read_to_string(t.server.config_file()).unwrap();
        t.server.change_config(|config| config.replace("[email]\n", &format!("[email]\n{mistake}\n")));
        t.server.hang_up();
        read_again(&t.server, times, REFUSED).await;
        t.server.change_config(|_| good);
        assert_eq!(t.get("/account", Some(&token)).await.ok(), json!({"user_id": ALICE}));
    }
    t.server.hang_up();
    read_again(&t.server, 1, TAKEN).await;
    // Mails go out as before.
    t.open_session(&token, "alice@example.com", "secret").await;
    let counted = metrics(&t.server).await;
    assert!(counted.contains("waypost_identity_configuration_reloads_total{outcome=\"refused\"} 2"), "{counted}");
}

#[tokio::test]
async fn a_secret_file_that_is_swapped_takes_effect_by_itself() {
    let old = "the secret of yesterday";
    let new = "the secret of this day";
    let folder = waypost_tests::process::TempFolder::new();
    // As Kubernetes mounts a secret: a link to a folder of links.
    let link = folder.path().join("current");
    for (name, secret) in [("one", old), ("two", new)] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        folder.write(&format!("{name}/secret"), secret);
    }
    std::os::unix::fs::symlink("one", &link).unwrap();
    let t = TestIdentity::start_with(Database::Sqlite, |settings| {
        internal(settings);
        settings.remove("internal", "secret").set("internal", "secret_file", text(&link.join("secret")));
    })
    .await;
    let api = t.internal_api().await;
    let status = async |secret| {
        let body = json!({"mxid": ALICE});
        api.post("/_matrix/identity/internal/erase", Some(secret), &body).await.status
    };
    assert_eq!([status(old).await, status(new).await], [200, 401]);
    std::os::unix::fs::symlink("two", folder.path().join("next")).unwrap();
    std::fs::rename(folder.path().join("next"), &link).unwrap();
    read_again(&t.server, 1, TAKEN).await;
    assert_eq!([status(old).await, status(new).await], [401, 200]);
    let log = t.server.log_text();
    assert!(!log.contains(old) && !log.contains(new), "a secret is in the log");
}

#[tokio::test]
async fn a_changed_file_that_only_a_start_reads_is_named() {
    let t = TestIdentity::start(Database::Sqlite).await;
    let key = t.server.folder.path().join("data/storage.key");
    let text = std::fs::read_to_string(&key).unwrap();
    std::fs::write(&key, format!("{text}# Another line.\n")).unwrap();
    // Nobody has to send a signal.
    read_again(&t.server, 1, TAKEN).await;
    let waiting = t.server.wait_for_log("the keys that wait", |line| !line["keys"].is_null()).await;
    assert_eq!(waiting["keys"], "keys.storage_key_file");
}

#[tokio::test]
async fn a_changed_inline_secret_is_taken_up_or_named() {
    let [old, new] = ["the secret of yesterday", "the secret of this day"];
    let change = |config: String| config.replace(old, new);

    // One that a reload takes up.
    let t = TestIdentity::start_with(Database::Sqlite, |settings| {
        internal(settings);
        settings.set("internal", "secret", old);
    })
    .await;
    let api = t.internal_api().await;
    let status = async |secret| {
        let body = json!({"mxid": ALICE});
        api.post("/_matrix/identity/internal/erase", Some(secret), &body).await.status
    };
    assert_eq!([status(old).await, status(new).await], [200, 401]);
    t.server.change_config(change);
    t.server.hang_up();
    read_again(&t.server, 1, TAKEN).await;
    assert_eq!([status(old).await, status(new).await], [401, 200]);
    assert!(t.server.logs().iter().all(|line| line["keys"].is_null()), "{}", t.server.log_text());

    // One that only a start reads.
    let gateway = TestGateway::start_apps(|settings, _| {
        settings.set("seen", "secret", old);
    })
    .await;
    gateway.server.change_config(change);
    gateway.server.hang_up();
    let waiting = gateway.server.wait_for_log("the keys that wait", |line| !line["keys"].is_null()).await;
    assert_eq!(waiting["keys"], "[seen]");
    for log in [t.server.log_text(), gateway.server.log_text()] {
        assert!(!log.contains(old) && !log.contains(new), "a secret is in the log");
    }
}

#[tokio::test]
async fn no_request_fails_while_the_configuration_is_read_again() {
    let t = TestIdentity::start(Database::Sqlite).await;
    let token = t.register(ALICE).await;
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (over, answered, token) = (over.clone(), answered.clone(), token.clone());
            let api = Api::new(&t.server.public);
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let reply = api.get("/_matrix/identity/v2/account", Some(&token)).await;
                    assert_eq!(reply.ok(), json!({"user_id": ALICE}));
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    for times in 1..=5 {
        let before = answered.load(Ordering::SeqCst);
        t.server.hang_up();
        read_again(&t.server, times, TAKEN).await;
        while answered.load(Ordering::SeqCst) < before + 20 {
            tokio::task::yield_now().await;
        }
    }
    over.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.unwrap();
    }
}

#[tokio::test]
async fn the_gateway_takes_new_apps_and_keeps_what_it_remembers() {
    let gateway = TestGateway::start_apps(|settings, around| {
        settings.push("apps", &around.fcm_app(ANDROID));
    })
    .await;
    let push = async |app_id: &str, pushkey: &str| {
        let device = json!({"app_id": app_id, "pushkey": pushkey});
        let notification = json!({"event_id": "$one", "room_id": "!r:hs.test", "devices": [device]});
        gateway.notify(&notification).await
    };
    assert_eq!(push(ANDROID, "phone").await.ok(), json!({"rejected": []}));
    assert_eq!(push("org.example.new", "phone").await.status, 503);
    assert_eq!(gateway.api.get(waypost_tests::gateway::NOTIFY, None).await.status, 405);

    gateway.server.change_config(|config| {
        let mut settings = waypost_tests::settings::Settings::default();
        settings.push("apps", &unifiedpush_app("org.example.unified"));
        // The app that was there, under one more name.
        let at = config.find("[[apps]]").unwrap();
        let android = config[at..].split("[[apps]]").find(|app| app.contains(ANDROID)).unwrap();
        format!("{config}\n[[apps]]{}\n{}", android.replace(ANDROID, "org.example.new"), settings.toml())
    });
    gateway.server.hang_up();
    read_again(&gateway.server, 1, TAKEN).await;
    assert_eq!(push("org.example.new", "phone").await.ok(), json!({"rejected": []}));
    assert_eq!(gateway.api.get(waypost_tests::gateway::NOTIFY, None).await.status, 200);
    // The event that was delivered before is not sent again.
    let before = gateway.fcm.pushes().len();
    assert_eq!(push(ANDROID, "phone").await.ok(), json!({"rejected": []}));
    assert_eq!(gateway.fcm.pushes().len(), before);

    // A mistake is refused, and all goes on.
    gateway.server.change_config(|config| config.replace("fcm.project_id", "fcm.project_idd"));
    gateway.server.hang_up();
    read_again(&gateway.server, 1, REFUSED).await;
    assert_eq!(push("org.example.new", "another").await.ok(), json!({"rejected": []}));
}

#[tokio::test]
async fn apple_gets_no_new_token_and_a_hold_that_is_switched_off_is_over() {
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("hold", "min_gone", 2);
    })
    .await;
    let phone = apns_token(1);
    assert_eq!(gateway.notify(&event("$1", &[ios(&phone)])).await.ok(), json!({"rejected": []}));
    for name in ["one", "two"] {
        gateway.fcm.script().always(name, fcm::refusal(404, "NOT_FOUND", Some("UNREGISTERED")));
        gateway.notify(&event("$2", &[android(name)])).await;
    }
    let held = format!("waypost_push_gateway_rejections_held{{app=\"{ANDROID}\"}}");
    assert_eq!(gateway.metric(&held).await, Some(1.0));

    gateway.server.change_config(|config| config.replace("min_gone = 2", "min_gone = 0"));
    gateway.server.hang_up();
    read_again(&gateway.server, 1, TAKEN).await;
    assert_eq!(gateway.metric(&held).await, Some(0.0));
    assert_eq!(gateway.notify(&event("$3", &[ios(&phone)])).await.ok(), json!({"rejected": []}));
    // Apple answers 429 to whoever makes new ones more often than every 20 minutes.
    let pushes = gateway.apns.pushes_for(&phone);
    assert_eq!(pushes[0].header("authorization"), pushes[1].header("authorization"));
}
