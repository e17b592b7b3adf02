//! Measures the two programs, each against a baseline (`limit`) in the same run: `cargo bench-all`.
//!
//! This shows how close they come to what the machine can do, not how fast the machine is: quote the ratios.

// A measurement that cannot continue ends at once.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::large_futures)]

mod load;
mod lookup;
mod notify;
mod provider;

use std::{env, fs, process::Command};

use waypost_tests::process::program;

#[tokio::main]
async fn main() {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => {
            lookup::measure(100_000).await;
            notify::measure().await;
        }
        ["lookup"] => lookup::measure(100_000).await,
        ["lookup", associations] => lookup::measure(associations.parse().unwrap()).await,
        ["notify"] => notify::measure().await,
        // The counterpart of a measurement, in a process of its own.
        ["serve-constant", body_file] => lookup::serve_constant(body_file).await,
        ["serve-provider", ca_file] => provider::serve(ca_file).await,
        _ => println!("cargo bench-all [lookup [ASSOCIATIONS] | notify]"),
    }
}

/// A part of this program in a process of its own, which prints a line when it is ready. Killed on drop.
struct Part {
    child: std::process::Child,
    /// The line that it printed.
    ready: String,
}

impl Part {
    fn start(words: &[&str]) -> Self {
        use std::io::BufRead as _;
        let mut child =
            Command::new(env::current_exe().unwrap()).args(words).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut ready = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        Self { child, ready: ready.trim().to_owned() }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Resident memory of a process in MiB, from /proc.
fn resident_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmRSS:")
}

/// Peak resident memory of a process in MiB, from /proc.
fn peak_mib(pid: u32) -> f64 {
    memory_mib(pid, "VmHWM:")
}

fn memory_mib(pid: u32, what: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}

/// The size of a program's binary in MiB.
#[allow(clippy::cast_precision_loss)]
fn size_mib(name: &str) -> f64 {
    fs::metadata(program(name)).unwrap().len() as f64 / (1024.0 * 1024.0)
}
