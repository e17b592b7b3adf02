//! UnifiedPush: pushes go to the push server that the user chose; the pushkey is the app's URL there.
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

/// The most bytes of an unencrypted message, which every push server has to accept.
const MAX_PLAIN: usize = 4096;

/// Seconds that a push server stores a message for an offline device. These are phones, so one day, as long as Synapse
/// keeps retrying.
const DEFAULT_TTL_SECS: u64 = 24 * 60 * 60;

/// An app that uses UnifiedPush; each user chooses a push server.
#[derive(Debug)]
pub(crate) struct UnifiedPush {
    client: HttpClient,
    owners: Owners,
    clock: Clock,
    /// Some push servers accept no message without it.
    vapid: Option<Vapid>,
    allowed_endpoints: Vec<Glob>,
    ttl_secs: u64,
    events_only: bool,
}

impl UnifiedPush {
    /// The app's VAPID key, if there is one.
    pub(super) fn vapid(&self) -> Option<&Vapid> {
        self.vapid.as_ref()
    }

    /// Whether the operator has named no push servers.
    pub(super) fn allows_every_host(&self) -> bool {
        self.allowed_endpoints.is_empty()
    }

    /// The rules that map push servers to their owners.
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
        // Never report the pushkey as dead here: an app configured with the wrong table would lose all of its pushers.
        let refused = |why: &'static str| Ended::With(Outcome::refused_push(why));
        let endpoint =
            endpoint::parse(device.pushkey.expose()).ok_or_else(|| refused("the pushkey is not an https URL"))?;
        let uri = endpoint.as_str().parse::<Uri>().map_err(|_| refused("the pushkey does not make a valid request"))?;
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
                    NotEncrypted::NoPoint => {
                        refused("`data` contains an invalid key, so the message cannot be encrypted")
                    }
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
                Outcome::refused_push("the pushkey's host has an address that is not public").into()
            }
            Err(HttpClientError::Crowded) => Outcome::Busy { retry_after: Some(WAIT_WHERE_CROWDED) }.into(),
            // Without the causes: they may name the host, which is private to the user.
            Err(error) => {
                tracing::info!(
                    provider = "unifiedpush",
                    %error,
                    "push service did not answer; the push will be retried"
                );
                Outcome::unreachable().into()
            }
        }
    }

    fn outcome(&self, answer: &Response<Bytes>) -> Outcome {
        let status = answer.status();
        match status {
            // This includes a self-hosted server that is full (507) or limits its users: other pushes go elsewhere.
            status if is_transient(status) => Outcome::busy(answer, &self.clock),
            StatusCode::NOT_FOUND | StatusCode::GONE => Outcome::Gone,
            status if status.is_success() => Outcome::Delivered,
            // A refusal by a third-party server says nothing about the app: its other devices use other servers.
            status => Outcome::refused_push(format!("the push server answered {}", status.as_u16())),
        }
    }
}

/// The keys to encrypt the message for. None if the app gave no keys and reads plain text.
fn subscription(device: &Device) -> Result<Option<Subscription>, &'static str> {
    match (device.data_text("p256dh"), device.data_text("auth")) {
        (None, None) => Ok(None),
        (Some(p256dh), Some(auth)) => match endpoint::subscription(p256dh, auth) {
            Some(subscription) => Ok(Some(subscription)),
            None => Err("`data` contains malformed keys"),
        },
        // An app that gave only one of the keys does not expect plain text.
        (None, Some(_)) | (Some(_), None) => Err("`data` contains only one of `p256dh` and `auth`; both are needed"),
    }
}

fn authorization(vapid: &Vapid, endpoint: &Url) -> Result<http::HeaderValue, Ended> {
    vapid
        .authorization(&endpoint.origin().ascii_serialization())
        .map_err(|_| Ended::With(Outcome::refused_app("signing with the VAPID key failed")))
}

#[cfg(test)]
mod tests;
