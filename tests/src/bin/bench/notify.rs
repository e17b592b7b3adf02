//! Pushes to a service that answers at once, and to a slow one. The baseline is the same pushes over the same client
//! without the gateway.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use serde_json::{Value, json};
use waypost_shared::client::{CallLimits, Outbound, OutboundConfig, Reach};
use waypost_tests::{
    apns, fcm, jwt,
    process::{PUSH_GATEWAY, Server, TempFolder, text},
    settings::Settings,
};

use crate::{Part, load, peak_mib, resident_mib, size_mib};

const TIME: Duration = Duration::from_secs(4);
const CONNECTIONS: u64 = 32;
/// Connections for a service that takes 50 ms; enough that their number is not the bottleneck.
const LATE_CONNECTIONS: u64 = 256;
/// Devices per request where many pushes have to be in flight.
const DEVICES: usize = 100;

/// Measures notify for each push service.
pub(crate) async fn measure() {
    println!("waypost-push-gateway, one device in a request");
    println!("  program                        {:>10.1} MiB", size_mib(PUSH_GATEWAY));
    let ca_folder = TempFolder::new();
    let ca_file = text(&ca_folder.path().join("ca.pem"));
    let provider = Part::start(&["serve-provider", &ca_file]);
    let provider_url = format!("https://{}", provider.ready);

    let begun = Instant::now();
    let server = gateway(&provider_url, &ca_file).await;
    println!("  start to ready                 {:>10.0} ms", begun.elapsed().as_secs_f64() * 1000.0);
    println!("  idle memory                    {:>10.1} MiB", resident_mib(server.id()));

    for (name, late, connections) in [("at once", "", CONNECTIONS), ("after 50 ms", "/late/50", LATE_CONNECTIONS)] {
        let limit = directly(&format!("{provider_url}{late}"), &ca_file, connections).await;
        println!("  a service that answers {name}, {connections} requests under way; limit {limit:.0}/s");
        for provider in ["apns", "fcm", "webpush", "unifiedpush"] {
            let ours = pushes(&server, &provider_url, provider, late, connections).await;
            println!(
                "    {provider:<12}                 {:>10.0} requests/s, p50 {:.2} ms, p99 {:.2} ms; ratio {:.2}",
                ours.per_second,
                ours.p50.as_secs_f64() * 1000.0,
                ours.p99.as_secs_f64() * 1000.0,
                ours.per_second / limit
            );
        }
    }
    println!("  memory afterwards              {:>10.1} MiB", resident_mib(server.id()));
    drop(server);
    many_under_way(&provider_url, &ca_file).await;
}

/// 10,000 pushes in flight to a service that takes a second, in requests of 100 devices.
async fn many_under_way(provider_url: &str, ca_file: &str) {
    let server = gateway(provider_url, ca_file).await;
    let address = address(&server);
    let ours = load::run(address, 100, TIME, move |number| {
        let devices: Vec<_> = (0..DEVICES)
            .map(|device| json!({"app_id": "apns/late/1000", "pushkey": format!("{number:032x}{device:032x}")}))
            .collect();
        request(number, &devices)
    })
    .await;
    assert_eq!(ours.body, br#"{"rejected":[]}"#);
    println!("10,000 pushes under way to a service that takes a second, {DEVICES} devices in a request");
    println!(
        "  pushes                         {:>10.0}/s; a request: p50 {:.0} ms, p99 {:.0} ms",
        ours.per_second * 100.0,
        ours.p50.as_secs_f64() * 1000.0,
        ours.p99.as_secs_f64() * 1000.0
    );
    println!("  peak memory                    {:>10.1} MiB", peak_mib(server.id()));
}

/// A gateway with an app for each push service and each delay: `apns`, `apns/late/50`, …
async fn gateway(provider_url: &str, ca_file: &str) -> Server {
    let folder = TempFolder::new();
    let apns_key = text(&folder.write("apns.p8", &jwt::p256_key().0));
    let vapid_key = text(&folder.write("vapid.pem", &jwt::p256_key().0));
    let account = fcm::service_account(&format!("{provider_url}/token"));
    let account = text(&folder.write("account.json", &account.to_string()));
    let mut settings = Settings::default();
    settings
        .set("listen", "public", "127.0.0.1:0")
        .set("listen", "operations", "127.0.0.1:0")
        .set("outbound", "extra_ca_file", ca_file)
        .set("outbound", "allowed_ranges", vec!["127.0.0.0/8"])
        .set("log", "format", "json")
        // One source pushes to one device as fast as it can, which is what the limits prevent.
        .append("[limits]\nper_source = { burst = 0 }\nper_app = { burst = 0 }\nper_pushkey = { burst = 0 }\nper_server = { burst = 0 }\n");
    for late in ["", "/late/50", "/late/1000"] {
        let app = |provider: &str| vec![("id", json!(format!("{provider}{late}"))), ("max_in_flight", json!(20_000))];
        let endpoint = json!(format!("{provider_url}{late}"));
        let apns = [
            ("apns.topic", json!("org.example.ios")),
            ("apns.endpoint", endpoint.clone()),
            ("apns.key_file", json!(apns_key)),
            ("apns.key_id", json!(apns::KEY_ID)),
            ("apns.team_id", json!(apns::TEAM_ID)),
        ];
        settings.push("apps", &[app("apns"), apns.to_vec()].concat());
        let fcm = [
            ("fcm.project_id", json!(fcm::PROJECT)),
            ("fcm.service_account_file", json!(account)),
            ("fcm.endpoint", endpoint),
        ];
        settings.push("apps", &[app("fcm"), fcm.to_vec()].concat());
        let webpush =
            [("webpush.vapid_key_file", json!(vapid_key)), ("webpush.vapid_contact", json!("mailto:push@example.org"))];
        settings.push("apps", &[app("webpush"), webpush.to_vec()].concat());
        let unifiedpush = [("unifiedpush", json!({}))];
        settings.push("apps", &[app("unifiedpush"), unifiedpush.to_vec()].concat());
    }
    Server::start(PUSH_GATEWAY, folder, &settings.toml()).await
}

fn address(server: &Server) -> SocketAddr {
    server.public.trim_start_matches("http://").parse().unwrap()
}

async fn pushes(server: &Server, provider_url: &str, provider: &str, late: &str, connections: u64) -> load::Run {
    let mut device = json!({"app_id": format!("{provider}{late}"), "pushkey": "aa".repeat(32)});
    match provider {
        "webpush" => {
            device["pushkey"] = json!(p256dh());
            device["data"] =
                json!({"endpoint": format!("{provider_url}{late}/push"), "auth": "AAAAAAAAAAAAAAAAAAAAAA"});
        }
        "unifiedpush" => device["pushkey"] = json!(format!("{provider_url}{late}/push")),
        _ => {}
    }
    let devices = [device];
    let ours = load::run(address(server), connections, TIME, move |number| request(number, &devices)).await;
    assert_eq!(ours.body, br#"{"rejected":[]}"#, "{provider}");
    ours
}

/// A browser's public key.
fn p256dh() -> String {
    let random = ring::rand::SystemRandom::new();
    let private = ring::agreement::EphemeralPrivateKey::generate(&ring::agreement::ECDH_P256, &random).unwrap();
    URL_SAFE_NO_PAD.encode(private.compute_public_key().unwrap())
}

fn request(number: u64, devices: &[Value]) -> Vec<u8> {
    let body = json!({"notification": {
        "event_id": format!("${number}"), "room_id": "!room:example.com", "counts": {"unread": 1}, "devices": devices,
    }})
    .to_string();
    format!(
        "POST /_matrix/push/v1/notify HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Requests per second over the client that the gateway uses.
#[allow(clippy::cast_precision_loss)]
async fn directly(provider_url: &str, ca_file: &str, under_way: u64) -> f64 {
    let config = OutboundConfig { extra_ca_file: Some(ca_file.into()), ..OutboundConfig::default() };
    let client = Outbound::new(&config).unwrap().client(Reach::Anywhere);
    let url: Arc<str> = format!("{provider_url}/3/device/{}", "aa".repeat(32)).into();
    let body = Bytes::from_static(br#"{"event_id":"$1234567890","room_id":"!room:example.com","unread_count":1}"#);
    let limits = CallLimits { timeout: Duration::from_secs(5), max_body: 4096 };
    let begun = Instant::now();
    let tasks: Vec<_> = (0..under_way)
        .map(|_| {
            let (client, url, body) = (client.clone(), url.clone(), body.clone());
            tokio::spawn(async move {
                let mut sent = 0_u64;
                while begun.elapsed() < TIME {
                    let request = http::Request::post(&*url)
                        .header("authorization", "bearer token")
                        .header("apns-topic", "org.example.ios")
                        .body(body.clone())
                        .unwrap();
                    assert_eq!(client.send(request, limits).await.unwrap().status(), 200);
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    let mut sent = 0;
    for task in tasks {
        sent += task.await.unwrap();
    }
    sent as f64 / begun.elapsed().as_secs_f64()
}
