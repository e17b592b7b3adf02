#![allow(clippy::unwrap_used)]

use http::Method;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTracePartialSuccess;

use super::*;

/// An exporter with room for two spans, whose collector refuses connections. It exports only full batches, and at
/// shutdown.
fn exporter() -> Exporter {
    let config = TracesConfig {
        otlp_endpoint: Some("http://127.0.0.1:1".to_owned()),
        timeout_secs: 1,
        ..TracesConfig::default()
    };
    let outbound = OutboundConfig { dns_servers: vec!["127.0.0.1:1".parse().unwrap()], ..OutboundConfig::default() };
    let variables = |name: &str| match name {
        "OTEL_BSP_MAX_QUEUE_SIZE" => Some("2".to_owned()),
        "OTEL_BSP_SCHEDULE_DELAY" => Some("3600000".to_owned()),
        _ => None,
    };
    let settings = config.settings(&variables).unwrap().unwrap();
    let metrics = TraceMetrics::register(&mut Registry::default());
    Exporter::build(settings, &outbound, "test", metrics, Clock::manual(0)).unwrap()
}

fn trace(exporter: &Exporter, requests: usize) {
    for _ in 0..requests {
        drop(exporter.tracer().request(&HeaderMap::new(), &Method::GET, None).unwrap());
    }
}

/// Exported, refused, dropped.
fn counted(exporter: &Exporter) -> (u64, u64, u64) {
    let metrics = &exporter.queue.books.metrics;
    (metrics.exported.get(), metrics.refused.get(), metrics.dropped.get())
}

#[tokio::test]
async fn spans_that_do_not_fit_are_dropped_and_counted() {
    let exporter = exporter();
    // The first two cannot be exported before this task yields.
    trace(&exporter, 5);
    assert_eq!(counted(&exporter), (0, 0, 3));
}

#[tokio::test]
async fn a_stop_does_not_retry_and_counts_remaining_and_late_spans() {
    let exporter = exporter();
    trace(&exporter, 1);
    // A retry would outlast the one second allowed, and the span would count as dropped.
    exporter.stop().await;
    assert_eq!(counted(&exporter), (0, 1, 0));
    trace(&exporter, 2);
    assert_eq!(counted(&exporter), (0, 1, 2));
    exporter.stop().await;
    assert_eq!(counted(&exporter), (0, 1, 2));
}

#[test]
fn a_response_tells_how_many_spans_were_rejected() {
    let partial = ExportTracePartialSuccess { rejected_spans: 3, error_message: "too old".to_owned() };
    let answer = |partial_success| ExportTraceServiceResponse { partial_success }.encode_to_vec();
    assert_eq!(rejected(&answer(Some(partial))), 3);
    assert_eq!(rejected(&answer(None)), 0);
    assert_eq!(rejected(b"no protobuf"), 0);
}
