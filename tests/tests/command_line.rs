//! What an operator types, and what comes back.

use std::process::Stdio;

use waypost_tests::process::{IDENTITY, PUSH_GATEWAY, Server, TempFolder, command, run, text};
use waypost_tests::reference;

#[test]
fn help_and_version_succeed() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        let help = run(name, &["--help"]);
        assert_eq!(help.status.code(), Some(0), "{name}");
        let help = String::from_utf8(help.stdout).unwrap();
        assert!(help.contains("serve") && help.contains("check-config"), "{help}");

        let version = run(name, &["--version"]);
        assert_eq!(version.status.code(), Some(0), "{name}");
        let version = String::from_utf8(version.stdout).unwrap();
        assert!(version.trim_end().ends_with(env!("CARGO_PKG_VERSION")), "{version}");
    }
}

#[test]
fn wrong_usage_exits_2() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        assert_eq!(run(name, &["no-such-command"]).status.code(), Some(2), "{name}");
        assert_eq!(run(name, &["serve", "--no-such-option"]).status.code(), Some(2), "{name}");
    }
}

#[test]
fn the_embedded_defaults_are_a_good_configuration() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        let folder = TempFolder::new();
        let output = command(name).arg("check-config").current_dir(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_printed_sample_is_a_good_configuration() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        let sample = run(name, &["sample-config"]);
        let folder = TempFolder::new();
        let file = folder.write("waypost.toml", &String::from_utf8(sample.stdout).unwrap());
        let output = run(name, &["--config", &text(&file), "check-config"]);
        assert_eq!(output.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn the_reference_in_the_manual_is_what_the_programs_say() {
    let manual = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference");
    for (name, file) in [(IDENTITY, "identity.md"), (PUSH_GATEWAY, "push-gateway.md")] {
        let sample = String::from_utf8(run(name, &["sample-config"]).stdout).unwrap();
        let page = reference::page(name, &sample);
        let file = manual.join(file);
        if std::env::var_os("WAYPOST_WRITE_REFERENCE").is_some() {
            std::fs::create_dir_all(&manual).unwrap();
            std::fs::write(&file, &page).unwrap();
        }
        let there = std::fs::read_to_string(&file).unwrap();
        assert!(there == page, "{} is old: run this test with WAYPOST_WRITE_REFERENCE=1", file.display());
    }
}

#[test]
fn shells_and_man_know_each_command() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        for shell in ["bash", "zsh", "fish"] {
            let output = run(name, &["completions", shell]);
            let script = String::from_utf8(output.stdout).unwrap();
            assert!(script.contains(name) && script.contains("check-config"), "{name} {shell}: {script}");
        }
        let folder = TempFolder::new();
        let output = run(name, &["man", &text(&folder.path().join("man1"))]);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        for page in ["", "-serve", "-check-config"] {
            let page = std::fs::read_to_string(folder.path().join(format!("man1/{name}{page}.1"))).unwrap();
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{page}");
        }
    }
}

#[tokio::test]
async fn health_asks_the_service_that_runs() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        let folder = TempFolder::new();
        // A port that was free a moment ago: the command has to be told one.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config =
            format!("[listen]\npublic = \"127.0.0.1:0\"\noperations = \"0.0.0.0:{port}\"\n[log]\nformat = \"json\"\n");
        let file = text(&folder.write("waypost.toml", &config));
        let output = run(name, &["--config", &file, "health"]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(&format!("nothing answers at 127.0.0.1:{port}")), "{said}");

        let server = Server::start(name, folder, &config).await;
        assert_eq!(server.run(&["health"]).status.code(), Some(0), "{name}");
    }
}

#[test]
fn an_unknown_key_is_named_with_file_line_and_the_nearest_name() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        for verb in ["check-config", "serve"] {
            let folder = TempFolder::new();
            let file =
                folder.write("waypost.toml", "[listen]\npublic = \"127.0.0.1:0\"\noperatoins = \"127.0.0.1:0\"\n");
            let output = run(name, &["--config", &text(&file), verb]);
            assert_eq!(output.status.code(), Some(2), "{name} {verb}");
            let message = String::from_utf8(output.stderr).unwrap();
            assert!(message.contains("waypost.toml:3"), "{message}");
            assert!(message.contains("operatoins"), "{message}");
            assert!(message.contains("did you mean `operations`?"), "{message}");
        }
    }
}

#[test]
fn a_wrong_type_is_named_with_file_line_and_key() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        let folder = TempFolder::new();
        let file = folder.write("waypost.toml", "[server]\n\nmax_connections = \"many\"\n");
        let output = run(name, &["--config", &text(&file), "check-config"]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("waypost.toml:3"), "{message}");
        assert!(message.contains("max_connections"), "{message}");
    }
}

#[test]
fn a_value_that_cannot_be_served_with_is_named_with_its_line() {
    for (section, names) in [
        ("[listen]\npublic = \"localhost\"\n", "listen.public: "),
        ("[server]\nmax_connections = 9223372036854775807\n", "server.max_connections: "),
        ("[server]\nmax_connections = 0\n", "server.max_connections: "),
        ("[server]\nheader_timeout_secs = 0\n", "server.header_timeout_secs: "),
        ("[outbound]\nextra_ca_file = \"/nowhere/ca.pem\"\n", "outbound.extra_ca_file: cannot read /nowhere/ca.pem: "),
    ] {
        for name in [IDENTITY, PUSH_GATEWAY] {
            let folder = TempFolder::new();
            let file = folder.write("waypost.toml", section);
            let output = run(name, &["--config", &text(&file), "check-config"]);
            let message = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{name}: {section}{message}");
            assert!(message.contains(&format!("waypost.toml:2: {names}")), "{name}: {section}{message}");
            assert!(message.matches("No such file").count() <= 1, "{name}: {message}");
        }
    }
}

#[test]
fn a_configuration_that_is_missing_exits_2() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        let output = run(name, &["--config", "/nowhere/waypost.toml", "check-config"]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("/nowhere/waypost.toml"), "{message}");
    }
}

#[test]
fn the_environment_overrides_a_key() {
    for name in [IDENTITY, PUSH_GATEWAY] {
        let output = command(name)
            .env("WAYPOST_SERVER__MAX_CONNECTIONS", "many")
            .arg("check-config")
            .stdout(Stdio::null())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{name}");
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(message.contains("WAYPOST_SERVER__MAX_CONNECTIONS"), "{message}");
    }
}
