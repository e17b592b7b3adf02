//! Push services: four of them, one set of verdicts.
//!
//! A provider prepares a request once (payload, headers), and attempts to send it as often as `notify` asks. It turns
//! the service's answers into an [`Outcome`]; `notify` alone decides what that means for the homeserver.

mod apns;
mod fcm;
mod unifiedpush;
mod webpush;

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, uri::Authority};
use waypost_shared::{
    clock::Clock,
    http_client::{CallLimits, HttpClient, Outbound, OutboundError, Reach},
    retry::parse_retry_after,
};

pub(crate) use self::apns::TeamTokens;
use crate::{
    config::{Content, ProviderConfig},
    notification::{Device, Notification},
};

/// Bytes of a provider's answer that are read: all of them say less.
const MAX_ANSWER: usize = 64 * 1024;

/// A push service's verdict on one push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Accepted for delivery.
    Delivered,
    /// The pushkey is dead. The only outcome that puts it into `rejected`.
    Gone,
    /// Busy or unreachable (429, 5xx, time-out). Worth another try.
    Busy {
        /// The service's own `Retry-After`, if it gave one.
        retry_after: Option<Duration>,
    },
    /// It will not be taken; trying again at once cannot help.
    Refused(Refusal),
}

/// Why a push is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) fault: Fault,
    /// For the log: names no pushkey, no id and no address.
    pub(crate) why: String,
}

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This push's own: no later try would be taken either, and the user's next pushes must not wait for it.
    Push,
    /// The app's configuration (credentials, topic, project): nothing may be lost while the operator mends it.
    App,
}

impl Outcome {
    /// Refused for what the push itself is.
    pub(crate) fn refused_push(why: impl Into<String>) -> Self {
        Self::Refused(Refusal { fault: Fault::Push, why: why.into() })
    }

    /// Refused for how the app is configured.
    pub(crate) fn refused_app(why: impl Into<String>) -> Self {
        Self::Refused(Refusal { fault: Fault::App, why: why.into() })
    }

    /// Busy, for as long as the answer says.
    fn busy(answer: &Response<Bytes>, clock: &Clock) -> Self {
        Self::Busy { retry_after: parse_retry_after(answer.headers(), clock.now_ms()) }
    }

    /// Busy for an unknown time.
    pub(crate) const fn unreachable() -> Self {
        Self::Busy { retry_after: None }
    }
}

/// One call of a push service.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) outcome: Outcome,
    /// What the service said, for people who want to see it; none when it said nothing.
    pub(crate) answer: Option<Response<Bytes>>,
}

impl From<Outcome> for Attempt {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, answer: None }
    }
}

/// What is good about an app's credentials, or what is not and what to change.
pub(crate) type Checked = Result<String, String>;

/// Why nothing is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// The device need not know, such as of a badge that the app does not show.
    NothingToSay,
    /// It is known already how this would end.
    Settled(Outcome),
}

impl Unsent {
    /// A payload that cannot be made to fit.
    fn too_large(limit: usize) -> Self {
        Self::Settled(Outcome::refused_push(format!("the payload cannot be cut to {limit} bytes")))
    }
}

/// The push service of one app.
#[derive(Debug)]
pub(crate) enum Provider {
    Apns(apns::Apns),
    Fcm(fcm::Fcm),
    WebPush(webpush::WebPush),
    UnifiedPush(unifiedpush::UnifiedPush),
}

/// What the providers share: connections, the clock, and tokens that several apps use.
#[derive(Debug)]
pub(crate) struct Shared {
    outbound: Outbound,
    /// For the services that the operator configured.
    services: HttpClient,
    /// For addresses that strangers chose.
    strangers: HttpClient,
    pub(crate) clock: Clock,
    /// Begins with those of the configuration before: Apple punishes who makes new ones too often.
    pub(crate) team_tokens: TeamTokens,
}

impl Shared {
    /// Two pools of connections for all apps.
    pub(crate) fn new(outbound: Outbound, clock: Clock) -> Self {
        let (services, strangers) = (outbound.client(Reach::Anywhere), outbound.client(Reach::PublicOnly));
        Self { outbound, services, strangers, clock, team_tokens: TeamTokens::default() }
    }
}

impl Provider {
    /// Connects nothing yet; fails when a client certificate cannot be used.
    pub(crate) fn new(config: ProviderConfig, shared: &mut Shared) -> Result<Self, OutboundError> {
        Ok(match config {
            ProviderConfig::Apns(config, credentials) => Self::Apns(apns::Apns::new(config, credentials, shared)?),
            ProviderConfig::Fcm(config, credentials) => Self::Fcm(fcm::Fcm::new(config, credentials, shared)),
            ProviderConfig::WebPush(config, key) => Self::WebPush(webpush::WebPush::new(config, key, shared)),
            ProviderConfig::UnifiedPush(config, key) => {
                Self::UnifiedPush(unifiedpush::UnifiedPush::new(config, key, shared))
            }
        })
    }

    /// As its table in the configuration is named.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Apns(_) => "apns",
            Self::Fcm(_) => "fcm",
            Self::WebPush(_) => "webpush",
            Self::UnifiedPush(_) => "unifiedpush",
        }
    }

    /// As people call it.
    pub(crate) fn title(&self) -> &'static str {
        match self {
            Self::Apns(_) => "APNs",
            Self::Fcm(_) => "FCM",
            Self::WebPush(_) => "web push",
            Self::UnifiedPush(_) => "UnifiedPush",
        }
    }

    /// What a push goes by beside the pushkey: of web push the endpoint, since that is what its service judges.
    pub(crate) fn endpoint<'d>(&self, device: &'d Device) -> &'d str {
        match self {
            Self::Apns(_) | Self::Fcm(_) | Self::UnifiedPush(_) => "",
            Self::WebPush(_) => device.data_text("endpoint").unwrap_or_default(),
        }
    }

    /// Which server a request is for, where each device may have another one.
    pub(crate) fn server<'r>(&self, request: &'r Request<Bytes>) -> Option<&'r str> {
        match self {
            Self::Apns(_) | Self::Fcm(_) => None,
            Self::WebPush(_) | Self::UnifiedPush(_) => request.uri().authority().map(Authority::as_str),
        }
    }

    /// Makes the request for one device; it is the same for each attempt.
    pub(crate) fn prepare(
        &self,
        notification: &Notification,
        device: &Device,
        content: Content,
    ) -> Result<Request<Bytes>, Unsent> {
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

    /// Tries the app's credentials without a push to anybody.
    pub(crate) async fn check(&self, timeout: Duration) -> Checked {
        match self {
            Self::Apns(apns) => apns.check(timeout).await,
            Self::Fcm(fcm) => fcm.check(timeout).await,
            Self::WebPush(webpush) => webpush.vapid().check(),
            Self::UnifiedPush(unifiedpush) => match unifiedpush.vapid() {
                Some(vapid) => vapid.check(),
                None => Ok("push servers are asked without credentials".to_owned()),
            },
        }
    }
}

/// What a service that gave no good answer means for its app's credentials.
fn unproven(outcome: Outcome) -> String {
    match outcome {
        Outcome::Refused(refusal) => refusal.why,
        Outcome::Busy { .. } => {
            "the service was not reached or was busy, and the log says why: look at the network, at [outbound] (proxy, certificates, name servers) and at this app's addresses".to_owned()
        }
        Outcome::Delivered | Outcome::Gone => "the answer makes no sense: is `endpoint` right?".to_owned(),
    }
}

fn limits(timeout: Duration) -> CallLimits {
    CallLimits { timeout, max_body: MAX_ANSWER }
}

/// A request that was put together from checked parts; should one of them still be impossible, it is one of the
/// configuration: what strangers name is escaped, or checked for each push.
fn built(request: Result<Request<Bytes>, http::Error>) -> Result<Request<Bytes>, Unsent> {
    request.map_err(|_| Unsent::Settled(Outcome::refused_app("the app's configuration makes no valid request")))
}

/// Whether an answer says "not now" and nothing about the push: it came too slowly (408), on the wrong connection
/// (421), too early (425), as one of too many (429), or the service is in trouble.
fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 421 | 425 | 429 | 500..=599)
}

/// Whether what is left of an attempt's time is enough for one more call: one that is cut short may be delivered
/// although the homeserver is told otherwise.
fn is_enough(left: Duration, whole: Duration) -> bool {
    left >= whole / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_cannot_be_made_is_the_configurations_fault() {
        let request = Request::builder().uri("https://b\u{fc}cher.example").body(Bytes::new());
        let Err(Unsent::Settled(Outcome::Refused(refusal))) = built(request) else { panic!("it cannot be made") };
        assert_eq!(refusal.fault, Fault::App);
    }

    #[test]
    fn the_last_quarter_of_an_attempt_is_too_short() {
        let whole = Duration::from_secs(10);
        for (left_ms, expected) in [(10_000, true), (2500, true), (2499, false), (0, false)] {
            assert_eq!(is_enough(Duration::from_millis(left_ms), whole), expected, "{left_ms}");
        }
    }
}
