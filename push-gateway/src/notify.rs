//! One request: all its devices at once, retries within a budget, and the answer.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use serde_json::json;
use tokio::time::{Instant, sleep};
use waypost_shared::{
    http::{Incoming, Response, json},
    retry::Backoff,
};

use crate::{
    app::{App, Entry},
    config::UnknownApp,
    error::ApiError,
    metrics::Ended,
    notification::{Device, Notification},
    provider::{Fault, Outcome, Unsent},
    seen::Begun,
};

/// Waits between attempts where the provider names none.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(4) };
/// What a homeserver is asked to wait when no provider said how long.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// No homeserver is asked to wait longer, whatever a provider says.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// What the homeserver is to do about one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// Nothing more.
    Done,
    /// Forget the pushkey.
    Reject,
    /// Send it again.
    Again(Option<Duration>),
}

/// `POST /_matrix/push/v1/notify`: an event, or new counts, for some devices.
pub(crate) async fn notify(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    let notification = Notification::parse(request.json_object()?, &app.config)?;
    // Devices whose data cannot be understood are left out, as long as there is another one.
    let all_faulty = notification.devices.iter().all(|device| device.fault.is_some());
    let fault = notification.devices.iter().find_map(|device| device.fault.clone());
    if let Some(fault) = fault.filter(|_| all_faulty) {
        for device in &notification.devices {
            count_dropped(&app, device);
        }
        return Err(fault.into());
    }
    // In a task of its own: a homeserver that hangs up must not cut a push short between the provider's answer and
    // our memory of it.
    tokio::spawn(async move { settle(&app, &notification).await }).await?
}

/// Sends to all devices at once and decides the answer.
async fn settle(app: &App, notification: &Notification) -> Result<Response, ApiError> {
    let deadline = Instant::now() + app.config.budget();
    let mut known = HashSet::new();
    let devices = notification.devices.iter().filter(|device| known.insert((&device.app_id, &device.pushkey)));
    let pushes: Vec<_> =
        devices.map(|device| async move { (device, one_device(app, notification, device, deadline).await) }).collect();
    answer(&join_all(pushes).await)
}

/// 200 with the rejected pushkeys, or 503 while anything is left to send: a homeserver reads `rejected` only in a 200.
fn answer(settled: &[(&Device, Verdict)]) -> Result<Response, ApiError> {
    let waits: Vec<_> = settled
        .iter()
        .filter_map(|(_, verdict)| match verdict {
            Verdict::Again(wait) => Some(wait.unwrap_or(DEFAULT_WAIT)),
            Verdict::Done | Verdict::Reject => None,
        })
        .collect();
    if let Some(longest) = waits.into_iter().max() {
        return Err(ApiError::Unsettled { retry_after: longest.min(LONGEST_WAIT) });
    }
    let mut rejected: Vec<&str> = Vec::new();
    for (device, verdict) in settled {
        // One pushkey may stand in the request for two apps.
        if *verdict == Verdict::Reject && !rejected.contains(&device.pushkey.as_str()) {
            rejected.push(&device.pushkey);
        }
    }
    Ok(json(&json!({"rejected": rejected})))
}

/// Finds the device's app and counts how the push ended.
async fn one_device(app: &App, notification: &Notification, device: &Device, deadline: Instant) -> Verdict {
    if device.fault.is_some() {
        count_dropped(app, device);
        return Verdict::Done;
    }
    let Some(entry) = app.entry(&device.app_id) else {
        return unknown_app(app, device);
    };
    let (outcome, ended) = deliver(app, entry, notification, device, deadline).await;
    entry.metrics.ended(ended);
    match outcome {
        Outcome::Delivered => Verdict::Done,
        Outcome::Gone => Verdict::Reject,
        Outcome::Busy { retry_after } => Verdict::Again(retry_after),
        Outcome::Refused(refusal) => match refusal.fault {
            Fault::Push => Verdict::Done,
            Fault::App => Verdict::Again(None),
        },
    }
}

fn unknown_app(app: &App, device: &Device) -> Verdict {
    // An app_id is no secret, but anybody's choice: a part of it is enough to find the mistake by.
    let app_id: String = device.app_id.chars().take(64).collect();
    tracing::warn!(?app_id, policy = ?app.config.unknown_app, "no entry of `apps` matches this app_id");
    match app.config.unknown_app {
        UnknownApp::Retry => {
            app.unmatched.ended(Ended::Refused);
            Verdict::Again(None)
        }
        UnknownApp::Reject => {
            app.unmatched.ended(Ended::Gone);
            Verdict::Reject
        }
    }
}

fn count_dropped(app: &App, device: &Device) {
    let metrics = app.entry(&device.app_id).map_or(&app.unmatched, |entry| &entry.metrics);
    metrics.ended(Ended::Dropped);
}

/// Sends an event once, however many copies of it arrive; a test and mere counts each time.
async fn deliver(
    app: &App,
    entry: &Entry,
    notification: &Notification,
    device: &Device,
    deadline: Instant,
) -> (Outcome, Ended) {
    // A person who presses "test" wants to know how it is now.
    if notification.is_test() {
        return send(app, entry, notification, device, deadline).await;
    }
    if app.seen.is_dead(&device.app_id, &device.pushkey, device.pushkey_ts_ms) {
        return (Outcome::Gone, Ended::Gone);
    }
    let Some(event_id) = notification.text("event_id") else {
        return send(app, entry, notification, device, deadline).await;
    };
    match app.seen.begin(event_id, &device.app_id, &device.pushkey) {
        Begun::Delivered => (Outcome::Delivered, Ended::Suppressed),
        Begun::Send(ticket) => {
            let (outcome, ended) = send(app, entry, notification, device, deadline).await;
            ticket.finish(&outcome);
            (outcome, ended)
        }
        Begun::Wait(mut outcome) => {
            let outcome = match outcome.wait_for(Option::is_some).await {
                Ok(outcome) => outcome.clone(),
                Err(_) => None, // Whoever was sending it was cut short.
            };
            match outcome.unwrap_or(Outcome::unreachable()) {
                Outcome::Delivered => (Outcome::Delivered, Ended::Suppressed),
                other => {
                    let ended = ended(&other);
                    (other, ended)
                }
            }
        }
    }
}

/// Prepares the push and sends it, again and again while its provider is busy and there is time.
async fn send(
    app: &App,
    entry: &Entry,
    notification: &Notification,
    device: &Device,
    deadline: Instant,
) -> (Outcome, Ended) {
    let outcome = match entry.provider.prepare(notification, device, entry.content) {
        Ok(request) => {
            let outcome = attempts(app, entry, &request, device, deadline).await;
            if outcome == Outcome::Gone {
                app.seen.found_dead(&device.app_id, &device.pushkey);
            }
            outcome
        }
        Err(Unsent::NothingToSay) => return (Outcome::Delivered, Ended::Dropped),
        Err(Unsent::Settled(outcome)) => outcome,
    };
    if let Outcome::Refused(refusal) = &outcome {
        tracing::warn!(app = entry.id, fault = ?refusal.fault, why = refusal.why, "push refused");
    }
    let ended = ended(&outcome);
    (outcome, ended)
}

async fn attempts(app: &App, entry: &Entry, request: &Request<Bytes>, device: &Device, deadline: Instant) -> Outcome {
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let time = deadline.saturating_duration_since(started).min(app.config.attempt_timeout());
        let outcome = entry.provider.attempt(request, device, time).await;
        entry.metrics.attempt_took(started.elapsed().as_secs_f64());
        let Outcome::Busy { retry_after } = outcome else { return outcome };
        let wait = BACKOFF.delay(failures).max(retry_after.unwrap_or_default());
        failures += 1;
        if wait >= deadline.saturating_duration_since(Instant::now()) {
            return outcome;
        }
        sleep(wait).await;
    }
}

fn ended(outcome: &Outcome) -> Ended {
    match outcome {
        Outcome::Delivered => Ended::Delivered,
        Outcome::Gone => Ended::Gone,
        Outcome::Busy { .. } => Ended::Busy,
        Outcome::Refused(_) => Ended::Refused,
    }
}

#[cfg(test)]
#[path = "notify_tests.rs"]
mod tests;
