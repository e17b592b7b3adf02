//! Firebase Cloud Messaging, HTTP v1.
//!
//! Source: Google, "FCM REST API", `projects.messages.send` and "ErrorCode".

mod fluffychat;
mod payload;
mod token;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use waypost_shared::{client::HttpClient, clock::Clock, error::Chain};

use self::token::{TokenError, Tokens};
use crate::{
    config::{FcmConfig, FcmCredentials},
    encoding::path_segment,
    notification::{Device, Kind, Notification},
    outcome::{Ended, Fault, Outcome, Refusal},
    upstream::{Attempt, Checked, Upstream, built, is_enough, is_transient, limits, unproven},
};

/// One app at FCM.
#[derive(Debug)]
pub(crate) struct Fcm {
    client: HttpClient,
    clock: Clock,
    /// The URI that messages are posted to.
    uri: String,
    template: payload::Template,
    tokens: Arc<Tokens>,
}

/// The body of an answer other than 200, parsed leniently: one malformed detail does not hide the others.
#[derive(Debug)]
struct Trouble(Value);

impl Trouble {
    fn read(body: &[u8]) -> Self {
        Self(serde_json::from_slice(body).unwrap_or_default())
    }

    fn details(&self) -> impl Iterator<Item = &Value> {
        self.0["error"]["details"].as_array().into_iter().flatten()
    }

    /// Whether Google's status or FCM's error code is `code`.
    fn has_code(&self, code: &str) -> bool {
        self.0["error"]["status"] == code || self.details().any(|detail| detail["errorCode"] == code)
    }

    /// The fields of the message that are reported as invalid.
    fn blamed(&self) -> Vec<&str> {
        let violations = self.details().filter_map(|detail| detail["fieldViolations"].as_array()).flatten();
        violations.filter_map(|violation| violation["field"].as_str()).collect()
    }
}

impl Fcm {
    pub(super) fn new(config: FcmConfig, credentials: FcmCredentials, upstream: &Upstream) -> Self {
        let project = path_segment(&config.project_id);
        Self {
            client: upstream.services.clone(),
            clock: upstream.clock.clone(),
            uri: format!("{}/v1/projects/{project}/messages:send", config.endpoint),
            template: payload::Template::new(config.options, config.profile),
            tokens: Arc::new(Tokens::new(credentials, upstream.services.clone(), upstream.clock.clone())),
        }
    }

    pub(super) fn prepare(
        &self,
        notification: &Notification,
        device: &Device,
        kind: Kind,
    ) -> Result<Request<Bytes>, Ended> {
        let message = self.template.build(notification, device, kind)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.uri)
            .header(CONTENT_TYPE, "application/json")
            .body(Bytes::from(message));
        built(request)
    }

    pub(super) async fn attempt(&self, request: &Request<Bytes>, time: Duration) -> Attempt {
        let deadline = Instant::now() + time;
        let mut renewed = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let token = match timeout(left, self.tokens.current()).await {
                Ok(Ok(token)) => token,
                Ok(Err(TokenError::Refused(why))) => return Outcome::refused_app(why).into(),
                Ok(Err(TokenError::Unreachable)) | Err(_) => return Outcome::unreachable().into(),
            };
            let mut request = request.clone();
            request.headers_mut().insert(AUTHORIZATION, token.clone());
            let left = deadline.saturating_duration_since(Instant::now());
            if !is_enough(left, time) {
                return Outcome::unreachable().into();
            }
            let answer = match self.client.send_for_status(request, limits(left)).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::warn!(
                        provider = "fcm",
                        error = %Chain(&error),
                        "push service did not answer; the push will be retried"
                    );
                    return Outcome::unreachable().into();
                }
            };
            if answer.status() == StatusCode::UNAUTHORIZED && !renewed && self.tokens.renew(&token) {
                renewed = true;
                continue;
            }
            return Attempt { outcome: self.outcome(&answer), answer: Some(answer) };
        }
    }

    /// Has Google validate a message to a device that cannot exist, without sending it.
    pub(super) async fn check(&self, time: Duration) -> Checked {
        let message = json!({"validate_only": true, "message": {"token": "waypost-doctor", "data": {"a": "b"}}});
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.uri)
            .header(CONTENT_TYPE, "application/json")
            .body(Bytes::from(message.to_string()));
        let Ok(request) = request else { return Err("`endpoint` does not make a valid request".to_owned()) };
        match self.attempt(&request, time).await.outcome {
            Outcome::Delivered | Outcome::Gone | Outcome::Refused(Refusal { fault: Fault::Push, .. }) => {
                Ok("Google accepts the credentials (nothing was sent: validate_only)".to_owned())
            }
            outcome => Err(unproven(outcome)),
        }
    }

    fn outcome(&self, answer: &Response<Bytes>) -> Outcome {
        let status = answer.status();
        if status.is_success() {
            return Outcome::Delivered;
        }
        if is_transient(status) {
            return Outcome::busy(answer, &self.clock);
        }
        let trouble = Trouble::read(answer.body());
        match status.as_u16() {
            404 if trouble.has_code("UNREGISTERED") => Outcome::Gone,
            404 => Outcome::refused_app("FCM answered 404, there is no such project: is `project_id` right?"),
            400 => bad_request(&trouble),
            401 => Outcome::refused_app("FCM answered 401, even with a new token: are the credentials still valid?"),
            403 if trouble.has_code("SENDER_ID_MISMATCH") => {
                Outcome::refused_app("FCM answered 403: the device is registered with another Firebase project")
            }
            403 => Outcome::refused_app("FCM answered 403: may this account send messages for `project_id`?"),
            other => Outcome::refused_app(format!("FCM answered {other}")),
        }
    }
}

/// Decides whose fault a 400 is. A field other than the token and the data comes from the app's `options` and is in all
/// of its pushes. No field at all means the message as a whole, for example its size: the fault of this push.
fn bad_request(trouble: &Trouble) -> Outcome {
    let blamed = trouble.blamed();
    if !trouble.has_code("INVALID_ARGUMENT") {
        return Outcome::refused_app("FCM answered 400 without a reason: is `endpoint` right?");
    }
    if blamed.contains(&"message.token") {
        return Outcome::Gone;
    }
    if blamed.iter().all(|field| field.starts_with("message.data")) {
        return Outcome::refused_push("FCM answered 400: it does not accept this message");
    }
    Outcome::refused_app("FCM answered 400 and blames a field that is the same in all pushes: is it one of `options`?")
}

#[cfg(test)]
mod tests;
