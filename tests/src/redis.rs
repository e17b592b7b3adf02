//! A real redis-server on a port of its own, that can be killed and started again.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::process::TempFolder;
use crate::record::Record;

/// The running server. It is killed when it is dropped.
#[derive(Debug)]
pub struct RedisServer {
    port: u16,
    folder: TempFolder,
    child: Child,
}

impl RedisServer {
    /// Starts one that keeps nothing on disk.
    ///
    /// # Panics
    ///
    /// When it is not installed, or not ready within 30 s.
    pub async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = TempFolder::new();
        let child = spawn(port, &folder).await;
        Self { port, folder, child }
    }

    /// As `seen.redis_url` wants it.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Kills it, as a power cut would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it in the middle of what it does: its connections stay open, and nothing is answered.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        // The shell's own `kill` is there even where the program of that name is not.
        let script = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success(), "{script}");
    }

    /// Starts it again, empty, on the same port.
    pub async fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.folder).await;
    }

    /// What it answers to a command.
    pub fn ask(&self, command: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(command).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn spawn(port: u16, folder: &TempFolder) -> Child {
    let mut child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|err| panic!("redis-server cannot be started ({err}). ./tests/run installs it"));
    let lines = Arc::new(Record::default());
    let stdout = child.stdout.take().unwrap();
    std::thread::spawn({
        let lines = Arc::clone(&lines);
        move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lines.push(line);
            }
        }
    });
    lines.wait_for("redis-server to be ready", |line: &String| line.contains("Ready to accept connections")).await;
    child
}
