//! The command line.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser, Subcommand};
use waypost_shared::{
    config::file::CONFIG_VARIABLE,
    error::Chain,
    service::command_line::{self, Shell},
    telemetry::logs,
};

use crate::{
    config::{Config, EmailTransport, sms::SmsTransport},
    domain::{sealing::StorageKeys, signing::SigningKey},
};

mod association;
mod date;
mod doctor;
mod invites;
mod outbox;
mod pepper;
mod serve;

/// Exit code for an invalid configuration; clap uses the same for an invalid command line.
const WRONG_CONFIGURATION: u8 = 2;

/// A Matrix identity server: validates addresses, binds them to Matrix IDs, and lets contacts find them.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Environment variables override the file: WAYPOST_DATABASE__URL sets `url` of `[database]`."
)]
pub(crate) struct Cli {
    /// The configuration file. Default: built-in settings, with loopback listeners and SQLite in ./waypost-data.
    #[arg(long, short, global = true, value_name = "FILE")]
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

/// Commands that need a configuration.
#[derive(Debug, Subcommand)]
enum Configured {
    /// Run the server until SIGTERM or Ctrl-C. SIGHUP reloads the configuration.
    Serve,
    /// Check whether the server that runs with this configuration is ready, for container health checks.
    Health,
    /// Validate the configuration, and print its mistakes or a summary.
    CheckConfig,
    /// Check everything that `serve` needs, and say what to change. Changes nothing itself.
    Doctor,
    /// List and revoke invites that are waiting for their address to be bound.
    Invites {
        #[command(subcommand)]
        action: invites::Action,
    },
    /// List and retry notifications that homeservers did not accept.
    Outbox {
        #[command(subcommand)]
        action: outbox::Action,
    },
    /// Rotate and list the peppers that lookups are hashed with.
    Pepper {
        #[command(subcommand)]
        command: pepper::PepperCommand,
    },
    /// Show, list and remove the bindings of addresses.
    Association {
        #[command(subcommand)]
        command: association::AssociationCommand,
    },
}

/// Commands that need none.
#[derive(Debug, Subcommand)]
enum Unconfigured {
    /// Generate and print a new key, for a file or a secret.
    Keys {
        #[command(subcommand)]
        kind: KeyKind,
    },
    /// Print a configuration file with every key at its default.
    SampleConfig,
    /// Print shell completions.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write man pages for this program and each of its commands.
    Man {
        /// The folder to write them into.
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum KeyKind {
    /// Storage keys, which addresses in the database are encrypted with (`keys.storage_key_file`).
    Storage,
    /// A signing key (`keys.signing_key_file`).
    Signing,
}

/// Runs the command; returns the exit code.
pub(crate) async fn run(cli: Cli) -> ExitCode {
    match cli.command {
        Command::Configured(command) => return Box::pin(with_configuration(command, cli.config)).await,
        Command::Unconfigured(Unconfigured::Keys { kind: KeyKind::Storage }) => print!("{}", *StorageKeys::generate()),
        Command::Unconfigured(Unconfigured::Keys { kind: KeyKind::Signing }) => print!("{}", *SigningKey::generate()),
        Command::Unconfigured(Unconfigured::SampleConfig) => print!("{}", include_str!("../../config.sample.toml")),
        Command::Unconfigured(Unconfigured::Completions { shell }) => {
            command_line::completions(Cli::command(), shell);
        }
        Command::Unconfigured(Unconfigured::Man { folder }) => {
            return finished(command_line::man_pages(Cli::command(), &folder).map_err(Into::into));
        }
    }
    ExitCode::SUCCESS
}

async fn with_configuration(command: Configured, path: Option<PathBuf>) -> ExitCode {
    let path = path.or_else(|| std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from));
    let config = match Config::load(path.as_deref()) {
        Ok(loaded) => loaded.config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(WRONG_CONFIGURATION);
        }
    };
    match command {
        Configured::Serve => {
            logs::init(&config.log);
            match Box::pin(serve::serve(config, path)).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(error = %Chain(&*error), "the server failed");
                    ExitCode::FAILURE
                }
            }
        }
        Configured::Health => finished(command_line::health(config.listen.operations).await.map_err(Into::into)),
        Configured::CheckConfig => {
            check_config(&config);
            ExitCode::SUCCESS
        }
        Configured::Doctor => Box::pin(doctor::run(&config, path.as_deref())).await,
        Configured::Invites { action } => finished(invites::run(&config, action).await),
        Configured::Outbox { action } => finished(outbox::run(&config, action).await),
        Configured::Pepper { command } => finished(pepper::run(&config, command).await),
        Configured::Association { command } => finished(association::run(&config, command).await),
    }
}

/// Prints the error of a command, if any, and returns its exit code.
fn finished(done: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    eprintln!("{}", Chain(&*error));
    ExitCode::FAILURE
}

fn check_config(config: &Config) {
    let database = match config.database_url() {
        Ok(url) if url.starts_with("sqlite:") => url,
        // The rest of the URL may contain a password.
        Ok(_) => "PostgreSQL".to_owned(),
        Err(error) => error.to_string(),
    };
    let email = match config.email.transport {
        EmailTransport::Smtp => format!("SMTP at {}:{}", config.email.smtp_host, config.email.smtp_port),
        EmailTransport::Folder => "written to files, not sent".to_owned(),
    };
    let sms = match config.sms.transport {
        SmsTransport::Off => "off",
        SmsTransport::Http => "an HTTP gateway",
        SmsTransport::OpenMarket => "OpenMarket",
        SmsTransport::Log => "written to the log, not sent",
    };
    let policies: Vec<_> = config.terms.policies.keys().map(String::as_str).collect();
    println!("The configuration is good.");
    println!("  server name      {}", config.identity.server_name);
    println!("  public listener  {}", config.listen.public);
    println!("  operations       {}", config.listen.operations);
    if let Some(internal) = config.listen.internal {
        println!("  internal         {internal}");
    }
    println!("  database         {database}");
    println!("  mail             {email}");
    println!("  text messages    {sms}");
    println!("  storage keys     {}", config.storage_key_file().path.display());
    println!("  signing key      {}", config.signing_key_file().path.display());
    println!("  policies         {}", if policies.is_empty() { "none".to_owned() } else { policies.join(", ") });
}
