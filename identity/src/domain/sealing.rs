//! How addresses and tokens are stored: as keyed fingerprints and sealed values, never in plain text.
//!
//! Values that are only compared are stored as a keyed fingerprint (HMAC-SHA-256); values that are needed again are
//! sealed (XChaCha20-Poly1305, prefixed with the number of the key). The keys live outside the database, in a file of
//! lines:
//!
//! ```text
//! hash BASE64            exactly one; must never change, since stored fingerprints would no longer match
//! seal NUMBER BASE64     one or more; the last one seals, all of them open
//! ```

use std::fmt;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use ring::hmac;
use waypost_shared::random;
use zeroize::Zeroizing;

use super::threepid::Threepid;

const NONCE_BYTES: usize = 24;

/// A keyed hash, stored in place of an address, a token or a secret.
pub(crate) type Fingerprint = [u8; 32];

/// The kind of a sealed value. It is authenticated, so that one kind cannot be substituted for another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sealed {
    /// The address of an association.
    Association,
    /// The address of a validation session.
    Session,
    /// The `next_link` of a validation session.
    NextLink,
    /// The user who requested a validation session's token.
    Requester,
    /// The token of an invite.
    InviteToken,
    /// The invited address.
    InviteAddress,
    /// The payload of an outbox row.
    Outbox,
    /// The addresses that an account has looked up.
    AddressBook,
    /// A known text that shows whether the keys belong to this database.
    KeyCheck,
}

impl Sealed {
    fn label(self) -> &'static [u8] {
        match self {
            Self::Association => b"association",
            Self::Session => b"session",
            Self::NextLink => b"next_link",
            Self::Requester => b"requester",
            Self::InviteToken => b"invite token",
            Self::InviteAddress => b"invite address",
            Self::Outbox => b"outbox",
            Self::AddressBook => b"address book",
            Self::KeyCheck => b"key check",
        }
    }
}

/// A storage key file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageKeyError {
    /// A line is neither of the two kinds.
    #[error("line {0} is neither `hash BASE64` nor `seal NUMBER BASE64` with 32 bytes in standard base64")]
    Line(usize),
    /// A required kind of line is missing.
    #[error("there is no `{0}` line")]
    Missing(&'static str),
    /// A key number or the hash key occurs twice.
    #[error("line {0} repeats a key from an earlier line")]
    Twice(usize),
}

/// A sealed value cannot be opened: it was sealed with another key or tampered with.
#[derive(Debug, thiserror::Error)]
#[error("a sealed value cannot be opened with the current storage keys")]
pub(crate) struct CannotOpen;

/// The keys for sealing and fingerprinting.
pub(crate) struct StorageKeys {
    hash: Zeroizing<[u8; 32]>,
    /// With their numbers; the last one seals.
    seal: Vec<(u8, XChaCha20Poly1305)>,
}

impl fmt::Debug for StorageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StorageKeys")
    }
}

impl StorageKeys {
    /// Generates the text of a new key file.
    pub(crate) fn generate() -> Zeroizing<String> {
        let (hash, seal) = (Zeroizing::new(random::bytes::<32>()), Zeroizing::new(random::bytes::<32>()));
        Zeroizing::new(format!(
            "# Waypost's storage keys. Without them the database cannot be read: back them up,\n\
             # but apart from the database's own backups.\n\
             hash {}\nseal 1 {}\n",
            STANDARD.encode(*hash),
            STANDARD.encode(*seal)
        ))
    }

    /// Parses a key file.
    pub(crate) fn parse(text: &str) -> Result<Self, StorageKeyError> {
        let mut hash = None;
        let mut seal: Vec<(u8, XChaCha20Poly1305)> = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let words: Vec<_> = line.split_whitespace().collect();
            match words[..] {
                [] => {}
                [comment, ..] if comment.starts_with('#') => {}
                ["hash", key] => {
                    let key = key_bytes(key).ok_or(StorageKeyError::Line(number))?;
                    if hash.replace(key).is_some() {
                        return Err(StorageKeyError::Twice(number));
                    }
                }
                ["seal", id, key] => {
                    let id = id.parse().map_err(|_| StorageKeyError::Line(number))?;
                    let key = key_bytes(key).ok_or(StorageKeyError::Line(number))?;
                    if seal.iter().any(|(known, _)| *known == id) {
                        return Err(StorageKeyError::Twice(number));
                    }
                    seal.push((id, XChaCha20Poly1305::new((&*key).into())));
                }
                _ => return Err(StorageKeyError::Line(number)),
            }
        }
        let hash = hash.ok_or(StorageKeyError::Missing("hash"))?;
        if seal.is_empty() {
            return Err(StorageKeyError::Missing("seal"));
        }
        Ok(Self { hash, seal })
    }

    /// The fingerprint of an address: equal for equal addresses, and meaningless without the key.
    pub(crate) fn fingerprint(&self, threepid: &Threepid) -> Fingerprint {
        self.keyed_hash(b"threepid", &[threepid.medium().as_str().as_bytes(), threepid.address().as_bytes()])
    }

    /// The fingerprint of a mailbox, for rate limits: the same for an address with any tag (`+tag`).
    pub(crate) fn mailbox_hash(&self, threepid: &Threepid) -> Fingerprint {
        self.keyed_hash(b"mailbox", &[threepid.medium().as_str().as_bytes(), threepid.mailbox().as_bytes()])
    }

    /// The fingerprint of an access token.
    pub(crate) fn token_hash(&self, token: &str) -> Fingerprint {
        self.keyed_hash(b"access token", &[token.as_bytes()])
    }

    /// The fingerprint of a session's client secret.
    pub(crate) fn client_secret_hash(&self, client_secret: &str) -> Fingerprint {
        self.keyed_hash(b"client secret", &[client_secret.as_bytes()])
    }

    /// The fingerprint of an invite's token.
    pub(crate) fn invite_token_hash(&self, token: &str) -> Fingerprint {
        self.keyed_hash(b"invite token", &[token.as_bytes()])
    }

    /// The fingerprint of a rate limit's subject, such as a user, a network or a country.
    pub(crate) fn budget_hash(&self, who: &str) -> Fingerprint {
        self.keyed_hash(b"budget", &[who.as_bytes()])
    }

    /// A fingerprint of nothing, by which the hash key itself is recognised.
    pub(crate) fn check_hash(&self) -> Fingerprint {
        self.keyed_hash(b"key check", &[])
    }

    /// The validation token of a session: 192 bits, 32 characters. It is derived, not stored, so a repeated mail
    /// carries the same one.
    pub(crate) fn validation_token(&self, sid: &str) -> String {
        URL_SAFE_NO_PAD.encode(&self.keyed_hash(b"validation token", &[sid.as_bytes()])[..24])
    }

    /// The code that proves a phone number: six digits, for people to type. It is derived like the token, so a repeated
    /// SMS carries the same one. It is short, so attempts must be limited.
    pub(crate) fn validation_code(&self, sid: &str) -> String {
        let hash = self.keyed_hash(b"validation code", &[sid.as_bytes()]);
        let number = hash[..8].iter().fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
        // The modulo bias is below 2^-44.
        format!("{:06}", number % 1_000_000)
    }

    fn keyed_hash(&self, label: &[u8], parts: &[&[u8]]) -> Fingerprint {
        // Created each time: unlike `hash`, a long-lived `hmac::Key` would not be wiped from memory.
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &*self.hash));
        context.update(label);
        for part in parts {
            context.update(&[0]);
            context.update(part);
        }
        let mut fingerprint = Fingerprint::default();
        fingerprint.copy_from_slice(context.sign().as_ref());
        fingerprint
    }

    /// Seals a text with the newest key. The result is the key's number, the nonce and the ciphertext.
    pub(crate) fn seal(&self, what: Sealed, text: &str) -> Vec<u8> {
        self.seal_bytes(what, text.as_bytes())
    }

    /// Seals a value with the newest key, as [`StorageKeys::seal`] does.
    pub(crate) fn seal_bytes(&self, what: Sealed, value: &[u8]) -> Vec<u8> {
        let (id, cipher) = self.seal.last().expect("a parsed key file has a sealing key");
        let nonce: [u8; NONCE_BYTES] = random::bytes();
        let payload = Payload { msg: value, aad: what.label() };
        let sealed = cipher.encrypt(&XNonce::from(nonce), payload).expect("a short value can be sealed");
        [&[*id][..], &nonce, &sealed].concat()
    }

    /// Opens a text sealed by [`StorageKeys::seal`].
    ///
    /// # Errors
    ///
    /// [`CannotOpen`] if its key is missing, it was altered, or it is of another kind.
    pub(crate) fn open(&self, what: Sealed, sealed: &[u8]) -> Result<String, CannotOpen> {
        String::from_utf8(self.open_bytes(what, sealed)?).map_err(|_| CannotOpen)
    }

    /// Opens a value sealed by [`StorageKeys::seal_bytes`].
    ///
    /// # Errors
    ///
    /// [`CannotOpen`], as for [`StorageKeys::open`].
    pub(crate) fn open_bytes(&self, what: Sealed, sealed: &[u8]) -> Result<Vec<u8>, CannotOpen> {
        let (id, rest) = sealed.split_first().ok_or(CannotOpen)?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(CannotOpen)?;
        let (_, cipher) = self.seal.iter().find(|(known, _)| known == id).ok_or(CannotOpen)?;
        let payload = Payload { msg: sealed, aad: what.label() };
        cipher.decrypt(&XNonce::from(*nonce), payload).map_err(|_| CannotOpen)
    }
}

fn key_bytes(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let bytes = Zeroizing::new(STANDARD.decode(text).ok()?);
    Some(Zeroizing::new(bytes.as_slice().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn keys() -> StorageKeys {
        StorageKeys::parse(&StorageKeys::generate()).unwrap()
    }

    #[test]
    fn fingerprints_stay_compatible_with_existing_databases() {
        let key = STANDARD.encode([7; 32]);
        let keys = StorageKeys::parse(&format!("hash {key}\nseal 1 {key}\n")).unwrap();
        // Python: hmac.new(bytes([7]) * 32, b"threepid\0email\0alice@example.com", sha256).digest()
        let expected = [
            0xa7, 0xb2, 0x25, 0x94, 0x41, 0x7e, 0xe0, 0xfd, 0x99, 0xf2, 0xcd, 0x0a, 0x55, 0x1a, 0xea, 0x58, 0x3e, 0x5c,
            0xa2, 0x4c, 0x2c, 0x30, 0xa8, 0xc3, 0x6c, 0x61, 0xf7, 0x44, 0xe7, 0x57, 0x28, 0x7e,
        ];
        assert_eq!(keys.fingerprint(&Threepid::email("alice@example.com").unwrap()), expected);
    }

    #[test]
    fn sealed_values_open_and_differ_each_time() {
        let keys = keys();
        let (one, two) = (keys.seal(Sealed::Session, "a@b"), keys.seal(Sealed::Session, "a@b"));
        assert_ne!(one, two);
        assert_eq!(keys.open(Sealed::Session, &one).unwrap(), "a@b");
    }

    #[test]
    fn an_altered_value_or_one_of_another_kind_does_not_open() {
        let keys = keys();
        let sealed = keys.seal(Sealed::Session, "a@b");
        assert!(keys.open(Sealed::Association, &sealed).is_err());
        assert!(super::tests::keys().open(Sealed::Session, &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(keys.open(Sealed::Session, &altered).is_err(), "{at}");
            assert!(keys.open(Sealed::Session, &sealed[..at]).is_err(), "{at}");
        }
    }

    #[test]
    fn an_older_key_still_opens_and_the_last_one_seals() {
        let first = StorageKeys::generate();
        let sealed = StorageKeys::parse(&first).unwrap().seal(Sealed::Session, "a@b");
        let both = StorageKeys::parse(&format!("{}seal 2 {}\n", *first, STANDARD.encode([7; 32]))).unwrap();
        assert_eq!(both.open(Sealed::Session, &sealed).unwrap(), "a@b");
        assert_eq!(both.seal(Sealed::Session, "a@b")[0], 2);
    }

    #[test]
    fn keyed_hashes_of_different_kinds_differ() {
        let keys = keys();
        assert_ne!(keys.token_hash("a"), keys.client_secret_hash("a"));
        assert_eq!(keys.validation_token("sid").len(), 32);
        assert_eq!(keys.validation_token("sid"), keys.validation_token("sid"));
        assert_ne!(keys.validation_token("sid"), keys.validation_token("sid2"));
        let code = keys.validation_code("sid");
        assert!(code.len() == 6 && code.bytes().all(|byte| byte.is_ascii_digit()), "{code}");
        assert_eq!(keys.validation_code("sid"), code);
    }

    #[test]
    fn errors_in_a_key_file_name_the_line() {
        let key = STANDARD.encode([7; 32]);
        for (text, problem) in [
            (String::new(), "there is no `hash` line".to_owned()),
            (format!("hash {key}\n"), "there is no `seal` line".to_owned()),
            (format!("hash {key}\nhash {key}\n"), "line 2 repeats a key from an earlier line".to_owned()),
            (format!("#\nhash {}\n", &key[4..]), StorageKeyError::Line(2).to_string()),
        ] {
            assert_eq!(StorageKeys::parse(&text).unwrap_err().to_string(), problem);
        }
    }
}
