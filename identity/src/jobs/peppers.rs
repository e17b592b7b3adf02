//! Peppers: picking up those stored by another process, and rotating them on schedule.

use std::{sync::Arc, time::Duration};

use waypost_shared::{
    clock::{DAY_MS, millis},
    current::Current,
    error::Chain,
    stop::Stop,
};

use crate::{
    app::App,
    domain::{hashing, lookups::Pepper},
    storage::StoreError,
};

/// Polling interval in the absence of notifications. Much shorter than the default lead time of a new pepper.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Keeps the indexes in step with the stored peppers, until `stop`.
pub(crate) async fn keep_up(current: Current<Arc<App>>, stop: Stop) {
    loop {
        let app = current.get();
        let looked = tokio::select! {
            looked = look(&app) => looked,
            () = stop.requested() => return,
        };
        if let Err(error) = looked {
            tracing::warn!(error = %Chain(&error), "peppers could not be refreshed; retrying in 2 s");
        }
        tokio::select! {
            () = app.peppers_changed.notified() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = stop.requested() => return,
        }
    }
}

async fn look(app: &App) -> Result<(), StoreError> {
    rotate_if_due(app).await?;
    app.refresh_peppers().await
}

/// Every replica may find a rotation due; the database lets only one of them add its pepper.
async fn rotate_if_due(app: &App) -> Result<(), StoreError> {
    let lookup = &app.config.lookup;
    let now_ms = app.clock.now_ms();
    let due_ms = now_ms.saturating_sub(i64::from(lookup.rotate_pepper_days).saturating_mul(DAY_MS));
    if lookup.rotate_pepper_days == 0 || app.lookups.newest_ms().is_none_or(|newest_ms| newest_ms > due_ms) {
        return Ok(());
    }
    let active_ms = now_ms.saturating_add(millis(Duration::from_secs(lookup.pepper_lead_secs)));
    let pepper = Pepper { text: hashing::new_pepper(), created_ms: now_ms, active_ms };
    if app.store.add_pepper(&pepper, due_ms).await? {
        tracing::info!(days = lookup.rotate_pepper_days, "pepper rotated on schedule");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use crate::jobs::tests::app;

    use super::*;

    #[tokio::test]
    async fn a_pepper_is_rotated_on_schedule() {
        let (app, clock, _folder) = app(|config| config.lookup.rotate_pepper_days = 30).await;
        let handed_out = || app.current_pepper().unwrap().pepper().to_owned();
        let first = handed_out();
        clock.advance(Duration::from_secs(30 * 24 * 60 * 60 - 1));
        look(&app).await.unwrap();
        assert_eq!(app.store.peppers().await.unwrap().len(), 1);

        clock.advance(Duration::from_secs(1));
        // Twice: the second run finds that it has been done.
        look(&app).await.unwrap();
        look(&app).await.unwrap();
        assert_eq!(app.store.peppers().await.unwrap().len(), 2);
        // Ready, but not announced before its lead time is over.
        clock.advance(Duration::from_secs(59));
        assert_eq!(handed_out(), first);
        clock.advance(Duration::from_secs(1));
        assert_ne!(handed_out(), first);
        // The previous one is accepted for a day, and then dropped.
        assert!(app.pepper_index(&first).await.unwrap().is_some());
        clock.advance(Duration::from_secs(24 * 60 * 60));
        assert!(app.pepper_index(&first).await.unwrap().is_none());
        look(&app).await.unwrap();
        assert_eq!(app.lookups.newest_ms(), Some(clock.now_ms() - DAY_MS));
    }
}
