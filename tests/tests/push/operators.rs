//! What an operator types: `doctor`, `send-test`, `vapid`.

use std::process::Output;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use waypost_tests::apns;
use waypost_tests::fault::Fault;
use waypost_tests::fcm;
use waypost_tests::gateway::{ANDROID, IOS, TestGateway, UNIFIED, WEB, apns_token};
use waypost_tests::http::Api;
use waypost_tests::process::{PUSH_GATEWAY, TempFolder, run, text};
use waypost_tests::tls_server::Answer;

/// What the doctor asks about: tokens that no device has.
const NO_IPHONE: &str = "0000000000000000000000000000000000000000000000000000000000000000";
const NO_ANDROID: &str = "waypost-doctor";

/// Runs the program with the gateway's own configuration.
async fn command(gateway: &TestGateway, arguments: &[&str]) -> (Option<i32>, String, String) {
    let file = text(&gateway.server.folder.path().join("waypost.toml"));
    let mut all = vec!["--config".to_owned(), file];
    all.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    // The stand-ins answer on this thread.
    let ran = tokio::task::spawn_blocking(move || {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        run(PUSH_GATEWAY, &all)
    });
    let Output { status, stdout, stderr } = ran.await.unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test]
async fn the_doctor_is_content_when_each_service_takes_the_credentials() {
    let gateway = TestGateway::start().await;
    // As Apple and Google answer those whom they know, about a device that they do not.
    gateway.apns.script().always(NO_IPHONE, apns::refusal(400, "BadDeviceToken"));
    gateway.fcm.script().always(NO_ANDROID, fcm::bad_field("message.token"));
    let (code, out, log) = command(&gateway, &["doctor"]).await;
    assert_eq!(code, Some(0), "{out}{log}");
    for app in [IOS, ANDROID, WEB, UNIFIED] {
        assert!(out.contains(&format!("good  {app}: ")), "{out}");
    }
    assert!(out.contains(&gateway.webpush.vapid_public_key()), "{out}");
    // Nobody was sent anything.
    let asked = gateway.fcm.server.requests.all();
    assert!(asked.iter().filter(|request| request.path != "/token").all(|asked| asked.json()["validate_only"] == true));
}

#[tokio::test]
async fn the_doctor_says_for_each_failure_what_to_change() {
    let gateway = TestGateway::start().await;
    gateway.apns.script().always(NO_IPHONE, apns::refusal(403, "InvalidProviderToken"));
    gateway.fcm.script().always(NO_ANDROID, fcm::refusal(404, "NOT_FOUND", None));
    let (code, out, _) = command(&gateway, &["doctor"]).await;
    assert_eq!(code, Some(1), "{out}");
    let lines: Vec<&str> = out.lines().collect();
    let of = |app: &str| *lines.iter().find(|line| line.contains(app)).unwrap();
    assert!(of(IOS).starts_with("BAD ") && of(IOS).contains("`key_id` and `team_id`"), "{out}");
    assert!(of(ANDROID).starts_with("BAD ") && of(ANDROID).contains("`project_id`"), "{out}");
    assert!(of(WEB).starts_with("good "), "{out}");
}

#[tokio::test]
async fn each_answer_to_bad_credentials_is_told_with_its_fix() {
    let gateway = TestGateway::start().await;
    let no_such_project = fcm::refusal(404, "NOT_FOUND", None);
    let not_allowed = fcm::refusal(403, "PERMISSION_DENIED", None);
    let no_grant = Answer::json(400, &json!({"error": "invalid_grant"}));
    let no_token = Answer::text(200, "<h1>It works!</h1>");
    for (app, asked, answer, words) in [
        (IOS, NO_IPHONE, apns::refusal(403, "InvalidProviderToken"), ["InvalidProviderToken", "must belong together"]),
        (IOS, NO_IPHONE, apns::refusal(403, "ExpiredProviderToken"), ["ExpiredProviderToken", "clock must be right"]),
        (IOS, NO_IPHONE, apns::refusal(403, "BadEnvironmentKeyIdInToken"), ["BadEnv", "for the other `environment`"]),
        (IOS, NO_IPHONE, apns::refusal(403, "MissingProviderToken"), ["MissingProviderToken", "set `key_file`"]),
        (ANDROID, NO_ANDROID, no_such_project, ["there is no such project", "is `project_id` right?"]),
        (ANDROID, NO_ANDROID, not_allowed, ["403", "may this account send messages for `project_id`?"]),
        (ANDROID, "/token", no_grant, ["the token service does not accept", "the app's credentials"]),
        (ANDROID, "/token", no_token, ["contains no token", "is its address right?"]),
    ] {
        gateway.apns.script().always(NO_IPHONE, apns::refusal(400, "BadDeviceToken"));
        gateway.fcm.script().always(NO_ANDROID, fcm::bad_field("message.token"));
        if app == IOS {
            gateway.apns.script().always(asked, answer);
        } else {
            gateway.fcm.script().always(asked, answer);
        }
        let (code, out, log) = command(&gateway, &["doctor"]).await;
        assert_eq!(code, Some(1), "{out}{log}");
        let bad: Vec<&str> = out.lines().filter(|line| line.starts_with("BAD ")).collect();
        assert_eq!(bad.len(), 1, "{out}");
        assert!(bad[0].starts_with(&format!("BAD   {app}: ")), "{out}");
        assert!(words.iter().all(|word| bad[0].contains(word)), "{words:?} in {out}");
        assert!(!format!("{out}{log}").contains("bearer-"), "{out}{log}");
    }
}

#[test]
fn each_mistake_about_an_app_is_named_with_its_fix() {
    let folder = TempFolder::new();
    let letter = text(&folder.write("letter.txt", "Dear Alice, this is no key."));
    let apns = "[apps.apns]\ntopic = \"b\"\nkey_id = \"c\"\nteam_id = \"d\"\n";
    let fcm = "[apps.fcm]\nproject_id = \"p\"\n";
    for (keys, words) in [
        (String::new(), ["apps.0: has no push service", "put [apps.apns], [apps.fcm]"]),
        ("type = \"gcm\"\n".to_owned(), ["apps.0.type: is no longer a key", "was shut down in 2024"]),
        (
            "type = \"apns\"\ntopic = \"3141592653\"\n".to_owned(),
            ["waypost.toml:3: apps.0.type: each push service has its own table", "\n[apps.apns]\ntopic = …\n"],
        ),
        ("[apps.apns]\ntopic = \"b\"\n".to_owned(), ["apps.0.apns.key_file: is missing", "or set certificate_file"]),
        (format!("{apns}key_file = \"/nowhere/a.p8\"\n"), ["apps.0.apns.key_file", "/nowhere/a.p8 cannot be read"]),
        (format!("{apns}key_file = \"{letter}\"\n"), ["apps.0.apns.key_file", "letter.txt"]),
        (
            format!("{apns}key_file = \"a\"\ncertificate_file = \"b\"\n"),
            ["apps.0.apns.certificate_file: key_file is set too", "keep one of them"],
        ),
        (fcm.to_owned(), ["service_account_file: is missing", "or workload_identity = true"]),
        (
            format!("{fcm}service_account_file = \"{letter}\"\n"),
            ["apps.0.fcm.service_account_file: is not the JSON key file", "with client_email and private_key"],
        ),
        (
            format!("{fcm}topic = \"b\"\n"),
            ["waypost.toml:5: apps.0.fcm.topic: unknown key `topic`", "known keys are project_id"],
        ),
        (
            "[apps.unifiedpush]\n[seen]\nredis_url = \"redis://a:3141592653@b\"\n".to_owned(),
            ["seen.secret: is missing", "openssl rand -hex 32"],
        ),
    ] {
        let file = text(&folder.write("waypost.toml", &format!("[[apps]]\nid = \"org.example\"\n{keys}")));
        for verb in ["check-config", "doctor"] {
            let output = run(PUSH_GATEWAY, &["--config", &file, verb]);
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!((output.status.code(), output.stdout), (Some(2), Vec::new()), "{verb}: {said}");
            assert!(words.iter().all(|word| said.contains(word)), "{verb}: {words:?} in {said}");
            assert!(!said.contains("Dear Alice") && !said.contains("3141592653"), "{said}");
        }
    }
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[tokio::test]
async fn the_doctor_tells_what_was_not_reached_and_which_token_was_not_given() {
    let gateway = TestGateway::start_impatient().await;
    gateway.apns.server.faults().always(Fault::CutBefore);
    gateway.fcm.script().always("/token", Answer::json(400, &json!({"error": "invalid_grant"})));
    let (code, out, _) = command(&gateway, &["doctor"]).await;
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains(&format!("BAD   {IOS}: the service was unreachable or busy")), "{out}");
    assert!(
        out.contains(&format!("BAD   {ANDROID}: the token service does not accept the app's credentials")),
        "{out}"
    );
}

#[tokio::test]
async fn a_certificate_has_its_end_in_the_metrics_and_in_what_the_doctor_says() {
    let gateway = TestGateway::start_apps(|settings, around| {
        let (chain, key) = around.ca.client_certificate("org.example.ios");
        let mut app = around.apns_app(IOS);
        app.retain(|(name, _)| !["apns.key_file", "apns.key_id", "apns.team_id"].contains(name));
        app.push(("apns.certificate_file", json!(text(&around.folder.write("apns.pem", &format!("{chain}{key}"))))));
        settings.push("apps", &app);
    })
    .await;
    let metrics = Api::new(&gateway.server.operations).get("/metrics", None).await.text;
    // The stand-ins' certificates end with the year 4095. Python: datetime(4096, 1, 1, tzinfo=timezone.utc).timestamp()
    let labels = format!("app=\"{IOS}\",provider=\"apns\"");
    let line = format!("waypost_push_gateway_certificate_expiry_seconds{{{labels}}} 67090118400\n");
    assert!(metrics.contains(&line), "{metrics}");
    let (code, out, _) = command(&gateway, &["doctor"]).await;
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains(&format!("good  {IOS}: certificate_file is good for ")), "{out}");
}

#[tokio::test]
async fn a_certificate_of_the_future_is_an_error_at_the_start_and_for_the_doctor() {
    let gateway = TestGateway::start_apps(|settings, around| {
        let (chain, key) = around.ca.client_certificate_from("org.example.ios", 4000);
        let mut app = around.apns_app(IOS);
        app.retain(|(name, _)| !["apns.key_file", "apns.key_id", "apns.team_id"].contains(name));
        app.push(("apns.certificate_file", json!(text(&around.folder.write("apns.pem", &format!("{chain}{key}"))))));
        settings.push("apps", &app);
    })
    .await;
    let status: Value =
        serde_json::from_str(&Api::new(&gateway.server.operations).get("/status", None).await.text).unwrap();
    // Python: datetime(4000, 1, 1, tzinfo=timezone.utc).timestamp()
    assert_eq!(status["expiries"][0]["since_ms"], json!(64_060_588_800_000_i64));
    let (code, out, log) = command(&gateway, &["doctor"]).await;
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains(&format!("BAD   {IOS}: certificate_file is not valid yet")), "{out}");
    assert!(log.contains("the app's certificate is not valid yet"), "{log}");
    let (code, _, log) = command(&gateway, &["check-config"]).await;
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("the app's certificate is not valid yet"), "{log}");
}

#[tokio::test]
async fn a_test_push_shows_what_went_and_what_came_and_no_secret() {
    let gateway = TestGateway::start().await;
    let token = apns_token(0xab);
    let (code, out, log) = command(&gateway, &["send-test", "--app", IOS, "--pushkey", &token]).await;
    assert_eq!(code, Some(0), "{out}{log}");
    for shown in ["/3/device/abababab…", "apns-topic: org.example.ios.app", "\"badge\":1", "200 OK", "Delivered: "] {
        assert!(out.contains(shown), "{shown} is not in {out}");
    }
    assert_eq!(gateway.apns.pushes_for(&token).len(), 1);

    let (code, google, more_log) =
        command(&gateway, &["send-test", "--app", ANDROID, "--pushkey", "registration-token-of-a-phone"]).await;
    assert_eq!(code, Some(0), "{google}{more_log}");
    assert!(google.contains("\"token\":\"registr…\""), "{google}");

    let browser = gateway.webpush.subscribe("browser-of-somebody");
    let data = browser.device(WEB)["data"].to_string();
    let p256dh = browser.p256dh();
    let arguments = ["send-test", "--app", WEB, "--pushkey", &p256dh, "--data", &data];
    let (code, web, web_log) = command(&gateway, &arguments).await;
    assert_eq!(code, Some(0), "{web}{web_log}");
    assert!(web.contains("bytes, encrypted") && web.contains("authorization: [secret]"), "{web}");

    let all = [out, log, google, more_log, web, web_log].concat();
    for secret in [&token, "registration-token-of-a-phone", &p256dh, &browser.auth(), "browser-of-somebody", "bearer-"]
    {
        assert!(!all.contains(secret), "{secret} is in {all}");
    }
}

#[tokio::test]
async fn a_test_push_that_fails_says_what_it_means() {
    let gateway = TestGateway::start_impatient().await;
    for (name, answer, meaning) in [
        ("device-that-is-gone", fcm::refusal(404, "NOT_FOUND", Some("UNREGISTERED")), "Gone: "),
        ("device-that-is-busy", Answer::empty(429).header("retry-after", "17"), "Busy: the push service asks for 17 s"),
        (
            "device-of-another-app",
            fcm::refusal(403, "PERMISSION_DENIED", Some("SENDER_ID_MISMATCH")),
            "Refused because of the app's configuration",
        ),
        ("device-with-a-bad-push", fcm::bad_field("message.data"), "Refused because of this push"),
    ] {
        gateway.fcm.script().always(name, answer);
        let (code, out, _) = command(&gateway, &["send-test", "--app", ANDROID, "--pushkey", name]).await;
        assert_eq!(code, Some(1), "{out}");
        assert!(out.contains(meaning) && !out.contains(name), "{out}");
    }
    for wrong in [
        &["send-test", "--app", "org.unknown", "--pushkey", "a"][..],
        &["send-test", "--app", IOS, "--pushkey", "a", "--data", "{"],
        &["send-test", "--app", IOS],
    ] {
        let (code, _, _) = command(&gateway, wrong).await;
        assert_eq!(code, Some(2), "{wrong:?}");
    }
}

#[test]
fn a_new_vapid_key_is_one_that_the_gateway_takes() {
    let output = run(PUSH_GATEWAY, &["vapid"]);
    assert_eq!(output.status.code(), Some(0));
    let pem = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let public = said.trim_end().strip_prefix("applicationServerKey: ").unwrap();
    let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random).unwrap();
    assert_eq!(URL_SAFE_NO_PAD.decode(public).unwrap(), pair.public_key().as_ref());

    let folder = TempFolder::new();
    let key = text(&folder.write("vapid.pem", &pem));
    let app =
        format!("[[apps]]\nid = \"w\"\n[apps.webpush]\nvapid_key_file = \"{key}\"\nvapid_contact = \"a@b.example\"\n");
    let file = folder.write("waypost.toml", &app);
    assert_eq!(run(PUSH_GATEWAY, &["--config", &text(&file), "check-config"]).status.code(), Some(0));
    assert_ne!(run(PUSH_GATEWAY, &["vapid"]).stdout, pem.as_bytes(), "each is another one");
}
