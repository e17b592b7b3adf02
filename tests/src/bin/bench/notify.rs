//! Pushes to a service that answers at once; the limit is the same pushes over the same client without our server.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use serde_json::json;
use waypost_shared::http_client::{CallLimits, Outbound, OutboundConfig, Reach};
use waypost_tests::{
    apns, fcm, jwt,
    process::{PUSH_GATEWAY, Server, TempFolder, text},
    settings::Settings,
};

use crate::{Part, load, resident_mib, size_mib};

const TIME: Duration = Duration::from_secs(4);
const CONNECTIONS: u64 = 32;

/// Prints what notify comes to for APNs and FCM.
pub(crate) async fn measure() {
    println!("waypost-push-gateway, one device in a request");
    println!("  program                        {:>10.1} MiB", size_mib(PUSH_GATEWAY));
    let ca_folder = TempFolder::new();
    let ca_file = ca_folder.path().join("ca.pem");
    let provider = Part::start(&["serve-provider", &text(&ca_file)]);
    let provider_url = format!("https://{}", provider.ready);

    let folder = TempFolder::new();
    let apns_key = folder.write("apns.p8", &jwt::p256_key().0);
    let account = fcm::service_account(&format!("{provider_url}/token"));
    let account = folder.write("account.json", &account.to_string());
    let mut settings = Settings::default();
    settings
        .set("listen", "public", "127.0.0.1:0")
        .set("listen", "operations", "127.0.0.1:0")
        .set("outbound", "extra_ca_file", text(&ca_file))
        .set("log", "format", "json")
        // One source pushes to one device as fast as it can, which is what limits are against.
        .append("[limits]\nper_source = { burst = 0 }\nper_app = { burst = 0 }\nper_pushkey = { burst = 0 }\n")
        .push(
            "apps",
            &[
                ("id", json!("ios")),
                ("type", json!("apns")),
                ("topic", json!("org.example.ios")),
                ("endpoint", json!(provider_url)),
                ("key_file", json!(text(&apns_key))),
                ("key_id", json!(apns::KEY_ID)),
                ("team_id", json!(apns::TEAM_ID)),
            ],
        )
        .push(
            "apps",
            &[
                ("id", json!("android")),
                ("type", json!("fcm")),
                ("project_id", json!(fcm::PROJECT)),
                ("service_account_file", json!(text(&account))),
                ("endpoint", json!(provider_url)),
            ],
        );
    let begun = Instant::now();
    let server = Server::start(PUSH_GATEWAY, folder, &settings.toml()).await;
    println!("  start to ready                 {:>10.0} ms", begun.elapsed().as_secs_f64() * 1000.0);
    println!("  idle memory                    {:>10.1} MiB", resident_mib(server.id()));

    let limit = directly(&provider_url, &text(&ca_file)).await;
    let address: SocketAddr = server.public.trim_start_matches("http://").parse().unwrap();
    for (app_id, pushkey) in [("ios", "aa".repeat(32)), ("android", "device".to_owned())] {
        let ours = load::run(address, CONNECTIONS, TIME, move |number| {
            let body = json!({"notification": {
                "event_id": format!("${number}"), "room_id": "!room:example.com", "counts": {"unread": 1},
                "devices": [{"app_id": app_id, "pushkey": pushkey}],
            }})
            .to_string();
            format!(
                "POST /_matrix/push/v1/notify HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            )
            .into_bytes()
        })
        .await;
        assert_eq!(ours.body, br#"{"rejected":[]}"#);
        println!(
            "  notify, {app_id:<8}               {:>10.0} requests/s, p50 {:.2} ms, p99 {:.2} ms; limit {limit:.0}/s; ratio {:.2}",
            ours.per_second,
            ours.p50.as_secs_f64() * 1000.0,
            ours.p99.as_secs_f64() * 1000.0,
            ours.per_second / limit
        );
    }
    println!("  memory afterwards              {:>10.1} MiB", resident_mib(server.id()));
}

/// Requests a second over the client that the gateway itself uses.
#[allow(clippy::cast_precision_loss)]
async fn directly(provider_url: &str, ca_file: &str) -> f64 {
    let config = OutboundConfig { extra_ca_file: Some(ca_file.into()), ..OutboundConfig::default() };
    let client = Outbound::new(&config).unwrap().client(Reach::Anywhere);
    let url: Arc<str> = format!("{provider_url}/3/device/{}", "aa".repeat(32)).into();
    let body = Bytes::from_static(br#"{"event_id":"$1234567890","room_id":"!room:example.com","unread_count":1}"#);
    let limits = CallLimits { timeout: Duration::from_secs(5), max_body: 4096 };
    let begun = Instant::now();
    let tasks: Vec<_> = (0..CONNECTIONS)
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
