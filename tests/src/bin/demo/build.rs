//! Builds the two programs that the demo shows, in the profile that the demo itself was built in.

use std::process::Command;
use std::time::Instant;

use waypost_tests::process::{IDENTITY, PUSH_GATEWAY};

/// Runs cargo, whose progress goes to the terminal.
pub(crate) fn build() -> Result<(), String> {
    println!("Building {IDENTITY} and {PUSH_GATEWAY}; the first time takes a few minutes.");
    let start = Instant::now();
    // Set by `cargo run`; without it the demo was started by hand.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // In the workspace's root and without `--package`, as the alias `cargo demo` does it: cargo then chooses the same
    // features for both builds. With `--package` it would build a third of the crates twice.
    command.args(["build", "--bin", IDENTITY, "--bin", PUSH_GATEWAY]);
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    match profile().as_str() {
        // The development profile's folder has another name than the profile.
        "debug" => {}
        profile => {
            command.args(["--profile", profile]);
        }
    }
    let status = command.status().map_err(|err| format!("cargo cannot be started: {err}"))?;
    if !status.success() {
        return Err("The build failed; see above.".to_owned());
    }
    println!("Built in {:.1} s.", start.elapsed().as_secs_f64());
    Ok(())
}

/// The folder that this program lies in: target/PROFILE/demo.
fn profile() -> String {
    std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.file_name()?.to_str()?.to_owned()))
        .unwrap_or_else(|| "debug".to_owned())
}
