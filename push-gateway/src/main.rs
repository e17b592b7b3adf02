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
mod holds;
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
use waypost_shared::service::command_line;

fn main() -> ExitCode {
    command_line::run(cli::run(cli::Cli::parse()))
}
