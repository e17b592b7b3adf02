//! One request: pushes to all its devices concurrently, and the response.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use http::{HeaderValue, StatusCode, header::ALLOW};
use serde_json::json;
use tokio::time::Instant;
use waypost_shared::http::{Incoming, MatrixError, Response, json};

use crate::{
    app::{App, Entry},
    config::UnknownApp,
    error::ApiError,
    metrics::AppMetrics,
    notification::{Device, Notification},
    outcome::{Ended, Fault, Outcome, Refusal},
    push::Push,
};

/// `retry_after` for homeservers where no provider gave one.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// Upper bound of `retry_after`, whatever a provider says.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// `POST /_matrix/push/v1/notify`: an event, or new unread counts, for one or more devices.
pub(crate) async fn notify(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    app.limits.request_from(request.source)?;
    let notification = Notification::parse(request.json_object()?, request.source, &app.config)?;
    app.limits.pushes_from(request.source, notification.devices.len())?;
    settle(&app, &notification).await
}

/// `GET /_matrix/push/v1/notify`: UnifiedPush discovery. Answers 405 unless some app uses UnifiedPush.
///
/// Source: UnifiedPush, "Push Gateway for Matrix".
pub(crate) async fn discovery(app: Arc<App>, _request: Incoming) -> Result<Response, ApiError> {
    if !app.has_unifiedpush() {
        let text = "This endpoint only accepts POST";
        let refused = MatrixError::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", text);
        let mut response = refused.into_response();
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Ok(response);
    }
    Ok(json(&json!({"gateway": "matrix", "unifiedpush": {"gateway": "matrix"}})))
}

/// Pushes to all devices concurrently and decides the response.
async fn settle(app: &App, notification: &Notification) -> Result<Response, ApiError> {
    let deadline = Instant::now() + app.config.budget();
    let addressed: Vec<_> = notification
        .devices
        .iter()
        .map(|device| {
            let entry = app.entry(&device.app_id);
            (device, entry, app.target(entry, device))
        })
        .collect();
    // Devices with invalid data are skipped, unless all of them are invalid.
    let all_faulty = notification.devices.iter().all(|device| device.fault.is_some());
    let fault = notification.devices.iter().find_map(|device| device.fault.clone());
    if let Some(fault) = fault.filter(|_| all_faulty) {
        for (_, entry, _) in addressed {
            metrics(app, entry).count(&Ended::Dropped);
        }
        return Err(fault.into());
    }
    for (_, entry, target) in &addressed {
        app.limits.push_to(*entry, *target)?;
    }
    let mut known = HashSet::with_capacity(addressed.len());
    let mut pushes = Vec::with_capacity(addressed.len());
    for (device, entry, target) in addressed {
        if !known.insert(target.fingerprint()) {
            // The same device twice in one request: the first occurrence is sent.
            metrics(app, entry).count(&Ended::Suppressed);
            continue;
        }
        pushes.push(async move {
            let ended = match entry {
                _ if device.fault.is_some() => Ended::Dropped,
                None => unknown_app(app, device).into(),
                Some(entry) => Push { app, entry, notification, device, target, deadline }.deliver().await,
            };
            metrics(app, entry).count(&ended);
            (device, ended)
        });
    }
    answer(&join_all(pushes).await)
}

fn metrics<'a>(app: &'a App, entry: Option<&'a Entry>) -> &'a AppMetrics {
    entry.map_or(&app.unmatched, |entry| &entry.metrics)
}

/// 200 with the rejected pushkeys, or 503 while anything is left to send: homeservers read `rejected` only from a 200.
fn answer(settled: &[(&Device, Ended)]) -> Result<Response, ApiError> {
    let mut retry_after: Option<Duration> = None;
    let mut rejected: Vec<&str> = Vec::new();
    for (device, ended) in settled {
        let pushkey = device.pushkey.expose();
        match ended.outcome() {
            // One request may list the same pushkey under two apps.
            Outcome::Gone if !rejected.contains(&pushkey) => rejected.push(pushkey),
            Outcome::Delivered | Outcome::Gone | Outcome::Refused(Refusal { fault: Fault::Push, .. }) => {}
            Outcome::Busy { retry_after: wait } => retry_after = retry_after.max(Some(wait.unwrap_or(DEFAULT_WAIT))),
            Outcome::Refused(Refusal { fault: Fault::App, .. }) => retry_after = retry_after.max(Some(DEFAULT_WAIT)),
        }
    }
    match retry_after {
        Some(wait) => Err(ApiError::Unsettled { retry_after: wait.min(LONGEST_WAIT) }),
        None => Ok(json(&json!({"rejected": rejected}))),
    }
}

/// Applies the operator's policy to a push for an app that is not configured.
fn unknown_app(app: &App, device: &Device) -> Outcome {
    if app.unknown_apps.check(&()).is_ok() {
        let app_id = family(&device.app_id);
        tracing::warn!(?app_id, policy = ?app.config.unknown_app, "no entry of `apps` matches this app_id");
    }
    match app.config.unknown_app {
        UnknownApp::Retry => Outcome::refused_app("no entry of `apps` matches"),
        UnknownApp::Reject => Outcome::Gone,
    }
}

/// The loggable part of an `app_id`. Anybody can send any text, and some apps put the device id after the last dot.
fn family(app_id: &str) -> String {
    let named = app_id.rsplit_once('.').map_or("", |(named, _)| named);
    named.chars().take(64).chain(".*".chars()).collect()
}

#[cfg(test)]
mod tests;
