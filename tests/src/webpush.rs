//! A stand-in for a push service (RFC 8030), which authenticates the sender (RFC 8292), and the browser behind it,
//! which decrypts (RFC 8291).
//!
//! The key agreement uses a different library from the gateway's, so that they cannot share a bug.

use std::path::PathBuf;
use std::sync::Arc;

use ::http::{HeaderMap, Method};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::{PublicKey, SecretKey};
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::hmac;
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::ca::{Alpn, Ca};
use crate::jwt::{self, Jwt};
use crate::process::TempFolder;
use crate::record::Record;
use crate::script::Script;
use crate::tls_server::{Answer, Request, TlsServer};

/// The name of the push service, which the gateway's `outbound.hosts` maps to 127.0.0.1.
pub const HOST: &str = "push.test";
/// Bytes of an uncompressed P-256 point.
const POINT: usize = 65;

/// A message as the push service received it.
#[derive(Clone, Debug)]
pub struct WebPush {
    /// The path, which identifies the subscriber.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The encrypted body.
    pub body: Vec<u8>,
    /// The sender's verified VAPID token.
    pub vapid: Jwt,
    /// The sender's public key, in base64 as received.
    pub vapid_key: String,
    /// Whether it was accepted.
    pub taken: bool,
}

impl WebPush {
    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct State {
    script: Script,
    pushes: Record<WebPush>,
}

/// The running push service, stopped on drop.
#[derive(Debug)]
pub struct PushService {
    /// The underlying server.
    pub server: TlsServer,
    state: Arc<State>,
    vapid_private: String,
    vapid_public: Vec<u8>,
}

impl PushService {
    /// Starts one for [`HOST`], and generates a VAPID key for the gateway.
    pub async fn start(ca: &Ca) -> Self {
        let state = Arc::new(State::default());
        let server = TlsServer::start(ca.leaf(&[HOST, "127.0.0.1"], Alpn::Both), {
            let state = Arc::clone(&state);
            move |request| {
                let answer = state.answer(&request);
                async move { answer }
            }
        })
        .await;
        let (vapid_private, vapid_public) = jwt::p256_key();
        Self { server, state, vapid_private, vapid_public }
    }

    /// Writes the gateway's VAPID key into `folder`.
    pub fn write_vapid_key(&self, folder: &TempFolder) -> PathBuf {
        folder.write("vapid.pem", &self.vapid_private)
    }

    /// The public half of the VAPID key, in base64 as in the header.
    pub fn vapid_public_key(&self) -> String {
        URL_SAFE_NO_PAD.encode(&self.vapid_public)
    }

    /// The origin of every endpoint of this service.
    pub fn origin(&self) -> String {
        format!("https://{HOST}:{}", self.server.port())
    }

    /// All messages with valid VAPID authentication, accepted or not.
    pub fn pushes(&self) -> &Record<WebPush> {
        &self.state.pushes
    }

    /// The messages for one subscriber.
    pub fn pushes_for(&self, subscriber: &Subscriber) -> Vec<WebPush> {
        self.pushes().all().into_iter().filter(|push| push.path == subscriber.path).collect()
    }

    /// Scripted answers, by path.
    pub fn script(&self) -> &Script {
        &self.state.script
    }

    /// Creates a subscriber of this service.
    pub fn subscribe(&self, name: &str) -> Subscriber {
        Subscriber::new(&self.origin(), name)
    }
}

impl State {
    fn answer(&self, request: &Request) -> Answer {
        if request.method != Method::POST {
            return Answer::empty(405);
        }
        if request.header("content-encoding") != "aes128gcm" || request.header("ttl").is_empty() {
            return Answer::text(400, "Content-Encoding and TTL are needed");
        }
        let (vapid, vapid_key) = match vapid(request) {
            Ok(vapid) => vapid,
            Err(reason) => return Answer::text(403, &reason),
        };
        let answer = self.script.next(&request.path).unwrap_or_else(|| Answer::empty(201));
        self.pushes.push(WebPush {
            path: request.path.clone(),
            headers: request.headers.clone(),
            body: request.body.to_vec(),
            vapid,
            vapid_key,
            taken: answer.is_success(),
        });
        answer
    }
}

/// Verifies `Authorization: vapid t=…, k=…`.
fn vapid(request: &Request) -> Result<(Jwt, String), String> {
    let credentials = request.header("authorization").strip_prefix("vapid ").ok_or("no vapid credentials")?;
    let part = |name: &str| credentials.split(',').find_map(|part| part.trim().strip_prefix(name)?.strip_prefix('='));
    let (token, key) = part("t").zip(part("k")).ok_or("t or k is missing")?;
    let point = URL_SAFE_NO_PAD.decode(key).map_err(|err| err.to_string())?;
    let jwt = jwt::verify(token, "ES256", |_| Some(UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)))?;
    let origin = format!("https://{}", request.host);
    if jwt.claims["aud"] != origin.as_str() {
        return Err(format!("aud is {}, not {origin}", jwt.claims["aud"]));
    }
    let expires = jwt.claims["exp"].as_i64().ok_or("exp is no integer")?;
    let now = jwt::now_secs();
    if expires <= now || expires > now + 24 * 60 * 60 {
        return Err("exp is not within a day".to_owned());
    }
    Ok((jwt, key.to_owned()))
}

/// A browser subscribed to a push service.
pub struct Subscriber {
    secret: SecretKey,
    auth: [u8; 16],
    origin: String,
    path: String,
}

impl std::fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subscriber").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Subscriber {
    fn new(origin: &str, name: &str) -> Self {
        let random = SystemRandom::new();
        let mut secret = [0; 32];
        let mut auth = [0; 16];
        random.fill(&mut auth).unwrap();
        // Almost any 32 bytes are a valid P-256 key, so retrying is cheap.
        let secret = loop {
            random.fill(&mut secret).unwrap();
            if let Ok(secret) = SecretKey::from_slice(&secret) {
                break secret;
            }
        };
        Self { secret, auth, origin: origin.to_owned(), path: format!("/push/{name}") }
    }

    /// The public key, which is the pushkey.
    pub fn p256dh(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.public_point())
    }

    /// The authentication secret.
    pub fn auth(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.auth)
    }

    /// The endpoint that pushes are sent to.
    pub fn endpoint(&self) -> String {
        format!("{}{}", self.origin, self.path)
    }

    /// The path of the endpoint: the key for scripting the push service's answers.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The device in a homeserver's request to the gateway.
    pub fn device(&self, app_id: &str) -> Value {
        json!({
            "app_id": app_id,
            "pushkey": self.p256dh(),
            "data": {"endpoint": self.endpoint(), "auth": self.auth()},
        })
    }

    /// Decrypts a message.
    ///
    /// # Errors
    ///
    /// A description of what is invalid.
    pub fn decrypt(&self, message: &[u8]) -> Result<Value, String> {
        // RFC 8188: salt, record size, length of the key id, key id (the sender's public key), records.
        let (salt, rest) = message.split_at_checked(16).ok_or("too short for a salt")?;
        let (size, rest) = rest.split_first_chunk::<4>().ok_or("too short for a record size")?;
        let (length, rest) = rest.split_first().ok_or("too short for a key id")?;
        if usize::from(*length) != POINT {
            return Err(format!("the key id has {length} bytes"));
        }
        let (sender, record) = rest.split_at_checked(POINT).ok_or("too short for a key id")?;
        let size = usize::try_from(u32::from_be_bytes(*size)).map_err(|err| err.to_string())?;
        if record.len() > size {
            return Err("more than one record".to_owned());
        }

        let sender_key = PublicKey::from_sec1_bytes(sender).map_err(|_| "no point of P-256")?;
        let shared = self.secret.diffie_hellman(&sender_key);
        let mut info = b"WebPush: info\0".to_vec();
        info.extend(self.public_point());
        info.extend(sender);
        let input = hkdf(&self.auth, shared.raw_secret_bytes().as_slice(), &info);
        let key = hkdf(salt, &input, b"Content-Encoding: aes128gcm\0");
        let nonce = hkdf(salt, &input, b"Content-Encoding: nonce\0");

        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, &key[..16]).map_err(|err| err.to_string())?);
        let nonce = Nonce::try_assume_unique_for_key(&nonce[..12]).map_err(|err| err.to_string())?;
        let mut record = record.to_vec();
        let plain = key
            .open_in_place(nonce, Aad::empty(), &mut record)
            .map_err(|_| "it was not encrypted for this subscriber")?;
        // The last record ends with a 2, then any number of zeros.
        let end = plain.iter().rposition(|byte| *byte != 0).ok_or("no delimiter")?;
        if plain[end] != 2 {
            return Err("not the last record".to_owned());
        }
        serde_json::from_slice(&plain[..end]).map_err(|err| err.to_string())
    }

    fn public_point(&self) -> Vec<u8> {
        self.secret.public_key().to_sec1_bytes().into_vec()
    }
}

/// HKDF-SHA-256 (RFC 5869); returns 32 bytes; the caller uses as many as it needs.
fn hkdf(salt: &[u8], input: &[u8], info: &[u8]) -> [u8; 32] {
    let extracted = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, salt), input);
    let mut expand = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, extracted.as_ref()));
    expand.update(info);
    expand.update(&[1]);
    expand.sign().as_ref().try_into().unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decrypts_the_example_of_rfc_8291() {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let subscriber = Subscriber {
            secret: SecretKey::from_slice(&decode("q1dXpw3UpT5VOmu_cf_v6ih07Aems3njxI-JWgLcM94")).unwrap(),
            auth: decode("BTBZMqHH6r4Tts7J_aSIgg").try_into().unwrap(),
            origin: String::new(),
            path: String::new(),
        };
        let message = "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6\
                       TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qu\
                       lcy4a-fN";
        // The example's text is not JSON, so failing only when parsing it proves that the decryption worked.
        let outcome = subscriber.decrypt(&decode(message));
        assert!(outcome.unwrap_err().starts_with("expected value"));
    }
}
