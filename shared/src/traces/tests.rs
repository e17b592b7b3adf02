#![allow(clippy::unwrap_used)]

use http::HeaderValue;

use super::*;

/// A tracer and the spans that it would send.
fn tracer(sample_ratio: f64, room: usize) -> (Tracer, mpsc::Receiver<Finished>) {
    let (queue, spans) = mpsc::channel(room);
    let config = TracesConfig { otlp_endpoint: Some("http://127.0.0.1:1".to_owned()), ..TracesConfig::default() };
    let outbound = OutboundConfig { dns_servers: vec!["127.0.0.1:1".parse().unwrap()], ..OutboundConfig::default() };
    let link = link(&config, &outbound).unwrap().unwrap();
    let inner = Inner {
        sample_ratio,
        clock: Clock::manual(1_000),
        queue,
        metrics: TraceMetrics::register(&mut Registry::default()),
        link: Current::new(Arc::new(link)),
        exporting: Mutex::new(None),
    };
    (Tracer(Arc::new(inner)), spans)
}

fn asked_by(traceparent: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(http::HeaderName::from_static("traceparent"), HeaderValue::from_static(traceparent))])
}

#[tokio::test]
async fn spans_are_below_each_other_and_below_the_callers() {
    let (tracer, mut spans) = tracer(0.0, 10);
    let headers = asked_by("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
    let mut request = tracer.request(&headers, &Method::POST, Some("/notify")).unwrap();
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

    let (client, server) = (spans.recv().await.unwrap(), spans.recv().await.unwrap());
    assert_eq!(server.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(server.parent.unwrap().to_string(), "00f067aa0ba902b7");
    assert_eq!((&*server.name, server.kind, server.failed), ("POST /notify", Kind::Server, false));
    assert_eq!(
        server.attributes,
        [
            ("http.request.method", "POST".into()),
            ("http.route", "/notify".into()),
            ("http.response.status_code", 404_i64.into()),
        ]
    );
    // The clock stands still at one second, and what is measured from there goes on.
    assert_eq!(server.begun_ns, 1_000_000_000);
    assert!(server.begun_ns < client.begun_ns && client.begun_ns <= client.ended_ns);
    assert!(client.ended_ns <= server.ended_ns && server.ended_ns < 31_000_000_000, "{}", server.ended_ns);
    assert_eq!((client.trace, client.parent), (server.trace, Some(server.span)));
    assert_eq!((&*client.name, client.kind, client.failed), ("GET", Kind::Client, true));
    assert_eq!(
        client.attributes,
        [
            ("http.request.method", "GET".into()),
            ("server.address", "push.example".into()),
            ("http.response.status_code", 404_i64.into()),
            ("error.type", "404".into()),
        ]
    );
}

#[tokio::test]
async fn a_trace_that_is_not_recorded_has_no_spans() {
    let (tracer, _spans) = tracer(1.0, 10);
    let unsampled = asked_by("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00");
    let span = tracer.request(&unsampled, &Method::GET, None);
    assert!(span.is_none());
    under(span.as_ref(), async { assert!(child(Kind::Internal, "work").is_none()) }).await;
    assert!(child(Kind::Internal, "work").is_none());
}

#[tokio::test]
async fn what_a_caller_does_not_decide_the_ratio_does() {
    for (ratio, expected) in [(0.0, false), (1.0, true)] {
        let (tracer, _spans) = tracer(ratio, 10);
        for headers in [HeaderMap::new(), asked_by("nonsense")] {
            assert_eq!(tracer.request(&headers, &Method::GET, None).is_some(), expected);
        }
    }
}

#[tokio::test]
async fn a_made_up_method_is_no_name() {
    let (tracer, mut spans) = tracer(1.0, 10);
    let method = Method::from_bytes(b"SWORDFISH").unwrap();
    drop(tracer.request(&HeaderMap::new(), &method, None));
    let span = spans.recv().await.unwrap();
    assert_eq!((&*span.name, &span.attributes[0].1), ("HTTP", &Value::from("_OTHER")));
}

#[tokio::test]
async fn what_finds_no_room_is_dropped_and_counted() {
    let (tracer, _spans) = tracer(1.0, 2);
    for _ in 0..5 {
        drop(tracer.request(&HeaderMap::new(), &Method::GET, None));
    }
    assert_eq!(tracer.0.metrics.0[Ended::Dropped as usize].get(), 3);
}
