//! Associations: an address and the Matrix id that it is bound to.
//!
//! Source: Identity Service API, "Establishing associations".

use serde_json::{Map, Value, json};

use super::threepid::Threepid;

/// How long an association is good for: 100 years, as clients have always been told.
const LIFETIME_MS: i64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// An address that belongs to a Matrix id.
#[derive(Clone, Debug)]
pub(crate) struct Association {
    /// The address.
    pub(crate) threepid: Threepid,
    /// Whose it is.
    pub(crate) mxid: String,
    /// When it was bound, in milliseconds since the epoch.
    pub(crate) bound_ms: i64,
}

impl Association {
    /// The object that the server signs.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let fields = [
            ("medium", json!(self.threepid.medium().as_str())),
            ("address", json!(self.threepid.address())),
            ("mxid", json!(self.mxid)),
            ("ts", json!(self.bound_ms)),
            ("not_before", json!(self.bound_ms)),
            ("not_after", json!(self.bound_ms.saturating_add(LIFETIME_MS))),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}
