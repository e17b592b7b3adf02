//! Remembers deliveries and dead pushkeys, so that no device gets an event twice (docs/compatibility.md, P8) and no
//! provider is asked about a dead pushkey again (P9). In memory and, where replicas share it, in Redis or Valkey.
//!
//! Entries are keyed hashes, so that a copy of the memory, or of Redis, reveals no ids. Redis is authoritative while it
//! is reachable; otherwise each replica relies on its own memory.

mod expiring;
mod replicas;

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use ring::hmac;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use waypost_shared::{
    clock::Clock,
    config::secret::{ExposeSecret as _, SecretString},
    hex, random,
};

pub(crate) use self::replicas::Replicas;
use self::{
    expiring::Expiring,
    replicas::{Claim, Lease},
};
use crate::{config::SeenConfig, outcome::Outcome, pushkey::PushKey};

/// How often to poll the state of a push that another replica is sending.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// A keyed hash that identifies an entry.
#[derive(Clone, Copy, Debug, Hash, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; 16]);

impl Fingerprint {
    fn hex(self) -> String {
        hex::encode(&self.0)
    }
}

/// The destination of a push as the push service identifies it; the key under which results are remembered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'d> {
    app_id: &'d str,
    pushkey: &'d PushKey,
    endpoint: &'d str,
    fingerprint: Fingerprint,
}

impl Target<'_> {
    /// Identifies the destination without revealing it.
    pub(crate) fn fingerprint(self) -> Fingerprint {
        self.fingerprint
    }
}

/// The record of past deliveries and dead pushkeys.
#[derive(Debug)]
pub(crate) struct Deliveries {
    key: hmac::Key,
    clock: Clock,
    state: Mutex<State>,
    replicas: Option<Replicas>,
}

#[derive(Debug)]
struct State {
    delivered: Expiring<Fingerprint, ()>,
    /// With the time at which the pushkey was found dead, in milliseconds since the epoch.
    dead: Expiring<Fingerprint, i64>,
    /// Pushes in flight; other requests for the same push wait for the outcome.
    under_way: HashMap<Fingerprint, watch::Receiver<Option<Outcome>>>,
}

/// How to proceed with a push.
#[derive(Debug)]
pub(crate) enum Begun {
    /// The caller sends it, and reports the outcome to the ticket.
    Send(Ticket),
    /// Another request is sending it; wait for its outcome.
    Wait(watch::Receiver<Option<Outcome>>),
    /// Another replica was still sending it at the deadline.
    Elsewhere,
    /// Already delivered.
    Delivered,
}

/// The exclusive right to send one push, until finished or dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    deliveries: Arc<Deliveries>,
    fingerprint: Fingerprint,
    outcome: watch::Sender<Option<Outcome>>,
    /// The right among replicas; None if Redis is unreachable or not used.
    lease: Option<Lease>,
    /// Whether another replica held the lease while this one waited.
    was_elsewhere: bool,
}

impl Deliveries {
    /// Starts empty. Replicas that share state have to hash with the same secret.
    pub(crate) fn new(config: &SeenConfig, clock: Clock, shared: Option<(Replicas, SecretString)>) -> Self {
        let state = State {
            delivered: Expiring::new(config.delivered_ttl_secs, config.max_entries),
            dead: Expiring::new(config.dead_ttl_secs, config.max_entries),
            under_way: HashMap::new(),
        };
        let (key, replicas) = match shared {
            None => (hmac::Key::new(hmac::HMAC_SHA256, &random::bytes::<32>()), None),
            Some((replicas, secret)) => {
                (hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes()), Some(replicas))
            }
        };
        Self { key, clock, state: Mutex::new(state), replicas }
    }

    /// Connects to Redis, if replicas share state.
    pub(crate) fn connect(&self) {
        if let Some(replicas) = &self.replicas {
            replicas.connect();
        }
    }

    /// Sets the longest time that sending may take. Leases outlive it, so that no replica takes over a push that
    /// another one may still be sending.
    pub(crate) fn set_budget(&self, budget: Duration) {
        if let Some(replicas) = &self.replicas {
            replicas.set_budget(budget);
        }
    }

    /// The destination of a push. `endpoint` is what the service needs besides the pushkey; empty if nothing.
    pub(crate) fn target<'d>(&self, app_id: &'d str, pushkey: &'d PushKey, endpoint: &'d str) -> Target<'d> {
        let fingerprint = self.fingerprint(&[app_id, pushkey.expose(), endpoint]);
        Target { app_id, pushkey, endpoint, fingerprint }
    }

    /// Requests to send an event to a device. If another replica is sending it, waits until `deadline`.
    pub(crate) async fn begin(self: &Arc<Self>, event_id: &str, target: Target<'_>, deadline: Instant) -> Begun {
        let Target { app_id, pushkey, endpoint, .. } = target;
        let fingerprint = self.fingerprint(&[event_id, app_id, pushkey.expose(), endpoint]);
        match (self.begin_here(fingerprint), &self.replicas) {
            (Begun::Send(ticket), Some(replicas)) => ticket.claim(replicas, deadline).await,
            (begun, _) => begun,
        }
    }

    fn begin_here(self: &Arc<Self>, fingerprint: Fingerprint) -> Begun {
        let now_ms = self.clock.now_ms();
        let mut state = self.state.lock();
        if state.delivered.get(fingerprint, now_ms).is_some() {
            return Begun::Delivered;
        }
        if let Some(outcome) = state.under_way.get(&fingerprint) {
            return Begun::Wait(outcome.clone());
        }
        let (outcome, receiver) = watch::channel(None);
        state.under_way.insert(fingerprint, receiver);
        Begun::Send(Ticket { deliveries: self.clone(), fingerprint, outcome, lease: None, was_elsewhere: false })
    }

    /// Remembers that the provider reported a pushkey dead.
    pub(crate) async fn found_dead(&self, target: Target<'_>) {
        let now_ms = self.clock.now_ms();
        self.state.lock().dead.insert(target.fingerprint, now_ms, now_ms);
        if let Some(replicas) = &self.replicas {
            replicas.found_dead(&target.fingerprint.hex(), now_ms).await;
        }
    }

    /// Forgets that the pushkey was dead, because the provider accepted a push for it.
    pub(crate) async fn found_alive(&self, target: Target<'_>) {
        self.forget_dead(target.fingerprint).await;
    }

    /// Whether the pushkey is known to be dead, by a report that `believes` accepts. If the client has set the pushkey
    /// again since then, the report is dropped.
    pub(crate) async fn is_dead(
        &self,
        target: Target<'_>,
        pushkey_ts_ms: Option<i64>,
        believes: impl Fn(i64) -> bool,
    ) -> bool {
        let since_ms = self.dead_since(target.fingerprint).await.filter(|since_ms| believes(*since_ms));
        let Some(since_ms) = since_ms else { return false };
        let set_again = pushkey_ts_ms.is_some_and(|set_ms| set_ms > since_ms);
        if set_again {
            self.forget_dead(target.fingerprint).await;
        }
        !set_again
    }

    async fn dead_since(&self, fingerprint: Fingerprint) -> Option<i64> {
        if let Some(replicas) = &self.replicas
            && let Some(since_ms) = replicas.dead_since(&fingerprint.hex()).await
        {
            if since_ms.is_none() {
                // Another replica may have found it alive.
                self.state.lock().dead.remove(fingerprint);
            }
            return since_ms;
        }
        self.state.lock().dead.get(fingerprint, self.clock.now_ms()).copied()
    }

    async fn forget_dead(&self, fingerprint: Fingerprint) {
        self.state.lock().dead.remove(fingerprint);
        if let Some(replicas) = &self.replicas {
            replicas.found_alive(&fingerprint.hex()).await;
        }
    }

    /// Hashes the texts, each prefixed with its length so that no two lists collide.
    fn fingerprint(&self, texts: &[&str]) -> Fingerprint {
        let mut context = hmac::Context::with_key(&self.key);
        for text in texts {
            // Fixed width and endianness: replicas may run on different architectures.
            context.update(&u64::try_from(text.len()).unwrap_or(u64::MAX).to_le_bytes());
            context.update(text.as_bytes());
        }
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&context.sign().as_ref()[..16]);
        Fingerprint(fingerprint)
    }
}

impl Ticket {
    /// Claims the lease among replicas. If Redis is unreachable, this replica sends the push.
    async fn claim(mut self, replicas: &Replicas, deadline: Instant) -> Begun {
        let key = self.fingerprint.hex();
        loop {
            match replicas.claim(&key).await {
                None => return Begun::Send(self),
                Some(Claim::Ours(lease)) => {
                    self.lease = Some(lease);
                    return Begun::Send(self);
                }
                Some(Claim::Delivered) => {
                    self.settle(&Outcome::Delivered);
                    return Begun::Delivered;
                }
                Some(Claim::Elsewhere) => self.was_elsewhere = true,
            }
            if Instant::now() + LOOK_AGAIN >= deadline {
                self.settle(&Outcome::unreachable());
                return Begun::Elsewhere;
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether another replica tried before, without success. It may have found the pushkey dead.
    pub(crate) fn was_elsewhere(&self) -> bool {
        self.was_elsewhere
    }

    /// Reports the outcome. Only a delivery is remembered: everything else may be retried.
    pub(crate) async fn finish(mut self, outcome: &Outcome) {
        self.settle(outcome);
        let Some(replicas) = &self.deliveries.replicas else { return };
        let key = self.fingerprint.hex();
        let lease = self.lease.take();
        match (outcome, lease) {
            (Outcome::Delivered, _) => replicas.delivered(&key).await,
            (_, Some(lease)) => replicas.release(&key, &lease),
            (_, None) => {}
        }
    }

    /// Records the outcome in this process and wakes the requests that wait for it.
    fn settle(&self, outcome: &Outcome) {
        if *outcome == Outcome::Delivered {
            let now_ms = self.deliveries.clock.now_ms();
            self.deliveries.state.lock().delivered.insert(self.fingerprint, (), now_ms);
        }
        self.outcome.send_replace(Some(outcome.clone()));
    }
}

impl Drop for Ticket {
    /// Covers cancellation too: waiting requests then see a closed channel.
    fn drop(&mut self) {
        self.deliveries.state.lock().under_way.remove(&self.fingerprint);
        if let (Some(replicas), Some(lease)) = (&self.deliveries.replicas, self.lease.take()) {
            replicas.release(&self.fingerprint.hex(), &lease);
        }
    }
}

#[cfg(test)]
mod tests;
