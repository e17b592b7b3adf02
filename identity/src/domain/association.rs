//! Associations: an address and the Matrix id it is bound to.
//!
//! Source: Identity Service API, "Establishing associations".

use js_int::Int;
use ruma_common::{CanonicalJsonObject, CanonicalJsonValue};

use super::{mxid::Mxid, threepid::Threepid};

/// How long an association is valid: 100 years, as in Sydent.
const LIFETIME_MS: i64 = 100 * 365 * 24 * 60 * 60 * 1000;

/// An address bound to a Matrix id.
#[derive(Clone, Debug)]
pub(crate) struct Association {
    /// The address.
    pub(crate) threepid: Threepid,
    /// The owner.
    pub(crate) mxid: Mxid,
    /// When it was bound, in milliseconds since the epoch.
    pub(crate) bound_ms: i64,
}

impl Association {
    /// The object that the server signs.
    pub(crate) fn to_json(&self) -> CanonicalJsonObject {
        let text = |text: &str| CanonicalJsonValue::String(text.to_owned());
        // Canonical JSON has no integers above 2^53, which is the year 287396.
        let time = |ms| CanonicalJsonValue::Integer(Int::new_saturating(ms));
        [
            ("medium", text(self.threepid.medium().as_str())),
            ("address", text(self.threepid.address())),
            ("mxid", text(self.mxid.as_str())),
            ("ts", time(self.bound_ms)),
            ("not_before", time(self.bound_ms)),
            ("not_after", time(self.bound_ms.saturating_add(LIFETIME_MS))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}
