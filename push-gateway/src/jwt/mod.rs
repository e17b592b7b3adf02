//! Signed JSON web tokens, with which the gateway authenticates to APNs (ES256), FCM (RS256) and web push services
//! (ES256).

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ring::{
    error::Unspecified,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair},
};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use serde_json::Value;
use waypost_shared::config::secret::SecretString;

/// Why a text is not a usable key. Reveals nothing of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidKey {
    /// Not a PEM private key.
    #[error("is not a private key in PEM form (-----BEGIN PRIVATE KEY-----)")]
    NotPem,
    /// For another curve or algorithm, or without the public key.
    #[error("is not a P-256 key that includes its public key")]
    NotP256,
    /// For another algorithm, or too short.
    #[error("is not an RSA key of 2048 bits or more")]
    NotRsa,
}

/// A key for ES256.
#[derive(Debug)]
pub(crate) struct Es256Key(Box<EcdsaKeyPair>);

impl Es256Key {
    /// Parses a PEM key: PKCS#8, as Apple and py-vapid write it, or SEC 1, as openssl does.
    pub(crate) fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        let pkcs8 = match PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| InvalidKey::NotPem)? {
            PrivateKeyDer::Pkcs8(key) => key.secret_pkcs8_der().to_vec(),
            PrivateKeyDer::Sec1(key) => sec1_in_pkcs8(key.secret_sec1_der()).ok_or(InvalidKey::NotP256)?,
            _ => return Err(InvalidKey::NotP256),
        };
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8, &SystemRandom::new())
            .map(|key| Self(Box::new(key)))
            .map_err(|_| InvalidKey::NotP256)
    }

    /// Generates a key, and returns it with its PEM form.
    pub(crate) fn generate() -> Result<(Self, SecretString), Unspecified> {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random)
            .map_err(|_| Unspecified)?;
        let mut pem = "-----BEGIN PRIVATE KEY-----\n".to_owned();
        // Lines of 64 characters (RFC 7468), 48 bytes each.
        for line in pkcs8.as_ref().chunks(48) {
            pem.push_str(&STANDARD.encode(line));
            pem.push('\n');
        }
        pem.push_str("-----END PRIVATE KEY-----\n");
        Ok((Self(Box::new(key)), SecretString::from(pem)))
    }

    /// The public key as an uncompressed point in unpadded URL-safe base64: VAPID's `k`.
    pub(crate) fn public_key(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.public_key())
    }

    /// Signs a token.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> Result<String, Unspecified> {
        let signed = encode(header, claims);
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// A key for RS256.
#[derive(Debug)]
pub(crate) struct Rs256Key(Box<RsaKeyPair>);

impl Rs256Key {
    /// Parses a PEM key: PKCS#8, as Google writes it, or PKCS#1.
    pub(crate) fn from_pem(pem: &str) -> Result<Self, InvalidKey> {
        let key = match PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| InvalidKey::NotPem)? {
            PrivateKeyDer::Pkcs8(key) => RsaKeyPair::from_pkcs8(key.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            _ => return Err(InvalidKey::NotRsa),
        };
        key.map(|key| Self(Box::new(key))).map_err(|_| InvalidKey::NotRsa)
    }

    /// Signs a token.
    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> Result<String, Unspecified> {
        let signed = encode(header, claims);
        let mut signature = vec![0; self.0.public().modulus_len()];
        self.0.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn encode(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// Wraps a SEC 1 key in PKCS#8 (RFC 5208), the only form that ring reads.
fn sec1_in_pkcs8(sec1: &[u8]) -> Option<Vec<u8>> {
    // INTEGER 0, then the algorithm: id-ecPublicKey on prime256v1.
    const VERSION_AND_ALGORITHM: [u8; 24] = [
        0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ];
    // A P-256 key with its public key takes about 120 bytes, so each length below fits into one byte.
    let key_length = u8::try_from(sec1.len()).ok().filter(|length| *length < 128)?;
    let mut content = VERSION_AND_ALGORITHM.to_vec();
    content.extend([0x04, key_length]); // OCTET STRING
    content.extend(sec1);
    let length = u8::try_from(content.len()).ok()?;
    let mut pkcs8 = vec![0x30, 0x81, length]; // SEQUENCE, long form of the length
    if length < 128 {
        pkcs8 = vec![0x30, length];
    }
    pkcs8.extend(content);
    Some(pkcs8)
}

#[cfg(test)]
pub(crate) mod tests;
