//! A stand-in for APNs: HTTP/2 only; checks the provider token and records each push.

use std::path::PathBuf;
use std::sync::Arc;

use ::http::{HeaderMap, Method, Version};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};

use crate::ca::{Alpn, Ca};
use crate::jwt::{self, Jwt};
use crate::process::TempFolder;
use crate::record::Record;
use crate::script::Script;
use crate::tls_server::{Answer, Request, TlsServer};

/// The key id that the stand-in knows.
pub const KEY_ID: &str = "KEYID12345";
/// The team that the key belongs to.
pub const TEAM_ID: &str = "TEAMID6789";
/// A host name that the certificate covers. It resolves only if a test runs a name server for it.
pub const NAME: &str = "apns.test";
/// The header with an answer's id.
const APNS_ID: &str = "apns-id";

/// A push as APNs received it.
#[derive(Clone, Debug)]
pub struct ApnsPush {
    /// The device token from the path.
    pub token: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The payload.
    pub payload: Value,
    /// Size of the payload in bytes.
    pub bytes: usize,
    /// The verified provider token, if there was one.
    pub jwt: Option<Jwt>,
    /// Whether the sender presented a client certificate.
    pub client_certificate: bool,
    /// Whether it was accepted.
    pub taken: bool,
}

impl ApnsPush {
    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

#[derive(Debug)]
struct State {
    public_key: Vec<u8>,
    script: Script,
    pushes: Record<ApnsPush>,
}

/// The running stand-in, stopped on drop.
#[derive(Debug)]
pub struct Apns {
    /// The underlying server.
    pub server: TlsServer,
    private_key: String,
    state: Arc<State>,
}

impl Apns {
    /// Starts one with a new signing key. Its certificate is for 127.0.0.1 and [`NAME`].
    pub async fn start(ca: &Ca) -> Self {
        let (private_key, public_key) = jwt::p256_key();
        let state = Arc::new(State { public_key, script: Script::default(), pushes: Record::default() });
        let server = TlsServer::start(ca.leaf(&["127.0.0.1", "localhost", NAME], Alpn::Http2), {
            let state = Arc::clone(&state);
            move |request| {
                let answer = state.answer(&request);
                async move { answer }
            }
        })
        .await;
        Self { server, private_key, state }
    }

    /// Writes the signing key into `folder` as a `.p8` file.
    pub fn write_key(&self, folder: &TempFolder) -> PathBuf {
        folder.write("apns.p8", &self.private_key)
    }

    /// All pushes with valid credentials, accepted or not.
    pub fn pushes(&self) -> &Record<ApnsPush> {
        &self.state.pushes
    }

    /// The pushes for one device.
    pub fn pushes_for(&self, token: &str) -> Vec<ApnsPush> {
        self.pushes().all().into_iter().filter(|push| push.token == token).collect()
    }

    /// Scripted answers, by device token.
    pub fn script(&self) -> &Script {
        &self.state.script
    }
}

/// An error with an APNs reason.
pub fn refusal(status: u16, reason: &str) -> Answer {
    Answer::json(status, &json!({"reason": reason}))
}

/// 410 with the time since when the token has been dead, in milliseconds since the epoch.
pub fn unregistered(timestamp_ms: i64) -> Answer {
    Answer::json(410, &json!({"reason": "Unregistered", "timestamp": timestamp_ms}))
}

impl State {
    fn answer(&self, request: &Request) -> Answer {
        if request.version != Version::HTTP_2 {
            return Answer::empty(505);
        }
        let Some(token) = request.path.strip_prefix("/3/device/") else {
            return refusal(404, "BadPath");
        };
        if request.method != Method::POST {
            return refusal(405, "MethodNotAllowed");
        }
        let jwt = match request.header("authorization").strip_prefix("bearer ") {
            Some(jwt) => match self.verify(jwt) {
                Ok(jwt) => Some(jwt),
                Err(_) => return refusal(403, "InvalidProviderToken"),
            },
            None if request.client_certificate => None,
            None => return refusal(403, "MissingProviderToken"),
        };
        let id = request.header(APNS_ID).to_owned();
        let answer = self.script.next(token).unwrap_or_else(|| Answer::empty(200));
        self.pushes.push(ApnsPush {
            token: token.to_owned(),
            headers: request.headers.clone(),
            payload: request.json(),
            bytes: request.body.len(),
            jwt,
            client_certificate: request.client_certificate,
            taken: answer.is_success(),
        });
        answer.header(APNS_ID, &id)
    }

    fn verify(&self, token: &str) -> Result<Jwt, String> {
        let jwt = jwt::verify(token, "ES256", |header| {
            (header["kid"] == KEY_ID).then(|| UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public_key))
        })?;
        if jwt.claims["iss"] != TEAM_ID {
            return Err("iss is not the team".to_owned());
        }
        let issued = jwt.claims["iat"].as_i64().ok_or("iat is no integer")?;
        // Apple accepts tokens up to an hour old.
        if (jwt::now_secs() - issued).abs() > 3600 {
            return Err("iat is not within the hour".to_owned());
        }
        Ok(jwt)
    }
}
