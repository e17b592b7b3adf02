//! A stand-in push server for UnifiedPush: takes what it is sent, plain or encrypted, and keeps it.

use std::sync::Arc;

use ::http::{HeaderMap, Method};
use serde_json::Value;

use crate::ca::{Alpn, Ca};
use crate::record::Record;
use crate::script::Script;
use crate::tls_server::{Answer, Request, TlsServer};
use crate::webpush::HOST;

/// A message as the push server saw it.
#[derive(Clone, Debug)]
pub struct UnifiedPushMessage {
    /// The path, which says for whom it is.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
    /// Whether it was answered with a success.
    pub taken: bool,
}

impl UnifiedPushMessage {
    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON; `Null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct State {
    script: Script,
    messages: Record<UnifiedPushMessage>,
}

/// The running push server. It stops when it is dropped.
#[derive(Debug)]
pub struct PushServer {
    /// The server below it.
    pub server: TlsServer,
    state: Arc<State>,
}

impl PushServer {
    /// Starts one for [`HOST`].
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
        Self { server, state }
    }

    /// The endpoint of a device, which is its pushkey.
    pub fn endpoint(&self, name: &str) -> String {
        format!("https://{HOST}:{}/up/{name}?up=1", self.server.port())
    }

    /// All messages, whatever was answered.
    pub fn messages(&self) -> &Record<UnifiedPushMessage> {
        &self.state.messages
    }

    /// The messages for one device, by the name in its endpoint.
    pub fn messages_for(&self, name: &str) -> Vec<UnifiedPushMessage> {
        let path = format!("/up/{name}");
        self.messages().all().into_iter().filter(|message| message.path == path).collect()
    }

    /// What to answer, by the name in the endpoint.
    pub fn script(&self) -> &Script {
        &self.state.script
    }
}

impl State {
    fn answer(&self, request: &Request) -> Answer {
        let Some(name) = request.path.strip_prefix("/up/") else { return Answer::empty(404) };
        if request.method != Method::POST || request.query != "up=1" {
            return Answer::empty(405);
        }
        let answer = self.script.next(name).unwrap_or_else(|| Answer::empty(200));
        self.messages.push(UnifiedPushMessage {
            path: request.path.clone(),
            headers: request.headers.clone(),
            body: request.body.to_vec(),
            taken: answer.is_success(),
        });
        answer
    }
}
