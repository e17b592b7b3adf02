//! The identity server's half: from an OpenID token to a contact found by lookup.

use serde_json::json;
use waypost_tests::database::Database;
use waypost_tests::identity::{HOMESERVER, Link, SERVER_NAME, TERMS_URLS, TestIdentity, V2, terms};
use waypost_tests::matrix::{lookup_hash, verify_signed_json};

use crate::report::{Outcome, Report, done, ensure};

/// The user of the demo.
const ALICE: &str = "@alice:hs.test";
/// Her address, as she types it.
const EMAIL: &str = "Alice@Example.org";
/// The normalized address, as it is hashed.
const FOLDED: &str = "alice@example.org";
/// The client secret of this validation.
const SECRET: &str = "demo.client.secret";
/// The number of contacts in one lookup.
const CONTACTS: usize = 1000;

/// Runs the steps and leaves the server running. `None` if it did not start.
pub(crate) async fn walk(report: &mut Report) -> Option<TestIdentity> {
    println!("\nIdentity server: people are found by addresses that they have proven to be theirs.");
    let identity = report.step("waypost-identity starts between a mail server and a homeserver", start()).await?;
    if steps(report, &identity).await.is_none() {
        report.complaints("waypost-identity", &identity.server);
    }
    Some(identity)
}

async fn steps(report: &mut Report, identity: &TestIdentity) -> Option<()> {
    let token = report.step("An account, from an OpenID token", account(identity)).await?;
    report.step("Terms have to be accepted first", accept(identity, &token)).await?;
    let link = report.step("A mail to prove an address", mail(identity, &token)).await?;
    report.step("The link is opened, the button pressed", prove(identity, &token, &link)).await?;
    report.step("The address is published, signed", bind(identity, &token, &link)).await?;
    report.step("1000 contacts are looked up by hash", lookup(identity, &token)).await
}

async fn start() -> Outcome<TestIdentity> {
    let identity = TestIdentity::start_with(Database::Sqlite, terms).await;
    let wire = vec![
        format!("public {}, operations {}", identity.server.public, identity.server.operations),
        format!(
            "mail by SMTP to {}; {HOMESERVER} over TLS at {}",
            identity.smtp.address, identity.homeserver.server.address
        ),
        format!("SQLite, keys and pepper are new, in {}", identity.server.folder.path().display()),
    ];
    done(identity, "it listens on two ports of its own", wire)
}

async fn account(identity: &TestIdentity) -> Outcome<String> {
    let token = identity.register(ALICE).await;
    let asked = identity
        .homeserver
        .server
        .requests
        .all()
        .into_iter()
        .find(|request| request.path.ends_with("/openid/userinfo"))
        .ok_or("the homeserver was not asked")?;
    let account = identity.get("/account", Some(&token)).await;
    // Before she accepts the terms, even `/account` is forbidden.
    ensure(account.failure() == (403, "M_TERMS_NOT_SIGNED".to_owned()), account.text)?;
    let sni = asked.sni.as_deref().unwrap_or("-");
    let wire = vec![
        format!(
            "→ POST {V2}/account/register {{\"access_token\":\"openid-…\",\"matrix_server_name\":\"{HOMESERVER}\",…}}"
        ),
        format!("  the server asks {HOMESERVER} (TLS name {sni}): GET {} → {{\"sub\":\"{ALICE}\"}}", asked.path),
        "← 200 {\"token\":\"…\",\"access_token\":\"…\"}".to_owned(),
    ];
    done(token, format!("{HOMESERVER} vouched for {ALICE}"), wire)
}

async fn accept(identity: &TestIdentity, token: &str) -> Outcome<()> {
    let offered = identity.get("/terms", None).await.ok();
    ensure(offered["policies"]["privacy_policy"]["version"] == "1", offered.to_string())?;
    identity.accept_terms(token).await;
    let account = identity.get("/account", Some(token)).await.ok();
    ensure(account == json!({"user_id": ALICE}), account.to_string())?;
    let wire = vec![
        format!("→ GET {V2}/account ← 403 M_TERMS_NOT_SIGNED"),
        format!("→ POST {V2}/terms {{\"user_accepts\":[\"{}\"]}} ← 200 {{}}", TERMS_URLS[0]),
        format!("→ GET {V2}/account ← 200 {account}"),
    ];
    done((), "403 before, 200 after", wire)
}

async fn mail(identity: &TestIdentity, token: &str) -> Outcome<Link> {
    let (sid, mail) = identity.open_session(token, EMAIL, SECRET).await;
    let message = mail.message();
    let link = Link::parse(&mail.link());
    ensure(link.sid == sid, "the link is for another session")?;
    let wire = vec![
        format!("→ POST {V2}/validate/email/requestToken {{\"email\":\"{EMAIL}\",…}} ← 200 {{\"sid\":\"…\"}}"),
        format!("✉ MAIL FROM:<{}> RCPT TO:<{}> Subject: {}", mail.from, mail.to.join(", "), message.header("subject")),
        format!("  {}", link.url),
    ];
    done(link, format!("{} bytes arrived over SMTP", mail.raw.len()), wire)
}

async fn prove(identity: &TestIdentity, token: &str, link: &Link) -> Outcome<()> {
    let check = format!("/3pid/getValidated3pid?sid={}&client_secret={}", link.sid, link.client_secret);
    let page = identity.api.get(&link.path_and_query, None).await;
    ensure(page.status == 200 && page.text.contains("<form"), "the page has no button")?;
    // Mail scanners follow links too, so opening the link must not validate anything.
    let before = identity.get(&check, Some(token)).await;
    ensure(before.errcode() == "M_SESSION_NOT_VALIDATED", before.text)?;
    let pressed = identity.press_button(link).await;
    ensure(pressed.status == 200, pressed.text)?;
    let after = identity.get(&check, Some(token)).await.ok();
    ensure(after["address"] == FOLDED, after.to_string())?;
    let wire = vec![
        format!("→ GET {}?… ← 200, a page with a button; the address is not proven yet", link.path),
        format!("→ POST {} (the button) ← 200", link.path),
        format!("→ GET {V2}/3pid/getValidated3pid?… ← {after}"),
    ];
    done((), "proven by the button, not by the link alone", wire)
}

async fn bind(identity: &TestIdentity, token: &str, link: &Link) -> Outcome<()> {
    let signed = identity.bind(token, &link.sid, SECRET, ALICE).await.ok();
    let key = identity.get("/pubkey/ed25519:0", None).await.ok();
    let public_key = key["public_key"].as_str().ok_or("no public key")?;
    verify_signed_json(&signed, SERVER_NAME, "ed25519:0", public_key)?;
    let wire = vec![
        format!("→ POST {V2}/3pid/bind {{\"sid\":\"…\",\"mxid\":\"{ALICE}\",…}}"),
        format!("← 200 {signed}"),
        format!("→ GET {V2}/pubkey/ed25519:0 ← {key}; the signature holds"),
    ];
    done((), format!("signed by {SERVER_NAME}, verified"), wire)
}

async fn lookup(identity: &TestIdentity, token: &str) -> Outcome<()> {
    let pepper = identity.pepper(token).await;
    let mut contacts: Vec<String> = (1..CONTACTS).map(|number| format!("friend{number}@example.net")).collect();
    contacts.insert(CONTACTS / 2, FOLDED.to_owned());
    let hashes: Vec<String> = contacts.iter().map(|contact| lookup_hash(contact, "email", &pepper)).collect();
    let hers = hashes[CONTACTS / 2].clone();
    let body = json!({"algorithm": "sha256", "pepper": pepper, "addresses": hashes});
    let mappings = identity.post("/lookup", Some(token), &body).await.ok()["mappings"].clone();
    ensure(mappings == json!({hers: ALICE}), format!("mappings: {mappings}"))?;
    let wire = vec![
        format!(
            "→ POST {V2}/lookup, {} bytes: {CONTACTS} of sha256(\"address email {pepper}\")",
            body.to_string().len()
        ),
        format!("← 200 {{\"mappings\":{mappings}}}"),
    ];
    done((), format!("1 of {CONTACTS} found: {ALICE}"), wire)
}
