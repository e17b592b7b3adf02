//! An OpenTelemetry collector: takes OTLP over HTTP as JSON, and keeps the spans.
//!
//! It reads strictly what the specification says (OpenTelemetry Protocol, "JSON Protobuf Encoding"), and answers 400 to
//! anything else, so that a span which is here was understood.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use ::http::Method;
use serde_json::{Value, json};

use crate::ca::{Alpn, Ca};
use crate::record::Record;
use crate::tls_server::{Answer, Request, TlsServer};

/// `SPAN_KIND_INTERNAL`.
pub const INTERNAL: u64 = 1;
/// `SPAN_KIND_SERVER`.
pub const SERVER: u64 = 2;
/// `SPAN_KIND_CLIENT`.
pub const CLIENT: u64 = 3;

/// A span that was taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// `service.name` of whose it is.
    pub service: String,
    /// 32 hexadecimal digits.
    pub trace: String,
    /// 16 hexadecimal digits.
    pub id: String,
    /// The same, of the span above; empty for none.
    pub parent: String,
    /// Its name.
    pub name: String,
    /// [`INTERNAL`], [`SERVER`] or [`CLIENT`].
    pub kind: u64,
    /// When it began, in nanoseconds since the epoch.
    pub begun_ns: u64,
    /// When it ended.
    pub ended_ns: u64,
    /// Its attributes; numbers as text.
    pub attributes: BTreeMap<String, String>,
    /// Whether its status is an error.
    pub failed: bool,
}

impl Span {
    /// An attribute; empty when there is none.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map(String::as_str).unwrap_or_default()
    }
}

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    /// Its server, with all requests.
    pub server: TlsServer,
    /// Every span that it took.
    pub spans: Arc<Record<Span>>,
    status: Arc<AtomicU16>,
}

impl Collector {
    /// Listens, with a certificate of `ca`.
    pub async fn start(ca: &Ca) -> Self {
        let spans = Arc::new(Record::default());
        let status = Arc::new(AtomicU16::new(200));
        let server = TlsServer::start(ca.leaf(&["127.0.0.1"], Alpn::Both), {
            let (spans, status) = (Arc::clone(&spans), Arc::clone(&status));
            move |request| {
                let answer = answer(&request, &spans, status.load(Ordering::SeqCst));
                async move { answer }
            }
        })
        .await;
        Self { server, spans, status }
    }

    /// Answers with this status from now on, and takes nothing unless it is 200.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Waits for a span.
    pub async fn span(&self, what: &str, fits: impl Fn(&Span) -> bool) -> Span {
        self.spans.wait_for(what, fits).await
    }

    /// All that it was sent, taken or not, as it came.
    pub fn text(&self) -> String {
        let bodies = self.server.requests.all();
        bodies.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect()
    }
}

fn answer(request: &Request, spans: &Record<Span>, status: u16) -> Answer {
    if status != 200 {
        return Answer::empty(status);
    }
    match decode(request) {
        Ok(taken) => {
            for span in taken {
                spans.push(span);
            }
            Answer::json(200, &json!({"partialSuccess": {}}))
        }
        Err(mistake) => Answer::json(400, &json!({"code": 3, "message": mistake})),
    }
}

fn decode(request: &Request) -> Result<Vec<Span>, String> {
    if request.method != Method::POST || request.path != "/v1/traces" || !request.query.is_empty() {
        return Err(format!("{} {}", request.method, request.path));
    }
    if request.header("content-type") != "application/json" {
        return Err(format!("content type {}", request.header("content-type")));
    }
    let body = request.json();
    let mut spans = Vec::new();
    for resource_spans in list(&body["resourceSpans"])? {
        let resource = attributes(&resource_spans["resource"]["attributes"])?;
        let service = resource.get("service.name").ok_or("no service.name")?;
        for scope_spans in list(&resource_spans["scopeSpans"])? {
            for span in list(&scope_spans["spans"])? {
                spans.push(read(span, service)?);
            }
        }
    }
    Ok(spans)
}

fn read(span: &Value, service: &str) -> Result<Span, String> {
    const KEYS: [&str; 9] = [
        "traceId",
        "spanId",
        "parentSpanId",
        "name",
        "kind",
        "startTimeUnixNano",
        "endTimeUnixNano",
        "attributes",
        "status",
    ];
    if let Some(key) = span.as_object().ok_or("a span is an object")?.keys().find(|key| !KEYS.contains(&key.as_str())) {
        return Err(format!("a span has no {key}"));
    }
    let parent = match &span["parentSpanId"] {
        Value::Null => String::new(),
        parent => hexadecimal(parent, 16)?,
    };
    let failed = match &span["status"]["code"] {
        Value::Null => false,
        code => code == &json!(2),
    };
    let span = Span {
        service: service.to_owned(),
        trace: hexadecimal(&span["traceId"], 32)?,
        id: hexadecimal(&span["spanId"], 16)?,
        parent,
        name: text(&span["name"])?,
        kind: span["kind"].as_u64().ok_or("kind is a number")?,
        begun_ns: nanoseconds(&span["startTimeUnixNano"])?,
        ended_ns: nanoseconds(&span["endTimeUnixNano"])?,
        attributes: attributes(&span["attributes"])?,
        failed,
    };
    if span.ended_ns < span.begun_ns { Err("it ends before it begins".to_owned()) } else { Ok(span) }
}

fn list(value: &Value) -> Result<&Vec<Value>, String> {
    value.as_array().ok_or_else(|| format!("{value} is no list"))
}

fn text(value: &Value) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| format!("{value} is no text"))
}

fn hexadecimal(value: &Value, digits: usize) -> Result<String, String> {
    let id = text(value)?;
    let good = id.len() == digits && id.bytes().all(|byte| byte.is_ascii_hexdigit()) && id.bytes().any(|b| b != b'0');
    if good { Ok(id) } else { Err(format!("{id} is no id of {digits} digits")) }
}

/// 64-bit numbers are texts in JSON.
fn nanoseconds(value: &Value) -> Result<u64, String> {
    text(value)?.parse::<u64>().map_err(|err| format!("{value}: {err}"))
}

fn attributes(value: &Value) -> Result<BTreeMap<String, String>, String> {
    let mut attributes = BTreeMap::new();
    for attribute in list(value)? {
        let (key, value) = (text(&attribute["key"])?, &attribute["value"]);
        let value = match (&value["stringValue"], &value["intValue"]) {
            (said, Value::Null) => text(said)?,
            (Value::Null, number) => text(number)?.parse::<i64>().map_err(|err| err.to_string())?.to_string(),
            _ => return Err(format!("{key} has two values")),
        };
        if attributes.insert(key.clone(), value).is_some() {
            return Err(format!("{key} is there twice"));
        }
    }
    Ok(attributes)
}
