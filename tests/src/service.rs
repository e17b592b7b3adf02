//! The four push services, for tests that run the same against each.

use serde_json::{Value, json};

use crate::fcm;
use crate::gateway::{TestGateway, UNIFIED, WEB, android, apns_token, ios};
use crate::script::Script;
use crate::tls_server::{Answer, TlsServer};
use crate::webpush::Subscriber;

/// A push service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// Apple's.
    Apns,
    /// Google's.
    Fcm,
    /// A browser's.
    WebPush,
    /// A self-hosted UnifiedPush server.
    UnifiedPush,
}

impl Service {
    /// All services.
    pub const ALL: [Self; 4] = [Self::Apns, Self::Fcm, Self::WebPush, Self::UnifiedPush];

    /// The server of its stand-in.
    pub fn server(self, gateway: &TestGateway) -> &TlsServer {
        match self {
            Self::Apns => &gateway.apns.server,
            Self::Fcm => &gateway.fcm.server,
            Self::WebPush => &gateway.webpush.server,
            Self::UnifiedPush => &gateway.unifiedpush.server,
        }
    }

    /// Its scripted answers.
    pub fn script(self, gateway: &TestGateway) -> &Script {
        match self {
            Self::Apns => gateway.apns.script(),
            Self::Fcm => gateway.fcm.script(),
            Self::WebPush => gateway.webpush.script(),
            Self::UnifiedPush => gateway.unifiedpush.script(),
        }
    }

    /// Its answer for a dead pushkey.
    pub fn gone(self) -> Answer {
        match self {
            Self::Apns => crate::apns::refusal(410, "Unregistered"),
            Self::Fcm => fcm::refusal(404, "NOT_FOUND", Some("UNREGISTERED")),
            Self::WebPush | Self::UnifiedPush => Answer::empty(410),
        }
    }

    /// The device with this number.
    pub fn target(self, gateway: &TestGateway, number: u8) -> Target {
        match self {
            Self::Apns => Target::Token(self, apns_token(number)),
            Self::Fcm => Target::Token(self, format!("device-{number}")),
            Self::WebPush => Target::Browser(gateway.webpush.subscribe(&format!("browser-{number}"))),
            Self::UnifiedPush => {
                let name = format!("distributor-{number}");
                Target::Address { endpoint: gateway.unifiedpush.endpoint(&name), name }
            }
        }
    }
}

/// A device, as its push service identifies it.
#[derive(Debug)]
pub enum Target {
    /// By a token.
    Token(Service, String),
    /// By an endpoint and keys.
    Browser(Subscriber),
    /// By an endpoint alone.
    Address {
        /// Its name in the endpoint.
        name: String,
        /// The endpoint, which is the pushkey.
        endpoint: String,
    },
}

impl Target {
    /// The key for scripting its push service's answers.
    pub fn key(&self) -> &str {
        match self {
            Self::Token(_, token) => token,
            Self::Browser(browser) => browser.path(),
            Self::Address { name, .. } => name,
        }
    }

    /// The device in a homeserver's request.
    pub fn device(&self) -> Value {
        match self {
            Self::Token(Service::Apns, token) => ios(token),
            Self::Token(_, token) => android(token),
            Self::Browser(browser) => browser.device(WEB),
            Self::Address { endpoint, .. } => json!({"app_id": UNIFIED, "pushkey": endpoint}),
        }
    }

    /// The pushkey.
    pub fn pushkey(&self) -> String {
        match self {
            Self::Token(_, token) => token.clone(),
            Self::Browser(browser) => browser.p256dh(),
            Self::Address { endpoint, .. } => endpoint.clone(),
        }
    }

    /// The ids of the events that its push service received for it, in order; optionally only the accepted ones.
    pub fn events(&self, gateway: &TestGateway, taken_only: bool) -> Vec<String> {
        let id = |payload: &Value| payload["event_id"].as_str().unwrap_or_default().to_owned();
        match self {
            Self::Token(Service::Apns, token) => {
                let pushes = gateway.apns.pushes_for(token);
                pushes.iter().filter(|push| push.taken || !taken_only).map(|push| id(&push.payload)).collect()
            }
            Self::Token(_, token) => {
                let pushes = gateway.fcm.pushes_for(token);
                pushes.iter().filter(|push| push.taken || !taken_only).map(|push| id(&push.message["data"])).collect()
            }
            Self::Browser(browser) => {
                let pushes = gateway.webpush.pushes_for(browser);
                let wanted = pushes.iter().filter(|push| push.taken || !taken_only);
                wanted.map(|push| id(&browser.decrypt(&push.body).unwrap())).collect()
            }
            Self::Address { name, .. } => {
                let messages = gateway.unifiedpush.messages_for(name);
                let wanted = messages.iter().filter(|message| message.taken || !taken_only);
                wanted.map(|message| id(&message.json()["notification"])).collect()
            }
        }
    }
}
