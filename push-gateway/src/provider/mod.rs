//! The four push services, with a common set of outcomes.
//!
//! A provider prepares a request once per push (payload, headers) and sends it as often as the push is attempted. It
//! maps the service's answers to an [`Outcome`](crate::outcome::Outcome).

mod apns;
mod fcm;
mod unifiedpush;
mod webpush;

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use waypost_shared::{client::OutboundError, owner::Owner};

pub(crate) use self::apns::TeamTokens;
use crate::{
    config::{Content, ProviderConfig},
    endpoint,
    notification::{Device, Notification},
    outcome::Ended,
    upstream::{Attempt, Checked, Upstream},
};

/// The push service of one app.
#[derive(Debug)]
pub(crate) enum Provider {
    Apns(apns::Apns),
    Fcm(fcm::Fcm),
    WebPush(webpush::WebPush),
    UnifiedPush(unifiedpush::UnifiedPush),
}

impl Provider {
    /// Does not connect yet; fails if a client certificate is unusable. Apps with the same Apple key share its token.
    pub(crate) fn new(
        config: ProviderConfig,
        max_in_flight: usize,
        upstream: &Upstream,
        team_tokens: &mut TeamTokens,
    ) -> Result<Self, OutboundError> {
        Ok(match config {
            ProviderConfig::Apns(config, credentials) => {
                Self::Apns(apns::Apns::new(config, credentials, upstream, team_tokens)?)
            }
            ProviderConfig::Fcm(config, credentials) => Self::Fcm(fcm::Fcm::new(config, credentials, upstream)),
            ProviderConfig::WebPush(config, key) => {
                Self::WebPush(webpush::WebPush::new(config, key, max_in_flight, upstream))
            }
            ProviderConfig::UnifiedPush(config, key) => {
                Self::UnifiedPush(unifiedpush::UnifiedPush::new(config, key, max_in_flight, upstream))
            }
        })
    }

    /// The name of its table in the configuration.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Apns(_) => "apns",
            Self::Fcm(_) => "fcm",
            Self::WebPush(_) => "webpush",
            Self::UnifiedPush(_) => "unifiedpush",
        }
    }

    /// The name shown to people.
    pub(crate) fn title(&self) -> &'static str {
        match self {
            Self::Apns(_) => "APNs",
            Self::Fcm(_) => "FCM",
            Self::WebPush(_) => "web push",
            Self::UnifiedPush(_) => "UnifiedPush",
        }
    }

    /// What identifies a push's destination besides the pushkey. For web push the endpoint, since the push service's
    /// verdicts are about that.
    pub(crate) fn endpoint<'d>(&self, device: &'d Device) -> &'d str {
        match self {
            Self::Apns(_) | Self::Fcm(_) | Self::UnifiedPush(_) => "",
            Self::WebPush(_) => device.data_text("endpoint").unwrap_or_default(),
        }
    }

    /// The owner of the push server that a request goes to, for providers where each device may have a different one.
    pub(crate) fn owner(&self, request: &Request<Bytes>) -> Option<Owner> {
        let owners = match self {
            Self::Apns(_) | Self::Fcm(_) => return None,
            Self::WebPush(webpush) => webpush.owners(),
            Self::UnifiedPush(unifiedpush) => unifiedpush.owners(),
        };
        request.uri().authority().map(|authority| owners.of(authority.as_str()))
    }

    /// The same for a device, before there is a request; also `None` if it names no server.
    pub(crate) fn owner_of_device(&self, device: &Device) -> Option<Owner> {
        let (owners, endpoint) = match self {
            Self::Apns(_) | Self::Fcm(_) => return None,
            Self::WebPush(webpush) => (webpush.owners(), device.data_text("endpoint")?),
            Self::UnifiedPush(unifiedpush) => (unifiedpush.owners(), device.pushkey.expose()),
        };
        Some(owners.of(endpoint::parse(endpoint)?.host_str()?))
    }

    /// Whether strangers choose the push servers, because the operator has not named any.
    pub(crate) fn lets_strangers_choose(&self) -> bool {
        match self {
            Self::Apns(_) | Self::Fcm(_) => false,
            Self::WebPush(webpush) => webpush.allows_every_host(),
            Self::UnifiedPush(unifiedpush) => unifiedpush.allows_every_host(),
        }
    }

    /// Builds the request for one device, used for every attempt. An error is how the push ends if there is none.
    pub(crate) fn prepare(
        &self,
        notification: &Notification,
        device: &Device,
        content: Content,
    ) -> Result<Request<Bytes>, Ended> {
        let kind = notification.kind(content, device);
        match self {
            Self::Apns(apns) => apns.prepare(notification, device, kind),
            Self::Fcm(fcm) => fcm.prepare(notification, device, kind),
            Self::WebPush(webpush) => webpush.prepare(notification, device, kind),
            Self::UnifiedPush(unifiedpush) => unifiedpush.prepare(notification, device, kind),
        }
    }

    /// Sends the request once.
    pub(crate) async fn attempt(&self, request: &Request<Bytes>, device: &Device, timeout: Duration) -> Attempt {
        match self {
            Self::Apns(apns) => apns.attempt(request, device, timeout).await,
            Self::Fcm(fcm) => fcm.attempt(request, timeout).await,
            Self::WebPush(webpush) => webpush.attempt(request, timeout).await,
            Self::UnifiedPush(unifiedpush) => unifiedpush.attempt(request, timeout).await,
        }
    }

    /// Tests the app's credentials without sending a push to anybody.
    pub(crate) async fn check(&self, timeout: Duration) -> Checked {
        match self {
            Self::Apns(apns) => apns.check(timeout).await,
            Self::Fcm(fcm) => fcm.check(timeout).await,
            Self::WebPush(webpush) => webpush.vapid().check(),
            Self::UnifiedPush(unifiedpush) => match unifiedpush.vapid() {
                Some(vapid) => vapid.check(),
                None => Ok("there are no credentials to check: pushes are sent without any".to_owned()),
            },
        }
    }
}
