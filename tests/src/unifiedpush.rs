//! A stand-in for a UnifiedPush server: accepts messages, plain or encrypted, and records them.

use std::sync::Arc;

use ::http::{HeaderMap, Method};
use serde_json::Value;

use crate::ca::{Alpn, Ca};
use crate::record::Record;
use crate::script::Script;
use crate::tls_server::{Answer, Request, TlsServer};
use crate::webpush::HOST;

/// A message as the push server received it.
#[derive(Clone, Debug)]
pub struct UnifiedPushMessage {
    /// The path, which identifies the recipient.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
    /// Whether it was accepted.
    pub taken: bool,
}

impl UnifiedPushMessage {
    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body as JSON; `Null` if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct State {
    script: Script,
    messages: Record<UnifiedPushMessage>,
}

/// The running push server, stopped on drop.
#[derive(Debug)]
pub struct PushServer {
    /// The underlying server.
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

    /// All messages, accepted or not.
    pub fn messages(&self) -> &Record<UnifiedPushMessage> {
        &self.state.messages
    }

    /// The messages for the device with this name in its endpoint.
    pub fn messages_for(&self, name: &str) -> Vec<UnifiedPushMessage> {
        let path = format!("/up/{name}");
        self.messages().all().into_iter().filter(|message| message.path == path).collect()
    }

    /// Scripted answers, by the name in the endpoint.
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
