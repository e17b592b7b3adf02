//! An identity server with its surroundings: a mail server, a homeserver and a private CA.

use ::http::Method;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};

use crate::ca::Ca;
use crate::database::Database;
use crate::homeserver::Homeserver;
use crate::http::{Api, Reply};
use crate::matrix::lookup_hash;
use crate::process::{IDENTITY, Server, TempFolder, run, text};
use crate::settings::Settings;
use crate::smtp::{Mail, Smtp};

/// The server name that the identity server signs as.
pub const SERVER_NAME: &str = "id.test";
/// The homeserver's name.
pub const HOMESERVER: &str = "hs.test";
/// The policy URLs of a server started with [`terms`].
pub const TERMS_URLS: [&str; 2] = ["https://id.test/privacy-en.html", "https://id.test/privacy-de.html"];

/// The path prefix of every endpoint of the current version.
pub const V2: &str = "/_matrix/identity/v2";

/// The keys of `[limits]`.
const LIMITS: &[&str] = &[
    "register_per_source",
    "lookup_per_account",
    "lookup_per_homeserver",
    "addresses_per_account",
    "addresses_per_homeserver",
    "addresses_per_stranger",
    "addresses_of_strangers",
    "addresses_per_source",
    "addresses_total",
    "mail_per_address",
    "mail_per_account",
    "mail_per_source",
    "mail_per_stranger",
    "mail_of_strangers",
    "mail_total",
    "invite_per_address",
    "invite_per_account",
    "invite_per_source",
    "invite_per_stranger",
    "invite_of_strangers",
    "invite_total",
    "bind_per_account",
    "terms_per_account",
    "unbind_per_source",
    "sms_per_number",
    "sms_per_country",
    "sms_per_account",
    "sms_per_source",
    "sms_per_stranger",
    "sms_of_strangers",
    "sms_total",
    "sms_codes_per_number",
    "sms_codes_per_source",
];

/// The running server and its surroundings.
#[derive(Debug)]
pub struct TestIdentity {
    /// The server's process.
    pub server: Server,
    /// A client of its public listener.
    pub api: Api,
    /// The mail server that it sends to.
    pub smtp: Smtp,
    /// The homeserver that verifies OpenID tokens.
    pub homeserver: Homeserver,
    /// The CA that it trusts.
    pub ca: Ca,
}

/// The link in a validation mail, with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The whole link.
    pub url: String,
    /// Path and query, to call on the server under test.
    pub path_and_query: String,
    /// The path.
    pub path: String,
    /// The session id (`sid`).
    pub sid: String,
    /// The client secret.
    pub client_secret: String,
    /// The token, which proves that the mail was read.
    pub token: String,
}

impl Link {
    /// Parses a link.
    ///
    /// # Panics
    ///
    /// If one of the three parameters is missing.
    pub fn parse(link: &str) -> Self {
        let url = url::Url::parse(link).unwrap_or_else(|err| panic!("{link}: {err}"));
        let parameter = |name: &str| {
            url.query_pairs()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.into_owned())
                .unwrap_or_else(|| panic!("the link has no {name}: {link}"))
        };
        Self {
            url: link.to_owned(),
            path_and_query: format!("{}?{}", url.path(), url.query().unwrap_or_default()),
            path: url.path().to_owned(),
            sid: parameter("sid"),
            client_secret: parameter("client_secret"),
            token: parameter("token"),
        }
    }
}

/// Configures one policy in two languages.
pub fn terms(settings: &mut Settings) {
    settings
        .set("terms.policies.privacy_policy", "version", "1")
        .set("terms.policies.privacy_policy.languages.en", "name", "Privacy Policy")
        .set("terms.policies.privacy_policy.languages.en", "url", TERMS_URLS[0])
        .set("terms.policies.privacy_policy.languages.de", "name", "Datenschutz")
        .set("terms.policies.privacy_policy.languages.de", "url", TERMS_URLS[1]);
}

/// The secret for the internal listener.
pub const INTERNAL_SECRET: &str = "correct horse battery staple";

/// Configures an internal listener.
pub fn internal(settings: &mut Settings) {
    settings.set("listen", "internal", "127.0.0.1:0").set("internal", "secret", INTERNAL_SECRET);
}

impl TestIdentity {
    /// Starts a server without terms.
    pub async fn start(database: Database) -> Self {
        Self::start_with(database, |_| {}).await
    }

    /// Starts a server with settings adjusted by `change`.
    pub async fn start_with(database: Database, change: impl FnOnce(&mut Settings)) -> Self {
        let ca = Ca::new();
        let homeserver = Homeserver::start(&ca, &[HOMESERVER]).await;
        Self::start_around(database, ca, homeserver, change).await
    }

    /// Starts a server that uses an existing homeserver.
    pub async fn start_around(
        database: Database,
        ca: Ca,
        homeserver: Homeserver,
        change: impl FnOnce(&mut Settings),
    ) -> Self {
        let smtp = Smtp::start().await;
        let folder = TempFolder::new();
        let mut settings = Settings::default();
        settings
            .set("listen", "public", "127.0.0.1:0")
            .set("listen", "operations", "127.0.0.1:0")
            .set("identity", "server_name", SERVER_NAME)
            .set("identity", "data_dir", text(&folder.path().join("data")))
            .set("database", "url", database.fresh_url().await)
            .set("email", "transport", "smtp")
            .set("email", "from", "Waypost <noreply@id.test>")
            .set("email", "smtp_host", "127.0.0.1")
            .set("email", "smtp_port", smtp.port())
            .set("email", "smtp_tls", "none")
            .set("homeservers.overrides", HOMESERVER, homeserver.server.address.to_string())
            .set("outbound", "allowed_ranges", vec!["127.0.0.0/8"])
            .set("outbound", "extra_ca_file", text(&ca.write(folder.path())))
            .set("log", "level", "debug")
            .set("log", "format", "json");
        for limit in LIMITS {
            // 0 means no limit; tests of limits set their own.
            settings.set(&format!("limits.{limit}"), "burst", 0);
        }
        if database == Database::Postgres {
            // Replicas share their keys, so with PostgreSQL the server generates none.
            let (hash, seal, seed) = (random_base64(), random_base64(), random_base64());
            let storage = folder.write("storage.key", &format!("hash {hash}\nseal 1 {seal}\n"));
            let signing = folder.write("signing.key", &format!("ed25519 0 {seed}\n"));
            settings.set("keys", "storage_key_file", text(&storage));
            settings.set("keys", "signing_key_file", text(&signing));
        }
        change(&mut settings);
        let server = Server::start(IDENTITY, folder, &settings.toml()).await;
        let api = Api::new(&server.public);
        Self { server, api, smtp, homeserver, ca }
    }

    /// Kills the server and restarts it on the same data.
    pub async fn restart(self) -> Self {
        let server = self.server.restart().await;
        let api = Api::new(&server.public);
        Self { server, api, ..self }
    }

    /// Kills the server, lets `change` rewrite its configuration, and restarts it on the same data.
    pub async fn restart_with(mut self, change: impl FnOnce(String) -> String) -> Self {
        self.server.kill();
        let file = self.server.folder.path().join("waypost.toml");
        std::fs::write(&file, change(std::fs::read_to_string(&file).unwrap())).unwrap();
        self.restart().await
    }

    /// Runs a command with the server's configuration, and returns its exit code and output.
    pub fn command(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let config = text(&self.server.folder.path().join("waypost.toml"));
        let mut all = vec!["--config", config.as_str()];
        all.extend_from_slice(arguments);
        let output = run(IDENTITY, &all);
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a second server on the same database and keys. Calls still go to the first one, unless
    /// [`TestIdentity::api`] is replaced.
    pub async fn second_replica(&self) -> Server {
        let config = std::fs::read_to_string(self.server.folder.path().join("waypost.toml")).unwrap();
        Server::start(IDENTITY, TempFolder::new(), &config).await
    }

    /// A client of the internal listener; requires [`internal`].
    pub async fn internal_api(&self) -> Api {
        let line = self.server.wait_for_log("the internal listener", |line| !line["internal"].is_null()).await;
        Api::new(&format!("http://{}", line["internal"].as_str().unwrap()))
    }

    /// Sends a GET below `/_matrix/identity/v2`.
    pub async fn get(&self, path: &str, token: Option<&str>) -> Reply {
        self.api.get(&format!("{V2}{path}"), token).await
    }

    /// Sends a POST below `/_matrix/identity/v2`.
    pub async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Reply {
        self.api.post(&format!("{V2}{path}"), token, body).await
    }

    /// Posts any text below `/_matrix/identity/v2`.
    pub async fn post_text(&self, path: &str, token: Option<&str>, body: &str) -> Reply {
        let body = Bytes::copy_from_slice(body.as_bytes());
        self.api.call(Method::POST, &format!("{V2}{path}"), token, body).await
    }

    /// Calls register with an OpenID token issued by `server_name`.
    pub async fn register_with(&self, openid: &str, server_name: &str) -> Reply {
        let body = json!({
            "access_token": openid,
            "token_type": "Bearer",
            "matrix_server_name": server_name,
            "expires_in": 3600,
        });
        self.post("/account/register", None, &body).await
    }

    /// Registers a user of the homeserver, and returns the access token.
    pub async fn register(&self, user_id: &str) -> String {
        let openid = self.homeserver.issue(user_id);
        let reply = self.register_with(&openid, HOMESERVER).await.ok();
        reply["token"].as_str().expect("register answers a token").to_owned()
    }

    /// Accepts the policy of [`terms`] in English.
    pub async fn accept_terms(&self, token: &str) {
        let body = json!({"user_accepts": [TERMS_URLS[0]]});
        assert_eq!(self.post("/terms", Some(token), &body).await.ok(), json!({}));
    }

    /// Calls requestToken.
    pub async fn request_email(&self, token: &str, email: &str, secret: &str, attempt: u32) -> Reply {
        let body = json!({"client_secret": secret, "email": email, "send_attempt": attempt});
        self.post("/validate/email/requestToken", Some(token), &body).await
    }

    /// Calls requestToken for a phone number.
    pub async fn request_sms(&self, token: &str, number: &str, country: &str, secret: &str, attempt: u32) -> Reply {
        let body =
            json!({"client_secret": secret, "country": country, "phone_number": number, "send_attempt": attempt});
        self.post("/validate/msisdn/requestToken", Some(token), &body).await
    }

    /// Requests a validation mail for `email`, and returns the session and the mail.
    pub async fn open_session(&self, token: &str, email: &str, secret: &str) -> (String, Mail) {
        let seen = self.smtp.count_for(email);
        let reply = self.request_email(token, email, secret, 1).await.ok();
        let sid = reply["sid"].as_str().expect("requestToken answers a sid").to_owned();
        (sid, self.smtp.mail_for(email, seen + 1).await)
    }

    /// Presses the button on the page that the mail links to.
    pub async fn press_button(&self, link: &Link) -> Reply {
        let fields = [
            ("token", link.token.as_str()),
            ("client_secret", link.client_secret.as_str()),
            ("sid", link.sid.as_str()),
        ];
        self.api.post_form(&link.path, &fields).await
    }

    /// Validates `email` through the mail, and returns the session.
    pub async fn validate(&self, token: &str, email: &str, secret: &str) -> String {
        let (sid, mail) = self.open_session(token, email, secret).await;
        let link = Link::parse(&mail.link());
        let page = self.press_button(&link).await;
        assert_eq!(page.status, 200, "{}", page.text);
        sid
    }

    /// Calls bind.
    pub async fn bind(&self, token: &str, sid: &str, secret: &str, user_id: &str) -> Reply {
        let body = json!({"sid": sid, "client_secret": secret, "mxid": user_id});
        self.post("/3pid/bind", Some(token), &body).await
    }

    /// Validates `email` and binds it to `user_id`.
    pub async fn publish(&self, token: &str, email: &str, user_id: &str) -> Value {
        // A client secret per address, as real clients use.
        let secret = format!("secret.{}", email.len());
        let sid = self.validate(token, email, &secret).await;
        self.bind(token, &sid, &secret, user_id).await.ok()
    }

    /// The server's current pepper.
    pub async fn pepper(&self, token: &str) -> String {
        let details = self.get("/hash_details", Some(token)).await.ok();
        details["lookup_pepper"].as_str().expect("hash_details answers a pepper").to_owned()
    }

    /// Looks addresses up by hash, and returns the answer's `mappings`.
    pub async fn lookup(&self, token: &str, emails: &[&str]) -> Value {
        let pepper = self.pepper(token).await;
        let hashes: Vec<String> = emails.iter().map(|email| lookup_hash(email, "email", &pepper)).collect();
        let body = json!({"algorithm": "sha256", "pepper": pepper, "addresses": hashes});
        self.post("/lookup", Some(token), &body).await.ok()["mappings"].clone()
    }

    /// The user that an email address is bound to, if any.
    pub async fn who_is(&self, token: &str, email: &str) -> Option<String> {
        let mappings = self.lookup(token, &[email]).await;
        let found = mappings.as_object().expect("mappings is an object").values().next();
        found.map(|mxid| mxid.as_str().expect("a user id is a string").to_owned())
    }
}

/// 32 random bytes in the form of a key file.
fn random_base64() -> String {
    let mut bytes = [0; 32];
    SystemRandom::new().fill(&mut bytes).unwrap();
    STANDARD.encode(bytes)
}
