//! Checks whether Apple accepts an app's credentials.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use serde_json::Map;

use super::{Apns, Trouble};
use crate::{
    notification::Device,
    outcome::Outcome,
    upstream::{Attempt, Checked, unproven},
};

impl Apns {
    /// Sends to a device that cannot exist: Apple checks the credentials before the device token.
    pub(in crate::provider) async fn check(&self, timeout: Duration) -> Checked {
        let nobody = Device {
            app_id: String::new(),
            pushkey: "0".repeat(64).into(),
            pushkey_ts_ms: None,
            data: Map::new(),
            fault: None,
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/3/device/{}", self.endpoint, nobody.pushkey.expose()))
            .header("apns-topic", &self.topic)
            .header("apns-push-type", "background")
            .header("apns-priority", "5")
            .body(Bytes::from_static(br#"{"aps":{}}"#));
        let Ok(request) = request else {
            return Err("`endpoint` and `topic` do not make a valid request".to_owned());
        };
        let Attempt { outcome, answer } = self.attempt(&request, &nobody, timeout).await;
        let reason = answer.map(|answer| Trouble::read(answer.body()).reason).unwrap_or_default();
        match (outcome, reason.as_str()) {
            (Outcome::Delivered | Outcome::Gone, _) | (_, "BadDeviceToken") => {
                Ok("Apple accepts the credentials (tested with an invalid device token)".to_owned())
            }
            (outcome, reason) => Err(match advice(reason) {
                Some(advice) => format!("{}: {advice}", unproven(outcome)),
                None => unproven(outcome),
            }),
        }
    }
}

/// What to change, where Apple's reason is not self-explanatory.
fn advice(reason: &str) -> Option<&'static str> {
    match reason {
        "InvalidProviderToken" | "ExpiredProviderToken" | "UnrelatedKeyIdInToken" => Some(
            "`key_file`, `key_id` and `team_id` must belong together, the key must not be revoked at Apple, and this machine's clock must be right",
        ),
        "BadEnvironmentKeyIdInToken" => Some("the key is for the other `environment`"),
        "BadCertificate" | "BadCertificateEnvironment" => {
            Some("`certificate_file` must be a push certificate for this app and this `environment`")
        }
        "MissingProviderToken" => Some("the certificate was not accepted: set `key_file`, or renew the certificate"),
        _ => None,
    }
}
