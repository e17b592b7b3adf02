//! A stand-in for an OpenTelemetry collector: accepts OTLP over HTTP as Protobuf, and records the spans.
//!
//! It answers 400 to everything that violates the specification (opentelemetry/proto/trace/v1/trace.proto) or has a
//! field that our programs never send, so a recorded span was understood completely.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU16, Ordering};

use ::http::Method;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1 as proto;
use prost::Message as _;

use crate::ca::{Alpn, Ca};
use crate::record::Record;
use crate::tls_server::{Answer, Request, TlsServer};

/// `SPAN_KIND_INTERNAL`.
pub const INTERNAL: i32 = 1;
/// `SPAN_KIND_SERVER`.
pub const SERVER: i32 = 2;
/// `SPAN_KIND_CLIENT`.
pub const CLIENT: i32 = 3;

const PROTOBUF: &str = "application/x-protobuf";

/// A recorded span.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// `service.name` of its process.
    pub service: String,
    /// All attributes of its process.
    pub resource: BTreeMap<String, String>,
    /// 32 hexadecimal digits.
    pub trace: String,
    /// 16 hexadecimal digits.
    pub id: String,
    /// The parent span's id, likewise; empty if there is none.
    pub parent: String,
    /// The `tracestate`.
    pub state: String,
    /// Its name.
    pub name: String,
    /// [`INTERNAL`], [`SERVER`] or [`CLIENT`].
    pub kind: i32,
    /// Start, in nanoseconds since the epoch.
    pub begun_ns: u64,
    /// End, in nanoseconds since the epoch.
    pub ended_ns: u64,
    /// Its attributes; numbers as text.
    pub attributes: BTreeMap<String, String>,
    /// Whether its status is an error.
    pub failed: bool,
}

impl Span {
    /// An attribute; empty if absent.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map(String::as_str).unwrap_or_default()
    }
}

/// A running collector.
#[derive(Debug)]
pub struct Collector {
    /// The underlying server, with all requests.
    pub server: TlsServer,
    /// Every accepted span.
    pub spans: Arc<Record<Span>>,
    status: Arc<AtomicU16>,
    rejected: Arc<AtomicI64>,
}

impl Collector {
    /// Starts one with a certificate issued by `ca`.
    pub async fn start(ca: &Ca) -> Self {
        let spans = Arc::new(Record::default());
        let status = Arc::new(AtomicU16::new(200));
        let rejected = Arc::new(AtomicI64::new(0));
        let server = TlsServer::start(ca.leaf(&["127.0.0.1"], Alpn::Both), {
            let (spans, status, rejected) = (Arc::clone(&spans), Arc::clone(&status), Arc::clone(&rejected));
            move |request| {
                let rejected = rejected.load(Ordering::SeqCst);
                let answer = answer(&request, &spans, status.load(Ordering::SeqCst), rejected);
                async move { answer }
            }
        })
        .await;
        Self { server, spans, status, rejected }
    }

    /// Answers with this status from now on, and accepts spans only if it is 200.
    pub fn answer(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    /// Reports this many rejected spans for each batch from now on.
    pub fn reject(&self, spans: i64) {
        self.rejected.store(spans, Ordering::SeqCst);
    }

    /// Waits for a span.
    pub async fn span(&self, what: &str, fits: impl Fn(&Span) -> bool) -> Span {
        self.spans.wait_for(what, fits).await
    }

    /// All request bodies, accepted or not, as lossy text.
    pub fn text(&self) -> String {
        let bodies = self.server.requests.all();
        bodies.iter().map(|request| String::from_utf8_lossy(&request.body).into_owned()).collect()
    }
}

fn answer(request: &Request, spans: &Record<Span>, status: u16, rejected: i64) -> Answer {
    if status != 200 {
        return Answer::empty(status);
    }
    match decode(request) {
        Ok(taken) => {
            for span in taken {
                spans.push(span);
            }
            let partial = ExportTracePartialSuccess { rejected_spans: rejected, error_message: String::new() };
            let answer = ExportTraceServiceResponse { partial_success: (rejected > 0).then_some(partial) };
            Answer::bytes(200, answer.encode_to_vec()).header("content-type", PROTOBUF)
        }
        Err(mistake) => Answer::text(400, &mistake),
    }
}

fn decode(request: &Request) -> Result<Vec<Span>, String> {
    if request.method != Method::POST || request.path != "/v1/traces" || !request.query.is_empty() {
        return Err(format!("{} {}", request.method, request.path));
    }
    if request.header("content-type") != PROTOBUF {
        return Err(format!("content type {}", request.header("content-type")));
    }
    let body = ExportTraceServiceRequest::decode(request.body.clone()).map_err(|error| error.to_string())?;
    let mut spans = Vec::new();
    for resource_spans in body.resource_spans {
        let resource = attributes(resource_spans.resource.ok_or("no resource")?.attributes)?;
        for scope_spans in resource_spans.scope_spans {
            for span in scope_spans.spans {
                spans.push(read(span, &resource)?);
            }
        }
    }
    Ok(spans)
}

fn read(span: proto::Span, resource: &BTreeMap<String, String>) -> Result<Span, String> {
    if !span.events.is_empty() || !span.links.is_empty() {
        return Err("events and links are none of ours".to_owned());
    }
    if span.dropped_attributes_count + span.dropped_events_count + span.dropped_links_count > 0 {
        return Err("a part of the span was dropped".to_owned());
    }
    if span.end_time_unix_nano < span.start_time_unix_nano {
        return Err("it ends before it begins".to_owned());
    }
    let status = span.status.unwrap_or_default();
    if !status.message.is_empty() {
        return Err("a status of ours has no message".to_owned());
    }
    let parent = &span.parent_span_id;
    Ok(Span {
        service: resource.get("service.name").ok_or("no service.name")?.clone(),
        resource: resource.clone(),
        trace: id(&span.trace_id, 16)?,
        id: id(&span.span_id, 8)?,
        parent: if parent.is_empty() { String::new() } else { id(parent, 8)? },
        state: span.trace_state,
        name: span.name,
        kind: span.kind,
        begun_ns: span.start_time_unix_nano,
        ended_ns: span.end_time_unix_nano,
        attributes: attributes(span.attributes)?,
        failed: status.code == proto::status::StatusCode::Error as i32,
    })
}

fn id(bytes: &[u8], length: usize) -> Result<String, String> {
    let good = bytes.len() == length && bytes.iter().any(|byte| *byte != 0);
    let text = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if good { Ok(text) } else { Err(format!("{text} is no id of {length} bytes")) }
}

fn attributes(all: Vec<KeyValue>) -> Result<BTreeMap<String, String>, String> {
    let mut attributes = BTreeMap::new();
    for KeyValue { key, value, .. } in all {
        let value = match value.and_then(|value| value.value) {
            Some(any_value::Value::StringValue(text)) => text,
            Some(any_value::Value::IntValue(number)) => number.to_string(),
            other => return Err(format!("{key} is neither text nor number: {other:?}")),
        };
        if attributes.insert(key.clone(), value).is_some() {
            return Err(format!("{key} is there twice"));
        }
    }
    Ok(attributes)
}
