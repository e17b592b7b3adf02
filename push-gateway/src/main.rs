//! `waypost-push-gateway`: accepts notifications from homeservers and forwards each to its app's push service.
//!
//! Source: Matrix Push Gateway API.

mod app;
#[cfg(test)]
mod arbitrary;
mod certificate;
mod cli;
mod config;
mod deliveries;
mod encoding;
mod encryption;
mod endpoint;
mod error;
mod fit;
mod glob;
mod hold;
mod in_flight;
mod jwt;
mod metrics;
mod notification;
mod notify;
mod outcome;
mod provider;
mod push;
mod pushkey;
mod redis;
mod routes;
mod run_error;
mod upstream;
mod vapid;

use std::process::ExitCode;

use clap::Parser as _;

#[tokio::main]
async fn main() -> ExitCode {
    // Before any TLS client is built: rustls looks the provider up then. Fails only if one is installed already, which
    // is fine.
    drop(rustls::crypto::ring::default_provider().install_default());
    match cli::run(cli::Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.text());
            error.exit_code()
        }
    }
}
