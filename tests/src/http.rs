//! A small HTTP client for tests: one base address, text and JSON answers.

use std::fmt;
use std::time::Duration;

use ::http::{HeaderMap, Method, Request, Version};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::ca::{Ca, install_crypto};

/// Longer than the 25 s in which the push gateway has to answer (docs/compatibility.md, P1).
const TIMEOUT: Duration = Duration::from_secs(40);

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub text: String,
    /// HTTP/1.1 or HTTP/2.
    pub version: Version,
}

impl Reply {
    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// If it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|err| panic!("not JSON ({err}), status {}: {}", self.status, self.text))
    }

    /// The Matrix error code; empty if there is none.
    pub fn errcode(&self) -> String {
        self.json()["errcode"].as_str().unwrap_or_default().to_owned()
    }

    /// Status and error code, to compare both at once.
    pub fn failure(&self) -> (u16, String) {
        (self.status, self.errcode())
    }

    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The JSON body of a successful answer.
    ///
    /// # Panics
    ///
    /// If the status is not 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }
}

/// A client of one server.
#[derive(Clone)]
pub struct Api {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: String,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Api {
    /// For a plain HTTP server.
    pub fn new(base: &str) -> Self {
        install_crypto();
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        Self::with_config(base, config)
    }

    /// For a server with a certificate issued by `ca`.
    pub fn with_ca(base: &str, ca: &Ca) -> Self {
        Self::with_config(base, ca.client_config())
    }

    fn with_config(base: &str, config: rustls::ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        Self { client, base: base.to_owned() }
    }

    /// The base address, to which paths are appended.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Sends a GET, with an access token if given.
    pub async fn get(&self, path: &str, token: Option<&str>) -> Reply {
        self.call(Method::GET, path, token, Bytes::new()).await
    }

    /// Sends a POST with JSON, with an access token if given.
    pub async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Reply {
        self.call(Method::POST, path, token, Bytes::from(body.to_string())).await
    }

    /// Sends any method and body.
    pub async fn call(&self, method: Method, path: &str, token: Option<&str>, body: Bytes) -> Reply {
        let mut request = Request::builder().method(method).uri(self.absolute(path));
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.send(request.body(body).unwrap()).await
    }

    /// Posts a form as a browser does.
    pub async fn post_form(&self, path: &str, fields: &[(&str, &str)]) -> Reply {
        let body = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
        let request = Request::post(self.absolute(path))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Bytes::from(body))
            .unwrap();
        self.send(request).await
    }

    /// Sends a request whose address is absolute.
    ///
    /// # Panics
    ///
    /// If no complete answer arrives.
    pub async fn send(&self, request: Request<Bytes>) -> Reply {
        let what = format!("{} {}", request.method(), request.uri().path());
        self.try_send(request).await.unwrap_or_else(|err| panic!("{what}: {err}"))
    }

    /// Sends a request whose address is absolute.
    ///
    /// # Errors
    ///
    /// If no complete answer arrives.
    pub async fn try_send(&self, request: Request<Bytes>) -> Result<Reply, String> {
        let exchange = async {
            let response =
                self.client.request(request.map(Full::new)).await.map_err(|err| format!("{err}: {}", chain(&err)))?;
            let (parts, body) = response.into_parts();
            let body = body.collect().await.map_err(|err| err.to_string())?.to_bytes();
            Ok::<_, String>(Reply {
                status: parts.status.as_u16(),
                headers: parts.headers,
                text: String::from_utf8_lossy(&body).into_owned(),
                version: parts.version,
            })
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", TIMEOUT.as_secs())))
    }

    /// The absolute address of `path`; an absolute one is returned unchanged.
    pub fn absolute(&self, path: &str) -> String {
        if path.starts_with("http://") || path.starts_with("https://") {
            path.to_owned()
        } else {
            format!("{}{path}", self.base)
        }
    }
}

fn chain(err: &dyn std::error::Error) -> String {
    let mut text = String::new();
    let mut source = err.source();
    while let Some(cause) = source {
        text.push_str(&format!(" <- {cause}"));
        source = cause.source();
    }
    text
}
