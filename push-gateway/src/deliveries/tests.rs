//! The memory of a single process. What replicas share is tested against a real Redis in the workspace's tests.

use std::sync::LazyLock;

use super::*;

static PUSHKEY: LazyLock<PushKey> = LazyLock::new(|| "key".to_owned().into());
static OTHER_PUSHKEY: LazyLock<PushKey> = LazyLock::new(|| "other key".to_owned().into());
const ENDPOINT: &str = "https://push.example/1";

/// A destination, and others that differ from it in one part each.
struct Targets {
    one: Target<'static>,
    other_app: Target<'static>,
    other_key: Target<'static>,
    other_endpoint: Target<'static>,
}

fn targets(deliveries: &Deliveries) -> Targets {
    Targets {
        one: deliveries.target("app", &PUSHKEY, ENDPOINT),
        other_app: deliveries.target("other app", &PUSHKEY, ENDPOINT),
        other_key: deliveries.target("app", &OTHER_PUSHKEY, ENDPOINT),
        other_endpoint: deliveries.target("app", &PUSHKEY, "https://push.example/2"),
    }
}

fn deliveries(max_entries: usize) -> (Arc<Deliveries>, Clock) {
    let clock = Clock::manual(1_700_000_000_000);
    let config = SeenConfig { delivered_ttl_secs: 60, dead_ttl_secs: 60, max_entries, ..SeenConfig::default() };
    (Arc::new(Deliveries::new(&config, clock.clone(), None)), clock)
}

async fn begin(deliveries: &Arc<Deliveries>, event_id: &str, target: Target<'_>) -> Begun {
    deliveries.begin(event_id, target, Instant::now()).await
}

async fn is_dead(deliveries: &Arc<Deliveries>, target: Target<'_>, pushkey_ts_ms: Option<i64>) -> bool {
    deliveries.is_dead(target, pushkey_ts_ms, |_| true).await
}

async fn deliver(deliveries: &Arc<Deliveries>, event_id: &str) {
    let Begun::Send(ticket) = begin(deliveries, event_id, targets(deliveries).one).await else {
        panic!("{event_id} is new")
    };
    ticket.finish(&Outcome::Delivered).await;
}

#[tokio::test]
async fn a_delivered_push_is_not_sent_again_until_it_expires() {
    let (deliveries, clock) = deliveries(100);
    let to = targets(&deliveries);
    deliver(&deliveries, "$e").await;
    assert!(matches!(begin(&deliveries, "$e", to.one).await, Begun::Delivered));
    assert!(matches!(begin(&deliveries, "$e", to.other_key).await, Begun::Send(_)));
    assert!(matches!(begin(&deliveries, "$e", to.other_app).await, Begun::Send(_)));
    assert!(matches!(begin(&deliveries, "$e", to.other_endpoint).await, Begun::Send(_)));
    clock.advance(Duration::from_secs(60));
    assert!(matches!(begin(&deliveries, "$e", to.one).await, Begun::Send(_)));
}

#[tokio::test]
async fn copies_wait_for_the_push_in_flight() {
    let (deliveries, _clock) = deliveries(100);
    let to = targets(&deliveries);
    let Begun::Send(ticket) = begin(&deliveries, "$e", to.one).await else { panic!("the first one sends") };
    let Begun::Wait(outcome) = begin(&deliveries, "$e", to.one).await else { panic!("the second one waits") };
    assert_eq!(*outcome.borrow(), None);
    ticket.finish(&Outcome::Busy { retry_after: None }).await;
    assert_eq!(*outcome.borrow(), Some(Outcome::Busy { retry_after: None }));
    // It was not delivered, so the next one tries again.
    assert!(matches!(begin(&deliveries, "$e", to.one).await, Begun::Send(_)));
}

#[tokio::test]
async fn a_cancelled_push_blocks_nobody() {
    let (deliveries, _clock) = deliveries(100);
    let to = targets(&deliveries);
    let ticket = begin(&deliveries, "$e", to.one).await;
    let Begun::Wait(outcome) = begin(&deliveries, "$e", to.one).await else { panic!("the second one waits") };
    drop(ticket);
    assert!(outcome.has_changed().is_err(), "the channel is closed");
    assert!(matches!(begin(&deliveries, "$e", to.one).await, Begun::Send(_)));
}

#[tokio::test]
async fn a_dead_pushkey_is_remembered_until_it_is_set_again() {
    let (deliveries, clock) = deliveries(100);
    let to = targets(&deliveries);
    deliveries.found_dead(to.one).await;
    let found_ms = clock.now_ms();
    assert!(is_dead(&deliveries, to.one, None).await);
    assert!(is_dead(&deliveries, to.one, Some(found_ms - 1000)).await);
    assert!(!deliveries.is_dead(to.one, None, |since_ms| since_ms != found_ms).await, "the report is not believed");
    assert!(!is_dead(&deliveries, to.other_key, None).await);
    assert!(!is_dead(&deliveries, to.other_endpoint, None).await);
    assert!(!is_dead(&deliveries, to.one, Some(found_ms + 1000)).await);
    assert!(!is_dead(&deliveries, to.one, None).await, "it was forgotten");
    deliveries.found_dead(to.one).await;
    clock.advance(Duration::from_secs(60));
    assert!(!is_dead(&deliveries, to.one, None).await, "it has expired");
}

#[tokio::test]
async fn a_dead_pushkey_that_accepted_a_push_is_alive_again() {
    let (deliveries, _clock) = deliveries(100);
    let to = targets(&deliveries);
    deliveries.found_dead(to.one).await;
    deliveries.found_alive(to.other_key).await;
    assert!(is_dead(&deliveries, to.one, None).await);
    deliveries.found_alive(to.one).await;
    assert!(!is_dead(&deliveries, to.one, None).await);
}

#[tokio::test]
async fn the_oldest_entries_are_evicted() {
    let (deliveries, _clock) = deliveries(2);
    let to = targets(&deliveries);
    for event_id in ["$1", "$2", "$3"] {
        deliver(&deliveries, event_id).await;
    }
    assert!(matches!(begin(&deliveries, "$1", to.one).await, Begun::Send(_)));
    assert!(matches!(begin(&deliveries, "$2", to.one).await, Begun::Delivered));
    assert!(matches!(begin(&deliveries, "$3", to.one).await, Begun::Delivered));
    assert!(deliveries.state.lock().under_way.is_empty());
}
