//! `serve`: runs the gateway.

use std::{path::PathBuf, sync::Arc};

use prometheus_client::registry::Registry;
use waypost_shared::{
    clock::Clock,
    config::file as config_file,
    current::Current,
    http::server,
    service::{
        Service,
        reload::{Reasons, Renewed},
    },
    telemetry::otlp::Exporter,
};

use crate::{
    app::{App, StartError},
    config::Config,
    routes,
    run_error::RunError,
};

/// The service's name on the status page and in traces.
const NAME: &str = "waypost-push-gateway";

/// Serves until SIGTERM or SIGINT. `path` is the file that `config` was read from, if any.
pub(super) async fn run(
    config: &Config,
    app: Arc<App>,
    registry: Registry,
    path: Option<PathBuf>,
) -> Result<(), RunError> {
    let mut reasons = Reasons::new(config.secret_files())?;
    reasons.watch_start_files(config.start_files());
    let operations = server::bind(&config.listen.operations.to_string()).await?;
    let public = server::bind(&config.listen.public.to_string()).await?;
    let at = (public.local_addr()?, operations.local_addr()?);
    let traces = app.metrics.traces.clone();
    let exporter =
        Exporter::start(&config.traces, &config.outbound, NAME, traces, Clock::System).map_err(StartError::from)?;
    app.deliveries.connect();
    let current = Current::new(app.clone());
    let mut service = Service::start(NAME, &config.server, operations, registry, exporter, {
        let current = current.clone();
        move || std::future::ready(current.get().facts())
    })?;
    service.reload(&current, reasons, app.metrics.reloads.clone(), move |app: &Arc<App>, exporter| {
        let (renewed, waiting) = app.renewed(Config::load(path.as_deref(), config_file::environment())?)?;
        if let Some(exporter) = exporter {
            exporter.renew(&renewed.whole().traces, &renewed.whole().outbound)?;
        }
        renewed.take_over(app);
        Ok(Renewed { files: renewed.whole().secret_files(), level: renewed.log_level(), state: renewed, waiting })
    });
    service.listen("public listener", public, routes::public(), &current, Some(app.metrics.http.clone()));
    tracing::info!(public = %at.0, operations = %at.1, "listening");
    Ok(service.run().await?)
}
