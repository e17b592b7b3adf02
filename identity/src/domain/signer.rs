//! The objects this server signs: associations, and acceptances of invites.
//!
//! Source: Identity Service API, "Establishing associations" and "Invitation storage"; Appendices, "Signing JSON".

use ruma_common::{CanonicalJsonObject, CanonicalJsonValue};

use super::{
    association::Association,
    invite::PendingInvite,
    signing::{SigningKey, SigningKeys},
};

/// Signs objects in the server's name.
#[derive(Debug)]
pub(crate) struct Signer {
    /// The server's name in its signatures.
    pub(crate) server_name: String,
    /// The server's keys.
    pub(crate) keys: SigningKeys,
}

impl Signer {
    /// The signed association, as returned by v1 lookups.
    pub(crate) fn association(&self, association: &Association) -> CanonicalJsonObject {
        self.sign(association.to_json())
    }

    /// The signed association for the binding client: has `invites` only if there are any.
    pub(crate) fn bound(&self, association: &Association, invites: &[PendingInvite]) -> CanonicalJsonObject {
        if invites.is_empty() { self.association(association) } else { self.onbind(association, invites) }
    }

    /// The signed association for the user's homeserver, which expects `invites` even if there are none.
    pub(crate) fn onbind(&self, association: &Association, invites: &[PendingInvite]) -> CanonicalJsonObject {
        let invites = invites.iter().map(|invite| {
            // Signed with the key whose public key was put into the room; it may have been rotated out since.
            let key = self.keys.by_id(&invite.key_id).unwrap_or(self.keys.first());
            let signed = key.sign(&self.server_name, invite.to_sign(&association.mxid));
            CanonicalJsonValue::Object(invite.to_json(association, signed))
        });
        let mut object = association.to_json();
        object.insert("invites".to_owned(), CanonicalJsonValue::Array(invites.collect()));
        self.sign(object)
    }

    /// Signs with an invite's ephemeral key.
    pub(crate) fn sign_with(&self, key: &SigningKey, object: CanonicalJsonObject) -> CanonicalJsonObject {
        key.sign(&self.server_name, object)
    }

    fn sign(&self, object: CanonicalJsonObject) -> CanonicalJsonObject {
        self.keys.first().sign(&self.server_name, object)
    }
}
