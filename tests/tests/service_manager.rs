//! What systemd is told (`Type=notify`): ready, reloading, stopping.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
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

/// Whoever opens many connections must not keep health checks from the service, however few files it may open.
#[test]
fn files_are_left_for_health_checks_and_there_are_no_core_dumps() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        let folder = TempFolder::new();
        let config = "[listen]\npublic = \"127.0.0.1:0\"\noperations = \"127.0.0.1:0\"\n";
        let config = text(&folder.write("waypost.toml", config));
        let program = command(name).get_program().to_owned();
        let mut child = Command::new("sh")
            .args(["-c", "ulimit -Sn 300 && ulimit -Hn 400 && exec \"$0\" \"$@\""])
            .arg(program)
            .args(["--config", &config, "serve"])
            .current_dir(folder.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (mut line, mut fits) = (String::new(), false);
        while !line.contains("operations=") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "{name} ended");
            fits |= line.contains("does not fit into the limit of open files");
        }
        assert!(fits, "{name} says that it accepts fewer connections");
        let address = |key: &str| -> SocketAddr {
            let rest = line.split_once(key).unwrap().1;
            rest.split([' ', '\n']).next().unwrap().parse().unwrap()
        };
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        let limit = |what: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(what)).unwrap();
            line.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(limit("Max open files"), ["400", "400"], "{name}");
        assert_eq!(limit("Max core file size"), ["0", "0"], "{name}");

        let idle: Vec<_> = (0..600).map_while(|_| TcpStream::connect(address("public=")).ok()).collect();
        let mut health = TcpStream::connect(address("operations=")).unwrap();
        health.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        health.write_all(b"GET /health/live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        health.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{name}, {} connections: {answer}", idle.len());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
