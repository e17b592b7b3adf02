//! Calling a homeserver whose destination is known.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header::CONTENT_TYPE};
use waypost_shared::client::{CallLimits, HttpClient, Outbound, Reach, Targets};

use super::{destination::Destination, error::HomeserverError};

/// Homeservers answer with a line or two.
const LIMITS: CallLimits = CallLimits { timeout: Duration::from_secs(15), max_body: 64 * 1024 };

/// A client for homeservers. It connects to public addresses only, since strangers choose the server names.
pub(super) struct Client {
    http: HttpClient,
    targets: Targets,
}

impl Client {
    pub(super) fn new(outbound: &Outbound) -> Self {
        let targets = Targets::default();
        Self { http: outbound.client_with_targets(Reach::PublicOnly, targets.clone()), targets }
    }

    pub(super) async fn get(&self, destination: Destination, path: &str) -> Result<Response<Bytes>, HomeserverError> {
        self.targets.set(&destination.authority, destination.targets);
        let request = Request::get(format!("https://{}{path}", destination.authority))
            .body(Bytes::new())
            .map_err(|_| HomeserverError::InvalidName)?;
        self.http.send(request, LIMITS).await.map_err(HomeserverError::Unreachable)
    }

    /// Sends JSON.
    pub(super) async fn send(
        &self,
        method: Method,
        destination: Destination,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Bytes>, HomeserverError> {
        self.targets.set(&destination.authority, destination.targets);
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", destination.authority))
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(|_| HomeserverError::InvalidName)?;
        self.http.send(request, LIMITS).await.map_err(HomeserverError::Unreachable)
    }
}
