//! One push to one device: deduplicated, then sent to its push service, with retries within the request's budget.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use waypost_shared::{
    client::retry::Backoff,
    trace::{self, Kind, Span},
};

use crate::{
    app::{App, Entry},
    deliveries::{Begun, Target},
    notification::{Device, Notification},
    outcome::{Ended, Fault, Outcome, Refusal},
};

/// Back-off between attempts where the provider sends no `Retry-After`.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(4) };
/// `retry_after` for homeservers while an app is at its in-flight cap.
const WAIT_FOR_ROOM: Duration = Duration::from_secs(2);
/// The least time worth starting an attempt with (or a tenth of the budget, if that is less): a push whose attempt is
/// cut short may be delivered anyway.
const LEAST_ATTEMPT: Duration = Duration::from_secs(2);

/// A push to a device of a configured app.
#[derive(Debug)]
pub(crate) struct Push<'a> {
    pub(crate) app: &'a App,
    pub(crate) entry: &'a Entry,
    pub(crate) notification: &'a Notification,
    pub(crate) device: &'a Device,
    pub(crate) target: Target<'a>,
    /// The end of the request's budget.
    pub(crate) deadline: Instant,
}

impl Push<'_> {
    /// Sends an event once, however many copies of it arrive. Tests and count updates are sent every time.
    pub(crate) async fn deliver(&self) -> Ended {
        // Whoever presses "test" wants to see the current state.
        if self.notification.is_test() {
            return self.send().await;
        }
        if self.is_dead().await {
            return Outcome::Gone.into();
        }
        let Some(event_id) = self.notification.text("event_id") else {
            return self.send().await;
        };
        // If the replica holding the lease fails, there must be time left for an attempt of our own.
        let until = self.deadline - least_attempt(self.app.config.budget());
        match self.app.deliveries.begin(event_id, self.target, until).await {
            Begun::Delivered => Ended::Suppressed,
            Begun::Elsewhere => Outcome::unreachable().into(),
            Begun::Wait(copy) => ended_with(copy).await,
            Begun::Send(ticket) => {
                let ended = if ticket.was_elsewhere() && self.is_dead().await {
                    Outcome::Gone.into()
                } else {
                    self.send().await
                };
                ticket.finish(ended.outcome()).await;
                ended
            }
        }
    }

    /// Whether the pushkey is known to be dead, by a report that is believed.
    async fn is_dead(&self) -> bool {
        let owner = self.entry.provider.owner_of_device(self.device);
        let believes = |found_ms| self.entry.hold.believes(owner.as_ref(), found_ms);
        self.app.deliveries.is_dead(self.target, self.device.pushkey_ts_ms, believes).await
    }

    /// Prepares the request and sends it, if there is something to send and the in-flight cap allows it.
    async fn send(&self) -> Ended {
        let Self { entry, notification, device, .. } = *self;
        let ended = match entry.provider.prepare(notification, device, entry.content) {
            Ok(request) => self.attempts(&request).await.into(),
            // Not remembered: finding out again costs nothing, and the client may fix the data under the same pushkey.
            Err(Ended::With(outcome)) => {
                let owner = entry.provider.owner_of_device(device);
                entry.hold.judge(owner.as_ref(), &device.pushkey, outcome).into()
            }
            Err(ended) => ended,
        };
        if let Ended::With(Outcome::Refused(Refusal { fault, why })) = &ended
            && entry.told_refused.check(&()).is_ok()
        {
            tracing::warn!(app = entry.id, ?fault, why = &**why, "push refused");
        }
        ended
    }

    /// Sends the request, retrying while the provider is busy and time is left, and records whether the pushkey is dead
    /// or alive.
    async fn attempts(&self, request: &Request<Bytes>) -> Outcome {
        let owner = self.entry.provider.owner(request);
        if let Some(owner) = owner.as_ref().filter(|_| self.entry.provider.lets_strangers_choose())
            && let Err(wait) = self.app.limits.push_to_server(owner)
        {
            return Outcome::Busy { retry_after: Some(wait) };
        }
        let Some(_permit) = self.entry.in_flight.enter(owner.clone(), self.notification.source) else {
            // Fail instead of queueing: an app whose provider hangs would tie up every connection.
            if self.entry.told_full.check(&()).is_ok() {
                tracing::warn!(
                    app = self.entry.id,
                    "in-flight cap reached (`max_in_flight`, or the share of one source or one owner of servers); \
                     homeservers are asked to retry"
                );
            }
            return Outcome::Busy { retry_after: Some(WAIT_FOR_ROOM) };
        };
        let mut failures = 0;
        let outcome = loop {
            let outcome = self.attempt(request, failures).await;
            let Outcome::Busy { retry_after } = outcome else { break outcome };
            let wait = BACKOFF.delay(failures).max(retry_after.unwrap_or_default());
            failures += 1;
            if !has_time(wait, self.deadline.saturating_duration_since(Instant::now()), self.app.config.budget()) {
                break outcome;
            }
            sleep(wait).await;
        };
        let outcome = self.entry.hold.judge(owner.as_ref(), &self.device.pushkey, outcome);
        match outcome {
            // Only tests are sent to a pushkey that is known to be dead.
            Outcome::Delivered if self.notification.is_test() => self.app.deliveries.found_alive(self.target).await,
            Outcome::Gone => self.app.deliveries.found_dead(self.target).await,
            Outcome::Delivered | Outcome::Busy { .. } | Outcome::Refused(_) => {}
        }
        outcome
    }

    /// Sends the request once.
    async fn attempt(&self, request: &Request<Bytes>, failures: u32) -> Outcome {
        let entry = self.entry;
        let started = Instant::now();
        let time = self.deadline.saturating_duration_since(started).min(self.app.config.attempt_timeout());
        let mut span = attempt_span(entry, failures);
        let attempt = entry.provider.attempt(request, self.device, time);
        let outcome = trace::under(span.as_ref(), attempt).await.outcome;
        entry.metrics.attempt_took(started.elapsed().as_secs_f64(), span.as_ref().map(Span::trace_id));
        if let Some(span) = &mut span {
            span.set("waypost.outcome", outcome.label());
        }
        note_health(entry, request, &outcome);
        outcome
    }
}

/// Waits for the outcome of the same push, which another request is sending.
async fn ended_with(mut copy: watch::Receiver<Option<Outcome>>) -> Ended {
    let outcome = match copy.wait_for(Option::is_some).await {
        Ok(outcome) => outcome.clone(),
        Err(_) => None, // The other request was cancelled.
    };
    match outcome.unwrap_or(Outcome::unreachable()) {
        Outcome::Delivered => Ended::Suppressed,
        outcome => outcome.into(),
    }
}

/// The span of an attempt, if the request is traced. It names the app as configured, and nothing about the device.
fn attempt_span(entry: &Entry, failures: u32) -> Option<Span> {
    let mut span = trace::child(Kind::Internal, "push attempt")?;
    span.set("waypost.app", entry.id.clone());
    span.set("waypost.provider", entry.provider.name());
    span.set("waypost.failures_before", i64::from(failures));
    Some(span)
}

/// Records for the status page whether the push service works.
fn note_health(entry: &Entry, request: &Request<Bytes>, outcome: &Outcome) {
    match outcome {
        // The device's own server, which says nothing about the app.
        Outcome::Busy { .. } if entry.provider.owner(request).is_some() => {}
        Outcome::Busy { .. } => entry.probe.mark_down(|| "busy or unreachable".to_owned()),
        Outcome::Refused(Refusal { fault: Fault::App, why }) => entry.probe.mark_down(|| why.to_string()),
        Outcome::Delivered | Outcome::Gone | Outcome::Refused(Refusal { fault: Fault::Push, .. }) => {
            entry.probe.mark_up();
        }
    }
}

/// Whether `left` is enough for waiting and then another attempt.
fn has_time(wait: Duration, left: Duration, budget: Duration) -> bool {
    left >= wait.saturating_add(least_attempt(budget))
}

fn least_attempt(budget: Duration) -> Duration {
    LEAST_ATTEMPT.min(budget / 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_attempt_is_begun_that_would_be_cut_short() {
        let ms = Duration::from_millis;
        for (wait, left, budget, expected) in
            [(500, 2499, 20_000, false), (500, 2500, 20_000, true), (500, 599, 1000, false), (500, 600, 1000, true)]
        {
            assert_eq!(has_time(ms(wait), ms(left), ms(budget)), expected, "{wait} {left} {budget}");
        }
        assert!(!has_time(Duration::MAX, ms(20_000), ms(20_000)));
    }
}
