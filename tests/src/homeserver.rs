//! A stand-in homeserver: the few federation endpoints that an identity server calls, over verified TLS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::http::Method;
use serde_json::{Value, json};

use crate::ca::{Alpn, Ca};
use crate::record::Record;
use crate::tls_server::{Answer, Request, TlsServer};

#[derive(Debug, Default)]
struct State {
    /// OpenID token to what userinfo says.
    tokens: Mutex<HashMap<String, Answer>>,
    well_known: Mutex<Option<Answer>>,
    onbind: Record<Value>,
}

/// The running homeserver. It stops when it is dropped.
#[derive(Debug)]
pub struct Homeserver {
    /// The server below it, with every request that came.
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
        let state = Arc::new(State::default());
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

    /// A new OpenID token, which userinfo says is `user_id`'s.
    pub fn issue(&self, user_id: &str) -> String {
        self.issue_answer(Answer::json(200, &json!({"sub": user_id})))
    }

    /// A new OpenID token, to which userinfo answers so.
    pub fn issue_answer(&self, answer: Answer) -> String {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let token = format!("openid-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let mut tokens = self.state.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.insert(token.clone(), answer);
        token
    }

    /// What `/.well-known/matrix/server` answers from now on.
    pub fn well_known(&self, answer: Answer) {
        *self.state.well_known.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }

    /// The bodies that came to onbind.
    pub fn onbind(&self) -> &Record<Value> {
        &self.state.onbind
    }
}

fn answer(state: &State, request: &Request) -> Answer {
    match (&request.method, request.path.as_str()) {
        (&Method::GET, "/_matrix/federation/v1/openid/userinfo") => {
            let token = request.parameter("access_token").unwrap_or_default();
            let tokens = state.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            tokens.get(&token).cloned().unwrap_or_else(|| {
                let error = "access token unknown or expired";
                Answer::json(401, &json!({"errcode": "M_UNKNOWN_TOKEN", "error": error}))
            })
        }
        (&Method::POST | &Method::PUT, "/_matrix/federation/v1/3pid/onbind") => {
            state.onbind.push(request.json());
            Answer::json(200, &json!({}))
        }
        (&Method::GET, "/.well-known/matrix/server") => {
            let well_known = state.well_known.lock().unwrap_or_else(PoisonError::into_inner);
            well_known.clone().unwrap_or_else(not_found)
        }
        _ => not_found(),
    }
}

fn not_found() -> Answer {
    Answer::json(404, &json!({"errcode": "M_UNRECOGNIZED", "error": "not found"}))
}
