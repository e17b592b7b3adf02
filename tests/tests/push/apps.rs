//! Which app's configuration a device goes by (docs/push-gateway.md, "Apps"; docs/security.md, push
//! gateway, 7).

use serde_json::json;
use waypost_tests::gateway::{TestGateway, UNIFIED, apns_token, event, unifiedpush_app, with};
use waypost_tests::process::{PUSH_GATEWAY, TempFolder, run, text};

use super::{assert_try_again, retry_after};

async fn with_globs(policy: Option<&'static str>) -> TestGateway {
    TestGateway::start_apps(|settings, around| {
        let topics = [
            ("org.example.*", "short"),
            ("org.example.app.*", "long"),
            ("org.example.app.exact", "exact"),
            ("org.other.?", "one"),
        ];
        for (id, topic) in topics {
            settings.push("apps", &with(around.apns_app(id), &[("apns.topic", json!(topic))]));
        }
        if let Some(policy) = policy {
            settings.set("notify", "unknown_app", policy);
        }
    })
    .await
}

#[tokio::test]
async fn an_exact_id_wins_then_the_longest_glob() {
    let gateway = with_globs(None).await;
    let cases = [
        ("org.example.app.exact", "exact"),
        ("org.example.app.exactly", "long"),
        // FluffyChat appends the device's id.
        ("org.example.app.DEVICEID", "long"),
        ("org.example.elsewhere", "short"),
        ("org.other.x", "one"),
    ];
    for (number, (app_id, topic)) in cases.into_iter().enumerate() {
        let device = json!({"app_id": app_id, "pushkey": apns_token(1)});
        assert_eq!(gateway.rejected(&event(&format!("${number}"), &[device])).await, json!([]), "{app_id}");
        assert_eq!(gateway.apns.pushes().all()[number].header("apns-topic"), topic, "{app_id}");
    }
}

#[tokio::test]
async fn an_unknown_app_is_no_reason_to_reject_by_default() {
    let gateway = with_globs(None).await;
    for app_id in ["org.unknown", "org.other.xy", "", "ORG.EXAMPLE.APP"] {
        let device = json!({"app_id": app_id, "pushkey": apns_token(1)});
        let reply = gateway.notify(&event("$1", &[device])).await;
        assert_try_again(&reply);
        assert_eq!(reply.status, 503);
        assert!(retry_after(&reply) > 0);
    }
}

#[tokio::test]
async fn unknown_apps_do_not_flood_the_log() {
    let gateway = with_globs(None).await;
    for number in 0..40 {
        let device = json!({"app_id": format!("org.unknown.DEVICE{number}"), "pushkey": apns_token(1)});
        assert_try_again(&gateway.notify(&event("$1", &[device])).await);
    }
    let is_about_it = |line: &serde_json::Value| line["app_id"].as_str().is_some_and(|id| id.contains("org.unknown"));
    gateway.server.wait_for_log("the unknown app", is_about_it).await;
    let lines = gateway.server.logs().iter().filter(|line| is_about_it(line)).count();
    assert!(lines <= 11, "{lines} lines");
    assert!(!gateway.server.log_text().contains("DEVICE"), "a device's id is in the log");
}

#[tokio::test]
async fn an_unknown_app_can_be_rejected_by_policy() {
    let gateway = with_globs(Some("reject")).await;
    let unknown = json!({"app_id": "org.unknown", "pushkey": "key of an app that is gone"});
    let known = json!({"app_id": "org.example.app", "pushkey": apns_token(1)});
    let rejected = gateway.rejected(&event("$1", &[unknown, known])).await;
    assert_eq!(rejected, json!(["key of an app that is gone"]));
    assert_eq!(gateway.apns.pushes().len(), 1);
}

#[test]
fn a_bad_app_is_named_with_its_line() {
    // (text of the app, what the message names)
    let cases = [
        ("id = \"a\"\n[apps.apns]\nkey_fil = \"x\"\n", vec!["waypost.toml:4", "key_fil", "key_file"]),
        ("id = \"a\"\n[apps.pigeon]\n", vec!["waypost.toml:3", "pigeon", "apns, fcm, webpush, unifiedpush"]),
        (
            "id = \"a\"\n[apps.apns]\ntopic = \"t\"\nkey_file = \"/nowhere/a.p8\"\nkey_id = \"K\"\nteam_id = \"T\"\n",
            vec!["/nowhere/a.p8"],
        ),
        (
            "id = \"a\"\n[apps.fcm]\nproject_id = \"p\"\nservice_account_file = \"/nowhere/s.json\"\n",
            vec!["/nowhere/s.json"],
        ),
    ];
    for (app, names) in cases {
        let folder = TempFolder::new();
        let file = folder.write("waypost.toml", &format!("[[apps]]\n{app}"));
        let output = run(PUSH_GATEWAY, &["--config", &text(&file), "check-config"]);
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{app}\n{message}");
        for name in names {
            assert!(message.contains(name), "{name} is not in: {message}");
        }
    }
}

#[test]
fn two_apps_with_one_id_are_refused() {
    let folder = TempFolder::new();
    let app = "[[apps]]\nid = \"a\"\n[apps.apns]\ntopic = \"t\"\n";
    let file = folder.write("waypost.toml", &format!("{app}{app}"));
    let output = run(PUSH_GATEWAY, &["--config", &text(&file), "check-config"]);
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Anybody can send pushkeys that are refused.
#[tokio::test]
async fn refused_pushes_do_not_flood_the_log() {
    let gateway = TestGateway::start_apps(|settings, _| {
        settings.push("apps", &unifiedpush_app(UNIFIED));
    })
    .await;
    for request in 0..3 {
        let device = |number: u32| json!({"app_id": UNIFIED, "pushkey": format!("no URL {request} {number}")});
        let devices: Vec<_> = (0..100).map(device).collect();
        assert_eq!(gateway.rejected(&event("$1", &devices)).await, json!([]));
    }
    let is_about_it = |line: &serde_json::Value| line["message"] == "push refused";
    gateway.server.wait_for_log("a refused push", is_about_it).await;
    let lines = gateway.server.logs().iter().filter(|line| is_about_it(line)).count();
    assert!((50..60).contains(&lines), "{lines} lines");
    assert!(!gateway.server.log_text().contains("no URL"), "a pushkey is in the log");
}
