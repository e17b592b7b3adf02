//! Lookups against a filled index. The baseline is the same HTTP server parsing the same body and answering a constant.

use std::{
    borrow::Cow,
    fs,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chacha20poly1305::{
    KeyInit as _, XChaCha20Poly1305, XNonce,
    aead::{Aead as _, Payload},
};
use ring::hmac;
use serde::Deserialize;
use waypost_shared::{
    http::{
        Incoming, MatrixError, Response, Router,
        server::{self, ServerConfig},
        with_body,
    },
    stop::{self, Stop},
};
use waypost_tests::{
    database::Database,
    identity::TestIdentity,
    matrix::lookup_hash,
    process::{IDENTITY, TempFolder, text},
};

use crate::{Part, load, resident_mib, size_mib};

const TIME: Duration = Duration::from_secs(4);
const CONNECTIONS: u64 = 8;

/// Measures lookups of 10, 100 and 1000 hashes, half of them known.
pub(crate) async fn measure(associations: u32) {
    println!("waypost-identity, {associations} associations (SQLite)");
    println!("  program                        {:>10.1} MiB", size_mib(IDENTITY));
    let t = TestIdentity::start_with(Database::Sqlite, |settings| {
        settings.set("log", "level", "info");
    })
    .await;
    println!("  idle memory                    {:>10.1} MiB", resident_mib(t.server.id()));
    let token = t.register("@bench:hs.test").await;
    let pepper = t.pepper(&token).await;
    fill(&t, associations).await;
    let begun = Instant::now();
    let t = t.restart().await;
    println!("  start to ready                 {:>10.0} ms", begun.elapsed().as_secs_f64() * 1000.0);
    println!("  memory                         {:>10.1} MiB", resident_mib(t.server.id()));

    let address = t.server.public.trim_start_matches("http://").parse().unwrap();
    for hashes in [10, 100, 1000] {
        let addresses: Vec<_> = (0..hashes)
            .map(|number| {
                let known = number % 2 == 0;
                let address = format!("{}{number}@example.com", if known { "user" } else { "stranger" });
                lookup_hash(&address, "email", &pepper)
            })
            .collect();
        let body = serde_json::json!({"addresses": addresses, "algorithm": "sha256", "pepper": pepper}).to_string();
        let request = format!(
            "POST /_matrix/identity/v2/lookup HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .into_bytes();
        let ours = {
            let request = request.clone();
            load::run(address, CONNECTIONS, TIME, move |_| request.clone()).await
        };
        let found: serde_json::Value = serde_json::from_slice(&ours.body).unwrap();
        assert_eq!(found["mappings"].as_object().unwrap().len(), hashes / 2);

        let folder = TempFolder::new();
        let file = folder.path().join("body");
        fs::write(&file, &ours.body).unwrap();
        let constant = Part::start(&["serve-constant", &text(&file)]);
        let limit = constant.ready.parse().unwrap();
        let limit = load::run(limit, CONNECTIONS, TIME, move |_| request.clone()).await;
        println!(
            "  lookup, {hashes:>4} hashes            {:>10.0} requests/s, p50 {:.2} ms, p99 {:.2} ms; limit {:.0}/s; ratio {:.2}",
            ours.per_second,
            ours.p50.as_secs_f64() * 1000.0,
            ours.p99.as_secs_f64() * 1000.0,
            limit.per_second,
            ours.per_second / limit.per_second
        );
    }
}

/// Writes associations into the database as the server would, with its keys.
async fn fill(t: &TestIdentity, associations: u32) {
    let data = t.server.folder.path().join("data");
    let keys = fs::read_to_string(data.join("storage.key")).unwrap();
    let key = |kind: &str| {
        let line = keys.lines().find(|line| line.starts_with(kind)).unwrap();
        STANDARD.decode(line.split_whitespace().last().unwrap()).unwrap()
    };
    let (hash_key, seal_key) = (hmac::Key::new(hmac::HMAC_SHA256, &key("hash")), key("seal 1"));
    let cipher = XChaCha20Poly1305::new_from_slice(&seal_key).unwrap();
    let pool = sqlx::SqlitePool::connect(&format!("sqlite:{}", text(&data.join("identity.sqlite")))).await.unwrap();
    let mut tx = pool.begin().await.unwrap();
    for number in 0..associations {
        let address = format!("user{number}@example.com");
        let fingerprint = hmac::sign(&hash_key, format!("threepid\0email\0{address}").as_bytes());
        let mut nonce = [0; 24];
        nonce[..4].copy_from_slice(&number.to_le_bytes());
        let payload = Payload { msg: address.as_bytes(), aad: b"association" };
        let sealed = [&[1_u8][..], &nonce, &cipher.encrypt(&XNonce::from(nonce), payload).unwrap()].concat();
        sqlx::query("INSERT INTO associations (fingerprint, medium, address_sealed, mxid, bound_ms) VALUES ($1, 'email', $2, $3, 0)")
            .bind(fingerprint.as_ref())
            .bind(sealed)
            .bind(format!("@user{number}:hs.example.com"))
            .execute(&mut *tx)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    pool.close().await;
}

/// The body in the form that the server parses.
#[derive(Deserialize)]
struct LookupRequest<'a> {
    #[serde(borrow)]
    addresses: Vec<Text<'a>>,
    #[serde(borrow)]
    pepper: Text<'a>,
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// The baseline: parses the body and answers the same bytes, without decoding or looking up anything.
pub(crate) async fn serve_constant(body_file: &str) {
    async fn constant(body: bytes::Bytes, request: Incoming) -> Result<Response, MatrixError> {
        let lookup: LookupRequest<'_> = serde_json::from_slice(&request.body).unwrap();
        assert!(!lookup.pepper.0.is_empty() && !lookup.addresses.iter().any(|text| text.0.is_empty()));
        Ok(with_body(::http::StatusCode::OK, "application/json", body))
    }
    let body = bytes::Bytes::from(fs::read(body_file).unwrap());
    let listener = server::bind("127.0.0.1:0").await.unwrap();
    println!("{}", listener.local_addr().unwrap());
    let router = Router::new().post("/_matrix/identity/v2/lookup", constant);
    let (ask_to_stop, stop) = Stop::manual();
    stop::stop_on_signals(ask_to_stop).unwrap();
    server::serve(listener, router, body, &ServerConfig::default(), None, None, stop).await.unwrap();
}
