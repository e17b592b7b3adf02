//! Simulates a pusher of Synapse: events are sent one after another, and each is retried for up to a day until it is
//! accepted, with a back-off that doubles from a second to an hour. Waits take no real time; a callback follows them.

use serde_json::Value;

use crate::gateway::{TestGateway, event};

/// The first wait, in seconds.
const FIRST_WAIT: u64 = 1;
/// The longest wait, in seconds.
const LONGEST_WAIT: u64 = 60 * 60;
/// The time after which an event is given up, in seconds.
const GIVEN_UP_AFTER: u64 = 24 * 60 * 60;

/// The final state of a pusher.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pusher {
    /// Events that the gateway answered with 200, in order.
    pub settled: Vec<String>,
    /// Events that were given up after a day.
    pub lost: Vec<String>,
    /// Whether the gateway rejected the pushkey, which deletes the pusher.
    pub is_deleted: bool,
    /// The number of answers that led to a retry.
    pub failures: usize,
}

impl Pusher {
    /// Sends `events` to one device. `at` is called for each wait, with the seconds since the event's first attempt.
    ///
    /// # Panics
    ///
    /// If an answer is one that a homeserver cannot handle.
    pub async fn run(gateway: &TestGateway, device: &Value, events: &[&str], mut at: impl FnMut(u64)) -> Self {
        let mut pusher = Self::default();
        for event_id in events {
            let notification = event(event_id, std::slice::from_ref(device));
            let (mut wait, mut passed) = (FIRST_WAIT, 0);
            loop {
                let reply = gateway.notify(&notification).await;
                if reply.status == 200 {
                    pusher.settled.push((*event_id).to_owned());
                    let rejected = reply.json()["rejected"].as_array().cloned().unwrap_or_default();
                    if rejected.contains(&device["pushkey"]) {
                        pusher.is_deleted = true;
                        return pusher;
                    }
                    assert!(rejected.is_empty(), "a pushkey was rejected that was not sent: {}", reply.text);
                    break;
                }
                assert!(reply.status >= 429, "{}: {}", reply.status, reply.text);
                pusher.failures += 1;
                passed += wait;
                wait = (wait * 2).min(LONGEST_WAIT);
                if passed > GIVEN_UP_AFTER {
                    pusher.lost.push((*event_id).to_owned());
                    break;
                }
                at(passed);
            }
        }
        pusher
    }
}
