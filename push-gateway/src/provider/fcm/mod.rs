//! Firebase Cloud Messaging, HTTP v1.
//!
//! Source: Google, "FCM REST API", `projects.messages.send` and "ErrorCode".

mod payload;
mod token;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    Method, Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde::Deserialize;
use tokio::time::{Instant, timeout};
use waypost_shared::{clock::Clock, http::causes, http_client::HttpClient};

use self::token::{TokenError, Tokens};
use super::{Outcome, Shared, Unsent, built, limits};
use crate::{
    config::FcmConfig,
    encoding::path_segment,
    notification::{Device, Kind, Notification},
};

/// One app at Google's service.
#[derive(Debug)]
pub(crate) struct Fcm {
    client: HttpClient,
    clock: Clock,
    /// Where messages go.
    uri: String,
    template: payload::Template,
    tokens: Arc<Tokens>,
}

/// The body of an answer that is not 200.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Trouble {
    error: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    status: String,
    details: Vec<Detail>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Detail {
    error_code: String,
    field_violations: Vec<FieldViolation>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FieldViolation {
    field: String,
}

impl Fcm {
    pub(super) fn new(config: FcmConfig, shared: &Shared) -> Self {
        let project = path_segment(&config.project_id);
        Self {
            client: shared.services.clone(),
            clock: shared.clock.clone(),
            uri: format!("{}/v1/projects/{project}/messages:send", config.endpoint),
            template: payload::Template::new(config.options),
            tokens: Arc::new(Tokens::new(config.credentials, shared.services.clone(), shared.clock.clone())),
        }
    }

    pub(super) fn prepare(
        &self,
        notification: &Notification,
        device: &Device,
        kind: Kind,
    ) -> Result<Request<Bytes>, Unsent> {
        let message = self.template.build(notification, device, kind)?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.uri)
            .header(CONTENT_TYPE, "application/json")
            .body(Bytes::from(message));
        built(request)
    }

    pub(super) async fn attempt(&self, request: &Request<Bytes>, time: Duration) -> Outcome {
        let deadline = Instant::now() + time;
        let mut renewed = false;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let token = match timeout(left, self.tokens.current()).await {
                Ok(Ok(token)) => token,
                Ok(Err(TokenError::Refused(why))) => return Outcome::refused_app(why),
                Ok(Err(TokenError::Unreachable)) | Err(_) => return Outcome::unreachable(),
            };
            let mut request = request.clone();
            request.headers_mut().insert(AUTHORIZATION, token.clone());
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = match self.client.send(request, limits(left)).await {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::warn!(provider = "fcm", %error, causes = causes(&error), "no answer from the provider");
                    return Outcome::unreachable();
                }
            };
            if answer.status() == StatusCode::UNAUTHORIZED && !renewed {
                renewed = true;
                self.tokens.renew(&token);
                continue;
            }
            return self.outcome(&answer);
        }
    }

    fn outcome(&self, answer: &Response<Bytes>) -> Outcome {
        let status = answer.status();
        if status.is_success() {
            return Outcome::Delivered;
        }
        let Trouble { error } = serde_json::from_slice(answer.body()).unwrap_or_default();
        let has_code =
            |code: &str| error.status == code || error.details.iter().any(|detail| detail.error_code == code);
        let blames_token = || {
            let mut violations = error.details.iter().flat_map(|detail| &detail.field_violations);
            violations.any(|violation| violation.field == "message.token")
        };
        match status.as_u16() {
            404 if has_code("UNREGISTERED") => Outcome::Gone,
            404 => Outcome::refused_app("FCM answered 404 and knows no such project: is `project_id` right?"),
            400 if has_code("INVALID_ARGUMENT") && blames_token() => Outcome::Gone,
            400 => Outcome::refused_push("FCM answered 400: it will not have this message"),
            401 => Outcome::refused_app("FCM answered 401, also with a new token: are the credentials still good?"),
            403 if has_code("SENDER_ID_MISMATCH") => {
                Outcome::refused_app("FCM answered 403: the device is registered with another Firebase project")
            }
            403 => Outcome::refused_app("FCM answered 403: may this account send messages for `project_id`?"),
            429 | 500..=599 => Outcome::busy(answer, &self.clock),
            other => Outcome::refused_app(format!("FCM answered {other}")),
        }
    }
}

#[cfg(test)]
mod tests;
