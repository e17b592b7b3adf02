//! Prints the steps as they run, and a summary table at the end.

use std::io::{IsTerminal as _, Write as _};
use std::panic::AssertUnwindSafe;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use waypost_tests::process::Server;

/// Longest line about the traffic, in characters.
const WIDTH: usize = 110;

/// The result of a successful step, with a description of the traffic and of what was verified.
pub(crate) struct Done<R> {
    /// The result, for later steps.
    pub(crate) result: R,
    /// The traffic, in a line or two.
    pub(crate) wire: Vec<String>,
    /// What was verified, for the table.
    pub(crate) held: String,
}

/// The outcome of a step.
pub(crate) type Outcome<R> = Result<Done<R>, String>;

/// Ends a step successfully.
pub(crate) fn done<R>(result: R, held: impl Into<String>, wire: Vec<String>) -> Outcome<R> {
    Ok(Done { result, wire, held: held.into() })
}

/// Fails a step unless `condition` holds.
pub(crate) fn ensure(condition: bool, otherwise: impl Into<String>) -> Result<(), String> {
    if condition { Ok(()) } else { Err(otherwise.into()) }
}

struct Row {
    title: String,
    held: String,
    good: bool,
    took: Duration,
}

/// The steps so far.
pub(crate) struct Report {
    rows: Vec<Row>,
    colours: bool,
}

impl Report {
    /// Starts the report.
    pub(crate) fn new() -> Self {
        // A failing stand-in panics; the step shows the panic's message itself.
        std::panic::set_hook(Box::new(|_| {}));
        Self { rows: Vec::new(), colours: std::io::stdout().is_terminal() }
    }

    /// Runs one step and prints it. `None` if it failed.
    pub(crate) async fn step<R>(&mut self, title: &str, work: impl Future<Output = Outcome<R>>) -> Option<R> {
        print!("\n{:>2}. {title} … ", self.rows.len() + 1);
        // Otherwise the title would show only after the step.
        let _ = std::io::stdout().flush();
        let start = Instant::now();
        let outcome = AssertUnwindSafe(work).catch_unwind().await.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Err(text.unwrap_or_else(|| "it panicked".to_owned()))
        });
        let took = start.elapsed();
        let (result, held, good) = match outcome {
            Ok(Done { result, wire, held }) => {
                println!("{} {}", self.mark(true), milliseconds(took));
                for line in wire {
                    println!("      {}", shortened(&line));
                }
                (Some(result), held, true)
            }
            Err(problem) => {
                println!("{} {}", self.mark(false), milliseconds(took));
                println!("      {problem}");
                (None, first_line(&problem), false)
            }
        };
        self.rows.push(Row { title: title.to_owned(), held, good, took });
        result
    }

    /// The step that stops a program.
    pub(crate) async fn stop(&mut self, name: &str, stopped: impl Future<Output = ExitStatus>) {
        self.step(&format!("{name} is asked to stop (SIGTERM)"), async {
            let status = stopped.await;
            ensure(status.success(), format!("it ended with {status}"))?;
            done((), "it ended with exit code 0", vec![])
        })
        .await;
    }

    /// Prints a program's warnings and errors, to explain why a step failed.
    pub(crate) fn complaints(&self, name: &str, server: &Server) {
        if self.all_held() {
            return;
        }
        println!("\n    What {name} logged as a warning or an error:");
        for line in server.logs() {
            if line["level"] == "WARN" || line["level"] == "ERROR" || !line["raw"].is_null() {
                println!("      {line}");
            }
        }
    }

    /// Whether every step so far succeeded.
    pub(crate) fn all_held(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.good)
    }

    /// Prints the table.
    pub(crate) fn table(&self) {
        let width = self.rows.iter().map(|row| row.title.chars().count()).max().unwrap_or(0);
        let held = self.rows.iter().map(|row| row.held.chars().count()).max().unwrap_or(0);
        println!("\n     {:width$}  {:held$}  {:>6}", "step", "what held", "ms");
        println!("     {}", "─".repeat(width + held + 10));
        for (number, row) in self.rows.iter().enumerate() {
            println!(
                "{:>2} {} {:width$}  {:held$}  {:>6}",
                number + 1,
                self.mark(row.good),
                row.title,
                row.held,
                row.took.as_millis()
            );
        }
        let good = self.rows.iter().filter(|row| row.good).count();
        let verdict = if self.all_held() { "Everything held." } else { "Not everything held." };
        println!("\n{verdict} {good} of {} steps.", self.rows.len());
    }

    fn mark(&self, good: bool) -> &'static str {
        match (good, self.colours) {
            (true, true) => "\u{1b}[32m✓\u{1b}[0m",
            (true, false) => "✓",
            (false, true) => "\u{1b}[31m✗\u{1b}[0m",
            (false, false) => "✗",
        }
    }
}

fn milliseconds(took: Duration) -> String {
    format!("{} ms", took.as_millis())
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(60).collect()
}

fn shortened(line: &str) -> String {
    if line.chars().count() <= WIDTH {
        line.to_owned()
    } else {
        let cut: String = line.chars().take(WIDTH - 1).collect();
        format!("{cut}…")
    }
}
