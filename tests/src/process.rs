//! Runs the real programs as an operator would: with a configuration file and signals, reading their stderr.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::record::{PATIENCE, Record};

/// The identity server's program.
pub const IDENTITY: &str = "waypost-identity";
/// The push gateway's program.
pub const PUSH_GATEWAY: &str = "waypost-push-gateway";

/// The message of a final line, appended to the log once stderr is closed, which means that the program has exited.
const CLOSED: &str = "stderr closed";

/// A temporary folder, removed with its contents on drop.
#[derive(Debug)]
pub struct TempFolder(TempDir);

impl Default for TempFolder {
    fn default() -> Self {
        Self::new()
    }
}

impl TempFolder {
    /// Creates a folder.
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("waypost-test-").tempdir().unwrap())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file into the folder, and returns its path.
    pub fn write(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, contents).unwrap();
        path
    }
}

/// A path as text, for a configuration file.
pub fn text(path: &Path) -> String {
    path.to_str().expect("the folder for temporary files has a UTF-8 name").to_owned()
}

/// The path of the program `name`, which is built next to this one.
///
/// # Panics
///
/// If it has not been built.
pub fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().unwrap();
    // This is target/<profile>/deps/all-… for a test, and target/<profile>/demo for the demo.
    let folder = this.parent().unwrap();
    let profile = if folder.ends_with("deps") { folder.parent().unwrap() } else { folder };
    let program = profile.join(name);
    assert!(program.is_file(), "{} is missing; build it first: cargo build --workspace", program.display());
    program
}

/// A command that runs `name` without the environment's Waypost and OpenTelemetry variables.
pub fn command(name: &str) -> Command {
    let mut command = Command::new(program(name));
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        if name.starts_with("WAYPOST_") || name.starts_with("OTEL_") {
            command.env_remove(key);
        }
    }
    command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR").stdin(Stdio::null());
    command
}

/// Runs `name` to completion.
pub fn run(name: &str, arguments: &[&str]) -> Output {
    command(name).args(arguments).output().unwrap()
}

/// A running server, killed on drop.
#[derive(Debug)]
pub struct Server {
    /// The base URL of the public listener.
    pub public: String,
    /// The base URL of the operations listener.
    pub operations: String,
    /// Its working folder, with configuration and data.
    pub folder: TempFolder,
    name: &'static str,
    child: Child,
    log: Arc<Record<Value>>,
}

impl Server {
    /// Starts `name` in `folder` with `config` (TOML), and waits until it listens.
    ///
    /// The configuration has to set JSON logs: the addresses are read from them.
    ///
    /// # Panics
    ///
    /// If it is not ready within 30 s; its log is printed then.
    pub async fn start(name: &'static str, folder: TempFolder, config: &str) -> Self {
        Self::start_in(&[], name, folder, config).await
    }

    /// The same with extra environment variables.
    pub async fn start_in(environment: &[(&str, &str)], name: &'static str, folder: TempFolder, config: &str) -> Self {
        let file = folder.write("waypost.toml", config);
        let mut child = command(name)
            .arg("--config")
            .arg(&file)
            .arg("serve")
            .envs(environment.iter().copied())
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Record::default());
        let stderr = child.stderr.take().unwrap();
        std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    log.push(serde_json::from_str(&line).unwrap_or_else(|_| json!({"raw": line})));
                }
                log.push(json!({"message": CLOSED}));
            }
        });
        let mut server = Self { public: String::new(), operations: String::new(), folder, name, child, log };
        let ready = server
            .log
            .find(PATIENCE, |line| line["message"] == "listening" || line["message"] == CLOSED)
            .await
            .filter(|line| line["message"] == "listening");
        let Some(ready) = ready else {
            panic!("{name} did not become ready. Configuration:\n{config}\nLog:\n{}", server.log_text());
        };
        server.public = base_url(&ready["public"]);
        server.operations = base_url(&ready["operations"]);
        server
    }

    /// The log lines so far.
    pub fn logs(&self) -> Vec<Value> {
        self.log.all()
    }

    /// Waits for a log line.
    pub async fn wait_for_log(&self, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.log.wait_for(what, fits).await
    }

    /// The log so far, as text.
    pub fn log_text(&self) -> String {
        let lines: Vec<String> = self.logs().iter().map(Value::to_string).collect();
        lines.join("\n")
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The CPU time used so far, without that of threads that have ended.
    pub fn cpu(&self) -> Duration {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.id())).unwrap();
        // Source: Linux, Documentation/scheduler/sched-stats.rst: the first number is nanoseconds on a CPU.
        let on_cpu = |task: std::io::Result<std::fs::DirEntry>| {
            let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        };
        Duration::from_nanos(tasks.filter_map(on_cpu).sum())
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Kills it and keeps its folder.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Runs a command of the same program with the same configuration to completion.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let folder = self.folder.path();
        let mut command = command(self.name);
        command.arg("--config").arg(folder.join("waypost.toml")).args(arguments).current_dir(folder);
        command.output().unwrap()
    }

    /// Tells it to stop (SIGTERM).
    pub fn terminate(&self) {
        self.signal("TERM");
    }

    /// Tells it to reload its configuration (SIGHUP).
    pub fn hang_up(&self) {
        self.signal("HUP");
    }

    fn signal(&self, name: &str) {
        // `kill` is a shell built-in; the program of that name may not be installed.
        let _ = Command::new("sh").args(["-c", "kill -\"$1\" \"$2\"", "sh", name, &self.id().to_string()]).status();
    }

    /// The path of its configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("waypost.toml")
    }

    /// Changes its configuration file.
    pub fn change_config(&self, change: impl FnOnce(String) -> String) {
        let file = self.config_file();
        std::fs::write(&file, change(std::fs::read_to_string(&file).unwrap())).unwrap();
    }

    /// Tells it to stop and waits until it has exited.
    ///
    /// # Panics
    ///
    /// If it is still running after 30 s.
    pub async fn stop(mut self) -> ExitStatus {
        self.terminate();
        self.log.wait_for(&format!("the end of {}", self.name), |line| line["message"] == CLOSED).await;
        // Its stderr is closed already, so this returns almost at once.
        self.child.wait().unwrap()
    }

    /// Kills it and restarts it in the same folder with the same configuration.
    pub async fn restart(mut self) -> Self {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let folder = std::mem::take(&mut self.folder);
        let config = std::fs::read_to_string(folder.path().join("waypost.toml")).unwrap();
        Self::start(self.name, folder, &config).await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of {} ---\n{}", self.name, self.log_text());
        }
    }
}

fn base_url(address: &Value) -> String {
    let address: SocketAddr = address
        .as_str()
        .and_then(|address| address.parse().ok())
        .unwrap_or_else(|| panic!("the ready line names no address but {address}"));
    format!("http://{address}")
}

/// Runs `work`, and returns its result and how long it took.
pub async fn timed<R>(work: impl Future<Output = R>) -> (R, Duration) {
    let start = Instant::now();
    let result = work.await;
    (result, start.elapsed())
}

/// Polls until there is an answer. Each poll is a call over a socket, so this does not spin.
///
/// # Panics
///
/// If there is none after `patience`.
pub async fn eventually<R, F: Future<Output = Option<R>>>(patience: Duration, what: &str, ask: impl Fn() -> F) -> R {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
        }
    };
    tokio::time::timeout(patience, asking).await.unwrap_or_else(|_| panic!("waited {patience:?} in vain for {what}"))
}
