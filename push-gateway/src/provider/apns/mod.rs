//! Apple Push Notification service: HTTP/2, one request for each device.
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

/// Seconds that Apple keeps a push for a device that is away: as long as Synapse keeps trying, one day.
const KEPT_SECS: i64 = 24 * 60 * 60;
/// Seconds that a call rings when its event does not say: the default of Matrix clients.
const RINGS_SECS: i64 = 60;
/// Bytes of a payload: Apple's limits.
const MAX_PAYLOAD: usize = 4096;
const MAX_VOIP_PAYLOAD: usize = 5120;

/// What Apple answers with; others are not repeated in the log, since nobody knows what they hold.
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

/// One app at Apple's service.
#[derive(Debug)]
pub(crate) struct Apns {
    client: HttpClient,
    clock: Clock,
    endpoint: String,
    topic: String,
    /// None where the connection's certificate says who is calling.
    token: Option<Arc<TeamToken>>,
    convert_device_token_to_hex: bool,
    push_type: PushType,
    collapse: bool,
    payload: payload::Options,
    /// Whether this environment, production or sandbox, has taken a push: in the wrong one each token is bad.
    answered_well: AtomicBool,
}

/// The body of an answer that is not 200.
#[derive(Debug)]
struct Trouble {
    reason: String,
    /// Of 410: when Apple found the token dead, in milliseconds since the epoch.
    timestamp: Option<i64>,
}

impl Trouble {
    /// Reads what can be read: an odd timestamp takes nothing from the reason.
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
        // iOS kills apps that are woken by a VoIP push and show no call.
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
                    tracing::warn!(provider = "apns", error = %Chain(&error), "no answer from the provider");
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
            tracing::warn!(why = said(), "APNs is busy");
            Outcome::busy(answer, &self.clock)
        };
        let answered_well = self.answered_well.load(Ordering::Relaxed);
        match (status.as_u16(), trouble.reason.as_str()) {
            (200, _) => {
                self.answered_well.store(true, Ordering::Relaxed);
                Outcome::Delivered
            }
            // Apple's 410 has one meaning, so a reason that is new or did not arrive changes nothing, once a push was
            // taken here: that it is Apple who answers. Before, it may be a wrong `endpoint`.
            (410, reason) if answered_well || matches!(reason, "Unregistered" | "ExpiredToken") => {
                // A token that the app set again since is another chance, not a dead one.
                let dead_ms = trouble.timestamp.unwrap_or(i64::MAX);
                if device.pushkey_ts_ms.is_some_and(|set_ms| set_ms > dead_ms) {
                    return Outcome::refused_push(format!("{}, from before the pushkey was set again", said()));
                }
                Outcome::Gone
            }
            (400, "BadDeviceToken") if answered_well => Outcome::Gone,
            (400, "BadDeviceToken") => Outcome::refused_app(format!(
                "{}, and no push was taken there yet: is `environment` the right one?",
                said()
            )),
            (400, "BadTopic" | "DeviceTokenNotForTopic" | "MissingTopic" | "TopicDisallowed") => {
                Outcome::refused_app(format!("{}: is `topic` the app's bundle id?", said()))
            }
            (400, "PayloadEmpty" | "PayloadTooLarge") | (413, _) => Outcome::refused_push(said()),
            // Apple was about to close the connection.
            (400, "IdleTimeout") => busy(),
            _ if is_transient(status) => busy(),
            // Also each other 400: headers are made alike for all pushes of the app.
            _ => Outcome::refused_app(said()),
        }
    }

    /// The device token as Apple's path has it.
    fn device_token(&self, pushkey: &str) -> Option<String> {
        if !self.convert_device_token_to_hex {
            return Some(path_segment(pushkey));
        }
        // Base64 of a token has 44 characters, so 64 hexadecimal digits are a token of 32 bytes already.
        if pushkey.len() == 64 && pushkey.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Some(pushkey.to_ascii_lowercase());
        }
        from_base64(pushkey).filter(|token| !token.is_empty()).map(|token| hex::encode(&token))
    }
}

/// How long a call rings.
fn rings_secs(notification: &Notification) -> i64 {
    let lifetime_ms = notification.content().and_then(|content| content.get("lifetime")?.as_i64());
    lifetime_ms.map_or(RINGS_SECS, |lifetime_ms| (lifetime_ms / 1000).clamp(1, KEPT_SECS))
}

/// One push of each room stays visible. Hashed, so that Apple learns no room id from a header; 64 bytes are allowed.
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
