//! Shared by all push services: the HTTP clients that reach them, and how their answers are interpreted.

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

/// Limit on a provider's answer, in bytes; real ones are far shorter.
const MAX_ANSWER: usize = 64 * 1024;

/// `retry_after` for homeservers while too many pushes are in flight to one address. Longer than any request's budget,
/// so that the gateway does not retry the push itself and keep its in-flight slot meanwhile.
pub(crate) const WAIT_WHERE_CROWDED: Duration = Duration::from_secs(30);

/// What providers need to reach push services, shared by all apps.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) outbound: Outbound,
    /// For services whose address the operator configured.
    pub(crate) services: HttpClient,
    /// For addresses that strangers chose, within the operator's `allowed_endpoints`. Public addresses only.
    pub(crate) strangers: HttpClient,
    pub(crate) clock: Clock,
}

impl Upstream {
    /// Creates the two connection pools.
    pub(crate) fn new(outbound: Outbound, clock: Clock) -> Self {
        let (services, strangers) = (outbound.client(Reach::Anywhere), outbound.client(Reach::PublicOnly));
        Self { outbound, services, strangers, clock }
    }

    /// A client for the push servers of one app. Where strangers choose them freely, pushes to one address are limited
    /// to a share of `max_in_flight`: any number of host names may resolve to it.
    pub(crate) fn push_servers(&self, allowed_endpoints: &[Glob], max_in_flight: usize) -> HttpClient {
        if allowed_endpoints.is_empty() {
            self.outbound.client_for_strangers(share(max_in_flight))
        } else {
            self.strangers.clone()
        }
    }
}

/// The result of one call to a push service.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) outcome: Outcome,
    /// The service's answer, for `send-test`. None if there was none.
    pub(crate) answer: Option<Response<Bytes>>,
}

impl From<Outcome> for Attempt {
    fn from(outcome: Outcome) -> Self {
        Self { outcome, answer: None }
    }
}

/// What was verified about an app's credentials, or what is wrong and how to fix it.
pub(crate) type Checked = Result<String, String>;

/// Explains why an app's credentials could not be verified, given what the service answered.
pub(crate) fn unproven(outcome: Outcome) -> String {
    match outcome {
        Outcome::Refused(refusal) => refusal.why.into_owned(),
        Outcome::Busy { .. } => {
            "the service was unreachable or busy, and the log says why. Check the network, [outbound] (proxy, certificates, name servers) and this app's addresses".to_owned()
        }
        Outcome::Delivered | Outcome::Gone => "unexpected answer; check `endpoint`".to_owned(),
    }
}

/// The limits of one call.
pub(crate) fn limits(timeout: Duration) -> CallLimits {
    CallLimits { timeout, max_body: MAX_ANSWER }
}

/// Refuses a push whose payload cannot be made to fit.
pub(crate) fn too_large(limit: usize) -> Ended {
    Outcome::refused_push(format!("the payload cannot be shortened to {limit} bytes")).into()
}

/// Unwraps a request built from checked parts. If one is invalid after all, it comes from the configuration: whatever
/// strangers name is escaped, or checked for each push.
pub(crate) fn built(request: Result<Request<Bytes>, http::Error>) -> Result<Request<Bytes>, Ended> {
    request.map_err(|_| Outcome::refused_app("no valid request can be built from the app's configuration").into())
}

/// Whether a status means "not now" and says nothing about the push itself: request time-out (408), wrong connection
/// (421), too early (425), too many requests (429), or a failure of the service (5xx).
pub(crate) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 421 | 425 | 429 | 500..=599)
}

/// Whether the rest of an attempt's time is enough for one more call: a call that is cut short may deliver the push
/// although the homeserver was answered otherwise.
pub(crate) fn is_enough(left: Duration, whole: Duration) -> bool {
    left >= whole / 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Fault;

    #[test]
    fn a_request_that_cannot_be_built_is_the_apps_fault() {
        let request = Request::builder().uri("https://b\u{fc}cher.example").body(Bytes::new());
        let Err(Ended::With(Outcome::Refused(refusal))) = built(request) else { panic!("it cannot be built") };
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
