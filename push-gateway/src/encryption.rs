//! Encrypts messages for the browser (web push) or for the app, if it asks for it (UnifiedPush); the push service sees
//! only their length.
//!
//! Source: RFC 8291, "Message Encryption for Web Push", and RFC 8188 for the content coding `aes128gcm`.

use ring::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    agreement::{ECDH_P256, EphemeralPrivateKey, UnparsedPublicKey, agree_ephemeral},
    error::Unspecified,
    hkdf::{HKDF_SHA256, KeyType, Prk, Salt},
    rand::SystemRandom,
};
use waypost_shared::random;

/// Bytes of an encrypted message that every push service has to accept (RFC 8030, section 7.2).
const MAX_BODY: usize = 4096;
/// The record size in the message header. There is one record, so any size that it fits into will do.
const RECORD_SIZE: u32 = 4096;
/// Bytes of an uncompressed P-256 point.
const POINT: usize = 65;
/// Bytes of the shared authentication secret.
const AUTH: usize = 16;
/// Bytes before the record: salt, record size, length of the key id, and the key id, which is the public key.
const HEADER: usize = 16 + 4 + 1 + POINT;
/// Bytes of the authentication tag.
const TAG: usize = 16;
/// Bytes of the longest plaintext; one more byte is the delimiter.
pub(crate) const MAX_PLAINTEXT: usize = MAX_BODY - HEADER - 1 - TAG;

/// The keys of a subscription.
pub(crate) struct Subscription {
    /// The browser's public key.
    pub(crate) p256dh: [u8; POINT],
    /// The authentication secret that the browser shares with its application server.
    pub(crate) auth: [u8; AUTH],
}

/// Why a message could not be encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotEncrypted {
    /// The browser's key is not a point on the curve.
    NoPoint,
    /// A failure on our side: the random number generator, or the cipher.
    Failed,
}

impl From<Unspecified> for NotEncrypted {
    fn from(_: Unspecified) -> Self {
        Self::Failed
    }
}

/// Encrypts a message for a subscription.
pub(crate) fn encrypt(subscription: &Subscription, plaintext: &[u8]) -> Result<Vec<u8>, NotEncrypted> {
    let own = EphemeralPrivateKey::generate(&ECDH_P256, &SystemRandom::new())?;
    let own_public: [u8; POINT] = own.compute_public_key()?.as_ref().try_into().map_err(|_| Unspecified)?;
    let theirs = UnparsedPublicKey::new(&ECDH_P256, &subscription.p256dh);
    let body = agree_ephemeral(own, &theirs, |secret| {
        encrypt_with(secret, &own_public, &random::bytes(), subscription, plaintext)
    })
    .map_err(|_| NotEncrypted::NoPoint)?;
    body.map_err(NotEncrypted::from)
}

/// The deterministic part: RFC 8291, section 3.4.
fn encrypt_with(
    ecdh_secret: &[u8],
    own_public: &[u8; POINT],
    salt: &[u8; 16],
    subscription: &Subscription,
    plaintext: &[u8],
) -> Result<Vec<u8>, Unspecified> {
    let secret = Salt::new(HKDF_SHA256, &subscription.auth).extract(ecdh_secret);
    let info = [b"WebPush: info\0".as_slice(), &subscription.p256dh, own_public];
    let input = derive::<32>(&secret, &info)?;
    let secret = Salt::new(HKDF_SHA256, salt).extract(&input);
    let key = derive::<16>(&secret, &[b"Content-Encoding: aes128gcm\0"])?;
    let nonce = derive::<12>(&secret, &[b"Content-Encoding: nonce\0"])?;

    let mut record = plaintext.to_vec();
    record.push(2); // The delimiter of the last record; no padding follows.
    LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key)?).seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::empty(),
        &mut record,
    )?;

    let mut body = Vec::with_capacity(HEADER + record.len());
    body.extend(salt);
    body.extend(RECORD_SIZE.to_be_bytes());
    body.push(65); // Length of the key id.
    body.extend(own_public);
    body.extend(record);
    Ok(body)
}

/// The number of bytes to derive, as HKDF wants it.
struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

fn derive<const N: usize>(secret: &Prk, info: &[&[u8]]) -> Result<[u8; N], Unspecified> {
    let mut bytes = [0; N];
    secret.expand(info, Length(N))?.fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

    use super::*;

    fn decoded<const N: usize>(text: &str) -> [u8; N] {
        URL_SAFE_NO_PAD.decode(text).unwrap().try_into().unwrap()
    }

    fn subscription() -> Subscription {
        Subscription {
            p256dh: decoded("BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"),
            auth: decoded("BTBZMqHH6r4Tts7J_aSIgg"),
        }
    }

    /// RFC 8291, appendix A.
    #[test]
    fn the_rfcs_example_is_reproduced() {
        let ecdh_secret: [u8; 32] = decoded("kyrL1jIIOHEzg3sM2ZWRHDRB62YACZhhSlknJ672kSs");
        let own = decoded("BP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A8");
        let salt = decoded("DGv6ra1nlYgDCS1FRnbzlw");
        let plaintext = b"When I grow up, I want to be a watermelon";
        let body = encrypt_with(&ecdh_secret, &own, &salt, &subscription(), plaintext).unwrap();
        assert_eq!(
            URL_SAFE_NO_PAD.encode(body),
            "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6P\
             Bru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
        );
    }

    #[test]
    fn the_longest_plaintext_fills_the_body() {
        let body = encrypt(&subscription(), &[b'x'; MAX_PLAINTEXT]).unwrap();
        assert_eq!(body.len(), 4096);
    }

    #[test]
    fn a_key_that_is_not_on_the_curve_is_refused() {
        let mut subscription = subscription();
        subscription.p256dh[64] ^= 1;
        assert_eq!(encrypt(&subscription, b"x"), Err(NotEncrypted::NoPoint));
    }
}
