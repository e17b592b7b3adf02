//! Calls through a proxy; strangers' addresses are checked nevertheless (THREATS.md).

use serde_json::json;
use waypost_tests::apns::NAME;
use waypost_tests::gateway::{IOS, TestGateway, apns_token, event, ios, with};
use waypost_tests::process::text;
use waypost_tests::proxy::Proxy;
use waypost_tests::service::Service;

use super::assert_try_again;

#[tokio::test]
async fn each_push_service_is_reached_through_the_proxy() {
    let proxy = Proxy::start().await;
    let url = proxy.url();
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("outbound", "proxy_url", url);
    })
    .await;
    let devices = Service::ALL.map(|service| service.target(&gateway, 1).device());
    assert_eq!(gateway.rejected(&event("$1", &devices)).await, json!([]));
    let tunnels = proxy.tunnels.all();
    for service in Service::ALL {
        // The names were resolved here: what a stranger named goes to the address that was checked.
        let address = service.server(&gateway).address.to_string();
        assert!(tunnels.contains(&address), "{service:?}: {tunnels:?}");
        assert_eq!(service.server(&gateway).connections(), 1);
    }
    assert_eq!(tunnels.len(), Service::ALL.len(), "{tunnels:?}");
}

#[tokio::test]
async fn a_name_that_only_the_proxy_knows_is_enough_for_a_service_of_the_operators() {
    let proxy = Proxy::start().await;
    let url = proxy.url();
    let gateway = TestGateway::start_apps(|settings, around| {
        let file = around.folder.write("proxy-url", &format!("{url}\n"));
        settings.set("outbound", "proxy_url_file", text(&file));
        let server = &around.apns.server;
        let name = format!("{NAME}:{}", server.port());
        proxy.knows(&name, server.address);
        settings.push("apps", &with(around.apns_app(IOS), &[("apns.endpoint", json!(format!("https://{name}")))]));
    })
    .await;
    assert_eq!(gateway.rejected(&event("$1", &[ios(&apns_token(1))])).await, json!([]));
    assert_eq!(proxy.tunnels.all(), [format!("{NAME}:{}", gateway.apns.server.port())]);
}

#[tokio::test]
async fn a_private_address_is_not_reached_through_the_proxy_either() {
    let proxy = Proxy::start().await;
    let url = proxy.url();
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("outbound", "proxy_url", url).set("outbound", "allowed_ranges", json!([]));
    })
    .await;
    for service in [Service::WebPush, Service::UnifiedPush] {
        let target = service.target(&gateway, 1);
        assert_eq!(gateway.rejected(&event("$1", &[target.device()])).await, json!([]), "{service:?}");
        assert!(proxy.tunnels.is_empty() && service.server(&gateway).requests.is_empty(), "{service:?}");
    }
}

#[tokio::test]
async fn exceptions_go_past_the_proxy() {
    let proxy = Proxy::start().await;
    let url = proxy.url();
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("outbound", "proxy_url", url).set("outbound", "no_proxy", json!(["127.0.0.0/8"]));
    })
    .await;
    let devices = Service::ALL.map(|service| service.target(&gateway, 1).device());
    assert_eq!(gateway.rejected(&event("$1", &devices)).await, json!([]));
    assert!(proxy.tunnels.is_empty(), "{:?}", proxy.tunnels.all());
}

#[tokio::test]
async fn a_proxy_that_wants_another_password_loses_nothing_and_is_named_in_the_log() {
    let proxy = Proxy::start().await;
    let url = format!("http://waypost:swordfish@{}", proxy.address);
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("outbound", "proxy_url", url).set("notify", "budget_secs", 1).set(
            "notify",
            "attempt_timeout_secs",
            1,
        );
    })
    .await;
    assert_try_again(&gateway.notify(&event("$1", &[ios(&apns_token(1))])).await);
    gateway.server.wait_for_log("the proxy's answer", |line| line.to_string().contains("407")).await;
    assert!(!gateway.server.log_text().contains("swordfish"));
    assert!(gateway.apns.server.requests.is_empty());
}
