//! Whoever can make up ports, sub-domains and names holds up nobody else's pushes, however many they make up
//! (docs/security.md, "What counts as one").

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use waypost_tests::dns::Dns;
use waypost_tests::gateway::{PROXIES, TestGateway, UNIFIED, event, unifiedpush_app, with};
use waypost_tests::process::{eventually, timed};
use waypost_tests::silence::Silence;
use waypost_tests::tls_server::Answer;
use waypost_tests::webpush::HOST;

/// Requests of the attacker, and devices in each: together more than `max_in_flight`, which is 1000.
const REQUESTS: u8 = 11;
const DEVICES: u8 = 100;
/// How long a push may hang: as long as there may be.
const BUDGET_SECS: u32 = 24;

/// Where the attacker's device with a number is pushed to: a name, and the address that DNS has for it.
type Place = fn(u8) -> (String, Ipv4Addr);

/// Which address the attacker's request with a number comes from.
type Source = fn(u8) -> String;

/// Sends the attacker's requests to places that say nothing. Then a push of another homeserver to the same app is
/// delivered at once.
async fn others_are_delivered(place: Place, source: Source) {
    let dns = Dns::start().await;
    let silence = Silence::start((0..DEVICES).map(|number| IpAddr::from(place(number).1))).await;
    for number in 0..DEVICES {
        let (name, address) = place(number);
        dns.host(&name, address);
    }
    let gateway = TestGateway::start_apps(|settings, _| {
        settings.push("apps", &with(unifiedpush_app(UNIFIED), &[("unifiedpush.allowed_endpoints", json!([]))]));
        settings.set("outbound", "dns_servers", vec![dns.address.to_string()]);
        settings.set("server", "trusted_proxies", vec![PROXIES]);
        settings.set("notify", "budget_secs", BUDGET_SECS).set("notify", "attempt_timeout_secs", BUDGET_SECS);
    })
    .await;
    let mut attack = JoinSet::new();
    for request in 0..REQUESTS {
        let device = |(number, address): (u8, &std::net::SocketAddr)| {
            let pushkey = format!("https://{}:{}/{request}", place(number).0, address.port());
            json!({"app_id": UNIFIED, "pushkey": pushkey})
        };
        let devices: Vec<Value> = (0..DEVICES).zip(&silence.addresses).map(device).collect();
        let body = json!({"notification": event("$attack", &devices)}).to_string();
        let (api, source) = (gateway.api.clone(), source(request));
        let uri = api.absolute(waypost_tests::gateway::NOTIFY);
        let sent = http::Request::post(uri).header("x-forwarded-for", source).body(body.into()).unwrap();
        // It ends with the test; what it is answered does not matter.
        attack.spawn(async move { drop(api.try_send(sent).await) });
    }
    // Once all that are too much were given back the others hang, and do so for longer than this waits.
    let too_much = f64::from(u16::from(REQUESTS) * u16::from(DEVICES) - 750);
    let metric =
        format!("waypost_push_gateway_pushes_total{{app=\"{UNIFIED}\",provider=\"unifiedpush\",outcome=\"busy\"}}");
    let given_back = || async { gateway.metric(&metric).await.filter(|count| *count >= too_much) };
    eventually(Duration::from_secs(u64::from(BUDGET_SECS - 4)), "pushes that were given back", given_back).await;

    for number in 0..5 {
        let device = json!({"app_id": UNIFIED, "pushkey": gateway.unifiedpush.endpoint(&format!("phone-{number}"))});
        let (reply, took) = timed(gateway.notify_from("198.51.100.1", &event("$1", &[device]))).await;
        assert_eq!(reply.ok(), json!({"rejected": []}));
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    assert_eq!(gateway.unifiedpush.messages().len(), 5);
}

fn one_address(_: u8) -> String {
    "192.0.2.1".to_owned()
}

fn many_addresses(request: u8) -> String {
    format!("192.0.2.{}", request + 1)
}

#[tokio::test]
async fn ports_of_one_host() {
    let place = |_| ("push.evil.test".to_owned(), Ipv4Addr::new(127, 0, 0, 2));
    others_are_delivered(place, one_address).await;
}

#[tokio::test]
async fn sub_domains_of_one_domain_at_many_addresses_asked_for_from_many() {
    let place = |number| (format!("{number}.evil.test"), Ipv4Addr::new(127, 0, 1, number + 1));
    others_are_delivered(place, many_addresses).await;
}

#[tokio::test]
async fn many_domains_at_one_address_asked_for_from_many() {
    let place = |number| (format!("push.evil{number}.test"), Ipv4Addr::new(127, 0, 0, 2));
    others_are_delivered(place, many_addresses).await;
}

#[tokio::test]
async fn many_domains_at_many_addresses_asked_for_from_one() {
    let place = |number| (format!("push.evil{number}.test"), Ipv4Addr::new(127, 0, 1, number + 1));
    others_are_delivered(place, one_address).await;
}

/// The owner of a push server can make up any number of pushkeys and call them dead.
#[tokio::test]
async fn a_strangers_push_server_does_not_hold_the_rejections_of_others() {
    let gateway = TestGateway::start_apps(|settings, _| {
        settings.push("apps", &with(unifiedpush_app(UNIFIED), &[("unifiedpush.allowed_endpoints", json!([]))]));
        settings.set("hold", "min_gone", 3);
    })
    .await;
    let dead = |endpoint: &str, name: &str| {
        gateway.unifiedpush.script().always(name, Answer::empty(410));
        event(&format!("${name}"), &[json!({"app_id": UNIFIED, "pushkey": endpoint})])
    };
    // By its address the server is somebody else's than by its name.
    let endpoint = |name: &str| gateway.unifiedpush.endpoint(name).replace(HOST, "127.0.0.1");
    let mut held = false;
    for number in 0..10 {
        let name = format!("evil-{number}");
        held |= gateway.notify(&dead(&endpoint(&name), &name)).await.status == 503;
    }
    assert!(held, "its own are held");
    let endpoint = gateway.unifiedpush.endpoint("phone");
    assert_eq!(gateway.rejected(&dead(&endpoint, "phone")).await, json!([endpoint]));
    let metric = format!("waypost_push_gateway_rejections_held{{app=\"{UNIFIED}\"}}");
    assert_eq!(gateway.metric(&metric).await, Some(0.0), "and it is no alarm");
}
