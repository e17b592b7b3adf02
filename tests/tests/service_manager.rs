//! What systemd is told (`Type=notify`): ready, reloading, stopping.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use waypost_tests::process::{IDENTITY, PUSH_GATEWAY, TempFolder, command, text};

/// The states of the next message.
fn told(socket: &UnixDatagram) -> Vec<String> {
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).expect("the service says something");
    let message = String::from_utf8(buffer[..length].to_vec()).unwrap();
    message.lines().map(|line| line.split('=').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn systemd_is_told_when_a_service_is_ready_reloads_and_stops() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        let folder = TempFolder::new();
        let config = "[listen]\npublic = \"127.0.0.1:0\"\noperations = \"127.0.0.1:0\"\n";
        let config = text(&folder.write("waypost.toml", config));
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut child = command(name)
            .args(["--config", &config, "serve"])
            .env("NOTIFY_SOCKET", &path)
            .current_dir(folder.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert_eq!(told(&socket), ["READY"], "{name}");
        let signal = |signal: &str| {
            let id = child.id().to_string();
            assert!(Command::new("sh").args(["-c", "kill -$0 $1", signal, &id]).status().unwrap().success());
        };
        signal("HUP");
        assert_eq!(told(&socket), ["RELOADING", "MONOTONIC_USEC"], "{name}");
        assert_eq!(told(&socket), ["READY"], "{name}");
        signal("TERM");
        assert_eq!(told(&socket), ["STOPPING"], "{name}");
        assert_eq!(child.wait().unwrap().code(), Some(0), "{name}");
    }
}
