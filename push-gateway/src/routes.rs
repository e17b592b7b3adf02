//! Every endpoint of the public listener, one on a line.

use std::sync::Arc;

use waypost_shared::http::Router;

use crate::{app::App, notify};

/// The public routes. Others discover a gateway for UnifiedPush by GET, and only where it is one.
pub(crate) fn public(app: &App) -> Router<Arc<App>> {
    let router = Router::new().post("/_matrix/push/v1/notify", notify::notify);
    if app.has_unifiedpush() { router.get("/_matrix/push/v1/notify", notify::discovery) } else { router }
}
