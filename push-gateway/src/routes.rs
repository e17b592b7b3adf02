//! Every endpoint of the public listener, one per line.

use std::sync::Arc;

use waypost_shared::http::Router;

use crate::{app::App, notify};

/// The public routes.
pub(crate) fn public() -> Router<Arc<App>> {
    Router::new()
        .post_large("/_matrix/push/v1/notify", notify::notify)
        .get("/_matrix/push/v1/notify", notify::discovery)
}
