//! After a fault has ended each event has reached its device exactly once, wherever the push service's answers allow
//! it; no pushkey was rejected that is not dead, and each dead one was (DESIGN.md, decision 7).

use std::cell::Cell;

use serde_json::json;
use waypost_tests::ca::{Alpn, Ca};
use waypost_tests::fault::Fault;
use waypost_tests::gateway::TestGateway;
use waypost_tests::retrier::Pusher;
use waypost_tests::service::{Service, Target};
use waypost_tests::tls_server::Answer;

const EVENTS: [&str; 3] = ["$1", "$2", "$3"];
/// Seconds of the homeserver's time after which all is well again.
const ENDS_AFTER: u64 = 7;

#[derive(Clone, Debug)]
enum Trouble {
    Answer(Answer),
    Connection(Fault),
    NoToken(Answer),
}

impl Trouble {
    fn begin(&self, gateway: &TestGateway, service: Service, targets: &[Target]) {
        match self {
            Self::Answer(answer) => {
                for target in targets {
                    service.script(gateway).always(target.key(), answer.clone());
                }
            }
            Self::Connection(fault) => service.server(gateway).faults().always(fault.clone()),
            Self::NoToken(answer) => gateway.fcm.script().always("/token", answer.clone()),
        }
    }

    /// The first device lives; the second one is dead, and was all along.
    fn end(&self, gateway: &TestGateway, service: Service, targets: &[Target]) {
        service.server(gateway).faults().end();
        gateway.fcm.script().forget("/token");
        service.script(gateway).forget(targets[0].key());
        service.script(gateway).always(targets[1].key(), service.gone());
    }
}

async fn survives(service: Service, trouble: &Trouble) {
    let gateway = TestGateway::start_with(|settings, _| {
        settings.set("notify", "budget_secs", 1).set("notify", "attempt_timeout_secs", 1);
    })
    .await;
    let targets = [1, 2].map(|number| service.target(&gateway, number));
    trouble.begin(&gateway, service, &targets);
    // Their waits pass in no time, so that one may be ahead of the other: the fault ends when both have waited so long.
    let waited = [Cell::new(0), Cell::new(0)];
    let at = |pusher: usize| {
        let (waited, trouble, gateway, targets) = (&waited, trouble, &gateway, &targets);
        move |passed: u64| {
            waited[pusher].set(passed);
            if waited.iter().all(|waited| waited.get() >= ENDS_AFTER) {
                trouble.end(gateway, service, targets);
            }
        }
    };
    let (living, dead) = (targets[0].device(), targets[1].device());
    let (living, dead) =
        tokio::join!(Pusher::run(&gateway, &living, &EVENTS, at(0)), Pusher::run(&gateway, &dead, &EVENTS, at(1)));

    let about = format!("{service:?} {trouble:?}");
    assert_eq!(living.settled, EVENTS, "{about}");
    assert!(!living.is_deleted && living.lost.is_empty(), "{about}: {living:?}");
    assert!(living.failures > 0, "the fault was noticed: {about}");
    // What the service said that it took, it took once.
    assert_eq!(targets[0].events(&gateway, true), EVENTS, "{about}");
    assert!(dead.is_deleted, "{about}: {dead:?}");
    assert_eq!(dead.settled, EVENTS[..1], "{about}");
    assert!(targets[1].events(&gateway, true).is_empty(), "{about}");
}

async fn each_survives(trouble: Trouble) {
    for service in Service::ALL {
        survives(service, &trouble).await;
    }
}

#[tokio::test]
async fn an_internal_error() {
    each_survives(Trouble::Answer(Answer::json(500, &json!({})))).await;
}

#[tokio::test]
async fn a_service_that_is_unavailable() {
    each_survives(Trouble::Answer(Answer::empty(503))).await;
}

#[tokio::test]
async fn a_service_that_names_its_time() {
    each_survives(Trouble::Answer(Answer::empty(429).header("retry-after", "60"))).await;
}

#[tokio::test]
async fn a_service_that_names_its_day() {
    let date = "Thu, 31 Dec 2099 23:59:59 GMT";
    each_survives(Trouble::Answer(Answer::empty(503).header("retry-after", date))).await;
}

#[tokio::test]
async fn answers_that_never_come() {
    each_survives(Trouble::Answer(Answer::Hang)).await;
}

#[tokio::test]
async fn requests_that_are_reset() {
    each_survives(Trouble::Answer(Answer::Reset)).await;
}

#[tokio::test]
async fn connections_that_are_cut_at_once() {
    each_survives(Trouble::Connection(Fault::CutBefore)).await;
}

#[tokio::test]
async fn connections_that_are_cut_after_the_request() {
    each_survives(Trouble::Connection(Fault::CutAfter)).await;
}

#[tokio::test]
async fn peers_that_go_away() {
    each_survives(Trouble::Connection(Fault::GoAway { taken: 0 })).await;
}

#[tokio::test]
async fn peers_that_go_away_and_leave_open_what_they_did() {
    each_survives(Trouble::Connection(Fault::GoAwayUnsure)).await;
}

#[tokio::test]
async fn peers_that_refuse_each_request() {
    each_survives(Trouble::Connection(Fault::Refuse)).await;
}

#[tokio::test]
async fn peers_that_say_nothing_at_all() {
    each_survives(Trouble::Connection(Fault::Silence)).await;
}

#[tokio::test]
async fn peers_that_show_another_certificate() {
    let stranger = Ca::new().leaf(&["127.0.0.1", "push.test"], Alpn::Both);
    each_survives(Trouble::Connection(Fault::Certificate(stranger))).await;
}

#[tokio::test]
async fn a_token_service_that_is_down() {
    for answer in [Answer::json(500, &json!({"error": "internal"})), Answer::Reset] {
        survives(Service::Fcm, &Trouble::NoToken(answer)).await;
    }
}

#[tokio::test]
async fn what_the_operator_has_to_mend_is_given_up_after_a_day_and_rejects_nobody() {
    let gateway = TestGateway::start().await;
    let target = Service::Apns.target(&gateway, 1);
    let refusal = waypost_tests::apns::refusal(400, "BadTopic");
    gateway.apns.script().always(target.key(), refusal);
    let pusher = Pusher::run(&gateway, &target.device(), &["$1", "$2"], |_| {}).await;
    assert_eq!(pusher.lost, ["$1", "$2"]);
    assert!(!pusher.is_deleted && pusher.settled.is_empty());
    assert!(target.events(&gateway, true).is_empty());
}
