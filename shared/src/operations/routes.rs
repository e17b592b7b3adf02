//! The operations listener: health for the orchestrator and metrics for Prometheus, never on the public port.

use http::StatusCode;
use serde_json::json;

use crate::{
    http::{Incoming, MatrixError, Response, Router, json, json_with, with_body},
    operations::status::{self, Operations},
    telemetry::metrics,
};

/// The routes of the operations listener.
#[must_use]
pub fn routes() -> Router<Operations> {
    Router::new()
        .private()
        .get("/", status::page)
        .get("/status", status::status)
        .get("/health/live", live)
        .get("/health/ready", ready)
        .get("/metrics", metrics_text)
}

/// `GET /health/live`: 200 if the process responds at all.
async fn live(_operations: Operations, _request: Incoming) -> Result<Response, MatrixError> {
    Ok(json(&json!({"status": "live"})))
}

/// `GET /health/ready`: 200 if the service can take requests, otherwise 503.
async fn ready(operations: Operations, _request: Incoming) -> Result<Response, MatrixError> {
    Ok(if operations.readiness.get() {
        json(&json!({"status": "ready"}))
    } else {
        json_with(StatusCode::SERVICE_UNAVAILABLE, &json!({"status": "not ready"}))
    })
}

/// `GET /metrics`: OpenMetrics text.
async fn metrics_text(operations: Operations, _request: Incoming) -> Result<Response, MatrixError> {
    let text = metrics::text(&operations.registry);
    Ok(with_body(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        io::{Read as _, Write as _},
        net::TcpStream,
        sync::Arc,
        time::Duration,
    };

    use super::*;
    use crate::operations::{health::Readiness, status::About};
    use crate::{
        clock::Clock,
        http::server::{self, ServerConfig},
        stop::Stop,
    };

    /// The runtime has one thread, which this test blocks until the response has arrived.
    #[tokio::test]
    async fn liveness_is_answered_while_the_runtime_is_blocked() {
        let listener = server::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = Stop::manual();
        let operations = Operations {
            registry: Arc::default(),
            readiness: Readiness::default(),
            about: About::new("test", Clock::System, || std::future::ready(status::Facts::default())),
        };
        let config = ServerConfig::default();
        let served = server::serve_apart("operations", listener, routes(), operations, &config, stopped).unwrap();

        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

        stop.send(true).unwrap();
        served.await.unwrap();
    }
}
