//! A stand-in for Google: the token endpoint (RFC 7523) and FCM's HTTP v1.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ::http::Method;
use parking_lot::Mutex;
use ring::signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::ca::{Alpn, Ca};
use crate::jwt;
use crate::process::TempFolder;
use crate::record::Record;
use crate::script::Script;
use crate::tls_server::{Answer, Request, TlsServer};

/// The only project that exists.
pub const PROJECT: &str = "waypost-test";
/// The service account that may send for the project.
pub const ACCOUNT: &str = "push@waypost-test.iam.gserviceaccount.com";
/// A host name that the certificate covers. It resolves only if a test runs a name server for it.
pub const NAME: &str = "fcm.test";
/// Generated for these tests; see `tests/fixtures/README.md`.
const PRIVATE_KEY: &str = include_str!("../fixtures/fcm-service-account-key.pem");
/// The grant type for a signed assertion.
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// The scope that a token request must have.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

/// A message as FCM received it.
#[derive(Clone, Debug)]
pub struct FcmPush {
    /// The device's registration token.
    pub token: String,
    /// The whole `message`.
    pub message: Value,
    /// Size of the body in bytes.
    pub bytes: usize,
    /// The bearer token it was sent with.
    pub bearer: String,
    /// Whether it was accepted.
    pub taken: bool,
}

#[derive(Debug)]
struct State {
    public_key: Vec<u8>,
    bearers: Mutex<HashSet<String>>,
    /// `expires_in` of bearer tokens.
    lifetime_secs: AtomicU32,
    issued: AtomicU32,
    script: Script,
    pushes: Record<FcmPush>,
}

/// The running stand-in, stopped on drop.
#[derive(Debug)]
pub struct Fcm {
    /// The underlying server.
    pub server: TlsServer,
    state: Arc<State>,
}

impl Fcm {
    /// Starts one. Its certificate is for 127.0.0.1 and [`NAME`].
    pub async fn start(ca: &Ca) -> Self {
        let der = PrivatePkcs8KeyDer::from_pem_slice(PRIVATE_KEY.as_bytes()).unwrap();
        let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).unwrap();
        let state = Arc::new(State {
            public_key: pair.public_key().as_ref().to_vec(),
            bearers: Mutex::default(),
            lifetime_secs: AtomicU32::new(3600),
            issued: AtomicU32::new(0),
            script: Script::default(),
            pushes: Record::default(),
        });
        let server = TlsServer::start(ca.leaf(&["127.0.0.1", "localhost", NAME], Alpn::Both), {
            let state = Arc::clone(&state);
            move |request| {
                let answer = state.answer(&request);
                async move { answer }
            }
        })
        .await;
        Self { server, state }
    }

    /// The token endpoint.
    pub fn token_uri(&self) -> String {
        format!("{}/token", self.server.url())
    }

    /// Writes the service account's key file into `folder`, in the form that Google's console issues.
    pub fn write_service_account(&self, folder: &TempFolder) -> PathBuf {
        folder.write("service-account.json", &service_account(&self.token_uri()).to_string())
    }

    /// All messages with a valid bearer token, accepted or not.
    pub fn pushes(&self) -> &Record<FcmPush> {
        &self.state.pushes
    }

    /// The messages for one device.
    pub fn pushes_for(&self, token: &str) -> Vec<FcmPush> {
        self.pushes().all().into_iter().filter(|push| push.token == token).collect()
    }

    /// Scripted answers, by registration token, or by `/token` for the token endpoint.
    pub fn script(&self) -> &Script {
        &self.state.script
    }

    /// The number of bearer tokens issued.
    pub fn issued(&self) -> u32 {
        self.state.issued.load(Ordering::SeqCst)
    }

    /// Sets the lifetime of bearer tokens issued from now on.
    pub fn bearers_live(&self, secs: u32) {
        self.state.lifetime_secs.store(secs, Ordering::SeqCst);
    }

    /// Revokes every bearer token issued so far.
    pub fn revoke_bearers(&self) {
        self.state.bearers.lock().clear();
    }
}

/// An error in Google's form, with FCM's own error code if given.
pub fn refusal(status: u16, google: &str, fcm: Option<&str>) -> Answer {
    let details = fcm.map_or_else(Vec::new, |code| {
        vec![json!({
            "@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError",
            "errorCode": code,
        })]
    });
    error(status, google, &json!(details))
}

/// 400 INVALID_ARGUMENT that blames a field.
pub fn bad_field(field: &str) -> Answer {
    let details = json!([
        {"@type": "type.googleapis.com/google.firebase.fcm.v1.FcmError", "errorCode": "INVALID_ARGUMENT"},
        {
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "fieldViolations": [{"field": field, "description": "Invalid registration token"}],
        },
    ]);
    error(400, "INVALID_ARGUMENT", &details)
}

fn error(status: u16, google: &str, details: &Value) -> Answer {
    let message = "as programmed";
    let error = json!({"code": status, "message": message, "status": google, "details": details});
    Answer::json(status, &json!({"error": error}))
}

impl State {
    fn answer(&self, request: &Request) -> Answer {
        if request.method != Method::POST {
            return Answer::empty(405);
        }
        if request.path == "/token" {
            return self.script.next("/token").unwrap_or_else(|| self.grant(request));
        }
        if request.path != format!("/v1/projects/{PROJECT}/messages:send") {
            return refusal(404, "NOT_FOUND", None);
        }
        let bearer = request.header("authorization").strip_prefix("Bearer ").unwrap_or_default();
        if !self.bearers.lock().contains(bearer) {
            return refusal(401, "UNAUTHENTICATED", None);
        }
        let body = request.json();
        let Some(token) = body["message"]["token"].as_str() else {
            return refusal(400, "INVALID_ARGUMENT", None);
        };
        let answer = self
            .script
            .next(token)
            .unwrap_or_else(|| Answer::json(200, &json!({"name": format!("projects/{PROJECT}/messages/1")})));
        self.pushes.push(FcmPush {
            token: token.to_owned(),
            message: body["message"].clone(),
            bytes: request.body.len(),
            bearer: bearer.to_owned(),
            taken: answer.is_success(),
        });
        answer
    }

    fn grant(&self, request: &Request) -> Answer {
        match self.check_assertion(request) {
            Ok(()) => {
                let number = self.issued.fetch_add(1, Ordering::SeqCst) + 1;
                let token = format!("bearer-{number}");
                let mut bearers = self.bearers.lock();
                bearers.insert(token.clone());
                let lifetime = self.lifetime_secs.load(Ordering::SeqCst);
                Answer::json(200, &json!({"access_token": token, "expires_in": lifetime, "token_type": "Bearer"}))
            }
            Err(description) => Answer::json(400, &json!({"error": "invalid_grant", "error_description": description})),
        }
    }

    fn check_assertion(&self, request: &Request) -> Result<(), String> {
        let form: Vec<(String, String)> = url::form_urlencoded::parse(&request.body).into_owned().collect();
        let field = |name: &str| form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        if field("grant_type") != Some(GRANT) {
            return Err("grant_type".to_owned());
        }
        let assertion = field("assertion").ok_or("assertion")?;
        let jwt = jwt::verify(assertion, "RS256", |_| {
            Some(UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public_key))
        })?;
        let claims = jwt.claims;
        let audience = format!("https://{}/token", request.host);
        let scopes = claims["scope"].as_str().unwrap_or_default();
        let (issued, expires) = (claims["iat"].as_i64(), claims["exp"].as_i64());
        let (issued, expires) = issued.zip(expires).ok_or("iat, exp")?;
        if claims["iss"] != ACCOUNT {
            Err("iss".to_owned())
        } else if claims["aud"] != audience.as_str() {
            Err(format!("aud is {}, not {audience}", claims["aud"]))
        } else if !scopes.split(' ').any(|scope| scope == SCOPE) {
            Err("scope".to_owned())
        } else if issued > jwt::now_secs() + 60 || expires <= jwt::now_secs() || expires - issued > 3600 {
            Err("iat, exp".to_owned())
        } else {
            Ok(())
        }
    }
}

/// A service account's key file with this `token_uri`.
pub fn service_account(token_uri: &str) -> Value {
    json!({
        "type": "service_account",
        "project_id": PROJECT,
        "private_key_id": "0123456789abcdef0123456789abcdef01234567",
        "private_key": PRIVATE_KEY,
        "client_email": ACCOUNT,
        "client_id": "123456789012345678901",
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": token_uri,
    })
}
