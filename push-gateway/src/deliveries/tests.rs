//! What one process remembers by itself. What replicas share is tested with a real server in the workspace's tests.

use super::*;

const KEY: Target<'static> = Target { app_id: "app", pushkey: "key", endpoint: "https://push.example/1" };
const OTHER_KEY: Target<'static> = Target { pushkey: "other key", ..KEY };
const OTHER_ENDPOINT: Target<'static> = Target { endpoint: "https://push.example/2", ..KEY };

fn seen(max_entries: usize) -> (Arc<Seen>, Clock) {
    let clock = Clock::manual(1_700_000_000_000);
    let config = SeenConfig { delivered_ttl_secs: 60, dead_ttl_secs: 60, max_entries, ..SeenConfig::default() };
    (Arc::new(Seen::new(&config, clock.clone(), None)), clock)
}

async fn begin(seen: &Arc<Seen>, event_id: &str, target: Target<'_>) -> Begun {
    seen.begin(event_id, target, Instant::now()).await
}

async fn is_dead(seen: &Arc<Seen>, target: Target<'_>, pushkey_ts_ms: Option<i64>) -> bool {
    seen.is_dead(target, pushkey_ts_ms, |_| true).await
}

async fn deliver(seen: &Arc<Seen>, event_id: &str) {
    let Begun::Send(ticket) = begin(seen, event_id, KEY).await else { panic!("{event_id} is new") };
    ticket.finish(&Outcome::Delivered).await;
}

#[tokio::test]
async fn what_was_delivered_is_not_sent_again_until_it_is_forgotten() {
    let (seen, clock) = seen(100);
    deliver(&seen, "$e").await;
    assert!(matches!(begin(&seen, "$e", KEY).await, Begun::Delivered));
    assert!(matches!(begin(&seen, "$e", OTHER_KEY).await, Begun::Send(_)));
    assert!(matches!(begin(&seen, "$e", Target { app_id: "other app", ..KEY }).await, Begun::Send(_)));
    assert!(matches!(begin(&seen, "$e", OTHER_ENDPOINT).await, Begun::Send(_)));
    clock.advance(Duration::from_secs(60));
    assert!(matches!(begin(&seen, "$e", KEY).await, Begun::Send(_)));
}

#[tokio::test]
async fn copies_wait_for_the_one_that_is_under_way() {
    let (seen, _clock) = seen(100);
    let Begun::Send(ticket) = begin(&seen, "$e", KEY).await else { panic!("the first one sends") };
    let Begun::Wait(outcome) = begin(&seen, "$e", KEY).await else { panic!("the second one waits") };
    assert_eq!(*outcome.borrow(), None);
    ticket.finish(&Outcome::Busy { retry_after: None }).await;
    assert_eq!(*outcome.borrow(), Some(Outcome::Busy { retry_after: None }));
    // It was not delivered, so the next one tries again.
    assert!(matches!(begin(&seen, "$e", KEY).await, Begun::Send(_)));
}

#[tokio::test]
async fn a_sending_that_was_cut_short_blocks_nobody() {
    let (seen, _clock) = seen(100);
    let ticket = begin(&seen, "$e", KEY).await;
    let Begun::Wait(outcome) = begin(&seen, "$e", KEY).await else { panic!("the second one waits") };
    drop(ticket);
    assert!(outcome.has_changed().is_err(), "the channel is closed");
    assert!(matches!(begin(&seen, "$e", KEY).await, Begun::Send(_)));
}

#[tokio::test]
async fn a_dead_pushkey_is_known_until_it_is_set_again() {
    let (seen, clock) = seen(100);
    seen.found_dead(KEY).await;
    let found_ms = clock.now_ms();
    assert!(is_dead(&seen, KEY, None).await);
    assert!(is_dead(&seen, KEY, Some(found_ms - 1000)).await);
    assert!(!seen.is_dead(KEY, None, |since_ms| since_ms != found_ms).await, "it is not believed");
    assert!(!is_dead(&seen, OTHER_KEY, None).await);
    assert!(!is_dead(&seen, OTHER_ENDPOINT, None).await);
    assert!(!is_dead(&seen, KEY, Some(found_ms + 1000)).await);
    assert!(!is_dead(&seen, KEY, None).await, "it was forgotten");
    seen.found_dead(KEY).await;
    clock.advance(Duration::from_secs(60));
    assert!(!is_dead(&seen, KEY, None).await, "its time is over");
}

#[tokio::test]
async fn a_dead_pushkey_that_took_a_push_lives() {
    let (seen, _clock) = seen(100);
    seen.found_dead(KEY).await;
    seen.found_alive(OTHER_KEY).await;
    assert!(is_dead(&seen, KEY, None).await);
    seen.found_alive(KEY).await;
    assert!(!is_dead(&seen, KEY, None).await);
}

#[tokio::test]
async fn the_oldest_make_room() {
    let (seen, _clock) = seen(2);
    for event_id in ["$1", "$2", "$3"] {
        deliver(&seen, event_id).await;
    }
    assert!(matches!(begin(&seen, "$1", KEY).await, Begun::Send(_)));
    assert!(matches!(begin(&seen, "$2", KEY).await, Begun::Delivered));
    assert!(matches!(begin(&seen, "$3", KEY).await, Begun::Delivered));
    assert!(seen.lock().under_way.is_empty());
}
