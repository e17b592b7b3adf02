//! Background jobs: following the changes made by other replicas, and deleting expired rows.

pub(crate) mod outbox;

use std::{sync::Arc, time::Duration};

use waypost_shared::{clock::DAY_MS, current::Current, error::Chain, random, stop::Stop};

use crate::{
    app::App,
    metrics::Rows,
    storage::{StoreError, associations::ChangeCursor, notifications::Notification},
};

pub(crate) mod peppers;

/// Polling interval in the absence of notifications: one can be lost with its connection, and SQLite sends none.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Delay before retrying after a database failure.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Interval between deletions of expired rows.
const CLEAN_EVERY: Duration = Duration::from_secs(600);
/// Rows deleted by one statement, few enough not to hold up requests.
const CLEAN_BATCH: i64 = 500;
/// How long an expired session is kept, so that its owner gets `M_SESSION_EXPIRED` rather than `M_NO_VALID_SESSION`.
const KEEP_EXPIRED_MS: i64 = DAY_MS;

/// Retention of tombstones, the rows of unbound addresses, so that every replica learns of them. A replica that could
/// not poll for half of that time rebuilds its indexes.
const KEEP_UNBOUND_MS: i64 = 60 * 60 * 1000;

/// Retention of address books since their last new address. Without it, an account is charged for its addresses again.
const KEEP_ADDRESS_BOOKS_MS: i64 = 180 * DAY_MS;

/// Follows the binds, unbinds and revocations made by other replicas and by commands, until `stop`.
pub(crate) async fn follow(app: Arc<App>, since: ChangeCursor, stop: Stop) {
    let mut followed_to = Followed { since, at_ms: app.clock.now_ms() };
    loop {
        let followed = tokio::select! {
            followed = follow_while_connected(&app, &mut followed_to) => followed,
            () = stop.requested() => return,
        };
        match followed {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "cannot follow the changes made by other replicas; retrying in 1 s");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(AFTER_FAILURE) => {}
            () = stop.requested() => return,
        }
    }
}

/// The last change followed, and when.
struct Followed {
    since: ChangeCursor,
    at_ms: i64,
}

/// Returns only on failure.
async fn follow_while_connected(app: &App, followed: &mut Followed) -> Result<(), StoreError> {
    let mut notifications = app.store.notifications().await?;
    // Notifications may have been missed while there was no connection.
    app.tokens.forget_all();
    app.peppers_changed.notify_one();
    loop {
        let now_ms = app.clock.now_ms();
        if now_ms.saturating_sub(followed.at_ms) > KEEP_UNBOUND_MS / 2 {
            tracing::info!("could not follow changes for too long; rebuilding the lookup indexes");
            followed.since = app.reload_index().await?;
        }
        let (changes, cursor) = app.store.changes_since(&app.keys, followed.since).await?;
        for change in &changes {
            // Read again under the address's lock: the change above may be older than one that a request on this
            // replica has made since.
            app.refresh_address(&change.threepid).await?;
        }
        *followed = Followed { since: cursor, at_ms: now_ms };
        app.count_associations();

        let next_look = tokio::time::Instant::now() + LOOK_EVERY;
        while let Ok(notification) = tokio::time::timeout_at(next_look, notifications.next()).await {
            match notification? {
                Notification::Associations => break,
                Notification::Peppers => app.peppers_changed.notify_one(),
                Notification::TokenEnded(token_hash) => app.tokens.forget(&token_hash),
                Notification::Missed => {
                    app.tokens.forget_all();
                    app.peppers_changed.notify_one();
                    break;
                }
            }
        }
    }
}

/// Deletes expired sessions, invites, unused tokens and all other expired rows, until `stop`.
pub(crate) async fn clean(current: Current<Arc<App>>, stop: Stop) {
    // Soon after startup, since some deployments restart often, and with jitter between replicas.
    let mut wait = Duration::from_secs(random::below(60));
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.requested() => return,
        }
        wait = CLEAN_EVERY;
        if let Err(error) = clean_once(&current.get()).await {
            tracing::warn!(error = %Chain(&error), "expired rows could not be deleted; retrying in 10 min");
        }
    }
}

/// Deletes all rows that have expired by now, in small batches.
pub(crate) async fn clean_once(app: &App) -> Result<(), StoreError> {
    let now_ms = app.clock.now_ms();
    let expired_ms = now_ms.saturating_sub(app.session_rules().lifetime_ms).saturating_sub(KEEP_EXPIRED_MS);
    let unused_ms = now_ms.saturating_sub(i64::from(app.config.tokens.unused_days) * DAY_MS);
    let unbound_ms = now_ms.saturating_sub(KEEP_UNBOUND_MS);
    let dead_ms = now_ms.saturating_sub(i64::from(app.config.outbox.keep_dead_days) * DAY_MS);
    let grace_ms = i64::try_from(app.config.lookup.previous_pepper_secs).unwrap_or(i64::MAX).saturating_mul(1000);
    let removed = |rows, count| app.metrics.removed(rows, count) > 0;
    while removed(Rows::Sessions, app.store.delete_expired_sessions(expired_ms, CLEAN_BATCH).await?) {}
    while removed(Rows::Tokens, app.store.delete_unused_tokens(unused_ms, CLEAN_BATCH).await?) {}
    while removed(Rows::Budgets, app.store.delete_full_budgets(now_ms, CLEAN_BATCH).await?) {}
    while removed(Rows::Unbound, app.store.delete_unbound(unbound_ms, CLEAN_BATCH).await?) {}
    while removed(Rows::Invites, app.store.delete_expired_invites(now_ms, CLEAN_BATCH).await?) {}
    while removed(Rows::Outbox, app.store.delete_dead_letters(dead_ms, CLEAN_BATCH).await?) {}
    let forgotten_ms = now_ms.saturating_sub(KEEP_ADDRESS_BOOKS_MS);
    while removed(Rows::AddressBooks, app.store.delete_old_address_books(forgotten_ms, CLEAN_BATCH).await?) {}
    removed(Rows::Peppers, app.store.delete_old_peppers(now_ms.saturating_sub(grace_ms)).await?);
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use prometheus_client::registry::Registry;
    use tempfile::TempDir;
    use waypost_shared::{clock::Clock, http::params::Params};

    use super::*;
    use crate::{
        api::validation::{
            email,
            requesting::{Requester, Wanted},
        },
        config::Config,
        domain::{association::Association, lookups::Pepper, mxid::Mxid, threepid::Threepid},
        storage::rate_limits::Charge,
    };

    /// An app on a new SQLite database, with a manual clock, and its data folder.
    pub(crate) async fn app(change: impl FnOnce(&mut Config)) -> (Arc<App>, Clock, TempDir) {
        let mut config = Config::default();
        let folder = tempfile::tempdir().unwrap();
        config.identity.data_dir = folder.path().to_owned();
        change(&mut config);
        let clock = Clock::manual(1_000_000_000_000);
        let app = Arc::new(App::new(config, clock.clone(), &mut Registry::default()).await.unwrap());
        app.load_index().await.unwrap();
        (app, clock, folder)
    }

    #[tokio::test]
    async fn unused_tokens_expire_and_are_deleted_in_batches() {
        let (app, clock, _folder) = app(|config| config.tokens.unused_days = 10).await;
        let hash = |number: i64| app.keys.token_hash(&format!("token{number}"));
        for number in 0..=CLEAN_BATCH {
            app.store.add_token(&Mxid::parse("@alice:hs.test").unwrap(), &hash(number), clock.now_ms()).await.unwrap();
        }
        let day = Duration::from_secs(24 * 60 * 60);
        let known = async |number: i64, now_ms: i64| {
            app.store.token(&hash(number), now_ms - 10 * DAY_MS).await.unwrap().is_some()
        };
        clock.advance(5 * day);
        app.store.touch_token(&hash(0), clock.now_ms()).await.unwrap();
        clock.advance(5 * day);
        clean_once(&app).await.unwrap();
        assert!(known(0, clock.now_ms()).await && known(1, clock.now_ms()).await);

        clock.advance(Duration::from_millis(1));
        assert!(!known(1, clock.now_ms()).await, "expired, whether or not its row has been deleted");
        clean_once(&app).await.unwrap();
        for number in 1..=CLEAN_BATCH {
            assert!(app.store.token(&hash(number), 0).await.unwrap().is_none(), "{number}");
        }
        assert!(known(0, clock.now_ms()).await, "used in the meantime");
    }

    #[tokio::test]
    async fn sessions_are_deleted_once_expired_and_budgets_once_full() {
        let (app, clock, _folder) = app(|_| {}).await;
        let ask = async |address: &str| {
            let object = serde_json::json!({"client_secret": "secret", "email": address, "send_attempt": 1});
            let params = Params::new(object.as_object().unwrap().clone());
            email::request_token(&app, params, Requester::default(), Wanted::default()).await.unwrap()
        };
        let known = async |sid: &str| app.store.session(&app.keys, sid).await.unwrap().is_some();
        let first = ask("alice@hs.test").await;
        clock.advance(Duration::from_millis(1));
        let second = ask("bob@hs.test").await;

        // One day to be validated, and another during which it is reported as expired.
        clock.advance(Duration::from_secs(2 * 24 * 60 * 60));
        clean_once(&app).await.unwrap();
        assert!(!known(&first).await && known(&second).await);
        let rule = app.config.limits.mail_per_address;
        let fingerprint = app.keys.fingerprint(&Threepid::email("alice@hs.test").unwrap());
        let charge = Charge::one("mail_per_address", fingerprint, rule);
        for _ in 0..rule.burst {
            app.store.take_all(&[charge], clock.now_ms()).await.unwrap().unwrap();
        }
        clean_once(&app).await.unwrap();
        assert!(app.store.take_all(&[charge], clock.now_ms()).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn only_expired_rows_are_deleted() {
        let (app, clock, _folder) = app(|_| {}).await;
        let bound_ms = clock.now_ms();
        for (address, mxid) in [("alice@hs.test", "@alice:hs.test"), ("bob@hs.test", "@bob:hs.test")] {
            let threepid = Threepid::email(address).unwrap();
            let association = Association { threepid, mxid: Mxid::parse(mxid).unwrap(), bound_ms };
            app.store.begin_bind(&app.keys, &association).await.unwrap().commit(&app.keys, "{}").await.unwrap();
        }
        let alice = Threepid::email("alice@hs.test").unwrap();
        assert!(app.store.remove_association(&app.keys, &alice, None, bound_ms).await.unwrap());
        let pepper = Pepper { text: "new".to_owned(), created_ms: bound_ms, active_ms: bound_ms + 1 };
        assert!(app.store.add_pepper(&pepper, bound_ms).await.unwrap());
        let left = async || {
            let (changes, _) = app.store.changes_since(&app.keys, ChangeCursor::default()).await.unwrap();
            (changes.len(), app.store.peppers().await.unwrap().len())
        };

        clock.advance(Duration::from_secs(60 * 60));
        clean_once(&app).await.unwrap();
        assert_eq!(left().await, (2, 2));
        clock.advance(Duration::from_millis(1));
        clean_once(&app).await.unwrap();
        assert_eq!(left().await, (1, 2));
        clock.advance(Duration::from_secs(24 * 60 * 60));
        clean_once(&app).await.unwrap();
        assert_eq!(left().await, (1, 1));
        assert_eq!(app.store.peppers().await.unwrap(), [pepper]);
    }
}
