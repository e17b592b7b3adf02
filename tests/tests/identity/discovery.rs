//! How a homeserver is found by its name (Server-Server API, "Resolving server names"), and what is never called.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::json;
use waypost_tests::ca::Ca;
use waypost_tests::database::Database;
use waypost_tests::dns::Dns;
use waypost_tests::homeserver::Homeserver;
use waypost_tests::http::Reply;
use waypost_tests::identity::{HOMESERVER, TestIdentity};
use waypost_tests::tls_server::Answer;

/// The name that a homeserver delegates to.
const REAL: &str = "real.test";

/// A loopback address that no other test uses, so that fixed ports (443, 8448) are free.
fn own_address() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(2);
    let [.., second, third] = std::process::id().to_be_bytes();
    // 127.128.0.0/9 keeps out of the way of 127.0.0.1.
    Ipv4Addr::new(127, 128 | second, third, NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Everything that discovery needs; the homeserver that answers is started by the test.
struct World {
    ca: Ca,
    dns: Dns,
    /// Where the homeserver's name leads.
    front: Ipv4Addr,
    /// Where the homeserver is.
    address: Ipv4Addr,
}

impl World {
    async fn new() -> Self {
        let world = Self { ca: Ca::new(), dns: Dns::start().await, front: own_address(), address: own_address() };
        world.dns.host(HOMESERVER, world.front);
        world.dns.host(REAL, world.address);
        world
    }

    /// A homeserver on a port (0: any), with a certificate for `name`.
    async fn homeserver(&self, address: Ipv4Addr, port: u16, name: &str) -> Homeserver {
        Homeserver::start_on(SocketAddr::from((address, port)), &self.ca, &[name]).await
    }

    /// An identity server that finds homeservers by DNS alone, around `homeserver`.
    async fn identity(self, homeserver: Homeserver, allowed: &[&str]) -> (TestIdentity, Dns) {
        let dns = self.dns.address.to_string();
        let t = TestIdentity::start_around(Database::Sqlite, self.ca, homeserver, |settings| {
            settings.remove_section("homeservers.overrides").set("outbound", "dns_servers", vec![dns]).set(
                "outbound",
                "allowed_ranges",
                json!(allowed),
            );
        })
        .await;
        (t, self.dns)
    }
}

const LOOPBACK: [&str; 1] = ["127.0.0.0/8"];

async fn register(t: &TestIdentity, server_name: &str) -> Reply {
    let openid = t.homeserver.issue(&format!("@alice:{server_name}"));
    t.register_with(&openid, server_name).await
}

/// The homeserver was asked once, for this TLS name and host.
fn asked(t: &TestIdentity, sni: Option<&str>, host: &str) {
    let requests = t.homeserver.server.requests.all();
    let userinfo: Vec<_> = requests.iter().filter(|request| request.path.ends_with("/userinfo")).collect();
    assert_eq!(userinfo.len(), 1);
    assert_eq!(userinfo[0].sni.as_deref(), sni);
    assert_eq!(userinfo[0].host, host);
}

#[tokio::test]
async fn a_literal_address_with_a_port() {
    let world = World::new().await;
    let homeserver = world.homeserver(Ipv4Addr::LOCALHOST, 0, "127.0.0.1").await;
    let name = homeserver.server.address.to_string();
    let (t, dns) = world.identity(homeserver, &LOOPBACK).await;
    register(&t, &name).await.ok();
    asked(&t, None, &name);
    assert!(dns.queries.is_empty(), "{:?}", dns.queries.all());
}

#[tokio::test]
async fn a_literal_address_without_a_port_is_8448() {
    let world = World::new().await;
    let address = world.address;
    let homeserver = world.homeserver(address, 8448, &address.to_string()).await;
    let (t, _dns) = world.identity(homeserver, &LOOPBACK).await;
    register(&t, &address.to_string()).await.ok();
}

#[tokio::test]
async fn a_name_with_a_port_is_not_looked_up_any_further() {
    let world = World::new().await;
    let homeserver = world.homeserver(world.front, 0, HOMESERVER).await;
    world.dns.service("_matrix-fed._tcp.hs.test", 1, REAL);
    let name = format!("{HOMESERVER}:{}", homeserver.port());
    let (t, dns) = world.identity(homeserver, &LOOPBACK).await;
    register(&t, &name).await.ok();
    asked(&t, Some(HOMESERVER), &name);
    assert!(dns.queries.all().iter().all(|query| query == HOMESERVER), "{:?}", dns.queries.all());
}

#[tokio::test]
async fn well_known_delegates_to_a_name_with_a_port() {
    let world = World::new().await;
    let front = world.homeserver(world.front, 443, HOMESERVER).await;
    let homeserver = world.homeserver(world.address, 0, REAL).await;
    let target = format!("{REAL}:{}", homeserver.port());
    front.well_known(Answer::json(200, &json!({"m.server": target})));
    let (t, _dns) = world.identity(homeserver, &LOOPBACK).await;
    register(&t, HOMESERVER).await.ok();
    asked(&t, Some(REAL), &target);
}

#[tokio::test]
async fn well_known_delegates_to_a_name_with_a_service_record() {
    let world = World::new().await;
    let front = world.homeserver(world.front, 443, HOMESERVER).await;
    let homeserver = world.homeserver(world.address, 0, REAL).await;
    front.well_known(Answer::json(200, &json!({"m.server": REAL})));
    // TLS and Host are for the delegated name, not for the machine that the record names.
    world.dns.host("node1.test", world.address);
    world.dns.service("_matrix-fed._tcp.real.test", homeserver.port(), "node1.test");
    let (t, _dns) = world.identity(homeserver, &LOOPBACK).await;
    register(&t, HOMESERVER).await.ok();
    asked(&t, Some(REAL), REAL);
}

#[tokio::test]
async fn well_known_delegates_to_a_plain_name_at_8448() {
    let world = World::new().await;
    let front = world.homeserver(world.front, 443, HOMESERVER).await;
    let homeserver = world.homeserver(world.address, 8448, REAL).await;
    front.well_known(Answer::json(200, &json!({"m.server": REAL})));
    let (t, _dns) = world.identity(homeserver, &LOOPBACK).await;
    register(&t, HOMESERVER).await.ok();
}

#[tokio::test]
async fn a_well_known_that_is_nonsense_counts_as_none() {
    for nonsense in [
        Answer::text(200, "<html>"),
        Answer::json(200, &json!({"m.server": 5})),
        Answer::json(200, &json!({})),
        Answer::json(200, &json!({"m.server": "not a name/"})),
        Answer::text(200, &"[".repeat(100_000)),
        Answer::json(500, &json!({"m.server": REAL})),
    ] {
        let world = World::new().await;
        let front = world.homeserver(world.front, 443, HOMESERVER).await;
        front.well_known(nonsense);
        let homeserver = world.homeserver(world.front, 8448, HOMESERVER).await;
        let (t, _dns) = world.identity(homeserver, &LOOPBACK).await;
        register(&t, HOMESERVER).await.ok();
    }
}

#[tokio::test]
async fn without_well_known_the_service_record_counts() {
    // Today's name and the older one; nobody listens on port 443.
    for service in ["_matrix-fed._tcp.hs.test", "_matrix._tcp.hs.test"] {
        let world = World::new().await;
        let homeserver = world.homeserver(world.address, 0, HOMESERVER).await;
        world.dns.service(service, homeserver.port(), REAL);
        let (t, _dns) = world.identity(homeserver, &LOOPBACK).await;
        register(&t, HOMESERVER).await.ok();
        asked(&t, Some(HOMESERVER), HOMESERVER);
    }
}

#[tokio::test]
async fn without_anything_it_is_port_8448() {
    let world = World::new().await;
    let homeserver = world.homeserver(world.front, 8448, HOMESERVER).await;
    let (t, _dns) = world.identity(homeserver, &LOOPBACK).await;
    register(&t, HOMESERVER).await.ok();
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let world = World::new().await;
    let homeserver = world.homeserver(world.front, 0, "evil.test").await;
    let name = format!("{HOMESERVER}:{}", homeserver.port());
    let (t, _dns) = world.identity(homeserver, &LOOPBACK).await;
    let reply = register(&t, &name).await;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(t.homeserver.server.requests.is_empty());
}

#[tokio::test]
async fn a_certificate_of_another_root_is_refused() {
    let world = World::new().await;
    let address = SocketAddr::from((world.front, 0));
    let homeserver = Homeserver::start_on(address, &Ca::new(), &[HOMESERVER]).await;
    let name = format!("{HOMESERVER}:{}", homeserver.port());
    let (t, _dns) = world.identity(homeserver, &LOOPBACK).await;
    let reply = register(&t, &name).await;
    assert_eq!(reply.status, 502, "{}", reply.text);
    assert!(t.homeserver.server.requests.is_empty());
}

#[tokio::test]
async fn a_static_override_needs_no_discovery_and_keeps_the_name() {
    let world = World::new().await;
    let homeserver = world.homeserver(world.address, 0, HOMESERVER).await;
    let target = homeserver.server.address.to_string();
    let t = TestIdentity::start_around(Database::Sqlite, world.ca, homeserver, |settings| {
        settings.set("homeservers.overrides", HOMESERVER, target);
    })
    .await;
    register(&t, HOMESERVER).await.ok();
    asked(&t, Some(HOMESERVER), HOMESERVER);
}

#[tokio::test]
async fn private_addresses_are_not_called_unless_allowed() {
    let world = World::new().await;
    let homeserver = world.homeserver(Ipv4Addr::LOCALHOST, 0, HOMESERVER).await;
    let port = homeserver.port();
    world.dns.host("sneaky.test", Ipv4Addr::LOCALHOST);
    world.dns.service("_matrix-fed._tcp.service.test", port, "sneaky.test");
    world.dns.host("service.test", Ipv4Addr::new(10, 0, 0, 1));
    world.dns.host("metadata.test", Ipv4Addr::new(169, 254, 169, 254));
    let (t, _dns) = world.identity(homeserver, &[]).await;
    let names = [
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        format!("[::ffff:127.0.0.1]:{port}"),
        format!("0.0.0.0:{port}"),
        format!("sneaky.test:{port}"),
        "sneaky.test".to_owned(),
        "service.test".to_owned(),
        "metadata.test:80".to_owned(),
    ];
    for name in names {
        let reply = register(&t, &name).await;
        assert!(reply.status >= 400 && reply.status != 500, "{name}: {}: {}", reply.status, reply.text);
        assert!(reply.json().get("token").is_none(), "{name}: {}", reply.text);
    }
    // Requests would not arrive anyway, since the certificate is for none of these names.
    assert_eq!(t.homeserver.server.connections(), 0);
}

#[tokio::test]
async fn a_name_that_does_not_exist_is_a_clean_failure() {
    let world = World::new().await;
    let homeserver = world.homeserver(world.front, 0, HOMESERVER).await;
    let (t, _dns) = world.identity(homeserver, &LOOPBACK).await;
    let reply = register(&t, "nowhere.test").await;
    assert_eq!(reply.failure(), super::failure(502, "M_UNKNOWN"));
}
