//! Source: Identity Service API, "API version check" and "Status check".

use std::sync::Arc;

use serde_json::{Map, json};
use waypost_shared::http::{Incoming, Response, json};

use crate::{app::App, error::ApiError};

/// The versions of the specification whose endpoints are served.
const VERSIONS: [&str; 19] = [
    "v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12", "v1.13",
    "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
];

/// `GET /_matrix/identity/versions`: the supported versions.
pub(crate) async fn versions(_app: Arc<App>, _request: Incoming) -> Result<Response, ApiError> {
    Ok(json(&json!({ "versions": VERSIONS })))
}

/// `GET /_matrix/identity/v2`: confirms that this is an identity server.
pub(crate) async fn ping(_app: Arc<App>, _request: Incoming) -> Result<Response, ApiError> {
    Ok(json(&Map::new()))
}
