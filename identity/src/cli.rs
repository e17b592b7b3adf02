//! The command line.

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use clap::{Parser, Subcommand};
use prometheus_client::registry::Registry;
use waypost_shared::{
    clock::Clock,
    config_file::CONFIG_VARIABLE,
    health::{self, Operations, Readiness},
    serve::{self, Stop},
    telemetry,
};

use crate::{
    app::{self, AppState},
    config::{Config, EmailTransport, sms::SmsTransport},
    domain::{sealing::StorageKeys, signing::SigningKey},
    jobs,
    routes::{internal_routes, routes},
};

mod association;
mod doctor;
mod invites;
mod outbox;
mod pepper;

/// Exit code of a wrong configuration; clap uses the same for a wrong command line.
const WRONG_CONFIGURATION: u8 = 2;

/// A Matrix identity server: proves addresses, binds them to Matrix ids, and lets contacts find them.
#[derive(Debug, Parser)]
#[command(
    version,
    about,
    after_help = "Environment variables override the file: WAYPOST_DATABASE__URL sets `url` of `[database]`."
)]
pub(crate) struct Cli {
    /// The configuration file. Without one the embedded defaults start: loopback, SQLite in ./waypost-data.
    #[arg(long, short, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM or Ctrl-C.
    Serve,
    /// Read the configuration, say what is wrong with it or what it means, and stop.
    CheckConfig,
    /// Try what the server will need, say for each failure what to change, and change nothing.
    Doctor,
    /// Look at and take back invites that wait for their address to be bound.
    Invites {
        #[command(subcommand)]
        action: invites::Action,
    },
    /// Look at and try again what homeservers could not be told.
    Outbox {
        #[command(subcommand)]
        action: outbox::Action,
    },
    /// Print a new key, for a file or a secret.
    Keys {
        #[command(subcommand)]
        kind: KeyKind,
    },
    /// What lookups are hashed with.
    Pepper {
        #[command(subcommand)]
        command: pepper::PepperCommand,
    },
    /// Whose an address is.
    Association {
        #[command(subcommand)]
        command: association::AssociationCommand,
    },
}

#[derive(Debug, Subcommand)]
enum KeyKind {
    /// Storage keys, which addresses are sealed with (`keys.storage_key_file`).
    Storage,
    /// A signing key (`keys.signing_key_file`).
    Signing,
}

/// Does what the command line says.
pub(crate) async fn run(cli: Cli) -> ExitCode {
    if let Command::Keys { kind } = &cli.command {
        match kind {
            KeyKind::Storage => print!("{}", *StorageKeys::generate()),
            KeyKind::Signing => print!("{}", *SigningKey::generate()),
        }
        return ExitCode::SUCCESS;
    }
    let path = cli.config.or_else(|| std::env::var_os(CONFIG_VARIABLE).map(PathBuf::from));
    let config = match Config::load(path.as_deref()) {
        Ok(loaded) => loaded.config,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::from(WRONG_CONFIGURATION);
        }
    };
    match cli.command {
        Command::CheckConfig => {
            check_config(&config);
            ExitCode::SUCCESS
        }
        Command::Doctor => Box::pin(doctor::run(&config, path.as_deref())).await,
        Command::Invites { action } => finished(invites::run(&config, action).await),
        Command::Outbox { action } => finished(outbox::run(&config, action).await),
        Command::Pepper { command } => finished(pepper::run(&config, command).await),
        Command::Association { command } => finished(association::run(&config, command).await),
        Command::Serve | Command::Keys { .. } => {
            telemetry::init(&config.log);
            match serve(config).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    tracing::error!(%error, causes = waypost_shared::http::causes(&*error), "cannot serve");
                    ExitCode::FAILURE
                }
            }
        }
    }
}

/// Says what went wrong with a command, if anything did.
fn finished(done: Result<(), Box<dyn std::error::Error>>) -> ExitCode {
    let Err(error) = done else { return ExitCode::SUCCESS };
    let causes = waypost_shared::http::causes(&*error);
    if causes.is_empty() {
        eprintln!("{error}");
    } else {
        eprintln!("{error}: {causes}");
    }
    ExitCode::FAILURE
}

/// A time for people: `Sun, 06 Nov 1994 08:49:37 GMT`.
fn date(ms: i64) -> String {
    // The end of the year 9999, the last that can be written so.
    const LAST_MS: u64 = 253_402_300_799_000;
    let ms = u64::try_from(ms).unwrap_or_default().min(LAST_MS);
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(ms))
}

fn check_config(config: &Config) {
    let database = match config.database_url() {
        Ok(url) if url.starts_with("sqlite:") => url,
        // The rest of the URL may hold a password.
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

async fn serve(config: Config) -> Result<(), Box<dyn std::error::Error>> {
    let stop = Stop::on_signals()?;
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

    let _alone = app::serve_alone(&config)?;
    let app = Arc::new(AppState::build(config, Clock::System, &mut registry).await?);
    let shown = Operations { registry: Arc::new(registry), readiness: readiness.clone() };
    // Health and metrics are there until the end, and say "not ready" from the first moment of stopping.
    let (stop_operations, operations_stop) = Stop::manual();
    let serving_operations = {
        let server = server.clone();
        tokio::spawn(async move {
            serve::serve(operations_listener, health::routes(), shown, &server, None, operations_stop).await
        })
    };
    tokio::spawn({
        let (readiness, stop) = (readiness.clone(), stop.clone());
        async move {
            stop.requested().await;
            readiness.set(false);
        }
    });
    let seen = app.load_index().await?;
    let jobs = [
        tokio::spawn(jobs::follow(app.clone(), seen, stop.clone())),
        tokio::spawn(jobs::peppers::keep_up(app.clone(), stop.clone())),
        tokio::spawn(jobs::clean(app.clone(), stop.clone())),
        tokio::spawn(jobs::outbox::deliver(app.clone(), stop.clone())),
    ];
    let serving_internal = match internal_listener {
        Some(listener) => {
            let internal = listener.local_addr()?;
            tracing::info!(%internal, "listening internally");
            let (app, server, stop) = (app.clone(), server.clone(), stop.clone());
            Some(tokio::spawn(async move { serve::serve(listener, internal_routes(), app, &server, None, stop).await }))
        }
        None => None,
    };
    readiness.set(true);
    tracing::info!(%public, %operations, associations = app.lookups.len(), "listening");
    serve::serve(
        public_listener,
        routes(app.config.v1.mode),
        app.clone(),
        &server,
        Some(app.metrics.http.clone()),
        stop,
    )
    .await?;

    for job in jobs {
        job.await?;
    }
    if let Some(serving) = serving_internal {
        serving.await??;
    }
    stop_operations.send_replace(true);
    serving_operations.await??;
    app.store.close().await;
    tracing::info!("stopped");
    Ok(())
}
