//! `waypost-push-gateway serve`: listens, reads the configuration again, stops.

use std::{path::PathBuf, sync::Arc};

use prometheus_client::registry::Registry;
use waypost_shared::{
    clock::Clock,
    config_file,
    current::Current,
    health::{self, Operations, Readiness},
    otlp::Exporter,
    reload::{self, Reasons, Renewed},
    serve::{self, Stop},
    service_manager,
    status::About,
};

use crate::{
    app::{App, StartError},
    config::Config,
    routes,
    run_error::RunError,
};

/// The service's name on the status page and in traces.
const NAME: &str = "waypost-push-gateway";

/// Serves until a signal says to stop. `path` is the file that `config` was read from, if any.
pub(super) async fn run(
    config: &Config,
    app: Arc<App>,
    registry: Registry,
    path: Option<PathBuf>,
) -> Result<(), RunError> {
    let stop = Stop::on_signals()?;
    let reasons = Reasons::new(app.secret_files())?;
    let (http, reloads) = (Some(app.metrics.http.clone()), app.metrics.reloads.clone());
    let public = serve::bind(&config.listen.public.to_string()).await?;
    let operations = serve::bind(&config.listen.operations.to_string()).await?;
    let readiness = Readiness::default();
    let exporter = Exporter::start(&config.traces, &config.outbound, NAME, app.metrics.traces.clone(), Clock::System)
        .map_err(StartError::from)?;
    let tracer = exporter.as_ref().map(Exporter::tracer);
    app.deliveries.connect();
    let current = Current::new(app);
    let about = About::new(NAME, Clock::System, {
        let current = current.clone();
        move || std::future::ready(current.get().facts())
    });
    let state = Operations { registry: Arc::new(registry), readiness: readiness.clone(), about };
    let (public_address, operations_address) = (public.local_addr()?, operations.local_addr()?);
    tracing::info!(public = %public_address, operations = %operations_address, "listening");
    readiness.set(true);
    service_manager::ready();

    let exporter_to_renew = exporter.clone();
    // In a task of its own: connections are accepted while files are read.
    let reloading =
        tokio::spawn(reload::keep_up(current.clone(), reasons, reloads, stop.clone(), move |app: &Arc<App>| {
            let (renewed, waiting) =
                app.renewed(config_file::load::<Config>(path.as_deref(), config_file::environment())?)?;
            if let Some(exporter) = &exporter_to_renew {
                exporter.renew(&renewed.whole().traces, &renewed.whole().outbound)?;
            }
            Ok(Renewed { files: renewed.secret_files(), level: renewed.log_level(), state: renewed, waiting })
        }));
    // Health is answered until the last request has ended, and is not ready from the moment of the stop.
    let (until_served, served) = Stop::manual();
    let public = async {
        let ended = serve::serve(public, routes::public(), current, &config.server, http, tracer, stop.clone()).await;
        if let Some(exporter) = &exporter {
            exporter.stop().await;
        }
        drop(until_served);
        ended
    };
    let operations = serve::serve_apart("operations", operations, health::routes(), state, &config.server, served)?;
    let unready = async {
        stop.requested().await;
        readiness.set(false);
        service_manager::stopping();
    };
    let (public, operations, (), reloading) = tokio::join!(public, operations, unready, reloading);
    public?;
    operations?;
    reloading.map_err(std::io::Error::other)?;
    Ok(())
}
