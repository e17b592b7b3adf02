//! What PostgreSQL tells of other replicas' changes as they happen, by triggers on the tables. A hint may be lost with its connection, so nothing
//! but speed may depend on it.

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
pub(crate) enum Hint {
    /// Associations changed.
    Associations,
    /// There is a new pepper.
    Peppers,
    /// A token ended.
    TokenEnded(Fingerprint),
    /// Anything may have happened: nobody listened for a moment.
    Missed,
}

/// Where hints come from.
pub(crate) enum Hints {
    /// SQLite tells nothing.
    None,
    /// A connection that listens.
    Postgres(PgListener),
}

impl Hints {
    /// Waits for the next hint; for ever where none come.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn next(&mut self) -> Result<Hint, StoreError> {
        let listener = match self {
            Self::None => return std::future::pending().await,
            Self::Postgres(listener) => listener,
        };
        let Some(notification) = listener.try_recv().await? else { return Ok(Hint::Missed) };
        Ok(match notification.channel() {
            ASSOCIATIONS => Hint::Associations,
            PEPPERS => Hint::Peppers,
            TOKENS => token_hash(notification.payload()).map_or(Hint::Missed, Hint::TokenEnded),
            _ => Hint::Missed,
        })
    }
}

impl Store {
    /// Listens for hints.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn hints(&self) -> Result<Hints, StoreError> {
        let Self::Postgres(pool) = self else { return Ok(Hints::None) };
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen_all([ASSOCIATIONS, PEPPERS, TOKENS]).await?;
        Ok(Hints::Postgres(listener))
    }
}

fn token_hash(payload: &str) -> Option<Fingerprint> {
    STANDARD.decode(payload).ok()?.try_into().ok()
}
