//! Verifies tokens with the public key, as providers do.

#![allow(clippy::unwrap_used)]

use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use serde_json::json;

use super::*;

/// An RSA key made for these tests.
pub(crate) const RSA_PEM: &str = include_str!("../fixtures/service_account_key.pem");

/// A new ES256 key in the form of a `.p8` file.
pub(crate) fn p8() -> String {
    pem("PRIVATE KEY", &pkcs8())
}

fn pkcs8() -> Vec<u8> {
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
    document.as_ref().to_vec()
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A token's header and claims, and whether its signature is valid.
fn opened(token: &str, verify: impl Fn(&[u8], &[u8]) -> bool) -> (Value, Value, bool) {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, claims) = signed.split_once('.').unwrap();
    let json = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap();
    (json(header), json(claims), verify(signed.as_bytes(), &URL_SAFE_NO_PAD.decode(signature).unwrap()))
}

#[test]
fn an_es256_token_verifies() {
    let key = Es256Key::from_pem(&p8()).unwrap();
    let (header, claims) = (json!({"alg": "ES256", "kid": "K"}), json!({"iss": "T", "iat": 1}));
    let token = key.sign(&header, &claims).unwrap();
    let public = URL_SAFE_NO_PAD.decode(key.public_key()).unwrap();
    let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public);
    let verify = |signed: &[u8], signature: &[u8]| public.verify(signed, signature).is_ok();
    assert_eq!(opened(&token, verify), (header, claims, true));
}

#[test]
fn an_rs256_token_verifies() {
    let key = Rs256Key::from_pem(RSA_PEM).unwrap();
    let (header, claims) = (json!({"alg": "RS256"}), json!({"iss": "a@b"}));
    let token = key.sign(&header, &claims).unwrap();
    let public = UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.0.public().as_ref());
    let verify = |signed: &[u8], signature: &[u8]| public.verify(signed, signature).is_ok();
    assert_eq!(opened(&token, verify), (header, claims, true));
}

#[test]
fn a_sec1_key_as_openssl_writes_it_is_accepted() {
    let der = pkcs8();
    // PKCS#8 wraps the SEC 1 key: it starts after 3 bytes of SEQUENCE, 24 of version and algorithm, 2 of OCTET STRING.
    let sec1 = &der[29..];
    assert_eq!(sec1_in_pkcs8(sec1).unwrap(), der);
    let (a, b) = (Es256Key::from_pem(&pem("EC PRIVATE KEY", sec1)), Es256Key::from_pem(&pem("PRIVATE KEY", &der)));
    assert_eq!(a.unwrap().public_key(), b.unwrap().public_key());
}

#[test]
fn each_kind_of_wrong_key_has_its_own_error() {
    assert_eq!(Es256Key::from_pem("hello").unwrap_err(), InvalidKey::NotPem);
    assert_eq!(Es256Key::from_pem(RSA_PEM).unwrap_err(), InvalidKey::NotP256);
    assert_eq!(Rs256Key::from_pem(&p8()).unwrap_err(), InvalidKey::NotRsa);
}
