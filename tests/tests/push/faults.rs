//! Everything that can go wrong between the gateway and a push service: no push is lost, none is sent twice where the
//! service said that it did nothing, and no pushkey is rejected for it.

use serde_json::{Value, json};
use waypost_tests::apns::NAME as APNS_NAME;
use waypost_tests::ca::{Alpn, Ca};
use waypost_tests::dns::Dns;
use waypost_tests::fault::Fault;
use waypost_tests::fcm::NAME as FCM_NAME;
use waypost_tests::gateway::{ANDROID, IOS, TestGateway, UNIFIED, WEB, android, event, unifiedpush_app, with};
use waypost_tests::service::Service;
use waypost_tests::tls_server::Answer;

use super::{assert_try_again, retry_after};

/// A gateway that has sent a push to the service, whose connections are broken then: the next one is a new one, and
/// FCM's token is there already.
async fn warmed_up(service: Service) -> TestGateway {
    warm(TestGateway::start().await, service).await
}

async fn warm(gateway: TestGateway, service: Service) -> TestGateway {
    let first = service.target(&gateway, 0xf0);
    assert_eq!(gateway.rejected(&event("$first", &[first.device()])).await, json!([]));
    service.server(&gateway).cut();
    let ended = |line: &Value| line["message"] == "an outbound connection was closed";
    gateway.server.wait_for_log("the end of the connection", ended).await;
    gateway
}

fn of_another_root() -> Fault {
    Fault::Certificate(Ca::new().leaf(&["127.0.0.1", "push.test"], Alpn::Both))
}

#[tokio::test]
async fn a_connection_that_goes_wrong_costs_no_push() {
    for service in Service::ALL {
        for fault in [
            Fault::CutBefore,
            Fault::CutAfter,
            Fault::GoAway { taken: 0 },
            Fault::GoAwayUnsure,
            Fault::Refuse,
            of_another_root(),
        ] {
            let gateway = warmed_up(service).await;
            let server = service.server(&gateway);
            server.faults().once(fault.clone());
            let target = service.target(&gateway, 1);
            assert_eq!(gateway.rejected(&event("$1", &[target.device()])).await, json!([]), "{service:?} {fault:?}");
            assert_eq!(target.events(&gateway, true), ["$1"], "{service:?} {fault:?}");
            assert!(server.faults().happened(), "{service:?} {fault:?}");
        }
    }
}

#[tokio::test]
async fn requests_that_a_leaving_peer_did_not_touch_are_sent_once_more_and_the_others_are_not() {
    for service in Service::ALL {
        let gateway = warmed_up(service).await;
        let server = service.server(&gateway);
        server.faults().once(Fault::GoAway { taken: 3 });
        let targets: Vec<_> = (1..=10).map(|number| service.target(&gateway, number)).collect();
        let devices: Vec<_> = targets.iter().map(|target| target.device()).collect();
        assert_eq!(gateway.rejected(&event("$1", &devices)).await, json!([]), "{service:?}");
        // Three were taken on the connection that went away, and the other seven elsewhere: nobody was woken twice.
        assert_eq!(server.faults().taken(), 3, "{service:?}");
        let elsewhere: Vec<_> = targets.iter().map(|target| target.events(&gateway, false).len()).collect();
        assert_eq!(elsewhere.iter().sum::<usize>(), 7, "{service:?}: {elsewhere:?}");
        assert!(elsewhere.iter().all(|pushes| *pushes <= 1), "{service:?}: {elsewhere:?}");
    }
}

#[tokio::test]
async fn what_a_leaving_peer_may_have_done_is_not_sent_again_at_once() {
    for service in Service::ALL {
        let gateway = warm(TestGateway::start_impatient().await, service).await;
        let server = service.server(&gateway);
        let before = server.connections();
        server.faults().always(Fault::GoAwayUnsure);
        let target = service.target(&gateway, 1);
        assert_try_again(&gateway.notify(&event("$1", &[target.device()])).await);
        // One connection for each of the attempts that a budget of three seconds has room for, and not four.
        let connections = server.connections() - before;
        assert!((1..=5).contains(&connections), "{service:?}: {connections}");
    }
}

#[tokio::test]
async fn while_no_connection_works_the_homeserver_is_asked_to_come_again() {
    for fault in
        [Fault::CutBefore, Fault::CutAfter, Fault::GoAwayUnsure, Fault::Refuse, Fault::Silence, of_another_root()]
    {
        let gateway = TestGateway::start_impatient().await;
        for service in Service::ALL {
            service.server(&gateway).faults().always(fault.clone());
        }
        let targets = Service::ALL.map(|service| service.target(&gateway, 1));
        let devices = targets.each_ref().map(|target| target.device());
        let reply = gateway.notify(&event("$1", &devices)).await;
        assert_try_again(&reply);
        assert!(retry_after(&reply) > 0, "{fault:?}");
        for target in &targets {
            assert_eq!(target.events(&gateway, false), [""; 0], "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_name_that_is_not_found_rejects_nobody() {
    let dns = Dns::start().await;
    let servers = json!([dns.address.to_string()]);
    let gateway = TestGateway::start_apps(|settings, around| {
        let at = |name: &str, port: u16| json!(format!("https://{name}:{port}"));
        settings
            .set("outbound", "dns_servers", servers)
            .remove("outbound.hosts", waypost_tests::webpush::HOST)
            .set("notify", "budget_secs", 2)
            .set("notify", "attempt_timeout_secs", 2)
            .push("apps", &with(around.apns_app(IOS), &[("apns.endpoint", at(APNS_NAME, around.apns.server.port()))]))
            .push("apps", &with(around.fcm_app(ANDROID), &[("fcm.endpoint", at(FCM_NAME, around.fcm.server.port()))]))
            .push("apps", &around.webpush_app(WEB))
            .push("apps", &unifiedpush_app(UNIFIED));
    })
    .await;
    for service in Service::ALL {
        let target = service.target(&gateway, 1);
        assert_try_again(&gateway.notify(&event("$1", &[target.device()])).await);
        assert_eq!(target.events(&gateway, false), [""; 0], "{service:?}");
    }
    for name in [APNS_NAME, FCM_NAME, waypost_tests::webpush::HOST] {
        assert!(dns.queries.all().iter().any(|query| query == name), "{name} was not asked for");
    }
}

#[tokio::test]
async fn retry_after_may_be_a_date() {
    let gateway = TestGateway::start_impatient().await;
    for service in Service::ALL {
        for (number, status) in [(1, 429), (2, 503)] {
            let target = service.target(&gateway, number);
            // So far away that an hour, the longest wait, is what a homeserver is asked for.
            let answer = Answer::empty(status).header("retry-after", "Thu, 31 Dec 2099 23:59:59 GMT");
            service.script(&gateway).always(target.key(), answer);
            let reply = gateway.notify(&event("$1", &[target.device()])).await;
            assert_try_again(&reply);
            assert_eq!(retry_after(&reply), 3600, "{service:?} {status}");
            assert_eq!(target.events(&gateway, false).len(), 1, "{service:?} {status}");
        }
        // A date that has passed is no wait.
        let target = service.target(&gateway, 3);
        let answer = Answer::empty(429).header("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT");
        service.script(&gateway).once(target.key(), answer);
        assert_eq!(gateway.rejected(&event("$1", &[target.device()])).await, json!([]), "{service:?}");
        assert_eq!(target.events(&gateway, true), ["$1"], "{service:?}");
    }
}

#[tokio::test]
async fn a_service_that_hangs_or_resets_rejects_nobody() {
    for answer in [Answer::Hang, Answer::Reset] {
        let gateway = TestGateway::start_impatient().await;
        let targets = Service::ALL.map(|service| service.target(&gateway, 1));
        for (service, target) in Service::ALL.iter().zip(&targets) {
            service.script(&gateway).always(target.key(), answer.clone());
        }
        let devices = targets.each_ref().map(|target| target.device());
        assert_try_again(&gateway.notify(&event("$1", &devices)).await);
    }
}

#[tokio::test]
async fn a_token_service_that_hangs_is_waited_for_by_nobody_else() {
    let gateway = TestGateway::start_impatient().await;
    gateway.fcm.script().always("/token", Answer::Hang);
    let (fcm, apns) = (android("device"), Service::Apns.target(&gateway, 1));
    let (for_google, for_apple) = (event("$1", &[fcm]), event("$2", &[apns.device()]));
    let (stuck, quick) = tokio::join!(gateway.notify(&for_google), gateway.notify(&for_apple));
    assert_try_again(&stuck);
    assert_eq!(quick.ok(), json!({"rejected": []}));
    gateway.fcm.script().forget("/token");
    // The fetch that hangs is given up after five seconds.
    let mut reply = gateway.notify(&for_google).await;
    for _ in 0..10 {
        if reply.status == 200 {
            break;
        }
        reply = gateway.notify(&for_google).await;
    }
    assert_eq!(reply.ok(), json!({"rejected": []}));
    assert_eq!(gateway.fcm.pushes_for("device").len(), 1);
}
