//! A homeserver's pusher, as Synapse has it: one event after another, each tried again until it is taken, with waits
//! that double from a second to an hour, for a day. The waits pass in no time; what happens meanwhile is told.

use serde_json::Value;

use crate::gateway::{TestGateway, event};

/// Seconds of the first wait.
const FIRST_WAIT: u64 = 1;
/// Seconds of the longest one.
const LONGEST_WAIT: u64 = 60 * 60;
/// Seconds after which an event is given up.
const GIVEN_UP_AFTER: u64 = 24 * 60 * 60;

/// How a pusher ended up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pusher {
    /// Events that the gateway answered with 200, in order.
    pub settled: Vec<String>,
    /// Events that were given up after a day.
    pub lost: Vec<String>,
    /// Whether the gateway rejected the pushkey, which ends the pusher.
    pub is_deleted: bool,
    /// Answers that made it wait.
    pub failures: usize,
}

impl Pusher {
    /// Sends `events` to one device; `at` hears of each wait how many seconds have passed since the event's first try.
    ///
    /// # Panics
    ///
    /// When an answer is none that a homeserver can do anything with.
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
