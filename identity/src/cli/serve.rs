//! `waypost-identity serve`: listens, works in the background, reads the configuration again, stops.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use prometheus_client::registry::Registry;
use waypost_shared::{
    clock::Clock,
    current::Current,
    health::{self, Operations, Readiness},
    otlp::Exporter,
    reload::{self, Reasons, Renewed},
    serve::{self, Stop},
    service_manager,
    status::About,
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
pub(super) async fn serve(config: Config, path: Option<PathBuf>) -> Result<(), Box<dyn std::error::Error>> {
    let stop = Stop::on_signals()?;
    let reasons = Reasons::new(config.secret_files())?;
    let readiness = Readiness::default();
    let mut registry = Registry::default();
    let operations_listener = serve::bind(&config.listen.operations.to_string()).await?;
    let public_listener = serve::bind(&config.listen.public.to_string()).await?;
    let internal_listener = match config.listen.internal {
        Some(address) => Some(serve::bind(&address.to_string()).await?),
        None => None,
    };
    let (public, operations) = (public_listener.local_addr()?, operations_listener.local_addr()?);
    let mut config = config;
    // Port 0 became a real one, which links in mails need.
    config.listen.public = public;
    let server = config.server.clone();
    let v1 = config.v1.mode;

    let _alone = app::serve_alone(&config)?;
    let app = Arc::new(App::new(config, Clock::System, &mut registry).await?);
    let (traces, outbound) = (&app.config.traces, &app.config.outbound);
    let exporter = Exporter::start(traces, outbound, NAME, app.metrics.traces.clone(), Clock::System)?;
    let tracer = exporter.as_ref().map(Exporter::tracer);
    let current = Current::new(app.clone());
    let about = About::new(NAME, Clock::System, {
        let current = current.clone();
        move || {
            let app = current.get();
            async move { app.facts().await }
        }
    });
    let shown = Operations { registry: Arc::new(registry), readiness: readiness.clone(), about };
    // Health and metrics are there until the end, and say "not ready" from the first moment of stopping.
    let (stop_operations, operations_stop) = Stop::manual();
    let serving_operations =
        serve::serve_apart("operations", operations_listener, health::routes(), shown, &server, operations_stop)?;
    tokio::spawn({
        let (readiness, stop) = (readiness.clone(), stop.clone());
        async move {
            stop.requested().await;
            readiness.set(false);
            service_manager::stopping();
        }
    });
    let cursor = app.load_index().await?;
    let jobs = [
        tokio::spawn(jobs::follow(app.clone(), cursor, stop.clone())),
        tokio::spawn(jobs::peppers::keep_up(current.clone(), stop.clone())),
        tokio::spawn(jobs::clean(current.clone(), stop.clone())),
        tokio::spawn(jobs::outbox::deliver(current.clone(), stop.clone())),
        tokio::spawn(reload::keep_up(current.clone(), reasons, app.metrics.reloads.clone(), stop.clone(), {
            let exporter = exporter.clone();
            move |app| read_again(app, exporter.as_ref(), path.as_deref())
        })),
    ];
    let serving_internal = match internal_listener {
        Some(listener) => {
            let internal = listener.local_addr()?;
            tracing::info!(%internal, "listening internally");
            let (current, server, stop, tracer) = (current.clone(), server.clone(), stop.clone(), tracer.clone());
            Some(tokio::spawn(async move {
                serve::serve(listener, internal_routes(), current, &server, None, tracer, stop).await
            }))
        }
        None => None,
    };
    readiness.set(true);
    service_manager::ready();
    tracing::info!(%public, %operations, associations = app.lookups.len(), "listening");
    let http = Some(app.metrics.http.clone());
    serve::serve(public_listener, routes(v1), current, &server, http, tracer, stop).await?;

    for job in jobs {
        job.await?;
    }
    if let Some(serving) = serving_internal {
        serving.await??;
    }
    if let Some(exporter) = exporter {
        exporter.stop().await;
    }
    stop_operations.send_replace(true);
    serving_operations.await?;
    app.store.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// The server with the configuration as it stands now.
fn read_again(
    app: &App,
    exporter: Option<&Exporter>,
    path: Option<&Path>,
) -> Result<Renewed<Arc<App>>, Box<dyn std::error::Error + Send + Sync>> {
    let (renewed, waiting) = app.renewed(Config::load(path)?.config)?;
    if let Some(exporter) = exporter {
        exporter.renew(&renewed.config.traces, &renewed.config.outbound)?;
    }
    let (files, level) = (renewed.config.secret_files(), renewed.config.log.level);
    Ok(Renewed { state: Arc::new(renewed), files, level, waiting })
}
