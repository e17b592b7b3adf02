//! Notifies homeservers of bindings: delivers the rows of the outbox, or gives them up.

mod servers;

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use waypost_shared::{client::retry::Backoff, clock::millis, current::Current, error::Chain, stop::Stop};

use crate::{
    app::App,
    config::OutboxConfig,
    domain::sealing::Sealed,
    federation::HomeserverError,
    metrics::Onbind,
    storage::{StoreError, outbox::OutboxRow},
};

use servers::{Deferral, Servers};

/// Polling interval in the absence of a wake-up: another replica may have added a row and died.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// The shortest wait, so that rows which another replica is about to lease do not cause a busy loop.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(50);
/// How long a lease lasts, in milliseconds: longer than discovering a homeserver and calling it twice takes.
const LEASE_MS: i64 = 90 * 1000;
/// How long calls in flight may take when the service stops. Unfinished ones are delivered again later.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Delivers until `stop`.
pub(crate) async fn deliver(current: Current<Arc<App>>, stop: Stop) {
    let servers = Arc::new(Servers::default());
    let mut under_way = JoinSet::new();
    let mut counted: Option<Instant> = None;
    loop {
        let app = current.get();
        let wait = match turn(&app, &servers, &mut under_way, &mut counted).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "the outbox could not be read; retrying in 5 s");
                LOOK_EVERY
            }
        };
        tokio::select! {
            () = app.outbox_filled.notified() => {}
            Some(_) = under_way.join_next(), if !under_way.is_empty() => {}
            () = sleep(wait) => {}
            () = stop.requested() => break,
        }
    }
    let ended = async { while under_way.join_next().await.is_some() {} };
    if timeout(STOP_GRACE, ended).await.is_err() {
        tracing::warn!("calls to homeservers were cut off by the stop; they will be made again");
    }
}

/// Starts as many deliveries as there is room for; returns the time until another one is due.
async fn turn(
    app: &Arc<App>,
    servers: &Arc<Servers>,
    under_way: &mut JoinSet<()>,
    counted: &mut Option<Instant>,
) -> Result<Duration, StoreError> {
    let now_ms = app.clock.now_ms();
    let room = app.config.outbox.at_once.saturating_sub(under_way.len());
    if room > 0 {
        let most = i64::try_from(room).unwrap_or(i64::MAX);
        let until_ms = now_ms.saturating_add(LEASE_MS);
        for row in app.store.lease_outbox_rows(now_ms, until_ms, most, &servers.full()).await? {
            let (app, servers) = (app.clone(), servers.clone());
            under_way.spawn(async move { handle(&app, &servers, &row).await });
        }
    }
    if counted.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
        let counts = app.store.outbox_counts().await?;
        app.metrics.outbox_waiting.set(counts.waiting);
        app.metrics.outbox_dead.set(counts.dead);
        *counted = Some(Instant::now());
    }
    if under_way.len() >= app.config.outbox.at_once {
        // At the in-flight cap, nothing can start before one of them ends, which wakes the loop.
        return Ok(LOOK_EVERY);
    }
    let due_ms = app.store.next_outbox_due(&servers.full()).await?;
    let wait = due_ms.and_then(|due_ms| u64::try_from(due_ms.saturating_sub(now_ms)).ok()).map(Duration::from_millis);
    let wait = if due_ms.is_some() { wait.unwrap_or(LOOK_AT_MOST_EVERY) } else { LOOK_EVERY };
    Ok(wait.clamp(LOOK_AT_MOST_EVERY, LOOK_EVERY))
}

async fn handle(app: &App, servers: &Servers, row: &OutboxRow) {
    let server = row.mxid.server_name();
    let rules = &app.config.outbox;
    let owner = app.owners.of(server);
    let noted = match servers.begin(&owner, server, rules.at_once, app.clock.now_ms()) {
        Ok(()) => {
            let delivered = deliver_one(app, row).await;
            let away = delivered.as_ref().is_err_and(|failure| failure.away);
            servers.end(&owner, server, rules.at_once, away.then(|| backoff(rules)), app.clock.now_ms());
            settle(app, row, delivered.map_err(|failure| failure.text)).await
        }
        // Not given up, however old the row is: it has not had its turn.
        Err(Deferral::Busy(again_ms)) => app.store.outbox_row_postponed(&row.id, again_ms).await,
        Err(Deferral::Away(again_ms)) => postpone(app, row, again_ms).await,
    };
    if let Err(error) = noted {
        tracing::warn!(error = %Chain(&error), "the outcome of a call to a homeserver could not be recorded; it will be made again");
    }
}

/// Why a row was not delivered.
struct Failure {
    /// The reason to record; contains no address.
    text: String,
    /// Whether the homeserver is unavailable, so that it would not have accepted any other row either.
    away: bool,
}

async fn deliver_one(app: &App, row: &OutboxRow) -> Result<(), Failure> {
    let payload = app.keys.open(Sealed::Outbox, &row.payload_sealed);
    let payload = payload.map_err(|error| Failure { text: error.to_string(), away: false })?;
    let told = app.homeservers.onbind(row.mxid.server_name(), payload.into()).await;
    told.map_err(|error| Failure {
        away: match &error {
            HomeserverError::Unreachable(_) => true,
            HomeserverError::Refused(status) => status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS,
            _ => false,
        },
        text: Chain(&error).to_string(),
    })
}

/// Postpones a row until its homeserver, which is backing off, may be called again; gives it up if that has lasted for
/// too long.
async fn postpone(app: &App, row: &OutboxRow, again_ms: i64) -> Result<(), StoreError> {
    let (now_ms, rules) = (app.clock.now_ms(), &app.config.outbox);
    // By then the homeserver has been called once more, for this row or another one.
    let given_up_secs = rules.retry_for_secs.saturating_add(rules.max_retry_secs);
    if now_ms.saturating_sub(row.since_ms) >= millis(Duration::from_secs(given_up_secs)) {
        return give_up(app, row, "The homeserver has been unavailable all the time", now_ms).await;
    }
    app.store.outbox_row_postponed(&row.id, again_ms).await
}

async fn give_up(app: &App, row: &OutboxRow, failure: &str, now_ms: i64) -> Result<(), StoreError> {
    app.store.outbox_row_given_up(&row.id, failure, now_ms).await?;
    app.metrics.onbind(Onbind::Dead);
    tracing::error!(
        server = row.mxid.server_name(),
        attempts = row.attempts,
        failure,
        "gave up notifying a homeserver of a binding; `outbox retry` retries it"
    );
    Ok(())
}

fn backoff(rules: &OutboxConfig) -> Backoff {
    Backoff { first: Duration::from_secs(rules.first_retry_secs), max: Duration::from_secs(rules.max_retry_secs) }
}

async fn settle(app: &App, row: &OutboxRow, delivered: Result<(), String>) -> Result<(), StoreError> {
    let Err(failure) = delivered else {
        app.store.outbox_row_delivered(&row.id).await?;
        app.metrics.onbind(Onbind::Delivered);
        return Ok(());
    };
    let (now_ms, rules) = (app.clock.now_ms(), &app.config.outbox);
    if now_ms.saturating_sub(row.since_ms) >= millis(Duration::from_secs(rules.retry_for_secs)) {
        return give_up(app, row, &failure, now_ms).await;
    }
    let failures = u32::try_from(row.attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    app.store
        .outbox_row_failed(&row.id, &failure, now_ms.saturating_add(millis(backoff(rules).delay(failures))))
        .await?;
    app.metrics.onbind(Onbind::Failed);
    tracing::debug!(
        server = row.mxid.server_name(),
        attempts = row.attempts,
        failure,
        "a homeserver could not be notified of a binding; retrying later"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use waypost_shared::clock::Clock;

    use super::*;
    use crate::{
        domain::{association::Association, mxid::Mxid, threepid::Threepid},
        jobs::{clean_once, tests::app},
        storage::outbox::OutboxCounts,
    };

    /// Adds one row to the outbox.
    async fn bind(app: &App) {
        let threepid = Threepid::email("alice@example.com").unwrap();
        let bound_ms = app.clock.now_ms();
        let association = Association { threepid, mxid: Mxid::parse("@alice:hs.test").unwrap(), bound_ms };
        app.store.begin_bind(&app.keys, &association).await.unwrap().commit(&app.keys, "{}").await.unwrap();
    }

    /// What a replica leases that polls now.
    async fn lease(app: &App, clock: &Clock) -> Vec<OutboxRow> {
        let now_ms = clock.now_ms();
        app.store.lease_outbox_rows(now_ms, now_ms + LEASE_MS, 10, &[]).await.unwrap()
    }

    #[tokio::test]
    async fn a_row_is_taken_over_when_the_lease_of_a_dead_replica_expires() {
        let (app, clock, _folder) = app(|_| {}).await;
        bind(&app).await;
        let first = lease(&app, &clock).await;
        assert_eq!((first.len(), first[0].attempts), (1, 1));
        clock.advance(Duration::from_millis(90_000 - 1));
        assert!(lease(&app, &clock).await.is_empty());
        clock.advance(Duration::from_millis(1));
        let second = lease(&app, &clock).await;
        assert_eq!((second.len(), &second[0].id, second[0].attempts), (1, &first[0].id, 2));

        settle(&app, &second[0], Ok(())).await.unwrap();
        assert_eq!(app.store.outbox_counts().await.unwrap(), OutboxCounts::default());
        // The replica presumed dead reports a late failure, which must not bring the row back.
        settle(&app, &first[0], Err("too late".to_owned())).await.unwrap();
        assert_eq!(app.store.outbox_counts().await.unwrap(), OutboxCounts::default());
    }

    #[tokio::test]
    async fn a_row_that_waits_for_its_turn_is_not_given_up_however_old_it_is() {
        let rules = |config: &mut crate::config::Config| {
            // One homeserver, one call.
            config.outbox.at_once = 1;
            config.outbox.first_retry_secs = 60;
        };
        let (app, clock, _folder) = app(rules).await;
        bind(&app).await;
        // Waypost itself was down.
        clock.advance(Duration::from_secs(30 * 24 * 60 * 60));
        let servers = Servers::default();
        let owner = app.owners.of("hs.test");
        servers.begin(&owner, "hs.test", app.config.outbox.at_once, clock.now_ms()).unwrap();
        handle(&app, &servers, &lease(&app, &clock).await.remove(0)).await;
        assert_eq!(app.store.outbox_counts().await.unwrap(), OutboxCounts { waiting: 1, dead: 0 });
        servers.end(&owner, "hs.test", app.config.outbox.at_once, Some(backoff(&app.config.outbox)), clock.now_ms());

        clock.advance(Duration::from_secs(1));
        handle(&app, &servers, &lease(&app, &clock).await.remove(0)).await;
        assert_eq!(app.store.outbox_counts().await.unwrap(), OutboxCounts { waiting: 0, dead: 1 });
    }

    #[tokio::test]
    async fn a_row_is_retried_then_given_up_then_deleted() {
        let rules = |config: &mut crate::config::Config| {
            config.outbox.retry_for_secs = 3600;
            config.outbox.first_retry_secs = 8;
            config.outbox.keep_dead_days = 1;
        };
        let (app, clock, _folder) = app(rules).await;
        bind(&app).await;
        let since_ms = clock.now_ms();

        let row = lease(&app, &clock).await.remove(0);
        clock.advance(Duration::from_millis(3_600_000 - 1));
        settle(&app, &row, Err("refused".to_owned())).await.unwrap();
        assert_eq!(app.store.outbox_counts().await.unwrap(), OutboxCounts { waiting: 1, dead: 0 });
        // The back-off after the first failure: half of 8 seconds to all of them.
        let wait_ms = app.store.next_outbox_due(&[]).await.unwrap().unwrap() - clock.now_ms();
        assert!((4000..=8000).contains(&wait_ms), "{wait_ms}");

        clock.advance(Duration::from_secs(8));
        let row = lease(&app, &clock).await.remove(0);
        assert_eq!((row.attempts, row.since_ms), (2, since_ms));
        settle(&app, &row, Err("refused again".to_owned())).await.unwrap();
        assert_eq!(app.store.outbox_counts().await.unwrap(), OutboxCounts { waiting: 0, dead: 1 });
        let dead = app.store.dead_letters().await.unwrap();
        assert_eq!((dead[0].failure.as_str(), dead[0].dead_ms), ("refused again", clock.now_ms()));

        clock.advance(Duration::from_secs(24 * 60 * 60));
        assert!(lease(&app, &clock).await.is_empty());
        clean_once(&app).await.unwrap();
        assert_eq!(app.store.outbox_counts().await.unwrap(), OutboxCounts { waiting: 0, dead: 1 });
        clock.advance(Duration::from_millis(1));
        clean_once(&app).await.unwrap();
        assert_eq!(app.store.outbox_counts().await.unwrap(), OutboxCounts::default());
    }
}
