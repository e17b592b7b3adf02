//! The internal listener, for the operator's own programs, which have no user's token: erasing users. Its bind and
//! unbind are in `associations`.

use std::sync::Arc;

use serde_json::json;
use waypost_shared::http::{Incoming, Response, json, params::Params};

use crate::{app::App, auth, error::ApiError};

/// `POST /_matrix/identity/internal/erase`: deletes the rows about `mxid`, and returns how many there were of each
/// kind.
///
/// Validation sessions are not linked to a Matrix ID: those of the addresses that were bound are deleted, others
/// expire. The row of an address stays for an hour as a tombstone without an owner, so that other replicas learn of it.
/// Outbox rows for other users that name `mxid` as the inviter stay too: they are encrypted, and cannot be searched for
/// a user.
pub(crate) async fn erase(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    auth::internal_caller(&app, &request)?;
    let mut params = Params::new(request.json_object()?);
    let mxid = params.text("mxid");
    params.finish()?;
    let mxid = super::mxid("mxid", &mxid)?;

    let addresses = app.store.associations_of(&app.keys, &mxid).await?;
    let erased = app.store.erase(&app.keys, &mxid, app.clock.now_ms()).await?;
    for association in &addresses {
        app.refresh_address(&association.threepid).await?;
    }
    app.tokens.forget_user(&mxid);
    app.address_books.forget(&mxid);
    tracing::info!(associations = erased.associations, access_tokens = erased.access_tokens, "user erased");
    Ok(json(&json!({
        "erased": {
            "associations": erased.associations,
            "validation_sessions": erased.validation_sessions,
            "access_tokens": erased.access_tokens,
            "accepted_terms": erased.accepted_terms,
            "accounts": erased.accounts,
            "address_books": erased.address_books,
            "budgets": erased.budgets,
            "invites": erased.invites,
            "ephemeral_keys": erased.ephemeral_keys,
            "outbox": erased.outbox,
        }
    })))
}
