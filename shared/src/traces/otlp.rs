//! Spans as a collector reads them: OTLP's JSON.
//!
//! Source: OpenTelemetry Protocol Specification, "JSON Protobuf Encoding" (ids are hexadecimal, 64-bit numbers are
//! strings, enums are numbers); opentelemetry/proto/trace/v1/trace.proto.

use bytes::Bytes;
use serde_json::{Map, Value as Json, json};

use super::{Finished, Kind, Value};

/// `STATUS_CODE_ERROR`.
const ERROR: u8 = 2;

/// Who the spans are of.
#[derive(Clone, Debug)]
pub(super) struct Resource {
    pub(super) service: &'static str,
    /// Another one for each process.
    pub(super) instance: String,
}

/// The body of one call: an `ExportTraceServiceRequest`.
pub(super) fn body(resource: &Resource, spans: &[Finished]) -> Bytes {
    let version = env!("CARGO_PKG_VERSION");
    let request = json!({"resourceSpans": [{
        "resource": {"attributes": [
            attribute("service.name", &resource.service.into()),
            attribute("service.version", &version.into()),
            attribute("service.instance.id", &resource.instance.clone().into()),
        ]},
        "scopeSpans": [{
            "scope": {"name": "waypost", "version": version},
            "spans": spans.iter().map(span).collect::<Vec<_>>(),
        }],
    }]});
    Bytes::from(request.to_string())
}

/// How many spans the collector says that it did not take, in an answer that says it took some.
pub(super) fn rejected(answer: &[u8]) -> u64 {
    let answer: Json = serde_json::from_slice(answer).unwrap_or_default();
    let rejected = &answer["partialSuccess"]["rejectedSpans"];
    rejected.as_u64().or_else(|| rejected.as_str()?.parse().ok()).unwrap_or_default()
}

fn span(span: &Finished) -> Json {
    let kind: u8 = match span.kind {
        Kind::Internal => 1,
        Kind::Server => 2,
        Kind::Client => 3,
    };
    let mut json = Map::new();
    let mut put = |key: &str, value: Json| drop(json.insert(key.to_owned(), value));
    put("traceId", span.trace.to_string().into());
    put("spanId", span.span.to_string().into());
    if let Some(parent) = span.parent {
        put("parentSpanId", parent.to_string().into());
    }
    put("name", Json::from(&*span.name));
    put("kind", kind.into());
    put("startTimeUnixNano", span.begun_ns.to_string().into());
    put("endTimeUnixNano", span.ended_ns.to_string().into());
    put("attributes", span.attributes.iter().map(|(key, value)| attribute(key, value)).collect());
    put("status", if span.failed { json!({"code": ERROR}) } else { json!({}) });
    Json::Object(json)
}

fn attribute(key: &str, value: &Value) -> Json {
    let value = match value {
        Value::Text(text) => json!({"stringValue": text}),
        Value::Number(number) => json!({"intValue": number.to_string()}),
    };
    json!({"key": key, "value": value})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::traces::ids::{SpanId, TraceId};

    #[test]
    fn a_span_is_written_as_the_specification_has_it() {
        let (trace, span_id, parent) = (TraceId::random(), SpanId::random(), SpanId::random());
        let finished = Finished {
            trace,
            span: span_id,
            parent: Some(parent),
            kind: Kind::Server,
            name: "GET /a/{b}".into(),
            begun_ns: 1_544_712_660_000_000_000,
            ended_ns: 1_544_712_661_000_000_000,
            attributes: vec![("http.request.method", "GET".into()), ("http.response.status_code", 500_i64.into())],
            failed: true,
        };
        let resource = Resource { service: "waypost-test", instance: "1".to_owned() };
        let body: Json = serde_json::from_slice(&body(&resource, &[finished])).unwrap_or_default();
        let resource_spans = &body["resourceSpans"][0];
        assert_eq!(
            resource_spans["resource"]["attributes"][0],
            json!({"key": "service.name", "value": {"stringValue": "waypost-test"}})
        );
        assert_eq!(
            resource_spans["scopeSpans"][0]["spans"],
            json!([{
                "traceId": trace.to_string(),
                "spanId": span_id.to_string(),
                "parentSpanId": parent.to_string(),
                "name": "GET /a/{b}",
                "kind": 2,
                "startTimeUnixNano": "1544712660000000000",
                "endTimeUnixNano": "1544712661000000000",
                "attributes": [
                    {"key": "http.request.method", "value": {"stringValue": "GET"}},
                    {"key": "http.response.status_code", "value": {"intValue": "500"}},
                ],
                "status": {"code": 2},
            }])
        );
    }

    #[test]
    fn a_collector_may_refuse_some_of_them() {
        for (answer, expected) in [
            (r#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"no"}}"#, 3),
            (r#"{"partialSuccess":{"rejectedSpans":3}}"#, 3),
            (r#"{"partialSuccess":{}}"#, 0),
            ("{}", 0),
            ("", 0),
            ("<html>", 0),
        ] {
            assert_eq!(rejected(answer.as_bytes()), expected, "{answer}");
        }
    }
}
