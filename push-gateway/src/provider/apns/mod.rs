//! Apple Push Notification service: HTTP/2, one request per device.
//!
//! Source: Apple, "Sending notification requests to APNs" and "Handling notification responses from APNs".

mod check;
mod payload;
mod token;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Method, Request, Response, header::AUTHORIZATION};
use ring::digest;
use serde_json::Value;
use tokio::time::Instant;
use waypost_shared::{
    client::{HttpClient, OutboundError},
    clock::Clock,
    config::secret::ExposeSecret as _,
    error::Chain,
    hex, random,
};

use self::token::TeamToken;
pub(crate) use self::token::TeamTokens;
use crate::{
    config::{ApnsConfig, ApnsCredentials, PushType},
    encoding::{from_base64, path_segment},
    notification::{Device, Kind, Notification, Priority},
    outcome::{Ended, Outcome},
    upstream::{Attempt, Upstream, built, is_enough, is_transient, limits},
};

/// Seconds that Apple stores a push for an offline device: one day, as long as Synapse keeps retrying.
const KEPT_SECS: i64 = 24 * 60 * 60;
/// Seconds that a call rings if its event has no lifetime: the default of Matrix clients.
const RINGS_SECS: i64 = 60;
/// Apple's limits for payloads, in bytes.
const MAX_PAYLOAD: usize = 4096;
const MAX_VOIP_PAYLOAD: usize = 5120;

/// Apple's documented reasons. Unknown ones are not logged, since they could contain anything.
const REASONS: [&str; 32] = [
    "BadCertificate",
    "BadCertificateEnvironment",
    "BadCollapseId",
    "BadDeviceToken",
    "BadEnvironmentKeyIdInToken",
    "BadExpirationDate",
    "BadMessageId",
    "BadPath",
    "BadPriority",
    "BadTopic",
    "DeviceTokenNotForTopic",
    "DuplicateHeaders",
    "ExpiredProviderToken",
    "ExpiredToken",
    "Forbidden",
    "IdleTimeout",
    "InternalServerError",
    "InvalidProviderToken",
    "InvalidPushType",
    "MethodNotAllowed",
    "MissingDeviceToken",
    "MissingProviderToken",
    "MissingTopic",
    "PayloadEmpty",
    "PayloadTooLarge",
    "ServiceUnavailable",
    "Shutdown",
    "TooManyProviderTokenUpdates",
    "TooManyRequests",
    "TopicDisallowed",
    "Unregistered",
    "UnrelatedKeyIdInToken",
];

/// One app at APNs.
#[derive(Debug)]
pub(crate) struct Apns {
    client: HttpClient,
    clock: Clock,
    endpoint: String,
    topic: String,
    /// None if the connection authenticates by certificate.
    token: Option<Arc<TeamToken>>,
    convert_device_token_to_hex: bool,
    push_type: PushType,
    collapse: bool,
    payload: payload::Options,
    /// Whether APNs has accepted a push in this environment (production or sandbox). In the wrong one every device
    /// token is bad.
    answered_well: AtomicBool,
}

/// The body of an answer other than 200.
#[derive(Debug)]
struct Trouble {
    reason: String,
    /// With 410 only: when Apple found the device token dead, in milliseconds since the epoch.
    timestamp: Option<i64>,
}

impl Trouble {
    /// Parses leniently: a malformed timestamp does not hide the reason.
    fn read(body: &[u8]) -> Self {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let timestamp = match &body["timestamp"] {
            Value::String(text) => text.parse().ok(),
            number => number.as_i64().or_else(|| format!("{:.0}", number.as_f64()?).parse().ok()),
        };
        Self { reason: body["reason"].as_str().unwrap_or_default().to_owned(), timestamp }
    }
}

impl Apns {
    pub(super) fn new(
        config: ApnsConfig,
        credentials: ApnsCredentials,
        upstream: &Upstream,
        team_tokens: &mut TeamTokens,
    ) -> Result<Self, OutboundError> {
        let push_type = config.push_type();
        let (client, token) = match credentials {
            ApnsCredentials::Token(key) => {
                let token = team_tokens.of(config.key_id, config.team_id, key, &upstream.clock);
                (upstream.services.clone(), Some(token))
            }
            ApnsCredentials::Certificate { chain, key } => {
                let key = key.expose_secret().as_bytes();
                (upstream.outbound.client_with_certificate(chain.as_bytes(), key)?, None)
            }
        };
        Ok(Self {
            client,
            clock: upstream.clock.clone(),
            endpoint: config.endpoint,
            topic: config.topic,
            token,
            convert_device_token_to_hex: config.convert_device_token_to_hex,
            push_type,
            collapse: config.collapse,
            payload: payload::Options {
                send_badge_counts: config.send_badge_counts,
                max_bytes: if push_type == PushType::Voip { MAX_VOIP_PAYLOAD } else { MAX_PAYLOAD },
            },
            answered_well: AtomicBool::new(false),
        })
    }

    pub(super) fn prepare(
        &self,
        notification: &Notification,
        device: &Device,
        kind: Kind,
    ) -> Result<Request<Bytes>, Ended> {
        let is_voip = self.push_type == PushType::Voip;
        // iOS kills an app that is woken by a VoIP push and does not show a call.
        if is_voip && !notification.is_call() {
            return Err(Ended::Dropped);
        }
        let token = self.device_token(device.pushkey.expose()).ok_or_else(|| {
            Ended::With(Outcome::refused_push("the pushkey is neither base64 nor 64 hexadecimal digits"))
        })?;
        let payload = payload::build(notification, device, kind, self.payload)?;

        let push_type = if payload.wakes_nobody { PushType::Background } else { self.push_type };
        let (name, at_once) = match push_type {
            PushType::Alert => ("alert", true),
            PushType::Background => ("background", false),
            PushType::Voip => ("voip", true),
        };
        let is_urgent = at_once && notification.prio == Priority::High;
        let lives_secs = if is_voip { rings_secs(notification) } else { KEPT_SECS };
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("{}/3/device/{token}", self.endpoint))
            .header("apns-topic", &self.topic)
            .header("apns-id", uuid())
            .header("apns-push-type", name)
            .header("apns-priority", if is_urgent { "10" } else { "5" })
            .header("apns-expiration", self.clock.now_ms() / 1000 + lives_secs);
        if let Some(room_id) = notification.text("room_id").filter(|_| self.collapse) {
            request = request.header("apns-collapse-id", collapse_id(room_id));
        }
        built(request.body(Bytes::from(payload.body)))
    }

    pub(super) async fn attempt(&self, request: &Request<Bytes>, device: &Device, timeout: Duration) -> Attempt {
        let deadline = Instant::now() + timeout;
        let mut renewed = false;
        loop {
            let mut request = request.clone();
            let used = match &self.token {
                None => None,
                Some(token) => match token.current() {
                    Ok(value) => {
                        request.headers_mut().insert(AUTHORIZATION, value.clone());
                        Some((token, value))
                    }
                    Err(_) => return Outcome::refused_app("the provider token could not be signed").into(),
                },
            };
            let left = deadline.saturating_duration_since(Instant::now());
            if !is_enough(left, timeout) {
                return Outcome::unreachable().into();
            }
            let answer = match self.client.send_for_status(request, limits(left)).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::warn!(
                        provider = "apns",
                        error = %Chain(&error),
                        "push service did not answer; the push will be retried"
                    );
                    return Outcome::unreachable().into();
                }
            };
            let trouble = Trouble::read(answer.body());
            if let Some((token, used)) = used
                && trouble.reason == "ExpiredProviderToken"
                && !renewed
                && token.renew(&used)
            {
                renewed = true;
                continue;
            }
            let outcome = self.outcome(&answer, &trouble, device);
            return Attempt { outcome, answer: Some(answer) };
        }
    }

    fn outcome(&self, answer: &Response<Bytes>, trouble: &Trouble, device: &Device) -> Outcome {
        let status = answer.status();
        let said = || {
            let known = REASONS.into_iter().find(|reason| *reason == trouble.reason);
            format!("APNs answered {} {}", status.as_u16(), known.unwrap_or("without a known reason"))
        };
        let busy = || {
            tracing::warn!(why = said(), "APNs is busy; the push will be retried");
            Outcome::busy(answer, &self.clock)
        };
        let answered_well = self.answered_well.load(Ordering::Relaxed);
        match (status.as_u16(), trouble.reason.as_str()) {
            (200, _) => {
                self.answered_well.store(true, Ordering::Relaxed);
                Outcome::Delivered
            }
            // Apple's 410 has a single meaning, so an unknown or missing reason does not matter once a push was
            // accepted, which proves that Apple answers. Before that, a 410 may come from a wrong `endpoint`.
            (410, reason) if answered_well || matches!(reason, "Unregistered" | "ExpiredToken") => {
                // If the app set the pushkey again after that time, the device token may be alive again.
                let dead_ms = trouble.timestamp.unwrap_or(i64::MAX);
                if device.pushkey_ts_ms.is_some_and(|set_ms| set_ms > dead_ms) {
                    return Outcome::refused_push(format!("{}, but the pushkey was set again since then", said()));
                }
                Outcome::Gone
            }
            (400, "BadDeviceToken") if answered_well => Outcome::Gone,
            (400, "BadDeviceToken") => Outcome::refused_app(format!(
                "{}, and no push has been accepted there yet: is `environment` the right one?",
                said()
            )),
            (400, "BadTopic" | "DeviceTokenNotForTopic" | "MissingTopic" | "TopicDisallowed") => {
                Outcome::refused_app(format!("{}: is `topic` the app's bundle id?", said()))
            }
            (400, "PayloadEmpty" | "PayloadTooLarge") | (413, _) => Outcome::refused_push(said()),
            // Apple was closing the idle connection.
            (400, "IdleTimeout") => busy(),
            _ if is_transient(status) => busy(),
            // Includes every other 400: the headers are built the same way for all pushes of the app.
            _ => Outcome::refused_app(said()),
        }
    }

    /// The device token in the form that the request path needs.
    fn device_token(&self, pushkey: &str) -> Option<String> {
        if !self.convert_device_token_to_hex {
            return Some(path_segment(pushkey));
        }
        // A 32-byte token has 44 characters in base64, so 64 hexadecimal digits are already in hex.
        if pushkey.len() == 64 && pushkey.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Some(pushkey.to_ascii_lowercase());
        }
        from_base64(pushkey).filter(|token| !token.is_empty()).map(|token| hex::encode(&token))
    }
}

/// How long a call rings, in seconds.
fn rings_secs(notification: &Notification) -> i64 {
    let lifetime_ms = notification.content().and_then(|content| content.get("lifetime")?.as_i64());
    lifetime_ms.map_or(RINGS_SECS, |lifetime_ms| (lifetime_ms / 1000).clamp(1, KEPT_SECS))
}

/// The id by which a new push replaces the previous one of the same room. Hashed, so that the header does not reveal
/// the room id to Apple; at most 64 bytes are allowed.
fn collapse_id(room_id: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, room_id.as_bytes()))
}

/// A random UUID (RFC 9562, version 4).
fn uuid() -> String {
    let mut bytes = random::bytes::<16>();
    bytes[6] = (bytes[6] & 0x0f) | 0x40;
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    let hex = hex::encode(&bytes);
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests;
