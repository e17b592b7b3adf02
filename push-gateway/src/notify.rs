//! One request: all its devices at once, retries within a budget, and the answer.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderValue, Request, StatusCode, header::ALLOW};
use serde_json::json;
use tokio::time::{Instant, sleep};
use waypost_shared::{
    http::{Incoming, Response, json},
    matrix_error::MatrixError,
    retry::Backoff,
    traces::{self, Kind, Span},
};

use crate::{
    app::{App, Entry},
    config::UnknownApp,
    error::ApiError,
    hold::{Change, Said},
    metrics::Ended,
    notification::{Device, Notification},
    provider::{Fault, Outcome, Refusal, Unsent},
    seen::{Begun, Target},
};

/// Waits between attempts where the provider names none.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(4) };
/// What a homeserver is asked to wait when no provider said how long.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// No homeserver is asked to wait longer, whatever a provider says.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// What a homeserver is asked to wait while an app has as many pushes under way as it may have.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(2);
/// The same while an app's dead pushkeys are held: somebody has to look at it first.
const WAIT_FOR_BELIEF: Duration = Duration::from_secs(15 * 60);

/// An attempt needs this long, or a tenth of a smaller budget: one that is cut short may be delivered nevertheless.
const LEAST_ATTEMPT: Duration = Duration::from_secs(2);

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
    app.limits.request_from(request.source)?;
    let notification = Notification::parse(request.json_object()?, request.source, &app.config)?;
    // Devices whose data cannot be understood are left out, as long as there is another one.
    let all_faulty = notification.devices.iter().all(|device| device.fault.is_some());
    let fault = notification.devices.iter().find_map(|device| device.fault.clone());
    if let Some(fault) = fault.filter(|_| all_faulty) {
        for device in &notification.devices {
            count_dropped(&app, device);
        }
        return Err(fault.into());
    }
    for device in &notification.devices {
        let entry = app.entry(&device.app_id);
        app.limits.push_to(entry, target(entry, device))?;
    }
    // In a task of its own: a homeserver that hangs up must not cut a push short between the provider's answer and
    // our memory of it.
    tokio::spawn(traces::carried(async move { settle(&app, &notification).await })).await?
}

/// `GET /_matrix/push/v1/notify`: says that this is a gateway for UnifiedPush, as those discover it that look for one,
/// and only if it is: else the endpoint takes POST alone.
///
/// Source: UnifiedPush, "Push Gateway for Matrix".
pub(crate) async fn discovery(app: Arc<App>, _request: Incoming) -> Result<Response, ApiError> {
    if !app.has_unifiedpush() {
        let text = "This endpoint takes POST";
        let refused = MatrixError::new(StatusCode::METHOD_NOT_ALLOWED, "M_UNRECOGNIZED", text);
        let mut response = refused.into_response();
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Ok(response);
    }
    Ok(json(&json!({"gateway": "matrix", "unifiedpush": {"gateway": "matrix"}})))
}

/// Sends to all devices at once and decides the answer.
async fn settle(app: &App, notification: &Notification) -> Result<Response, ApiError> {
    let deadline = Instant::now() + app.config.budget();
    let mut known = HashSet::new();
    let mut pushes = Vec::new();
    for device in &notification.devices {
        let entry = app.entry(&device.app_id);
        if known.insert(target(entry, device)) {
            pushes.push(async move { (device, one_device(app, entry, notification, device, deadline).await) });
        } else {
            // The same device twice in one request: the other one sends.
            entry.map_or(&app.unmatched, |entry| &entry.metrics).ended(Ended::Suppressed);
        }
    }
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

/// Where a push goes that `entry`, if there is one, sends.
fn target<'d>(entry: Option<&Entry>, device: &'d Device) -> Target<'d> {
    let endpoint = entry.map_or("", |entry| entry.provider.endpoint(device));
    Target { app_id: &device.app_id, pushkey: &device.pushkey, endpoint }
}

/// Sends to one device and counts how that ended.
async fn one_device(
    app: &App,
    entry: Option<&Entry>,
    notification: &Notification,
    device: &Device,
    deadline: Instant,
) -> Verdict {
    if device.fault.is_some() {
        count_dropped(app, device);
        return Verdict::Done;
    }
    let Some(entry) = entry else {
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
    if app.unknown_apps.check(&()).is_ok() {
        let app_id = family(&device.app_id);
        tracing::warn!(?app_id, policy = ?app.config.unknown_app, "no entry of `apps` matches this app_id");
    }
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

/// An app_id as far as it may be logged: it is anybody's choice, and some apps put the device's id behind the last dot.
fn family(app_id: &str) -> String {
    let named = app_id.rsplit_once('.').map_or("", |(named, _)| named);
    named.chars().take(64).chain(".*".chars()).collect()
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
    if is_dead(app, entry, device).await {
        return (Outcome::Gone, Ended::Gone);
    }
    let Some(event_id) = notification.text("event_id") else {
        return send(app, entry, notification, device, deadline).await;
    };
    let target = target(Some(entry), device);
    // Should another replica that has it fail, there must be time for an attempt of our own.
    let until = deadline - least_attempt(app.config.budget());
    match app.seen.begin(event_id, target, until).await {
        Begun::Delivered => (Outcome::Delivered, Ended::Suppressed),
        Begun::Elsewhere => (Outcome::unreachable(), Ended::Busy),
        Begun::Send(ticket) => {
            let (outcome, ended) = if ticket.was_elsewhere() && is_dead(app, entry, device).await {
                (Outcome::Gone, Ended::Gone)
            } else {
                send(app, entry, notification, device, deadline).await
            };
            ticket.finish(&outcome).await;
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

/// Whether a pushkey is known to be dead, from a time when deaths could be believed.
async fn is_dead(app: &App, entry: &Entry, device: &Device) -> bool {
    let believes = |found_ms| entry.hold.believes(found_ms);
    app.seen.is_dead(target(Some(entry), device), device.pushkey_ts_ms, believes).await
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
        Ok(request) => match entry.in_flight.enter(entry.provider.owner(&request), notification.source) {
            Some(_permit) => {
                let outcome = attempts(app, entry, &request, device, deadline).await;
                judged(app, entry, notification, device, outcome).await
            }
            // Not to be waited for: the pushes of an app whose provider hangs would take all connections.
            None => {
                if entry.told_full.check(&()).is_ok() {
                    tracing::warn!(
                        app = entry.id,
                        "as many pushes are under way as `max_in_flight` allows, in all, for one source or to one owner's servers"
                    );
                }
                Outcome::Busy { retry_after: Some(WAIT_FOR_ROOM) }
            }
        },
        Err(Unsent::NothingToSay) => return (Outcome::Delivered, Ended::Dropped),
        // Not remembered: it costs nothing to find out again, and the pusher's data may be mended under the same key.
        Err(Unsent::Settled(Outcome::Gone)) => believed(entry, device),
        Err(Unsent::Settled(outcome)) => outcome,
    };
    if let Outcome::Refused(refusal) = &outcome {
        tracing::warn!(app = entry.id, fault = ?refusal.fault, why = refusal.why, "push refused");
    }
    let ended = ended(&outcome);
    (outcome, ended)
}

/// What a provider's answer is taken for: of an app whose pushkeys die by the dozen, no death is believed.
async fn judged(app: &App, entry: &Entry, notification: &Notification, device: &Device, outcome: Outcome) -> Outcome {
    let target = target(Some(entry), device);
    match outcome {
        Outcome::Delivered => {
            take_note(entry, device, Said::Alive);
            if notification.is_test() {
                // Nothing else is sent to a pushkey that is known to be dead.
                app.seen.found_alive(target).await;
            }
            Outcome::Delivered
        }
        Outcome::Gone => {
            let outcome = believed(entry, device);
            if outcome == Outcome::Gone {
                app.seen.found_dead(target).await;
            }
            outcome
        }
        Outcome::Busy { .. } | Outcome::Refused(_) => outcome,
    }
}

/// What a death that was just found is taken for.
fn believed(entry: &Entry, device: &Device) -> Outcome {
    take_note(entry, device, Said::Dead);
    if entry.hold.is_on() { Outcome::Busy { retry_after: Some(WAIT_FOR_BELIEF) } } else { Outcome::Gone }
}

/// Counts an answer, and says so when it changes what is believed.
fn take_note(entry: &Entry, device: &Device, said: Said) {
    match entry.hold.saw(&device.pushkey, said) {
        None => {}
        Some(Change::Began { dead, of }) => {
            entry.metrics.holds(true);
            tracing::error!(
                app = entry.id,
                dead,
                of,
                "so many of this app's pushkeys are called dead that none is rejected for now: are its credentials, \
                 its environment or project the right ones?"
            );
        }
        Some(Change::Ended { in_time }) => {
            entry.metrics.holds(false);
            tracing::warn!(app = entry.id, in_time, "this app's dead pushkeys are rejected again");
        }
    }
}

async fn attempts(app: &App, entry: &Entry, request: &Request<Bytes>, device: &Device, deadline: Instant) -> Outcome {
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let time = deadline.saturating_duration_since(started).min(app.config.attempt_timeout());
        let mut span = attempt_span(entry, failures);
        let outcome = traces::under(span.as_ref(), entry.provider.attempt(request, device, time)).await.outcome;
        entry.metrics.attempt_took(started.elapsed().as_secs_f64(), span.as_ref().map(Span::trace_id));
        if let Some(span) = &mut span {
            span.set("waypost.outcome", ended(&outcome).label());
        }
        drop(span);
        watch(entry, request, &outcome);
        let Outcome::Busy { retry_after } = outcome else { return outcome };
        let wait = BACKOFF.delay(failures).max(retry_after.unwrap_or_default());
        failures += 1;
        if !has_time(wait, deadline.saturating_duration_since(Instant::now()), app.config.budget()) {
            return outcome;
        }
        sleep(wait).await;
    }
}

/// The span of an attempt, if the request is traced. It names the app as configured, and nothing of the device.
fn attempt_span(entry: &Entry, failures: u32) -> Option<Span> {
    let mut span = traces::child(Kind::Internal, "push attempt")?;
    span.set("waypost.app", entry.id.clone());
    span.set("waypost.provider", entry.provider.name());
    span.set("waypost.failures_before", i64::from(failures));
    Some(span)
}

/// Takes note of whether the push service works, for the status page.
fn watch(entry: &Entry, request: &Request<Bytes>, outcome: &Outcome) {
    match outcome {
        // One of many servers, which says nothing about the app.
        Outcome::Busy { .. } if entry.provider.owner(request).is_some() => {}
        Outcome::Busy { .. } => entry.watch.is_down(|| "busy or away".to_owned()),
        Outcome::Refused(Refusal { fault: Fault::App, why }) => entry.watch.is_down(|| why.clone()),
        Outcome::Delivered | Outcome::Gone | Outcome::Refused(Refusal { fault: Fault::Push, .. }) => {
            entry.watch.is_up();
        }
    }
}

/// Whether what is left is enough to wait and try again.
fn has_time(wait: Duration, left: Duration, budget: Duration) -> bool {
    left >= wait.saturating_add(least_attempt(budget))
}

fn least_attempt(budget: Duration) -> Duration {
    LEAST_ATTEMPT.min(budget / 10)
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
