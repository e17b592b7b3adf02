//! What all push services have in common: the clients that reach them, and how their answers are read.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use waypost_shared::{
    client::{CallLimits, HttpClient, Outbound, Reach},
    clock::Clock,
};

use crate::{
    glob::Glob,
    in_flight::share,
    outcome::{Ended, Outcome},
};

/// Bytes of a provider's answer that are read: all of them say less.
const MAX_ANSWER: usize = 64 * 1024;

/// What a homeserver is asked to wait while too many pushes are in flight to one address. Longer than any request's
/// budget, so that the push is not tried again here, where it would keep its place.
pub(crate) const WAIT_WHERE_CROWDED: Duration = Duration::from_secs(30);

/// The way to the push services, for all apps.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) outbound: Outbound,
    /// For the services that the operator configured.
    pub(crate) services: HttpClient,
    /// For addresses that strangers chose among those that an operator allows.
    pub(crate) strangers: HttpClient,
    pub(crate) clock: Clock,
}

impl Upstream {
    /// Two pools of connections for all apps.
    pub(crate) fn new(outbound: Outbound, clock: Clock) -> Self {
        let (services, strangers) = (outbound.client(Reach::Anywhere), outbound.client(Reach::PublicOnly));
        Self { outbound, services, strangers, clock }
    }

    /// A client for the push servers of one app. Where strangers choose them, pushes to one address have a share of
    /// those that may be in flight: any number of names may lead there.
    pub(crate) fn push_servers(&self, allowed_endpoints: &[Glob], max_in_flight: usize) -> HttpClient {
        if allowed_endpoints.is_empty() {
            self.outbound.client_for_strangers(share(max_in_flight))
        } else {
            self.strangers.clone()
        }
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

/// What a service that gave no good answer means for its app's credentials.
pub(crate) fn unproven(outcome: Outcome) -> String {
    match outcome {
        Outcome::Refused(refusal) => refusal.why.into_owned(),
        Outcome::Busy { .. } => {
            "the service was not reached or was busy, and the log says why: look at the network, at [outbound] (proxy, certificates, name servers) and at this app's addresses".to_owned()
        }
        Outcome::Delivered | Outcome::Gone => "the answer makes no sense: is `endpoint` right?".to_owned(),
    }
}

/// The limits of one call.
pub(crate) fn limits(timeout: Duration) -> CallLimits {
    CallLimits { timeout, max_body: MAX_ANSWER }
}

/// A payload that cannot be made to fit.
pub(crate) fn too_large(limit: usize) -> Ended {
    Outcome::refused_push(format!("the payload cannot be cut to {limit} bytes")).into()
}

/// A request that was put together from checked parts; should one of them still be impossible, it is one of the
/// configuration: what strangers name is escaped, or checked for each push.
pub(crate) fn built(request: Result<Request<Bytes>, http::Error>) -> Result<Request<Bytes>, Ended> {
    request.map_err(|_| Outcome::refused_app("the app's configuration makes no valid request").into())
}

/// Whether an answer says "not now" and nothing about the push: it came too slowly (408), on the wrong connection
/// (421), too early (425), as one of too many (429), or the service is in trouble.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 421 | 425 | 429 | 500..=599)
}

/// Whether what is left of an attempt's time is enough for one more call: one that is cut short may be delivered
/// although the homeserver is told otherwise.
pub(crate) fn is_enough(left: Duration, whole: Duration) -> bool {
    left >= whole / 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Fault;

    #[test]
    fn a_request_that_cannot_be_made_is_the_configurations_fault() {
        let request = Request::builder().uri("https://b\u{fc}cher.example").body(Bytes::new());
        let Err(Ended::With(Outcome::Refused(refusal))) = built(request) else { panic!("it cannot be made") };
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
