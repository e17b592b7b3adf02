//! Mistakes that are made on purpose: each is named, with its fix.

use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;

use futures_util::StreamExt as _;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use waypost_tests::ca::{Alpn, Ca};
use waypost_tests::database::Database;
use waypost_tests::homeserver::{Homeserver, key_answer};
use waypost_tests::identity::HOMESERVER;
use waypost_tests::jwt::now_secs;
use waypost_tests::process::{IDENTITY, TempFolder, run, text};
use waypost_tests::settings::Settings;
use waypost_tests::smtp::{Demands, Smtp, Tls};
use waypost_tests::tls_server::{Answer, TlsServer};

use super::{PASSWORD, Patient, ask, keep_private};

/// A password that nobody takes.
const WRONG_PASSWORD: &str = "wrong-password-3141";

/// A patient, and neighbours of the wrong kind.
struct Ward {
    p: Patient,
    plain_smtp: Smtp,
    tls_smtp: Smtp,
    distrusted_smtp: Smtp,
    picky_smtp: Smtp,
    distrusted_front: TlsServer,
    other_front: TlsServer,
    no_front: TlsServer,
    late_homeserver: Homeserver,
    other_homeserver: Homeserver,
    distrusted_homeserver: Homeserver,
    /// A TCP port and a UDP port where nobody is.
    nobody: (u16, u16),
    /// The database's file, and a copy with tables of a later version.
    database: String,
    newer_database: String,
    storage_key: String,
    signing_key: String,
}

/// How the settings are spoilt; what the line is about; the words of the finding and of its fix.
type Mistake = (fn(&mut Settings, &Ward), &'static str, &'static [&'static str]);

impl Ward {
    async fn open() -> Self {
        let p = Patient::start(Database::Sqlite).await;
        let (ca, stranger) = (&p.t.ca, Ca::new());
        let leaf = |ca: &Ca| ca.leaf(&["127.0.0.1"], Alpn::Http1);
        let encrypted = |tls| Smtp::start_with(Demands { tls, login: None });
        let picky_smtp = Smtp::start().await;
        picky_smtp.refuse("noreply@id.test");
        let identity = |is_valid: bool| {
            move |request: waypost_tests::tls_server::Request| async move {
                let is_versions = request.path.ends_with("/versions");
                Answer::json(200, &if is_versions { json!({"versions": ["v1.1"]}) } else { json!({"valid": is_valid}) })
            }
        };
        let late_homeserver = Homeserver::start(ca, &[HOMESERVER]).await;
        let day_secs = 24 * 60 * 60;
        let keys = key_answer(HOMESERVER, (now_secs() + day_secs) * 1000);
        late_homeserver.keys(keys.header("date", "Sun, 06 Nov 1994 08:49:37 GMT"));
        let data = p.t.server.folder.path().join("data");
        let database = text(&data.join("identity.sqlite"));
        let newer_database = text(&p.folder.path().join("newer.sqlite"));
        copy_as_newer(&database, &newer_database).await;
        Self {
            plain_smtp: Smtp::start().await,
            tls_smtp: encrypted(Tls::Immediate(leaf(ca))).await,
            distrusted_smtp: encrypted(Tls::Starttls(leaf(&stranger))).await,
            picky_smtp,
            distrusted_front: TlsServer::start(leaf(&stranger), identity(true)).await,
            other_front: TlsServer::start(leaf(ca), identity(false)).await,
            no_front: TlsServer::start(leaf(ca), |_| async { Answer::text(404, "<h1>Not Found</h1>") }).await,
            late_homeserver,
            other_homeserver: Homeserver::start(ca, &["other.test", HOMESERVER]).await,
            distrusted_homeserver: Homeserver::start(&stranger, &[HOMESERVER]).await,
            nobody: nobody(),
            database,
            newer_database,
            storage_key: text(&data.join("storage.key")),
            signing_key: text(&data.join("signing.key")),
            p,
        }
    }

    /// A file of the test's own that only its owner may read.
    fn private(&self, name: &str, contents: &str) -> String {
        let file = self.p.folder.write(name, contents);
        keep_private(&file);
        text(&file)
    }
}

/// Ports that were free a moment ago.
fn nobody() -> (u16, u16) {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    (tcp, udp)
}

/// A copy of a database, with a step that no version knows today.
async fn copy_as_newer(from: &str, to: &str) {
    let mut connection = SqliteConnection::connect(&format!("sqlite:{from}")).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("VACUUM INTO '{to}'"))).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    let mut copy = SqliteConnection::connect(&format!("sqlite:{to}")).await.unwrap();
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9999, 'later', TRUE, x'00', 0)";
    sqlx::raw_sql(later).execute(&mut copy).await.unwrap();
    copy.close().await.unwrap();
}

/// On disk.
const FILES: &[Mistake] = &[
    (
        |s, w| {
            let file = w.p.folder.write("a-file", "");
            s.set("identity", "data_dir", format!("{}/data", text(&file)));
        },
        "data folder",
        &["a-file is a file", "set identity.data_dir to a folder"],
    ),
    (
        |s, w| {
            let folder = text(&w.p.folder.path().join("no-folder"));
            s.set("database", "url", format!("sqlite:{folder}/identity.sqlite"));
        },
        "database",
        &["no-folder of database.url does not exist", "create it"],
    ),
    (
        |s, w| {
            let file = w.p.folder.write("no-database", &"This is a letter to Alice, and no database. ".repeat(50));
            s.set("database", "url", format!("sqlite:{}", text(&file)));
        },
        "database",
        &["is it an SQLite database", "restore it from your backup"],
    ),
    (
        |s, w| {
            s.set("database", "url", format!("sqlite:{}", w.newer_database));
        },
        "database",
        &["of a newer version", "run that version"],
    ),
    (
        |s, w| {
            let made = String::from_utf8(run(IDENTITY, &["keys", "storage"]).stdout).unwrap();
            s.set("keys", "storage_key_file", w.private("other-storage.key", &made));
        },
        "storage keys",
        &["is not what the database was written with", "put the right file back"],
    ),
    (
        |s, w| {
            // The database is where it was; the folder of its keys is an empty one.
            s.set("database", "url", format!("sqlite:{}", w.database));
            s.set("identity", "data_dir", text(&w.p.folder.path().join("not-yet")));
        },
        "storage keys",
        &["storage.key is missing, and the database was written with it", "put it back from your backup"],
    ),
    (
        |s, w| {
            s.set("keys", "storage_key_file", w.private("half-storage.key", "hash c2hvcnQ=\n"));
        },
        "storage keys",
        &["line 1 is neither", "put the right file there"],
    ),
    (
        |s, w| {
            let copy = w.p.folder.write("open-storage.key", &fs::read_to_string(&w.storage_key).unwrap());
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o644)).unwrap();
            s.set("keys", "storage_key_file", text(&copy));
        },
        "storage keys",
        &["open to every user of this machine (mode 644)", "chmod 600"],
    ),
    (
        |s, _| {
            s.set("keys", "signing_key_file", "/nowhere/signing.key");
        },
        "signing key",
        &["/nowhere/signing.key does not exist", "`waypost-identity keys signing`"],
    ),
    (
        |s, w| {
            let good = fs::read_to_string(&w.signing_key).unwrap();
            s.set("keys", "signing_key_file", w.private("twice-signing.key", &good.repeat(2)));
        },
        "signing key",
        &["line 2 repeats the version", "fix the line"],
    ),
    (
        |s, w| {
            let folder = w.p.folder.path().join("templates");
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("verification_mail.txt"), "Hello {{ link").unwrap();
            s.set("email", "template_dir", text(&folder));
        },
        "templates",
        &["verification_mail.txt", "fix or remove the file", "email.template_dir"],
    ),
    (
        |s, _| {
            s.set("terms.policies.privacy", "version", "1");
            s.set("terms.policies.privacy.languages.en", "name", "Privacy");
            s.set("terms.policies.privacy.languages.en", "file", "/nowhere/privacy.md");
        },
        "policies",
        &["/nowhere/privacy.md", "put the file there"],
    ),
];

/// Of the mail server.
const MAIL: &[Mistake] = &[
    (
        |s, w| {
            s.set("email", "smtp_port", w.nobody.0);
        },
        "mail",
        &["no connection", "email.smtp_host and email.smtp_port"],
    ),
    (
        |s, w| {
            s.set("email", "smtp_port", w.distrusted_smtp.port()).remove("email", "smtp_username");
        },
        "mail",
        &["its certificate is not trusted", "outbound.extra_ca_file"],
    ),
    (
        |s, w| {
            s.set("email", "smtp_port", w.plain_smtp.port());
        },
        "mail",
        &["it offers no STARTTLS", "email.smtp_tls"],
    ),
    (
        |s, w| {
            s.set("email", "smtp_port", w.tls_smtp.port()).set("email", "smtp_timeout_secs", 2);
        },
        "mail",
        &["it does not greet", "email.smtp_tls = \"tls\""],
    ),
    (
        |s, w| {
            s.set("email", "smtp_port", w.plain_smtp.port()).set("email", "smtp_tls", "tls");
        },
        "mail",
        &["no TLS", "\"starttls\" for others"],
    ),
    (
        |s, _| {
            s.set("email", "smtp_password", WRONG_PASSWORD);
        },
        "mail",
        &["rejects the login (SMTP status 535)", "email.smtp_username and email.smtp_password"],
    ),
    (
        |s, _| {
            s.remove("email", "smtp_username").remove("email", "smtp_password");
        },
        "mail",
        &["requires encryption or a login first", "email.smtp_username"],
    ),
    (
        |s, w| {
            s.set("email", "smtp_port", w.plain_smtp.port()).set("email", "smtp_tls", "none");
        },
        "mail",
        &["it offers no login", "remove email.smtp_username"],
    ),
    (
        |s, w| {
            s.set("email", "smtp_port", w.picky_smtp.port()).set("email", "smtp_tls", "none");
            s.remove("email", "smtp_username").remove("email", "smtp_password");
        },
        "mail",
        &["does not accept mail from Waypost <noreply@id.test>", "set email.from to a sender that it accepts"],
    ),
];

/// Between the server and the people who reach it.
const PUBLIC: &[Mistake] = &[
    (
        |s, _| {
            s.remove("identity", "public_base_url");
        },
        "public base URL",
        &["identity.public_base_url is not set", "set it"],
    ),
    (
        |s, _| {
            s.set("identity", "public_base_url", "http://id.test");
        },
        "public base URL",
        &["is not https", "put TLS on the reverse proxy"],
    ),
    (
        |s, _| {
            s.set("identity", "public_base_url", "https://nowhere.test");
        },
        "public base URL",
        &["DNS does not know the name", "check its spelling"],
    ),
    (
        |s, w| {
            s.set("identity", "public_base_url", format!("https://127.0.0.1:{}", w.nobody.0));
        },
        "public base URL",
        &["no connection", "check its address and port"],
    ),
    (
        |s, w| {
            s.set("identity", "public_base_url", w.distrusted_front.url());
        },
        "public base URL",
        &["its certificate is not trusted", "outbound.extra_ca_file"],
    ),
    (
        |s, w| {
            let plain = w.plain_smtp.port();
            s.set("identity", "public_base_url", format!("https://127.0.0.1:{plain}"));
        },
        "public base URL",
        &["TLS failed", "check the port"],
    ),
    (
        |s, w| {
            s.set("identity", "public_base_url", w.other_front.url());
        },
        "public base URL",
        &["is another identity server", "the reverse proxy must pass /_matrix/identity"],
    ),
    (
        |s, w| {
            s.set("identity", "public_base_url", w.no_front.url());
        },
        "public base URL",
        &["answers 404 Not Found, and not as an identity server", "the reverse proxy must pass"],
    ),
    (
        |s, _| {
            s.set("listen", "public", "192.0.2.1:8090");
        },
        "listen.public",
        &["no interface of this machine has this address", "0.0.0.0 for all"],
    ),
    (
        |s, w| {
            s.set("listen", "public", "127.0.0.1:0").set("listen", "operations", w.plain_smtp.address.to_string());
        },
        "listen.operations",
        &["is taken by another program", "set listen.operations to another port"],
    ),
    (
        |s, _| {
            s.set("server", "trusted_proxies", vec!["0.0.0.0/0"]);
        },
        "trusted proxies",
        &["every caller may claim any address", "list your reverse proxies only"],
    ),
];

/// Of others that the server calls.
const CALLS: &[Mistake] = &[
    (
        |s, w| {
            s.set("outbound", "dns_servers", vec![format!("127.0.0.1:{}", w.nobody.1)]);
        },
        "dns",
        &["the name servers do not answer", "outbound.dns_servers"],
    ),
    (
        |s, w| {
            s.set("outbound", "proxy_url", format!("http://waypost:{WRONG_PASSWORD}@{}", w.p.proxy.address));
        },
        "outgoing proxy",
        &["it answered 407", "outbound.proxy_url"],
    ),
    (
        |s, w| {
            s.set("outbound", "proxy_url", format!("http://127.0.0.1:{}", w.nobody.0));
        },
        "outgoing proxy",
        &["the proxy cannot be reached", "outbound.proxy_url"],
    ),
    (
        |s, _| {
            s.remove("outbound", "allowed_ranges");
        },
        "homeserver hs.test",
        &["is not public", "outbound.allowed_ranges"],
    ),
    (
        |s, w| {
            s.set("homeservers.overrides", HOMESERVER, format!("127.0.0.1:{}", w.nobody.0));
        },
        "homeserver hs.test",
        &["no connection", "check its address and port"],
    ),
    (
        |s, w| {
            s.set("homeservers.overrides", HOMESERVER, w.other_homeserver.server.address.to_string());
        },
        "homeserver hs.test",
        &["is another homeserver", "homeservers.overrides"],
    ),
    (
        |s, w| {
            s.set("homeservers.overrides", HOMESERVER, w.distrusted_homeserver.server.address.to_string());
        },
        "homeserver hs.test",
        &["its certificate is not trusted", "for this name"],
    ),
    (
        |s, w| {
            s.set("homeservers.overrides", HOMESERVER, w.late_homeserver.server.address.to_string());
        },
        "clock",
        &["ahead of that of hs.test", "set both by NTP"],
    ),
    (
        |s, w| {
            s.set("sms", "transport", "http");
            s.set("sms.http", "url", format!("https://127.0.0.1:{}/send?key={WRONG_PASSWORD}", w.nobody.0));
            s.set("sms.http", "body", r#"{"to": "{{ to }}", "text": "{{ text }}"}"#);
        },
        "text messages",
        &["no connection", "check its address and port"],
    ),
    (
        |s, _| {
            s.set("sms", "transport", "openmarket").set("sms", "username", "waypost");
            s.set("sms", "password_file", "/nowhere/sms-password");
        },
        "text messages",
        &["cannot read /nowhere/sms-password", "check [sms]"],
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mistake_is_named_with_its_fix() {
    let w = Ward::open().await;
    let mistakes: Vec<&Mistake> = [FILES, MAIL, PUBLIC, CALLS].into_iter().flatten().collect();
    assert!(mistakes.len() >= 20, "{}", mistakes.len());
    let spoilt: Vec<Settings> = mistakes
        .iter()
        .map(|(spoil, ..)| {
            let mut settings = w.p.settings.clone();
            spoil(&mut settings, &w);
            settings
        })
        .collect();
    // What the mistakes themselves need is on disk by now.
    let before = w.p.on_disk();
    let runs = futures_util::stream::iter(&spoilt).map(|settings| ask(settings, "doctor"));
    let seen: Vec<_> = runs.buffered(3).collect().await;
    for ((_, what, words), seen) in mistakes.into_iter().zip(seen) {
        let case = format!("{what}: {words:?}");
        assert_eq!(seen.code, Some(1), "{case} in {}{}", seen.out, seen.err);
        let lines = seen.about(what);
        let is_named = |line: &str| line.starts_with("BAD ") && words.iter().all(|word| line.contains(word));
        assert!(lines.iter().any(|line| is_named(line)), "{case} in {}", seen.out);
        w.p.assert_kept_secret(&seen);
        assert!(!format!("{seen:?}").contains(WRONG_PASSWORD), "{case} in {seen:?}");
    }
    assert_eq!(w.p.on_disk(), before, "the doctor changed something");
    for smtp in [&w.p.smtp, &w.plain_smtp, &w.tls_smtp, &w.distrusted_smtp, &w.picky_smtp] {
        assert!(smtp.mails.is_empty(), "the doctor sent a mail");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_mistake_in_the_configuration_is_named_with_its_fix() {
    for (section, key, value, words) in [
        ("email", "smtp_hots", json!("mail.test"), ["email.smtp_hots", "did you mean `smtp_host`?"]),
        ("email", "smtp_tls", json!("ssl"), ["email.smtp_tls", "expected one of `none`, `starttls`, `tls`"]),
        ("email", "from", json!("nobody"), ["email.from", "such as \"Example <noreply@example.com>\""]),
        ("email", "smtp_password_file", json!("/nowhere/password"), ["email.smtp_password_file", "cannot read"]),
        ("database", "max_connections", json!(1), ["database.max_connections", "must be from 2 to 1000"]),
        ("database", "url", json!("mysql://a:3141592653@b/c"), ["database.url", "must begin with `postgres://`"]),
        (
            "database",
            "url",
            json!("postgres://a:3141592653@b/c"),
            ["keys.storage_key_file", "`waypost-identity keys storage`"],
        ),
        ("identity", "server_name", json!("https://id.test"), ["identity.server_name", "must be a host name"]),
        ("homeservers.overrides", "hs.test", json!("hs.test"), ["homeservers.overrides.hs.test", "host:port"]),
        ("v1", "mode", json!("full"), ["v1.allow", "the addresses of your homeservers"]),
        ("listen", "internal", json!("127.0.0.1:0"), ["internal.secret", "or set secret_file"]),
        (
            "outbound",
            "extra_ca_file",
            json!("/nowhere/ca.pem"),
            ["outbound.extra_ca_file", "cannot read /nowhere/ca.pem"],
        ),
        ("outbound", "proxy_url", json!("socks5://a:3141592653@b"), ["outbound.proxy_url", "must be http://host:port"]),
    ] {
        let folder = TempFolder::new();
        let mut settings = Settings::default();
        settings.set("identity", "data_dir", text(&folder.path().join("data")));
        settings.set(section, key, value);
        for verb in ["check-config", "doctor"] {
            let seen = ask(&settings, verb).await;
            assert_eq!((seen.code, seen.out.as_str()), (Some(2), ""), "{verb}: {}", seen.err);
            assert!(words.iter().all(|word| seen.err.contains(word)), "{verb}: {words:?} in {}", seen.err);
            assert!(!seen.err.contains("3141592653") && !seen.err.contains(PASSWORD), "{}", seen.err);
        }
        assert!(super::everything_in(folder.path()).is_empty(), "{key}");
    }
}
