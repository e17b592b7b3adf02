#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use http::HeaderValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Sampler, SdkTracerProvider, SpanData, SpanProcessor},
};

use super::*;

/// Collects finished spans.
#[derive(Clone, Debug, Default)]
struct Finished(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Finished {
    fn on_start(&self, _: &mut SdkSpan, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().unwrap().push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Finished {
    fn next(&self) -> SpanData {
        self.0.lock().unwrap().remove(0)
    }
}

/// A tracer whose clock stands at one second, and the spans it finishes.
fn tracer(sample_ratio: f64) -> (Tracer, Finished) {
    let finished = Finished::default();
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(sample_ratio))))
        .with_span_processor(finished.clone())
        .build();
    (Tracer::new(provider.tracer("test"), Clock::manual(1_000)), finished)
}

fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in all {
        headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
    }
    headers
}

// The example in the specification.
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn attributes(span: &SpanData) -> Vec<(&str, String)> {
    span.attributes.iter().map(|pair| (pair.key.as_str(), pair.value.to_string())).collect()
}

#[tokio::test]
async fn spans_are_nested_under_each_other_and_under_the_callers() {
    let (tracer, spans) = tracer(0.0);
    let mut request = tracer
        .request(&headers(&[("traceparent", PARENT), ("tracestate", "a=1")]), &Method::POST, Some("/notify"))
        .unwrap();
    under(Some(&request), async {
        assert_eq!(current_trace().unwrap().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        let elsewhere = tokio::spawn(carried(async {
            let request = Request::get("https://user:pw@push.example:8443/secret?token=secret").body(()).unwrap();
            call(&request).unwrap().status(StatusCode::NOT_FOUND, 400);
        }));
        elsewhere.await.unwrap();
    })
    .await;
    request.status(StatusCode::NOT_FOUND, 500);
    drop(request);
    assert_eq!(current_trace(), None);

    let (client, server) = (spans.next(), spans.next());
    let trace = server.span_context.trace_id();
    assert_eq!(trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(server.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert_eq!((&*server.name, &server.span_kind, &server.status), ("POST /notify", &Kind::Server, &Status::Unset));
    assert_eq!(
        attributes(&server),
        [
            ("http.request.method", "POST".to_owned()),
            ("http.route", "/notify".to_owned()),
            ("http.response.status_code", "404".to_owned()),
        ]
    );
    // The manual clock stands at one second; durations are measured from there on the monotonic clock.
    let begin = UNIX_EPOCH + Duration::from_secs(1);
    assert!(begin <= server.start_time && server.start_time < client.start_time);
    assert!(client.start_time <= client.end_time && client.end_time <= server.end_time);
    assert!(server.end_time < begin + Duration::from_secs(30), "{:?}", server.end_time);
    assert_eq!((client.span_context.trace_id(), client.parent_span_id), (trace, server.span_context.span_id()));
    assert_eq!((&*client.name, &client.span_kind, &client.status), ("GET", &Kind::Client, &Status::error("")));
    assert_eq!(
        attributes(&client),
        [
            ("http.request.method", "GET".to_owned()),
            ("server.address", "push.example".to_owned()),
            ("http.response.status_code", "404".to_owned()),
            ("error.type", "404".to_owned()),
        ]
    );
    for span in [&server, &client] {
        assert_eq!(span.span_context.trace_state().header(), "a=1");
        assert!(span.events.is_empty() && span.links.is_empty());
    }
}

#[tokio::test]
async fn a_trace_that_is_not_sampled_has_no_spans() {
    let (tracer, spans) = tracer(1.0);
    let unsampled = PARENT.replace("-01", "-00");
    let span = tracer.request(&headers(&[("traceparent", &unsampled)]), &Method::GET, None);
    assert!(span.is_none());
    under(span.as_ref(), async { assert!(child(Kind::Internal, "work").is_none()) }).await;
    assert!(child(Kind::Internal, "work").is_none());
    assert!(spans.0.lock().unwrap().is_empty());
}

#[test]
fn without_a_callers_decision_the_ratio_decides() {
    for (ratio, expected) in [(0.0, false), (1.0, true)] {
        let (tracer, _) = tracer(ratio);
        let twice = [("traceparent", PARENT), ("traceparent", PARENT)];
        for headers in [HeaderMap::new(), headers(&[("traceparent", "nonsense")]), headers(&twice)] {
            assert_eq!(tracer.request(&headers, &Method::GET, None).is_some(), expected, "{headers:?}");
        }
    }
}

#[test]
fn the_callers_tracestate_is_kept_up_to_its_size_limit() {
    let longest = format!("a={}", "x".repeat(253)) + "," + &format!("b={}", "y".repeat(254));
    assert_eq!(longest.len(), MAX_TRACESTATE);
    let too_long = format!("{longest}z");
    for (states, expected) in [
        (vec![], ""),
        (vec!["congo=t61rcWkgMzE"], "congo=t61rcWkgMzE"),
        // Section 3.3: several headers are one list.
        (vec!["congo=1", "rojo=2"], "congo=1,rojo=2"),
        (vec![longest.as_str()], longest.as_str()),
        (vec![too_long.as_str()], ""),
        (vec!["no list"], ""),
    ] {
        let (tracer, spans) = tracer(1.0);
        let all: Vec<_> =
            [("traceparent", PARENT)].into_iter().chain(states.iter().map(|s| ("tracestate", *s))).collect();
        drop(tracer.request(&headers(&all), &Method::GET, None));
        assert_eq!(spans.next().span_context.trace_state().header(), expected, "{states:?}");
    }
}

#[test]
fn an_invented_method_never_appears_in_a_span() {
    let (tracer, spans) = tracer(1.0);
    let method = Method::from_bytes(b"SWORDFISH").unwrap();
    drop(tracer.request(&HeaderMap::new(), &method, None));
    let span = spans.next();
    assert_eq!(span.name, "HTTP");
    assert_eq!(attributes(&span), [("http.request.method", "_OTHER".to_owned())]);
}
