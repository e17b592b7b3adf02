//! UnifiedPush: to whichever push server a person chose; the pushkey is its address for the app.
//!
//! Source: UnifiedPush, "Push Gateway for Matrix" and "Server to server", and RFC 8030, which the latter follows.

mod payload;

use std::time::Duration;

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode, Uri,
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

/// Bytes of a message that is not encrypted: what each push server has to take.
const MAX_PLAIN: usize = 4096;

/// Seconds that a push server keeps a message for a device that is away. They are phones: as long as Synapse keeps
/// trying, one day.
const DEFAULT_TTL_SECS: u64 = 24 * 60 * 60;

/// One app whose users choose their push servers.
#[derive(Debug)]
pub(crate) struct UnifiedPush {
    client: HttpClient,
    owners: Owners,
    clock: Clock,
    /// Some push servers take no message without it.
    vapid: Option<Vapid>,
    allowed_endpoints: Vec<Glob>,
    ttl_secs: u64,
    events_only: bool,
}

impl UnifiedPush {
    /// What the app's pushes are signed with, if they are.
    pub(super) fn vapid(&self) -> Option<&Vapid> {
        self.vapid.as_ref()
    }

    /// Whose the push servers are.
    pub(super) fn owners(&self) -> &Owners {
        &self.owners
    }

    pub(super) fn new(config: WebPushConfig, key: Option<Es256Key>, max_in_flight: usize, upstream: &Upstream) -> Self {
        Self {
            client: upstream.push_servers(&config.allowed_endpoints, max_in_flight),
            owners: upstream.outbound.owners().clone(),
            clock: upstream.clock.clone(),
            vapid: key.map(|key| Vapid::new(key, config.vapid_contact, upstream.clock.clone())),
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
        // Never a dead pushkey: an app with the wrong table would lose all of its pushers.
        let refused = |why: &'static str| Ended::With(Outcome::refused_push(why));
        let endpoint =
            endpoint::parse(device.pushkey.expose()).ok_or_else(|| refused("the pushkey is no https address"))?;
        let uri = endpoint.as_str().parse::<Uri>().map_err(|_| refused("the pushkey makes no valid request"))?;
        if !endpoint::is_allowed(&self.allowed_endpoints, &endpoint) {
            return Err(refused("the pushkey's host is not in `allowed_endpoints`"));
        }
        let urgency = match (kind, notification.prio) {
            (_, Priority::Low) => "low",
            (Kind::CountsOnly, Priority::High) => "normal",
            (Kind::Full | Kind::IdsOnly, Priority::High) => "high",
        };
        let mut request =
            Request::builder().method(Method::POST).uri(uri).header("ttl", self.ttl_secs).header("urgency", urgency);
        if let Some(vapid) = &self.vapid {
            request = request.header(AUTHORIZATION, authorization(vapid, &endpoint)?);
        }
        let body = match subscription(device).map_err(refused)? {
            None => {
                request = request.header(CONTENT_TYPE, "application/json");
                payload::build(notification, kind, MAX_PLAIN)?
            }
            Some(subscription) => {
                request =
                    request.header(CONTENT_TYPE, "application/octet-stream").header(CONTENT_ENCODING, "aes128gcm");
                let plaintext = payload::build(notification, kind, encryption::MAX_PLAINTEXT)?;
                encryption::encrypt(&subscription, &plaintext).map_err(|error| match error {
                    NotEncrypted::NoPoint => refused("`data` holds keys that cannot be encrypted for"),
                    NotEncrypted::Failed => Ended::With(Outcome::refused_app("a message could not be encrypted")),
                })?
            }
        };
        built(request.body(Bytes::from(body)))
    }

    pub(super) async fn attempt(&self, request: &Request<Bytes>, timeout: Duration) -> Attempt {
        match self.client.send_for_status(request.clone(), limits(timeout)).await {
            Ok(answer) => Attempt { outcome: self.outcome(&answer), answer: Some(answer) },
            Err(HttpClientError::Blocked) => {
                Outcome::refused_push("the pushkey has an address that is not public").into()
            }
            Err(HttpClientError::Crowded) => Outcome::Busy { retry_after: Some(WAIT_WHERE_CROWDED) }.into(),
            // Without the causes: they may name the host, which is the subscriber's business.
            Err(error) => {
                tracing::info!(provider = "unifiedpush", %error, "no answer from the push server");
                Outcome::unreachable().into()
            }
        }
    }

    fn outcome(&self, answer: &Response<Bytes>) -> Outcome {
        let status = answer.status();
        match status {
            // One's own server that is full (507) or limits its users is one of them; others' pushes go elsewhere.
            status if is_transient(status) => Outcome::busy(answer, &self.clock),
            StatusCode::NOT_FOUND | StatusCode::GONE => Outcome::Gone,
            status if status.is_success() => Outcome::Delivered,
            // Whatever a stranger's server will not have, the app's other devices have servers of their own.
            status => Outcome::refused_push(format!("the push server answered {}", status.as_u16())),
        }
    }
}

/// What the message is to be encrypted for. None where the app gave no keys and reads plain text.
fn subscription(device: &Device) -> Result<Option<Subscription>, &'static str> {
    match (device.data_text("p256dh"), device.data_text("auth")) {
        (None, None) => Ok(None),
        (Some(p256dh), Some(auth)) => match endpoint::subscription(p256dh, auth) {
            Some(subscription) => Ok(Some(subscription)),
            None => Err("`data` holds keys that are impossible"),
        },
        // An app that gave one key does not expect plain text.
        (None, Some(_)) | (Some(_), None) => Err("`data` holds one of `p256dh` and `auth`, and needs both"),
    }
}

fn authorization(vapid: &Vapid, endpoint: &Url) -> Result<http::HeaderValue, Ended> {
    vapid
        .authorization(&endpoint.origin().ascii_serialization())
        .map_err(|_| Ended::With(Outcome::refused_app("the VAPID key could not sign")))
}

#[cfg(test)]
mod tests;
