//! Peppers: noticing those that another process stored, and rotating by schedule.

use std::time::Duration;

use waypost_shared::{clock::millis, serve::Stop};

use crate::{
    app::App,
    domain::{hashing, peppered::Pepper},
    storage::StoreError,
};

/// How often the stored peppers are looked at when no hint came. Much shorter than the default time until a new pepper
/// is handed out.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// Keeps the indexes up with the stored peppers, until `stop`.
pub(crate) async fn keep_up(app: App, stop: Stop) {
    loop {
        let looked = tokio::select! {
            looked = look(&app) => looked,
            () = stop.requested() => return,
        };
        if let Err(error) = looked {
            tracing::warn!(error = %waypost_shared::http::causes(&error), "peppers cannot be looked at for now");
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

/// Every replica may find that it is time; the database lets one of them add its pepper.
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
        tracing::info!(days = lookup.rotate_pepper_days, "rotating the pepper, as scheduled");
    }
    Ok(())
}
