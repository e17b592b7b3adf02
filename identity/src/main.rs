//! `waypost-identity`: a Matrix identity server.
//!
//! Start reading at `routes.rs`: each endpoint is a function in `api/`, which decides what happens in which order; the
//! rules are in `domain/`, the rows in `storage/`.

mod api;
mod app;
mod auth;
mod cli;
mod config;
mod delivery;
mod domain;
mod error;
mod federation;
mod jobs;
mod metrics;
mod routes;
mod storage;

use std::process::ExitCode;

use clap::Parser as _;
use waypost_shared::service::command_line;

fn main() -> ExitCode {
    command_line::run(cli::run(cli::Cli::parse()))
}
