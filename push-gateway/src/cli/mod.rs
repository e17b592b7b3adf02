//! The command line.

mod doctor;
mod send_test;
mod serve;

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};
use prometheus_client::registry::Registry;
use waypost_shared::{
    clock::Clock,
    config::{file as config_file, file::CONFIG_VARIABLE, secret::ExposeSecret as _},
    service::command_line::{self, Shell},
    telemetry::logs,
};

use crate::{
    app::{App, StartError},
    config::Config,
    jwt::Es256Key,
    run_error::RunError,
};

/// A Matrix push gateway: APNs, FCM, web push and UnifiedPush.
#[derive(Debug, Parser)]
#[command(name = "waypost-push-gateway", version)]
pub(crate) struct Cli {
    /// The configuration file. Without one the defaults apply; `WAYPOST_…` environment variables override either.
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Configured(Configured),
    #[command(flatten)]
    Unconfigured(Unconfigured),
}

/// Commands that read the configuration.
#[derive(Debug, Subcommand)]
enum Configured {
    /// Run the gateway until SIGTERM or SIGINT. SIGHUP reloads the configuration.
    Serve,
    /// Check whether the gateway running with this configuration is ready; for container health checks.
    Health,
    /// Check the configuration and the files that it names, and print a summary.
    CheckConfig,
    /// Test each app's credentials, and say how to fix those that do not work.
    Doctor,
    /// Send one push, and show the request, the answer and what it means.
    SendTest(send_test::Options),
}

/// Commands that need no configuration.
#[derive(Debug, Subcommand)]
enum Unconfigured {
    /// Generate a VAPID key: the file for `vapid_key_file` on standard output, its public half on standard error.
    Vapid,
    /// Print a configuration file with every key at its default.
    SampleConfig,
    /// Print a shell completion script.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write man pages for this program and each of its commands.
    Man {
        /// The folder to write to.
        folder: PathBuf,
    },
}

/// Runs the command.
pub(crate) async fn run(cli: Cli) -> ExitCode {
    match done(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.text());
            error.exit_code()
        }
    }
}

async fn done(cli: Cli) -> Result<(), RunError> {
    match cli.command {
        Command::Configured(command) => Box::pin(with_configuration(command, cli.config)).await,
        Command::Unconfigured(Unconfigured::Vapid) => vapid(),
        Command::Unconfigured(Unconfigured::SampleConfig) => {
            print!("{}", include_str!("../../config.sample.toml"));
            Ok(())
        }
        Command::Unconfigured(Unconfigured::Completions { shell }) => {
            command_line::completions(Cli::command(), shell);
            Ok(())
        }
        Command::Unconfigured(Unconfigured::Man { folder }) => Ok(command_line::man_pages(Cli::command(), &folder)?),
    }
}

async fn with_configuration(command: Configured, path: Option<PathBuf>) -> Result<(), RunError> {
    let path = path.or_else(|| std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from));
    let loaded = Config::load(path.as_deref(), config_file::environment()).map_err(StartError::from)?;
    let set_up = || {
        logs::init(&loaded.config.log);
        let mut registry = Registry::default();
        App::new(&loaded, &mut registry, Clock::System).map(|app| (app, registry))
    };
    match command {
        Configured::Serve => {
            let (app, registry) = set_up()?;
            serve::run(&loaded.config, app, registry, path).await
        }
        Configured::Health => Ok(command_line::health(loaded.config.listen.operations).await?),
        Configured::CheckConfig => {
            println!("{}", set_up()?.0.summary(&loaded.config));
            Ok(())
        }
        Configured::Doctor => doctor::run(&set_up()?.0, &Clock::System).await,
        Configured::SendTest(options) => send_test::run(&set_up()?.0, &options).await,
    }
}

/// Standard output holds only the key file, for use as `vapid > vapid.pem`.
fn vapid() -> Result<(), RunError> {
    let (key, pem) = Es256Key::generate().map_err(|_| RunError::NoKey)?;
    print!("{}", pem.expose_secret());
    eprintln!("applicationServerKey: {}", key.public_key());
    Ok(())
}
