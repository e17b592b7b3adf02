//! A push gateway surrounded by stand-ins for the push services.

use ::http::Request;
use bytes::Bytes;
use serde_json::{Value, json};

use crate::apns::{self, Apns};
use crate::ca::Ca;
use crate::fcm::{self, Fcm};
use crate::http::{Api, Reply};
use crate::process::{PUSH_GATEWAY, Server, TempFolder, text};
use crate::settings::Settings;
use crate::unifiedpush::PushServer;
use crate::webpush::{HOST, PushService};

/// The app that pushes to APNs.
pub const IOS: &str = "org.example.ios";
/// The app that pushes to FCM.
pub const ANDROID: &str = "org.example.android";
/// The app that pushes to WebPush.
pub const WEB: &str = "org.example.web";
/// The app that pushes to UnifiedPush.
pub const UNIFIED: &str = "org.example.unified";
/// The topic of the APNs app.
pub const TOPIC: &str = "org.example.ios.app";
/// The gateway's endpoint.
pub const NOTIFY: &str = "/_matrix/push/v1/notify";

/// `server.trusted_proxies` for tests that set a request's source themselves.
pub const PROXIES: &str = "127.0.0.0/8";

/// The running gateway and its surroundings.
#[derive(Debug)]
pub struct TestGateway {
    /// The gateway's process.
    pub server: Server,
    /// A client of its public listener.
    pub api: Api,
    /// Apple.
    pub apns: Apns,
    /// Google.
    pub fcm: Fcm,
    /// A browser vendor.
    pub webpush: PushService,
    /// A self-hosted UnifiedPush server.
    pub unifiedpush: PushServer,
    /// The CA that all of them use.
    pub ca: Ca,
}

/// What settings may refer to.
#[derive(Debug)]
pub struct Around<'a> {
    /// The gateway's folder.
    pub folder: &'a TempFolder,
    /// Apple.
    pub apns: &'a Apns,
    /// Google.
    pub fcm: &'a Fcm,
    /// A browser vendor.
    pub webpush: &'a PushService,
    /// A self-hosted UnifiedPush server.
    pub unifiedpush: &'a PushServer,
    /// The CA.
    pub ca: &'a Ca,
}

impl Around<'_> {
    /// The entry of an APNs app with the stand-in's key.
    pub fn apns_app(&self, id: &str) -> Vec<(&'static str, Value)> {
        vec![
            ("id", json!(id)),
            ("apns.topic", json!(TOPIC)),
            ("apns.environment", json!("production")),
            ("apns.endpoint", json!(self.apns.server.url())),
            ("apns.key_file", json!(text(&self.apns.write_key(self.folder)))),
            ("apns.key_id", json!(apns::KEY_ID)),
            ("apns.team_id", json!(apns::TEAM_ID)),
        ]
    }

    /// The entry of an FCM app with the stand-in's service account.
    pub fn fcm_app(&self, id: &str) -> Vec<(&'static str, Value)> {
        vec![
            ("id", json!(id)),
            ("fcm.project_id", json!(fcm::PROJECT)),
            ("fcm.service_account_file", json!(text(&self.fcm.write_service_account(self.folder)))),
            ("fcm.endpoint", json!(self.fcm.server.url())),
        ]
    }

    /// The entry of a WebPush app.
    pub fn webpush_app(&self, id: &str) -> Vec<(&'static str, Value)> {
        vec![
            ("id", json!(id)),
            ("webpush.vapid_key_file", json!(text(&self.webpush.write_vapid_key(self.folder)))),
            ("webpush.vapid_contact", json!("mailto:push@example.org")),
            ("webpush.allowed_endpoints", json!([HOST])),
        ]
    }
}

/// The entry of a UnifiedPush app.
pub fn unifiedpush_app(id: &str) -> Vec<(&'static str, Value)> {
    vec![("id", json!(id)), ("unifiedpush.allowed_endpoints", json!([HOST]))]
}

/// An app's entry with `keys` replaced or added.
pub fn with(mut app: Vec<(&'static str, Value)>, keys: &[(&'static str, Value)]) -> Vec<(&'static str, Value)> {
    app.retain(|(key, _)| !keys.iter().any(|(other, _)| key == other));
    app.extend_from_slice(keys);
    app
}

impl TestGateway {
    /// Starts a gateway with one app for each push service, all with full content.
    pub async fn start() -> Self {
        Self::start_with(|_, _| {}).await
    }

    /// The same with short time-outs, for tests in which a push service fails.
    pub async fn start_impatient() -> Self {
        Self::start_with(|settings, _| {
            settings.set("notify", "budget_secs", 3).set("notify", "attempt_timeout_secs", 1);
        })
        .await
    }

    /// Starts a gateway with settings adjusted by `change`.
    pub async fn start_with(change: impl FnOnce(&mut Settings, &Around<'_>)) -> Self {
        Self::start_apps(|settings, around| {
            let full = ("content", json!("full"));
            let apps =
                [around.apns_app(IOS), around.fcm_app(ANDROID), around.webpush_app(WEB), unifiedpush_app(UNIFIED)];
            for app in apps {
                settings.push("apps", &with(app, std::slice::from_ref(&full)));
            }
            change(settings, around);
        })
        .await
    }

    /// Starts a gateway with only the apps that `apps` adds.
    pub async fn start_apps(apps: impl FnOnce(&mut Settings, &Around<'_>)) -> Self {
        let ca = Ca::new();
        let apns = Apns::start(&ca).await;
        let fcm = Fcm::start(&ca).await;
        let webpush = PushService::start(&ca).await;
        let unifiedpush = PushServer::start(&ca).await;
        let folder = TempFolder::new();
        let mut settings = Settings::default();
        settings
            .set("listen", "public", "127.0.0.1:0")
            .set("listen", "operations", "127.0.0.1:0")
            .set("outbound", "allowed_ranges", vec!["127.0.0.0/8"])
            .set("outbound", "extra_ca_file", text(&ca.write(folder.path())))
            .set("outbound.hosts", HOST, "127.0.0.1")
            .set("log", "level", "debug")
            .set("log", "format", "json");
        let around =
            Around { folder: &folder, apns: &apns, fcm: &fcm, webpush: &webpush, unifiedpush: &unifiedpush, ca: &ca };
        apps(&mut settings, &around);
        let server = Server::start(PUSH_GATEWAY, folder, &settings.toml()).await;
        let api = Api::new(&server.public);
        Self { server, api, apns, fcm, webpush, unifiedpush, ca }
    }

    /// Starts another process with the same configuration, as a replica.
    pub async fn replica(&self) -> Replica {
        let config = std::fs::read_to_string(self.server.folder.path().join("waypost.toml")).unwrap();
        let server = Server::start(PUSH_GATEWAY, TempFolder::new(), &config).await;
        Replica { api: Api::new(&server.public), server }
    }

    /// A sample from the gateway's metrics, by its name and labels exactly as exposed.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        metric(&self.server, name).await
    }

    /// Sends a notification.
    pub async fn notify(&self, notification: &Value) -> Reply {
        self.api.post(NOTIFY, None, &json!({"notification": notification})).await
    }

    /// Sends a notification as if from this address, to a gateway whose `server.trusted_proxies` contains [`PROXIES`].
    pub async fn notify_from(&self, source: &str, notification: &Value) -> Reply {
        let body = json!({"notification": notification}).to_string();
        let request = Request::post(self.api.absolute(NOTIFY)).header("x-forwarded-for", source);
        self.api.send(request.body(Bytes::from(body)).unwrap()).await
    }

    /// Sends a notification, asserts that it succeeds and returns `rejected`.
    pub async fn rejected(&self, notification: &Value) -> Value {
        self.notify(notification).await.ok()["rejected"].clone()
    }
}

/// Another process with the same configuration.
#[derive(Debug)]
pub struct Replica {
    /// Its process.
    pub server: Server,
    /// A client of its public listener.
    pub api: Api,
}

impl Replica {
    /// Sends a notification.
    pub async fn notify(&self, notification: &Value) -> Reply {
        self.api.post(NOTIFY, None, &json!({"notification": notification})).await
    }
}

/// A sample from a server's metrics, by its name and labels exactly as exposed.
pub async fn metric(server: &Server, name: &str) -> Option<f64> {
    let text = Api::new(&server.operations).get("/metrics", None).await.text;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// The specification's example event, for `devices`.
pub fn event(event_id: &str, devices: &[Value]) -> Value {
    json!({
        "event_id": event_id,
        "room_id": "!slw48wfj34rtnrf:example.com",
        "type": "m.room.message",
        "sender": "@exampleuser:matrix.org",
        "sender_display_name": "Major Tom",
        "room_name": "Mission Control",
        "room_alias": "#exampleroom:matrix.org",
        "prio": "high",
        "content": {"msgtype": "m.text", "body": "I'm floating in a most peculiar way."},
        "counts": {"unread": 2, "missed_calls": 1},
        "devices": devices,
    })
}

/// What a homeserver sends for a pusher with the format `event_id_only`.
pub fn event_id_only(event_id: &str, devices: &[Value]) -> Value {
    json!({
        "event_id": event_id,
        "room_id": "!slw48wfj34rtnrf:example.com",
        "prio": "high",
        "counts": {"unread": 2},
        "devices": devices,
    })
}

/// A device of the APNs app, by its token in hexadecimal.
pub fn ios(token: &str) -> Value {
    json!({"app_id": IOS, "pushkey": token})
}

/// A device of the FCM app.
pub fn android(token: &str) -> Value {
    json!({"app_id": ANDROID, "pushkey": token})
}

/// An APNs device token in hexadecimal: one byte, repeated.
pub fn apns_token(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}
