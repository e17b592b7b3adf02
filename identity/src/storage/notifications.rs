//! PostgreSQL's notifications of other replicas' changes, sent by triggers on the tables. One may be lost with its
//! connection, so nothing but speed may depend on them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sqlx::postgres::PgListener;

use crate::domain::sealing::Fingerprint;

use super::{Store, StoreError};

/// Associations changed.
const ASSOCIATIONS: &str = "waypost_associations";
/// There is a new pepper.
const PEPPERS: &str = "waypost_peppers";
/// A token ended; its hash stands there in base64.
const TOKENS: &str = "waypost_tokens";

/// What another process did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notification {
    /// Associations changed.
    Associations,
    /// There is a new pepper.
    Peppers,
    /// A token ended.
    TokenEnded(Fingerprint),
    /// Anything may have happened: nobody listened for a moment.
    Missed,
}

/// Where notifications come from.
pub(crate) enum Notifications {
    /// SQLite tells nothing.
    None,
    /// A connection that listens.
    Postgres(PgListener),
}

impl Notifications {
    /// Waits for the next notification; for ever where none come.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn next(&mut self) -> Result<Notification, StoreError> {
        let listener = match self {
            Self::None => return std::future::pending().await,
            Self::Postgres(listener) => listener,
        };
        let Some(notification) = listener.try_recv().await? else { return Ok(Notification::Missed) };
        Ok(match notification.channel() {
            ASSOCIATIONS => Notification::Associations,
            PEPPERS => Notification::Peppers,
            TOKENS => token_hash(notification.payload()).map_or(Notification::Missed, Notification::TokenEnded),
            _ => Notification::Missed,
        })
    }
}

impl Store {
    /// Listens for notifications.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn notifications(&self) -> Result<Notifications, StoreError> {
        let Self::Postgres(pool) = self else { return Ok(Notifications::None) };
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen_all([ASSOCIATIONS, PEPPERS, TOKENS]).await?;
        Ok(Notifications::Postgres(listener))
    }
}

fn token_hash(payload: &str) -> Option<Fingerprint> {
    STANDARD.decode(payload).ok()?.try_into().ok()
}
