//! A stand-in homeserver: the few federation endpoints that an identity server calls, over verified TLS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ed25519_dalek::SigningKey;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::ca::{Alpn, Ca};
use crate::jwt::now_secs;
use crate::matrix::signature;
use crate::record::Record;
use crate::script::Script;
use crate::tls_server::{Answer, Request, TlsServer};

/// The key id of the homeserver's signing key.
pub const KEY_ID: &str = "ed25519:a_hs";
/// The seed of the signing key.
const KEY_SEED: [u8; 32] = [42; 32];

#[derive(Debug, Default)]
struct State {
    /// The server name in its default key answer, and the origin of signed requests.
    name: String,
    keys: Mutex<Option<Answer>>,
    /// Answers to onbind, by method.
    onbind_script: Script,
    /// Answers of userinfo, by OpenID token.
    tokens: Mutex<HashMap<String, Answer>>,
    well_known: Mutex<Option<Answer>>,
    onbind: Record<Value>,
}

/// The running homeserver, stopped on drop.
#[derive(Debug)]
pub struct Homeserver {
    /// The underlying server, with every request received.
    pub server: TlsServer,
    state: Arc<State>,
}

impl Homeserver {
    /// Starts one whose certificate is for `names`.
    pub async fn start(ca: &Ca, names: &[&str]) -> Self {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), ca, names).await
    }

    /// Starts one on this address.
    pub async fn start_on(address: SocketAddr, ca: &Ca, names: &[&str]) -> Self {
        let name = names.first().copied().unwrap_or_default().to_owned();
        let state = Arc::new(State { name, ..State::default() });
        let server = TlsServer::start_on(address, ca.leaf(names, Alpn::Both), {
            let state = Arc::clone(&state);
            move |request| {
                let answer = answer(&state, &request);
                async move { answer }
            }
        })
        .await;
        Self { server, state }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Issues an OpenID token for `user_id`.
    pub fn issue(&self, user_id: &str) -> String {
        self.issue_answer(Answer::json(200, &json!({"sub": user_id})))
    }

    /// Issues an OpenID token for which userinfo returns `answer`.
    pub fn issue_answer(&self, answer: Answer) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let token = format!("openid-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut tokens = self.state.tokens.lock();
        tokens.insert(token.clone(), answer);
        token
    }

    /// Sets the answer of `/.well-known/matrix/server`.
    pub fn well_known(&self, answer: Answer) {
        *self.state.well_known.lock() = Some(answer);
    }

    /// Sets the answer of `/_matrix/key/v2/server`.
    pub fn keys(&self, answer: Answer) {
        *self.state.keys.lock() = Some(answer);
    }

    /// The `Authorization` header that signs `content` for `destination`, under the key `destination_name` of the
    /// signed object.
    pub fn x_matrix(&self, uri: &str, content: &Value, destination_name: &str, destination: &str) -> String {
        let origin = &self.state.name;
        let mut request = json!({"method": "POST", "uri": uri, "origin": origin, "content": content});
        request[destination_name] = json!(destination);
        let signature = signature(&request, &SigningKey::from_bytes(&KEY_SEED));
        format!(r#"X-Matrix origin="{origin}",key="{KEY_ID}",sig="{signature}",destination="{destination}""#)
    }

    /// Scripted answers of onbind, by method (`POST`, `PUT`). The default is to accept both.
    pub fn onbind_script(&self) -> &Script {
        &self.state.onbind_script
    }

    /// All bodies sent to onbind, accepted or not.
    pub fn onbind(&self) -> &Record<Value> {
        &self.state.onbind
    }
}

fn answer(state: &State, request: &Request) -> Answer {
    match (&request.method, request.path.as_str()) {
        (&Method::GET, "/_matrix/federation/v1/openid/userinfo") => {
            let token = request.parameter("access_token").unwrap_or_default();
            let tokens = state.tokens.lock();
            tokens.get(&token).cloned().unwrap_or_else(|| {
                let error = "access token unknown or expired";
                Answer::json(401, &json!({"errcode": "M_UNKNOWN_TOKEN", "error": error}))
            })
        }
        (&Method::POST | &Method::PUT, "/_matrix/federation/v1/3pid/onbind") => {
            state.onbind.push(request.json());
            state.onbind_script.next(request.method.as_str()).unwrap_or_else(|| Answer::json(200, &json!({})))
        }
        (&Method::GET, "/_matrix/key/v2/server") => {
            let keys = state.keys.lock();
            keys.clone().unwrap_or_else(|| key_answer(&state.name, (now_secs() + 86_400) * 1000))
        }
        (&Method::GET, "/.well-known/matrix/server") => {
            let well_known = state.well_known.lock();
            well_known.clone().unwrap_or_else(not_found)
        }
        _ => not_found(),
    }
}

/// A homeserver's signed keys, valid until `valid_until_ms` (milliseconds since the epoch).
pub fn key_answer(name: &str, valid_until_ms: i64) -> Answer {
    let key = SigningKey::from_bytes(&KEY_SEED);
    let public_key = STANDARD_NO_PAD.encode(key.verifying_key().as_bytes());
    let mut keys = json!({
        "server_name": name,
        "valid_until_ts": valid_until_ms,
        "verify_keys": {KEY_ID: {"key": public_key}},
        "old_verify_keys": {},
    });
    keys["signatures"] = json!({name: {KEY_ID: signature(&keys, &key)}});
    Answer::json(200, &keys)
}

fn not_found() -> Answer {
    Answer::json(404, &json!({"errcode": "M_UNRECOGNIZED", "error": "not found"}))
}
