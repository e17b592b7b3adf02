//! Web push: pushes go to the endpoint that the browser got from its push service.
//!
//! Source: RFC 8030, "Generic Event Delivery Using HTTP Push".

mod payload;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use blake2::{Blake2s, Digest as _, digest::consts::U22};
use bytes::Bytes;
use http::{
    Method, Request, Response, Uri,
    header::{AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE},
};
use url::Url;
use waypost_shared::{
    client::{HttpClient, HttpClientError},
    clock::Clock,
    owner::Owners,
};

use crate::{
    config::WebPushConfig,
    encryption::{self, NotEncrypted, Subscription},
    endpoint,
    glob::Glob,
    jwt::Es256Key,
    notification::{Device, Kind, Notification, Priority},
    outcome::{Ended, Outcome},
    upstream::{Attempt, Upstream, WAIT_WHERE_CROWDED, built, is_transient, limits},
    vapid::Vapid,
};

/// `retry_after` after a push server that a stranger chose has refused the app's VAPID key.
const WAIT_WHERE_REFUSED: Duration = Duration::from_secs(15 * 60);

/// Seconds that a push service stores a message for an offline browser: Sygnal's default.
const DEFAULT_TTL_SECS: u64 = 15 * 60;

/// One web app.
#[derive(Debug)]
pub(crate) struct WebPush {
    client: HttpClient,
    owners: Owners,
    clock: Clock,
    vapid: Vapid,
    allowed_endpoints: Vec<Glob>,
    ttl_secs: u64,
    events_only: bool,
}

impl WebPush {
    /// The app's VAPID key.
    pub(super) fn vapid(&self) -> &Vapid {
        &self.vapid
    }

    /// Whether the operator has named no push servers.
    pub(super) fn allows_every_host(&self) -> bool {
        self.allowed_endpoints.is_empty()
    }

    /// The rules that map push servers to their owners.
    pub(super) fn owners(&self) -> &Owners {
        &self.owners
    }

    pub(super) fn new(config: WebPushConfig, key: Es256Key, max_in_flight: usize, upstream: &Upstream) -> Self {
        Self {
            client: upstream.push_servers(&config.allowed_endpoints, max_in_flight),
            owners: upstream.outbound.owners().clone(),
            clock: upstream.clock.clone(),
            vapid: Vapid::new(key, config.vapid_contact, upstream.clock.clone()),
            allowed_endpoints: config.allowed_endpoints,
            ttl_secs: config.ttl_secs.unwrap_or(DEFAULT_TTL_SECS),
            events_only: config.events_only,
        }
    }

    pub(super) fn prepare(
        &self,
        notification: &Notification,
        device: &Device,
        kind: Kind,
    ) -> Result<Request<Bytes>, Ended> {
        if kind == Kind::CountsOnly && (self.events_only || device.is_on("events_only")) {
            return Err(Ended::Dropped);
        }
        if device.data_text("endpoint").is_some_and(|endpoint| endpoint.len() > endpoint::MAX_BYTES) {
            return Err(Ended::With(Outcome::refused_push("the endpoint is longer than 2048 bytes")));
        }
        // An incomplete subscription can never receive a push: the app has to create a new one.
        let (endpoint, subscription) = subscription(device).ok_or(Ended::With(Outcome::Gone))?;
        let Ok(uri) = endpoint.as_str().parse::<Uri>() else {
            return Err(Ended::With(Outcome::refused_push("the endpoint does not make a valid request")));
        };
        if !endpoint::is_allowed(&self.allowed_endpoints, &endpoint) {
            return Err(Ended::With(Outcome::refused_push("the endpoint's host is not in `allowed_endpoints`")));
        }
        let plaintext = payload::build(notification, device, kind, encryption::MAX_PLAINTEXT)?;
        let body = encryption::encrypt(&subscription, &plaintext).map_err(unsent)?;
        let authorization = self
            .vapid
            .authorization(&endpoint.origin().ascii_serialization())
            .map_err(|_| Ended::With(Outcome::refused_app("signing with the VAPID key failed")))?;
        let urgency = match (kind, notification.prio) {
            (_, Priority::Low) => "low",
            (Kind::CountsOnly, Priority::High) => "normal",
            (Kind::Full | Kind::IdsOnly, Priority::High) => "high",
        };
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(AUTHORIZATION, authorization)
            .header(CONTENT_ENCODING, "aes128gcm")
            .header(CONTENT_TYPE, "application/octet-stream")
            .header("ttl", self.ttl_secs)
            .header("urgency", urgency);
        if let Some(room_id) = notification.text("room_id").filter(|_| device.is_on("only_last_per_room")) {
            request = request.header("topic", topic(room_id));
        }
        built(request.body(Bytes::from(body)))
    }

    pub(super) async fn attempt(&self, request: &Request<Bytes>, timeout: Duration) -> Attempt {
        let answer = match self.client.send_for_status(request.clone(), limits(timeout)).await {
            Ok(answer) => answer,
            Err(HttpClientError::Blocked) => {
                return Outcome::refused_push("the endpoint's host has an address that is not public").into();
            }
            Err(HttpClientError::Crowded) => return Outcome::Busy { retry_after: Some(WAIT_WHERE_CROWDED) }.into(),
            // Without the causes: they may name the endpoint's host, which is private to the user.
            Err(error) => {
                tracing::info!(provider = "webpush", %error, "push service did not answer; the push will be retried");
                return Outcome::unreachable().into();
            }
        };
        Attempt { outcome: self.outcome(&answer), answer: Some(answer) }
    }

    fn outcome(&self, answer: &Response<Bytes>) -> Outcome {
        if is_transient(answer.status()) {
            return Outcome::busy(answer, &self.clock);
        }
        match answer.status().as_u16() {
            200..=202 => Outcome::Delivered,
            404 | 410 => Outcome::Gone,
            // It may be the app's fault, or the server may just say so.
            401 | 403 if self.allows_every_host() => Outcome::Busy { retry_after: Some(WAIT_WHERE_REFUSED) },
            // Wrong VAPID key or contact, or a subscription made with another key: for the operator to fix.
            status @ (401 | 403) => {
                Outcome::refused_app(format!("the push service answered {status}: is this the app's VAPID key?"))
            }
            status => Outcome::refused_push(format!("the push service answered {status}")),
        }
    }
}

/// The browser's endpoint and the keys to encrypt for. None if a part is missing or malformed.
fn subscription(device: &Device) -> Option<(Url, Subscription)> {
    let endpoint = endpoint::parse(device.data_text("endpoint")?)?;
    Some((endpoint, endpoint::subscription(device.pushkey.expose(), device.data_text("auth")?)?))
}

/// Only a key that can never be used for encryption makes a subscription dead.
fn unsent(error: NotEncrypted) -> Ended {
    Ended::With(match error {
        NotEncrypted::NoPoint => Outcome::Gone,
        NotEncrypted::Failed => Outcome::refused_app("a message could not be encrypted"),
    })
}

/// The push topic of a room; the push service stores only the latest message per topic. BLAKE2s with 22 bytes of
/// output, as in Sygnal.
fn topic(room_id: &str) -> String {
    URL_SAFE_NO_PAD.encode(Blake2s::<U22>::digest(room_id))
}

#[cfg(test)]
mod tests;
