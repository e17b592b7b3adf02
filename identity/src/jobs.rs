//! What goes on beside requests: following other replicas, and removing what is over.

pub(crate) mod outbox;

use std::time::Duration;

use waypost_shared::serve::Stop;

use crate::{
    app::App,
    domain::hashing,
    storage::{StoreError, associations::Seen},
};

/// How often changes are looked for when no hint came: a hint may be lost with its connection.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long to wait before a database that failed is asked again.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// How often what is over is removed.
const CLEAN_EVERY: Duration = Duration::from_secs(600);
/// Rows in one statement, so that no statement holds up requests.
const CLEAN_BATCH: i64 = 500;
/// How long a session is kept after it expired, so that its owner is told `M_SESSION_EXPIRED` and not that it never was.
const KEEP_EXPIRED_MS: i64 = 24 * 60 * 60 * 1000;
/// How long an address that was unbound keeps its row, from which other replicas hear of it.
const KEEP_UNBOUND_MS: i64 = 24 * 60 * 60 * 1000;

/// Follows what other replicas bind and unbind, until `stop`. SQLite has one process, so there is nothing to follow.
pub(crate) async fn follow(app: App, since: Seen, stop: Stop) {
    let mut since = since;
    loop {
        let followed = tokio::select! {
            followed = follow_while_connected(&app, &mut since) => followed,
            () = stop.requested() => return,
        };
        match followed {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(error = %waypost_shared::http::causes(&error), "changes of other replicas cannot be followed for now");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AFTER_FAILURE) => {}
            () = stop.requested() => return,
        }
    }
}

async fn follow_while_connected(app: &App, since: &mut Seen) -> Result<(), StoreError> {
    let Some(mut hints) = app.store.association_hints().await? else { return Ok(()) };
    loop {
        let (changes, seen) = app.store.changes_since(&app.keys, *since).await?;
        for change in &changes {
            let _order = app.binding(&app.keys.fingerprint(&change.threepid)).await;
            let hash = hashing::lookup_hash(&change.threepid, &app.pepper);
            match &change.mxid {
                Some(mxid) => app.index.insert(&hash, mxid),
                None => app.index.remove(&hash),
            }
        }
        *since = seen;
        app.count_associations();
        if let Ok(hint) = tokio::time::timeout(LOOK_EVERY, hints.recv()).await {
            hint?;
        }
    }
}

/// Removes expired sessions and invites, unused tokens and all else that is over, until `stop`.
pub(crate) async fn clean(app: App, stop: Stop) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(CLEAN_EVERY) => {}
            () = stop.requested() => return,
        }
        if let Err(error) = clean_once(&app).await {
            tracing::warn!(error = %waypost_shared::http::causes(&error), "what is over could not be removed; it will be tried again");
        }
    }
}

/// Removes all that is over now, in small batches.
///
/// # Errors
///
/// [`StoreError`].
pub(crate) async fn clean_once(app: &App) -> Result<(), StoreError> {
    let now_ms = app.clock.now_ms();
    let expired_ms = now_ms.saturating_sub(app.session_rules().lifetime_ms).saturating_sub(KEEP_EXPIRED_MS);
    let unused_ms = now_ms.saturating_sub(i64::from(app.config.tokens.unused_days) * 24 * 60 * 60 * 1000);
    while app.store.delete_expired_sessions(expired_ms, CLEAN_BATCH).await? > 0 {}
    while app.store.delete_unused_tokens(unused_ms, CLEAN_BATCH).await? > 0 {}
    while app.store.delete_full_budgets(now_ms, CLEAN_BATCH).await? > 0 {}
    while app.store.delete_expired_invites(now_ms, CLEAN_BATCH).await? > 0 {}
    let dead_ms = now_ms.saturating_sub(i64::from(app.config.outbox.keep_dead_days) * 24 * 60 * 60 * 1000);
    while app.store.delete_dead_letters(dead_ms, CLEAN_BATCH).await? > 0 {}
    while app.store.delete_unbound(now_ms.saturating_sub(KEEP_UNBOUND_MS), CLEAN_BATCH).await? > 0 {}
    Ok(())
}
