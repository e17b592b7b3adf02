//! `cargo demo`: shows the main job of both services with real input.
//!
//! Both programs run as in production, on loopback and with their built-in defaults. Their counterparts are stand-ins
//! that speak the real protocols: an SMTP server, a homeserver over TLS, APNs, FCM and a push service over HTTP/2. The
//! exit code is 0 if all steps succeeded, 1 if not, and 2 for an invalid option.

// The demo shows failures instead of hiding them, and its time-outs are in real time.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::large_futures)]

mod build;
mod identity;
mod keep;
mod push;
mod report;

use std::process::ExitCode;

use report::Report;
use waypost_tests::gateway::TestGateway;
use waypost_tests::identity::TestIdentity;
use waypost_tests::process::{IDENTITY, PUSH_GATEWAY};

const HELP: &str = "\
cargo demo [--keep]

Builds waypost-identity and waypost-push-gateway, runs them between stand-ins on
127.0.0.1, and walks through what they are for.

  --keep    leave everything running at the end and print addresses to try
  --help    this text
";

fn main() -> ExitCode {
    let mut keep = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--keep" => keep = true,
            "--help" | "-h" => {
                print!("{HELP}");
                return ExitCode::SUCCESS;
            }
            other => {
                eprintln!("unknown option {other}\n\n{HELP}");
                return ExitCode::from(2);
            }
        }
    }
    if let Err(problem) = build::build() {
        eprintln!("{problem}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let walked = tokio::select! {
            walked = walk() => walked,
            // Dropping the results stops the programs.
            _ = tokio::signal::ctrl_c() => return ExitCode::from(130),
        };
        if keep {
            walked.report.table();
            keep::keep(walked.identity.as_ref(), walked.gateway.as_ref()).await;
            walked.exit_code()
        } else {
            walked.end().await
        }
    })
}

/// The state after the last step, with everything still running.
struct Walked {
    report: Report,
    identity: Option<TestIdentity>,
    gateway: Option<TestGateway>,
}

async fn walk() -> Walked {
    let mut report = Report::new();
    let identity = identity::walk(&mut report).await;
    let gateway = push::walk(&mut report).await;
    Walked { report, identity, gateway }
}

impl Walked {
    async fn end(mut self) -> ExitCode {
        println!("\nThe end.");
        if let Some(identity) = self.identity.take() {
            self.report.stop(IDENTITY, identity.server.stop()).await;
        }
        if let Some(gateway) = self.gateway.take() {
            self.report.stop(PUSH_GATEWAY, gateway.server.stop()).await;
        }
        self.report.table();
        self.exit_code()
    }

    fn exit_code(&self) -> ExitCode {
        if self.report.all_held() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
