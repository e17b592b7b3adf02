//! The command line.

mod doctor;
mod send_test;

use std::{io, path::PathBuf, process::ExitCode, sync::Arc};

use clap::{Parser, Subcommand};
use prometheus_client::registry::Registry;
use waypost_shared::{
    clock::Clock,
    config_file::{self, CONFIG_VARIABLE, Loaded},
    health::{self, Operations, Readiness},
    http::causes,
    secret::ExposeSecret as _,
    serve::{self, Stop},
    telemetry,
};

use crate::{
    app::{App, StartError},
    config::Config,
    jwt::Es256Key,
    routes,
};

/// A Matrix push gateway: APNs, FCM, web push and UnifiedPush.
#[derive(Debug, Parser)]
#[command(name = "waypost-push-gateway", version)]
pub(crate) struct Cli {
    /// The configuration file; without one the defaults hold, and `WAYPOST_…` variables override either.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Take notifications and pass them on, until SIGTERM or SIGINT.
    Serve,
    /// Read the configuration and all files that it names, and say what was understood.
    CheckConfig,
    /// Try each app's credentials, and say for each that does not work what to change.
    Doctor,
    /// Send one push, and show what was sent, what came back and what it means.
    SendTest(send_test::Options),
    /// Make a VAPID key: the file for `vapid_key_file` on standard output, its public half on standard error.
    Vapid,
}

/// Why the process ends without success.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The configuration, or what it names.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Listening or signals.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An option of the command line that cannot be understood.
    #[error("{0}")]
    Usage(String),
    /// `doctor` found something.
    #[error("{0} of the checks failed")]
    Unhealthy(usize),
    /// `send-test` did not get through.
    #[error("the push was not delivered")]
    Undelivered,
    /// The machine gives no randomness.
    #[error("no key could be made")]
    NoKey,
}

impl RunError {
    /// 2 for the configuration, 1 for all else.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Start(_) | Self::Usage(_) => ExitCode::from(2),
            Self::Io(_) | Self::Unhealthy(_) | Self::Undelivered | Self::NoKey => ExitCode::FAILURE,
        }
    }

    /// What is wrong, with its causes, for standard error.
    pub(crate) fn text(&self) -> String {
        match causes(self) {
            causes if causes.is_empty() => self.to_string(),
            causes => format!("{self}: {causes}"),
        }
    }
}

/// Does what the command line asks.
pub(crate) async fn run(cli: Cli) -> Result<(), RunError> {
    if matches!(cli.command, Command::Vapid) {
        return vapid();
    }
    let path = cli.config.or_else(|| std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from));
    // Variables that are not text are none of ours.
    let environment =
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let loaded: Loaded<Config> = config_file::load(path.as_deref(), environment).map_err(StartError::from)?;
    telemetry::init(&loaded.config.log);
    let mut registry = Registry::default();
    let app = App::new(&loaded, &mut registry, Clock::System)?;
    match cli.command {
        Command::Serve => serve(&loaded.config, app, registry).await,
        Command::CheckConfig => {
            println!("{}", app.summary(&loaded.config));
            Ok(())
        }
        Command::Doctor => doctor::run(&app, &Clock::System).await,
        Command::SendTest(options) => send_test::run(&app, &options).await,
        Command::Vapid => vapid(),
    }
}

/// Standard output is the file, so that `vapid > vapid.pem` makes one.
fn vapid() -> Result<(), RunError> {
    let (key, pem) = Es256Key::generate().map_err(|_| RunError::NoKey)?;
    print!("{}", pem.expose_secret());
    eprintln!("applicationServerKey: {}", key.public_key());
    Ok(())
}

async fn serve(config: &Config, app: Arc<App>, registry: Registry) -> Result<(), RunError> {
    let stop = Stop::on_signals()?;
    let metrics = Some(app.http.clone());
    let public = serve::bind(&config.listen.public.to_string()).await?;
    let operations = serve::bind(&config.listen.operations.to_string()).await?;
    let readiness = Readiness::default();
    let state = Operations { registry: Arc::new(registry), readiness: readiness.clone() };
    let (public_address, operations_address) = (public.local_addr()?, operations.local_addr()?);
    tracing::info!(public = %public_address, operations = %operations_address, "listening");
    readiness.set(true);

    // Health is answered until the last request has ended, and is not ready from the moment of the stop.
    let (until_served, served) = Stop::manual();
    let public = async {
        let ended = serve::serve(public, routes::public(&app), app, &config.server, metrics, stop.clone()).await;
        drop(until_served);
        ended
    };
    let operations = serve::serve(operations, health::routes(), state, &config.server, None, served);
    let unready = async {
        stop.requested().await;
        readiness.set(false);
    };
    let (public, operations, ()) = tokio::join!(public, operations, unready);
    public?;
    operations?;
    Ok(())
}
