//! `doctor`: what it says of a good server, and that it changes nothing. Mistakes are in `mistakes`.

mod mistakes;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use waypost_tests::ca::{Alpn, Ca};
use waypost_tests::database::Database;
use waypost_tests::dns::Dns;
use waypost_tests::homeserver::Homeserver;
use waypost_tests::http::Api;
use waypost_tests::identity::{HOMESERVER, TestIdentity};
use waypost_tests::on_each_database;
use waypost_tests::process::{IDENTITY, TempFolder, command, run, text};
use waypost_tests::proxy::Proxy;
use waypost_tests::settings::Settings;
use waypost_tests::smtp::{Demands, Smtp, Tls};
use waypost_tests::tls_server::{Answer, Request, TlsServer};

/// The mail server's user.
const USER: &str = "waypost";
/// Passwords that must never be shown.
const PASSWORD: &str = "sword fish";

/// A running server whose doctor has nothing to complain of, with everybody that it talks to.
struct Patient {
    t: TestIdentity,
    /// The reverse proxy with TLS before it.
    front: TlsServer,
    /// A mail server that wants STARTTLS and a login.
    smtp: Smtp,
    dns: Dns,
    proxy: Proxy,
    /// What its doctor reads: the settings that it was started with, with the address that it listens on.
    settings: Settings,
    /// For files of the test's own.
    folder: TempFolder,
}

/// What a run of the program came to.
#[derive(Debug)]
struct Seen {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Seen {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The lines about `what`.
    fn about(&self, what: &str) -> Vec<&str> {
        self.out
            .lines()
            .filter(|line| line.get(6..).is_some_and(|line| line.starts_with(&format!("{what}: "))))
            .collect()
    }
}

/// Runs a command with these settings, in a folder that has to stay empty. The stand-ins answer meanwhile.
async fn ask(settings: &Settings, verb: &'static str) -> Seen {
    let toml = settings.toml();
    let ran = tokio::task::spawn_blocking(move || {
        let (folder, empty) = (TempFolder::new(), TempFolder::new());
        let file = text(&folder.write("waypost.toml", &toml));
        let output = command(IDENTITY).args(["--config", &file, verb]).current_dir(empty.path()).output().unwrap();
        assert_eq!(everything_in(empty.path()), BTreeSet::new(), "made by {verb}");
        output
    });
    Seen::new(ran.await.unwrap())
}

/// The paths of all files and folders below a folder.
fn everything_in(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        found.insert(text(&path));
        if path.is_dir() {
            found.extend(everything_in(&path));
        }
    }
    found
}

/// Lets nobody else read a key file, as `keys` in a shell with `umask 077` makes it.
fn keep_private(file: &Path) {
    fs::set_permissions(file, fs::Permissions::from_mode(0o600)).unwrap();
}

/// Passes a request on to the server, once that is there.
async fn pass_on(server: Option<&Api>, request: &Request) -> Answer {
    let Some(server) = server else { return Answer::empty(502) };
    let query = if request.query.is_empty() { String::new() } else { format!("?{}", request.query) };
    let asked = ::http::Request::get(server.absolute(&format!("{}{query}", request.path))).body(Bytes::new()).unwrap();
    match server.try_send(asked).await {
        Ok(reply) => Answer::text(reply.status, &reply.text),
        Err(_) => Answer::empty(502),
    }
}

impl Patient {
    async fn start(database: Database) -> Self {
        let ca = Ca::new();
        let homeserver = Homeserver::start(&ca, &[HOMESERVER]).await;
        let certificate = ca.leaf(&["127.0.0.1"], Alpn::Http1);
        let login = Some((USER.to_owned(), PASSWORD.to_owned()));
        let smtp = Smtp::start_with(Demands { tls: Tls::Starttls(certificate), login }).await;
        let (dns, proxy) = (Dns::start().await, Proxy::start().await);
        let server: Arc<OnceLock<Api>> = Arc::default();
        let front = TlsServer::start(ca.leaf(&["127.0.0.1"], Alpn::Both), {
            let server = Arc::clone(&server);
            move |request| {
                let server = Arc::clone(&server);
                async move { pass_on(server.get(), &request).await }
            }
        })
        .await;
        let mut settings = Settings::default();
        let t = TestIdentity::start_around(database, ca, homeserver, |started| {
            started
                .set("identity", "public_base_url", front.url())
                .set("email", "smtp_port", smtp.port())
                .set("email", "smtp_tls", "starttls")
                .set("email", "smtp_username", USER)
                .set("email", "smtp_password", PASSWORD)
                .set("server", "trusted_proxies", vec!["127.0.0.1/32"])
                .set("homeservers", "allow", vec![HOMESERVER])
                .set("outbound", "dns_servers", vec![dns.address.to_string()]);
            settings = started.clone();
        })
        .await;
        server.set(t.api.clone()).unwrap();
        for (key, url) in [("public", &t.server.public), ("operations", &t.server.operations)] {
            settings.set("listen", key, url.trim_start_matches("http://"));
        }
        let patient = Self { t, front, smtp, dns, proxy, settings, folder: TempFolder::new() };
        for key in patient.key_files() {
            keep_private(&key);
        }
        patient
    }

    fn key_files(&self) -> Vec<std::path::PathBuf> {
        let folder = self.t.server.folder.path();
        let places = [folder.to_owned(), folder.join("data")];
        let files = places.iter().flat_map(|place| [place.join("storage.key"), place.join("signing.key")]);
        files.filter(|file| file.is_file()).collect()
    }

    /// Whatever must not be shown: the words of the key files that are long enough to be keys, and the password.
    fn secrets(&self) -> Vec<String> {
        let texts = self.key_files().into_iter().map(|file| fs::read_to_string(file).unwrap());
        let mut secrets: Vec<String> = texts
            .flat_map(|text| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>())
            .flat_map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .filter(|word| word.len() > 40)
            .collect();
        assert!(secrets.len() >= 3, "the hash key, the seal key and the signing key");
        secrets.push(PASSWORD.to_owned());
        secrets
    }

    /// Everything that could be changed on disk.
    fn on_disk(&self) -> BTreeSet<String> {
        let mut all = everything_in(self.t.server.folder.path());
        all.extend(everything_in(self.folder.path()));
        all
    }

    fn assert_kept_secret(&self, seen: &Seen) {
        for secret in self.secrets() {
            assert!(!seen.out.contains(&secret) && !seen.err.contains(&secret), "a secret is in {seen:?}");
        }
    }
}

on_each_database! {
    async fn a_healthy_server_has_nothing_bad(database: Database) {
        let p = Patient::start(database).await;
        let before = p.on_disk();
        let seen = ask(&p.settings, "doctor").await;
        assert_eq!(seen.code, Some(0), "{}{}", seen.out, seen.err);
        assert!(!seen.out.contains("BAD "), "{}", seen.out);
        for what in [
            "configuration",
            "data folder",
            "database",
            "storage keys",
            "signing key",
            "pepper",
            "templates",
            "trusted proxies",
            "allowed homeservers",
            "listen.public",
            "listen.operations",
            "dns",
            "clock",
            "mail",
            "text messages",
            "public base URL",
            "homeserver hs.test",
        ] {
            let lines = seen.about(what);
            assert!(!lines.is_empty() && lines.iter().all(|line| line.starts_with("good  ")), "{what}: {}", seen.out);
        }
        assert!(seen.about("storage keys")[0].ends_with("is what the database was written with"), "{}", seen.out);
        assert!(seen.about("listen.public")[0].ends_with("is taken by this server, which is running"), "{}", seen.out);
        assert!(seen.about("public base URL")[0].ends_with("answers, and it is this server"), "{}", seen.out);
        assert_eq!(p.on_disk(), before, "the doctor changed something");
        p.assert_kept_secret(&seen);
        // It went as far as naming the sender, and sent nothing.
        assert!(p.smtp.mails.is_empty());
        assert!(!p.dns.queries.is_empty());
    }

    async fn a_proxy_that_takes_the_credentials_is_good(database: Database) {
        let mut p = Patient::start(database).await;
        p.settings.set("outbound", "proxy_url", p.proxy.url());
        let seen = ask(&p.settings, "doctor").await;
        assert_eq!(seen.code, Some(0), "{}{}", seen.out, seen.err);
        assert!(seen.about("outgoing proxy")[0].starts_with("good  "), "{}", seen.out);
        // The reverse proxy was reached through it, too.
        assert!(p.proxy.tunnels.all().contains(&p.front.address.to_string()), "{:?}", p.proxy.tunnels.all());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_first_start_nothing_is_bad_and_nothing_is_made() {
    let folder = TempFolder::new();
    let mut settings = Settings::default();
    settings.set("listen", "public", "127.0.0.1:0").set("listen", "operations", "127.0.0.1:0");
    settings.set("identity", "data_dir", text(&folder.path().join("deeper").join("data")));
    let seen = ask(&settings, "doctor").await;
    assert_eq!(seen.code, Some(0), "{}{}", seen.out, seen.err);
    for what in ["data folder", "database", "storage keys", "signing key"] {
        let lines = seen.about(what);
        assert!(lines[0].starts_with("good  ") && lines[0].contains("on first start"), "{}", seen.out);
    }
    for what in ["mail", "dns", "public base URL", "clock", "allowed homeservers"] {
        assert!(seen.about(what)[0].starts_with("soon  "), "{what}: {}", seen.out);
    }
    assert_eq!(everything_in(folder.path()), BTreeSet::new());
}

/// SQLite keeps files beside the database while it is open, which a reader would make if they are not there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_nobody_serves_is_read_as_it_is() {
    for is_killed in [false, true] {
        let mut p = Patient::start(Database::Sqlite).await;
        let beside = text(&p.t.server.folder.path().join("data").join("identity.sqlite-wal"));
        if is_killed {
            p.t.server.kill();
        } else {
            p.t.server.terminate();
            p.t.server.wait_for_log("the end", |line| line["message"] == "stderr closed").await;
        }
        let before = p.on_disk();
        assert_eq!(before.contains(&beside), is_killed, "what is tested here");
        let seen = ask(&p.settings, "doctor").await;
        assert_eq!(p.on_disk(), before, "the doctor changed something");
        assert!(seen.about("storage keys")[0].ends_with("is what the database was written with"), "{}", seen.out);
        assert!(seen.about("pepper")[0].starts_with("good  "), "{}", seen.out);
        assert!(seen.about("listen.public")[0].ends_with("is free"), "{}", seen.out);
        let public = seen.about("public base URL")[0];
        assert!(public.starts_with("soon  ") && public.ends_with("start it, then check again"), "{}", seen.out);
        assert_eq!(seen.code, Some(0), "{}", seen.out);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mistake_about_postgresql_is_named_with_its_fix() {
    let p = Patient::start(Database::Postgres).await;
    let config = fs::read_to_string(p.t.server.folder.path().join("waypost.toml")).unwrap();
    let good = config.lines().find_map(|line| line.strip_prefix("url = \"postgres")).unwrap();
    let good = format!("postgres{}", good.trim_end_matches('"'));
    let (server, query) = good.split_once('?').unwrap();
    let (server, name) = server.rsplit_once('/').unwrap();

    // A user who may look and not make tables, and an empty database.
    let newcomer = format!("newcomer_{name}");
    let empty = Database::Postgres.fresh_url().await;
    let mut admin = PgConnection::connect(&empty).await.unwrap();
    let statements = format!("CREATE ROLE {newcomer} LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut admin).await.unwrap();
    let empty_for_newcomer = empty.replacen("//waypost@", &format!("//{newcomer}@"), 1);
    let limited = format!("CREATE ROLE few_{name} LOGIN CONNECTION LIMIT 5");
    sqlx::raw_sql(AssertSqlSafe(limited)).execute(&mut admin).await.unwrap();
    let few = empty.replacen("//waypost@", &format!("//few_{name}@"), 1);

    let nobody = good.replacen("//waypost@", "//nobody_at_all@", 1);
    let other_name = format!("{server}/no_such_database?{query}");
    let no_socket = format!("{server}/{name}?host=/nowhere-at-all");
    let with_password = "postgres://waypost:sword%20fish@127.0.0.1:1/waypost".to_owned();
    for (what, url, connections, words) in [
        ("database", &nobody, 10, ["does not let this user in", "pg_hba.conf"]),
        ("database", &other_name, 10, ["there is no such database", "CREATE DATABASE"]),
        ("database", &no_socket, 10, ["no such socket", "the host of database.url"]),
        ("database", &with_password, 10, ["nobody listens there", "the host and port of database.url"]),
        ("database", &empty_for_newcomer, 10, ["create tables", "GRANT CREATE ON SCHEMA public"]),
        ("database connections", &good, 1000, ["database.max_connections is 1000", "lower it"]),
        ("database connections", &few, 10, ["the server grants 5", "CONNECTION LIMIT"]),
    ] {
        let mut settings = p.settings.clone();
        settings.set("database", "url", url.as_str()).set("database", "max_connections", connections);
        let seen = ask(&settings, "doctor").await;
        assert_eq!(seen.code, Some(1), "{}{}", seen.out, seen.err);
        let lines = seen.about(what);
        let is_named = |line: &str| line.starts_with("BAD ") && words.iter().all(|word| line.contains(word));
        assert!(lines.iter().any(|line| is_named(line)), "{words:?} in {}", seen.out);
        p.assert_kept_secret(&seen);
        assert!(!seen.out.contains("sword%20fish"), "{}", seen.out);
    }
    let drop_roles = format!("DROP ROLE {newcomer}; DROP ROLE few_{name}");
    sqlx::raw_sql(AssertSqlSafe(drop_roles)).execute(&mut admin).await.unwrap();
    admin.close().await.unwrap();
}

#[test]
fn a_configuration_that_cannot_be_read_exits_2_as_everywhere() {
    let seen = Seen::new(run(IDENTITY, &["--config", "/nowhere/waypost.toml", "doctor"]));
    assert_eq!((seen.code, seen.out.as_str()), (Some(2), ""));
    assert!(seen.err.contains("/nowhere/waypost.toml"), "{}", seen.err);
}
