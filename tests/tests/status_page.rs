//! The status page of the operations listener, and the JSON beside it.

use serde_json::{Value, json};
use waypost_tests::database::Database;
use waypost_tests::gateway::{ANDROID, TestGateway, android, event};
use waypost_tests::http::Api;
use waypost_tests::identity::TestIdentity;
use waypost_tests::on_each_database;
use waypost_tests::process::Server;
use waypost_tests::tls_server::Answer;

async fn status(server: &Server) -> Value {
    Api::new(&server.operations).get("/status", None).await.ok()
}

/// State and detail of the dependency of this kind.
async fn dependency(server: &Server, kind: &str) -> (String, String) {
    let status = status(server).await;
    let known = status["dependencies"].as_array().unwrap().iter().find(|one| one["kind"] == kind);
    let text = |name: &str| known.unwrap_or_else(|| panic!("{status}"))[name].as_str().unwrap().to_owned();
    (text("state"), text("detail"))
}

fn is(state: &str, detail: &str) -> (String, String) {
    (state.to_owned(), detail.to_owned())
}

async fn page_is_safe(server: &Server) {
    let reply = Api::new(&server.operations).get("/", None).await;
    let policy = reply.headers["content-security-policy"].to_str().unwrap();
    let nonce = policy.split("script-src 'nonce-").nth(1).unwrap().split('\'').next().unwrap();
    assert!(nonce.len() >= 22 && policy.starts_with("default-src 'none';"), "{policy}");
    assert!(reply.text.contains(&format!("<script nonce=\"{nonce}\">")), "the script is known by the nonce");
    // The name of SVG is no address that is loaded.
    let rest = reply.text.replace("http://www.w3.org/2000/svg", "");
    assert!(!rest.contains("NONCE") && !rest.contains("http://") && !rest.contains("https://"));
    let again = Api::new(&server.operations).get("/", None).await;
    assert!(!again.text.contains(nonce), "each answer has another nonce");
    assert!(!reply.headers.contains_key("access-control-allow-origin"));
}

on_each_database! {
    async fn the_identity_server_shows_its_neighbours(database: Database) {
        let t = TestIdentity::start(database).await;
        page_is_safe(&t.server).await;
        let at_first = status(&t.server).await;
        assert_eq!([&at_first["service"], &at_first["ready"]], [&json!("waypost-identity"), &json!(true)]);
        assert!(at_first["started_ms"].as_i64() <= at_first["now_ms"].as_i64());
        assert_eq!(at_first["expiries"][0]["name"], "pepper");
        let name = if database == Database::Postgres { "PostgreSQL" } else { "SQLite" };
        assert_eq!([&at_first["dependencies"][0]["name"], &at_first["dependencies"][0]["state"]], [name, "up"]);
        assert_eq!(dependency(&t.server, "mail").await, is("unknown", "SMTP"));
        assert_eq!(dependency(&t.server, "sms").await, is("off", "not configured"));
        assert_eq!(dependency(&t.server, "homeservers").await, is("up", "0 calls pending, 0 given up"));

        let token = t.register("@alice:hs.test").await;
        t.open_session(&token, "alice@example.com", "secret").await;
        assert_eq!(dependency(&t.server, "mail").await, is("up", "SMTP"));
        // An address that it will not have is no fault of the mail server's.
        t.smtp.refuse("nobody@example.com");
        assert_eq!(t.request_email(&token, "nobody@example.com", "secret", 1).await.status, 400);
        assert_eq!(dependency(&t.server, "mail").await, is("up", "SMTP"));

        let sent = json!({
            "name": "waypost_identity_mails_total", "labels": {"outcome": "sent"}, "value": 1.0,
        });
        let metrics = status(&t.server).await["metrics"].clone();
        assert!(metrics.as_array().unwrap().contains(&sent), "{metrics}");
    }
}

#[tokio::test]
async fn a_mail_server_that_is_away_is_down() {
    let t = TestIdentity::start_with(Database::Sqlite, |settings| {
        // Nothing listens on this port.
        settings.set("email", "smtp_host", "127.0.0.1").set("email", "smtp_port", 1);
    })
    .await;
    let token = t.register("@alice:hs.test").await;
    assert_eq!(t.request_email(&token, "alice@example.com", "secret", 1).await.status, 400);
    let (state, detail) = dependency(&t.server, "mail").await;
    assert!(state == "down" && detail.starts_with("SMTP: the mail server did not accept the mail"), "{state} {detail}");
    assert!(!detail.contains("alice"), "{detail}");
}

#[tokio::test]
async fn the_gateway_shows_each_app_and_what_its_push_service_last_did() {
    let gateway = TestGateway::start_impatient().await;
    page_is_safe(&gateway.server).await;
    let of_android = async || {
        let status = status(&gateway.server).await;
        let known = status["dependencies"].as_array().unwrap().iter().find(|one| one["name"] == ANDROID).cloned();
        let known = known.unwrap();
        (known["kind"].clone(), known["state"].clone(), known["detail"].clone())
    };
    assert_eq!(of_android().await, (json!("fcm"), json!("unknown"), json!("FCM")));
    gateway.rejected(&event("$1", &[android("phone")])).await;
    assert_eq!(of_android().await, (json!("fcm"), json!("up"), json!("FCM")));
    gateway.fcm.script().always("busy-phone", Answer::empty(503));
    assert_eq!(gateway.notify(&event("$2", &[android("busy-phone")])).await.status, 503);
    assert_eq!(of_android().await, (json!("fcm"), json!("down"), json!("FCM: busy or unreachable")));
    let text = Api::new(&gateway.server.operations).get("/status", None).await.text;
    assert!(!text.contains("busy-phone"), "a pushkey is on the status page");
}
