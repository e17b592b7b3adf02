//! Builds the two programs in the same profile as the demo.

use std::process::Command;
use std::time::Instant;

use waypost_tests::process::{IDENTITY, PUSH_GATEWAY};

/// Runs cargo, with its progress on the terminal.
pub(crate) fn build() -> Result<(), String> {
    println!("Building {IDENTITY} and {PUSH_GATEWAY}; the first time takes a few minutes.");
    let start = Instant::now();
    // Set by `cargo run`; absent if the demo was started directly.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    // In the workspace root and without `--package`, like the alias `cargo demo`, so that cargo selects the same
    // features for both builds. With `--package` it would build a third of the crates twice.
    command.args(["build", "--bin", IDENTITY, "--bin", PUSH_GATEWAY]);
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    match profile().as_str() {
        // The folder of the `dev` profile is called `debug`.
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

/// The folder of this program, target/PROFILE/demo.
fn profile() -> String {
    std::env::current_exe()
        .ok()
        .and_then(|path| Some(path.parent()?.file_name()?.to_str()?.to_owned()))
        .unwrap_or_else(|| "debug".to_owned())
}
