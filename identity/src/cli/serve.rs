//! `waypost-identity serve`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use prometheus_client::registry::Registry;
use waypost_shared::{
    clock::Clock,
    current::Current,
    http::server,
    service::{
        Service,
        reload::{Reasons, Renewed},
    },
    telemetry::otlp::Exporter,
};

use crate::{
    app::{self, App},
    config::Config,
    jobs,
    routes::{internal_routes, routes},
};

/// The service's name on the status page and in traces.
const NAME: &str = "waypost-identity";

/// Serves until a signal says to stop. `path` is the file that `config` was read from, if any.
pub(super) async fn serve(mut config: Config, path: Option<PathBuf>) -> Result<(), Box<dyn std::error::Error>> {
    let mut reasons = Reasons::new(config.secret_files())?;
    let operations = server::bind(&config.listen.operations.to_string()).await?;
    let public = server::bind(&config.listen.public.to_string()).await?;
    let internal = match config.listen.internal {
        Some(address) => Some(server::bind(&address.to_string()).await?),
        None => None,
    };
    // Port 0 has become a real one, which links in emails need.
    config.listen.public = public.local_addr()?;
    let at = (public.local_addr()?, operations.local_addr()?);

    let _alone = app::serve_alone(&config)?;
    let mut registry = Registry::default();
    let app = Arc::new(App::new(config, Clock::System, &mut registry).await?);
    // Only now: it may have generated one of them.
    reasons.watch_start_files(app.config.start_files());
    let (traces, outbound) = (&app.config.traces, &app.config.outbound);
    let exporter = Exporter::start(traces, outbound, NAME, app.metrics.traces.clone(), Clock::System)?;
    let current = Current::new(app.clone());
    let mut service = Service::start(NAME, &app.config.server, operations, registry, exporter, {
        let current = current.clone();
        move || {
            let app = current.get();
            async move { app.facts().await }
        }
    })?;
    let Some(loaded) = service.unless_stopped(app.load_index()).await else { return Ok(()) };
    let cursor = loaded?;
    service.job("replication", jobs::follow(app.clone(), cursor, service.stop()));
    service.job("peppers", jobs::peppers::keep_up(current.clone(), service.stop()));
    service.job("housekeeping", jobs::clean(current.clone(), service.stop()));
    service.job("outbox", jobs::outbox::deliver(current.clone(), service.stop()));
    service.reload(&current, reasons, app.metrics.reloads.clone(), move |app, exporter| {
        read_again(app, exporter, path.as_deref())
    });
    if let Some(listener) = internal {
        tracing::info!(internal = %listener.local_addr()?, "listening internally");
        service.listen("internal listener", listener, internal_routes(), &current, None);
    }
    let metrics = Some(app.metrics.http.clone());
    service.listen("public listener", public, routes(app.config.v1.mode), &current, metrics);
    tracing::info!(public = %at.0, operations = %at.1, associations = app.lookups.len(), "listening");
    let ended = service.run().await;
    app.store.close().await;
    tracing::info!("stopped");
    Ok(ended?)
}

/// Rereads the configuration, and builds the state that follows from it.
fn read_again(
    app: &App,
    exporter: Option<&Exporter>,
    path: Option<&Path>,
) -> Result<Renewed<Arc<App>>, Box<dyn std::error::Error + Send + Sync>> {
    let (mut renewed, waiting) = app.renewed(Config::load(path)?.config)?;
    if let Some(exporter) = exporter {
        exporter.renew(&renewed.config.traces, &renewed.config.outbound)?;
    }
    renewed.take_over();
    let (files, level) = (renewed.config.secret_files(), renewed.config.log.level);
    Ok(Renewed { state: Arc::new(renewed), files, level, waiting })
}
