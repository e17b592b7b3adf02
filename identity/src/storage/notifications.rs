//! PostgreSQL notifications of other replicas' changes, sent by triggers on the tables. They can be lost along with the
//! connection, so only latency may depend on them, never correctness.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sqlx::postgres::PgListener;

use crate::domain::sealing::Fingerprint;

use super::{Store, StoreError};

/// Channel: associations changed.
const ASSOCIATIONS: &str = "waypost_associations";
/// Channel: there is a new pepper.
const PEPPERS: &str = "waypost_peppers";
/// Channel: a token was deleted; the payload is its hash in base64.
const TOKENS: &str = "waypost_tokens";

/// A change made by another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notification {
    /// Associations changed.
    Associations,
    /// There is a new pepper.
    Peppers,
    /// A token was deleted.
    TokenEnded(Fingerprint),
    /// The connection was interrupted or the notification unknown, so anything may have changed.
    Missed,
}

/// The source of notifications.
pub(crate) enum Notifications {
    /// SQLite sends none.
    None,
    /// A listening connection.
    Postgres(PgListener),
}

impl Notifications {
    /// Waits for the next notification; never returns on SQLite.
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
    /// Starts listening for notifications.
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
