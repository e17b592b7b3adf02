//! Invitations by email: what is shown to whom, and which are refused.
//!
//! Source: Identity Service API, "Invitation storage".

use ruma_common::{CanonicalJsonObject, CanonicalJsonValue};
use serde::Deserialize;
use unicase::UniCase;
use url::form_urlencoded::byte_serialize;
use waypost_shared::owner::Owners;

use super::{association::Association, mxid::Mxid};

/// An invite waiting for its address to be bound.
#[derive(Clone, Debug)]
pub(crate) struct PendingInvite {
    /// Identifies the invite in the room's `m.room.third_party_invite`.
    pub(crate) token: String,
    /// The room.
    pub(crate) room_id: String,
    /// The inviting user.
    pub(crate) sender: Mxid,
    /// The id of the signing key whose public key was put into the room.
    pub(crate) key_id: String,
}

impl PendingInvite {
    /// The object to sign for `mxid`, with which the room admits the user.
    pub(crate) fn to_sign(&self, mxid: &Mxid) -> CanonicalJsonObject {
        texts([("mxid", mxid.as_str()), ("token", &self.token)])
    }

    /// The invite as sent to the new owner's homeserver. `signed` is the signed [`PendingInvite::to_sign`].
    pub(crate) fn to_json(&self, association: &Association, signed: CanonicalJsonObject) -> CanonicalJsonObject {
        let mut object = texts([
            ("medium", association.threepid.medium().as_str()),
            ("address", association.threepid.address()),
            ("room_id", &self.room_id),
            ("sender", self.sender.as_str()),
            ("token", &self.token),
            ("mxid", association.mxid.as_str()),
        ]);
        object.insert("signed".to_owned(), CanonicalJsonValue::Object(signed));
        object
    }
}

/// The object that the invite's ephemeral key signs: that `mxid` accepts the invite.
pub(crate) fn acceptance(mxid: &Mxid, sender: &Mxid, token: &str) -> CanonicalJsonObject {
    texts([("mxid", mxid.as_str()), ("sender", sender.as_str()), ("token", token)])
}

fn texts<const N: usize>(fields: [(&str, &str); N]) -> CanonicalJsonObject {
    fields.map(|(name, text)| (name.to_owned(), CanonicalJsonValue::String(text.to_owned()))).into()
}

/// The operator's block list for invites.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Blocked {
    /// Server names of senders and rooms. Each blocks all servers of the same owner.
    pub(crate) homeservers: Vec<String>,
    /// Room ids.
    pub(crate) rooms: Vec<String>,
    /// Words that no text of an invite may contain, in any case.
    pub(crate) words: Vec<String>,
}

impl Blocked {
    /// Whether to refuse an invite. `texts` are its parameters as name and value. Homeservers are compared by owner,
    /// since a blocked one could switch to another port or sub-domain.
    pub(crate) fn refuses<'a>(
        &self,
        owners: &Owners,
        sender: &Mxid,
        room_id: &str,
        mut texts: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> bool {
        // Since room version 12, room ids have no server name.
        let of_room = room_id.split_once(':').map(|(_, server)| owners.of(server));
        let of_sender = owners.of(sender.server_name());
        let listed = |name: &String| {
            let owner = owners.of(name);
            owner == of_sender || Some(owner) == of_room
        };
        if self.homeservers.iter().any(listed) || self.rooms.iter().any(|room| room == room_id) {
            return true;
        }
        let words: Vec<_> = self.words.iter().filter(|word| !word.is_empty()).map(|word| folded(word)).collect();
        !words.is_empty()
            && texts.any(|(name, text)| {
                // Every web client URL has a scheme, so a blocked word such as "https" must not match it.
                let text = match name {
                    WEB_CLIENT_LOCATION => text.split_once("://").map_or(text, |(_, rest)| rest),
                    _ => text,
                };
                let text = folded(text);
                words.iter().any(|word| text.contains(word.as_str()))
            })
    }
}

/// The parameter in which Synapse sends the URL of its users' web client.
pub(crate) const WEB_CLIENT_LOCATION: &str = "org.matrix.web_client_location";

fn folded(text: &str) -> String {
    UniCase::new(text).to_folded_case()
}

/// An address as everybody in the room may see it: the beginning of each side of the `@`, at most `most_local` and
/// `most_domain` characters, and never the whole side.
pub(crate) fn redacted(address: &str, most_local: usize, most_domain: usize) -> String {
    let part = |text: &str, most: usize| {
        let kept = match text.chars().count() {
            length if length > most => most,
            6.. => 3,
            2..=5 => 1,
            _ => 0,
        };
        let kept: String = text.chars().take(kept).collect();
        format!("{kept}...")
    };
    match address.split_once('@') {
        Some((local, domain)) => format!("{}@{}", part(local, most_local), part(domain, most_domain)),
        None => part(address, most_local),
    }
}

/// The URL of a room in a web client (`https://app.element.io/#/room/…`) with its non-empty `parameters`, which the
/// client reads from the fragment.
pub(crate) fn room_link(client: &str, room_id: &str, parameters: &[(&str, &str)]) -> String {
    let mut link = format!("{}/#/room/{}", client.trim_end_matches('/'), encoded(room_id));
    let filled = parameters.iter().filter(|(_, value)| !value.is_empty());
    for (number, (name, value)) in filled.enumerate() {
        link.push(if number == 0 { '?' } else { '&' });
        link.push_str(name);
        link.push('=');
        link.push_str(&encoded(value));
    }
    link
}

/// Percent-encodes a text. A space becomes `%20`: not every client decodes a plus sign as a space.
pub(crate) fn encoded(text: &str) -> String {
    byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// As Sydent does it (docs/compatibility.md, "Identity server").
    #[test]
    fn an_address_is_redacted() {
        for (address, shown) in [
            ("Invitee@Example.org", "Inv...@Exa..."),
            ("abc@abc.t", "a...@abc..."),
            ("1@1.com", "...@1.c..."),
            ("foo@bar.com", "f...@bar..."),
            ("größe@example.org", "grö...@exa..."),
        ] {
            assert_eq!(redacted(address, 3, 3), shown);
        }
        assert_eq!(redacted("alice.b@example.org", 7, 0), "ali...@...");
    }

    #[test]
    fn blocked_servers_rooms_and_words() {
        let blocked = Blocked {
            homeservers: vec!["Evil.test".to_owned(), "eve.hosting.test".to_owned()],
            rooms: vec!["!spam:hs.test".to_owned()],
            words: vec!["CASINO".to_owned(), "https".to_owned(), String::new()],
        };
        let owners = Owners::new(&["hosting.test".to_owned()]);
        let refuses = |sender: &str, room: &str, name: &str, text: &str| {
            blocked.refuses(&owners, &Mxid::parse(sender).unwrap(), room, [(name, text)].into_iter())
        };
        for server in ["evil.test", "evil.test:8448", "EVIL.test.", "sub.evil.test", "matrix.eve.hosting.test:1"] {
            assert!(refuses(&format!("@a:{server}"), "!r:hs.test", "room_name", "a"), "{server}");
        }
        assert!(!refuses("@a:bob.hosting.test", "!r:hs.test", "room_name", "a"));
        assert!(refuses("@a:hs.test", "!r:evil.test", "room_name", "a"));
        assert!(refuses("@a:hs.test", "!spam:hs.test", "room_name", "a"));
        assert!(refuses("@a:hs.test", "!r:hs.test", "room_name", "the casino"));
        assert!(refuses("@a:hs.test", "!r:hs.test", "sender_display_name", "https://a"));
        assert!(!refuses("@a:hs.test", "!r:hs.test", WEB_CLIENT_LOCATION, "https://a"));
        assert!(!refuses("@a:hs.test:8448", "!r", "room_name", "a"));
    }

    #[test]
    fn a_room_link_has_the_form_that_clients_parse() {
        let link = room_link(
            "https://app.test/",
            "!a:hs.test",
            &[("email", "a@b"), ("room_avatar_url", ""), ("signurl", "https://id.test/x?token=t&private_key=k")],
        );
        assert_eq!(
            link,
            "https://app.test/#/room/%21a%3Ahs.test?email=a%40b\
             &signurl=https%3A%2F%2Fid.test%2Fx%3Ftoken%3Dt%26private_key%3Dk"
        );
        assert_eq!(encoded("a b+c"), "a%20b%2Bc");
    }
}
