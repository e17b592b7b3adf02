//! The connections to one origin: which request gets which, when another one is opened, and when one is retired.
//!
//! With HTTP/2 many requests share a connection, up to the limit its peer sets; the least busy connection is used, and
//! another is opened when all are full. With HTTP/1.1 each request has a connection to itself. Requests that find none
//! free queue.

use std::{
    future::poll_fn,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use http::Uri;
use hyper_rustls::HttpsConnector;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use super::{
    connection::{Http1, Http2, Http2Connection, Opened, Peer, open},
    connector::{Connector, NoConnection},
    load::{Crowded, OriginLoad, UnderWay},
};
use crate::owner::Owner;

/// Limit for resolving the name, connecting, the proxy and TLS together.
const OPEN_TIMEOUT: Duration = Duration::from_secs(15);
/// A connection that takes longer to open no longer counts as imminent, so the queue may open another.
const STALLED_AFTER: Duration = Duration::from_secs(2);
/// A peer announces its limits first thing on a new connection; after this long they should have arrived.
const FIRST_LOOK: Duration = Duration::from_millis(100);
/// Concurrent requests assumed to be allowed until the peer says otherwise; RFC 9113 recommends at least 100.
const PRESUMED_STREAMS: usize = 100;
/// The peer's limit is refreshed every this many responses.
const LOOK_EVERY: u64 = 64;

/// Limits on the number and the lifetime of connections.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolLimits {
    /// Concurrent requests per connection, if the peer allows as many.
    pub(super) streams: usize,
    /// Open connections to one origin.
    pub(super) connections: usize,
    /// Origins to which connections are kept.
    pub(super) origins: usize,
    /// How long an idle connection is kept.
    pub(super) idle: Duration,
    /// Whether idle connections are kept alive with pings, so that the next request finds them working.
    pub(super) warm: bool,
}

/// A scheme, host and port, and the connections to it.
pub(super) struct Origin {
    uri: Uri,
    connector: HttpsConnector<Connector>,
    limits: PoolLimits,
    /// The owner, if strangers choose the origins.
    pub(super) owner: Option<Owner>,
    load: Option<Arc<OriginLoad>>,
    state: Mutex<State>,
    /// Wakes one queued request for each slot that becomes free. A woken request that leaves slots over wakes the
    /// next.
    freed: Notify,
}

struct State {
    multiplexed: Vec<Multiplexed>,
    /// Idle HTTP/1.1 connections, and since when.
    idle: Vec<(Http1, Instant)>,
    /// Number of HTTP/1.1 connections in use.
    busy: usize,
    /// Connections being opened, and since when.
    connecting: Vec<Instant>,
    /// Number of queued requests.
    waiting: usize,
    /// Number of requests that a new connection is expected to carry: as many as the last one did.
    expected: usize,
    /// Whether `expected` has been confirmed by a peer; until then one connection is opened at a time.
    is_known: bool,
    next_id: u64,
    /// Number of failed connection attempts, and the latest reason.
    failures: u64,
    failure: Option<NoConnection>,
    used: Instant,
}

struct Multiplexed {
    id: u64,
    sender: Http2,
    peer: Arc<Peer>,
    in_flight: usize,
    /// Number of requests that the peer has responded to.
    heard: u64,
    idle_since: Instant,
}

impl Multiplexed {
    fn free(&self, limit: usize) -> usize {
        self.peer.streams().min(limit).max(1).saturating_sub(self.in_flight)
    }
}

/// A slot on a connection. Whoever takes one must return it: see `lease`.
pub(super) enum Taken {
    /// A stream on an HTTP/2 connection, and the number of requests its peer had responded to before.
    Multiplexed { sender: Http2, id: u64, heard_before: u64 },
    /// An exclusive HTTP/1.1 connection.
    Single(Http1),
}

/// What a request that wants a connection should do.
enum Turn {
    Take(Taken),
    GiveUp(NoConnection),
    Wait,
}

/// A request's place in the queue. Dropping it leaves the queue.
struct InLine<'o> {
    origin: &'o Origin,
    /// The failure count when it joined the queue; `None` if it has not joined.
    since: Option<u64>,
}

impl InLine<'_> {
    fn leave(&mut self, state: &mut State) {
        if self.since.take().is_some() {
            state.waiting -= 1;
        }
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if self.since.is_some() {
            let origin = self.origin;
            self.leave(&mut origin.state.lock());
        }
    }
}

impl Origin {
    pub(super) fn new(
        uri: Uri,
        connector: HttpsConnector<Connector>,
        limits: PoolLimits,
        owner: Option<Owner>,
        load: Option<Arc<OriginLoad>>,
    ) -> Self {
        let state = State {
            multiplexed: Vec::new(),
            idle: Vec::new(),
            busy: 0,
            connecting: Vec::new(),
            waiting: 0,
            expected: limits.streams.min(PRESUMED_STREAMS),
            is_known: false,
            next_id: 0,
            failures: 0,
            failure: None,
            used: Instant::now(),
        };
        Self { uri, connector, limits, owner, load, state: Mutex::new(state), freed: Notify::new() }
    }

    /// Counts a request towards its address from now on.
    pub(super) fn begin(&self) -> Result<Option<UnderWay>, Crowded> {
        self.load.as_ref().map(OriginLoad::begin).transpose()
    }

    /// Waits for a slot on a connection.
    pub(super) async fn take_in_turn(self: &Arc<Self>) -> Result<Taken, NoConnection> {
        let mut line = InLine { origin: self, since: None };
        loop {
            let freed = self.freed.notified();
            match self.turn(&mut line) {
                Turn::Take(taken) => return Ok(taken),
                Turn::GiveUp(reason) => return Err(reason),
                Turn::Wait => freed.await,
            }
        }
    }

    fn turn(self: &Arc<Self>, line: &mut InLine<'_>) -> Turn {
        let mut state = self.state.lock();
        state.used = Instant::now();
        // New arrivals do not jump the queue.
        if (line.since.is_some() || state.waiting == 0)
            && let Some(taken) = self.take(&mut state)
        {
            line.leave(&mut state);
            if state.waiting > 0 && self.free(&state) > 0 {
                self.freed.notify_one();
            }
            return Turn::Take(taken);
        }
        match line.since {
            None => {
                line.since = Some(state.failures);
                state.waiting += 1;
            }
            Some(before) if state.failures > before && state.open() + state.coming() == 0 => {
                if let Some(reason) = state.failure.clone() {
                    line.leave(&mut state);
                    return Turn::GiveUp(reason);
                }
            }
            Some(_) => {}
        }
        self.connect_as_needed(&mut state);
        Turn::Wait
    }

    fn take(self: &Arc<Self>, state: &mut State) -> Option<Taken> {
        state.multiplexed.retain(|connection| !connection.sender.is_closed());
        let limit = self.limits.streams;
        let least_busy = state
            .multiplexed
            .iter_mut()
            .filter(|connection| connection.free(limit) > 0)
            .min_by_key(|connection| connection.in_flight);
        if let Some(connection) = least_busy {
            connection.in_flight += 1;
            let (sender, id, heard_before) = (connection.sender.clone(), connection.id, connection.heard);
            return Some(Taken::Multiplexed { sender, id, heard_before });
        }
        // The most recently used connection is the least likely to have been closed.
        while let Some((sender, _)) = state.idle.pop() {
            if !sender.is_closed() {
                state.busy += 1;
                return Some(Taken::Single(sender));
            }
        }
        None
    }

    /// Number of requests that could be sent immediately.
    fn free(&self, state: &State) -> usize {
        let multiplexed = state.multiplexed.iter().map(|connection| connection.free(self.limits.streams));
        multiplexed.sum::<usize>() + state.idle.len()
    }

    /// Opens connections for queued requests that existing and imminent connections have no room for.
    fn connect_as_needed(self: &Arc<Self>, state: &mut State) {
        // Without a runtime (it may be shutting down) nothing is left to wait.
        let Ok(runtime) = Handle::try_current() else { return };
        let places = self.free(state) + state.coming() * state.expected;
        let mut without = state.waiting.saturating_sub(places);
        while without > 0
            && state.open() + state.connecting.len() < self.limits.connections
            && (state.is_known || state.coming() == 0)
        {
            let since = Instant::now();
            state.connecting.push(since);
            without = without.saturating_sub(state.expected);
            runtime.spawn(self.clone().connect(since, state.expected));
        }
    }

    /// Runs in its own task: the request that wanted the connection may time out, and the next one should find it.
    async fn connect(self: Arc<Self>, since: Instant, streams: usize) {
        let opening = open(self.connector.clone(), self.uri.clone(), streams, self.limits.warm);
        let opened = timeout(OPEN_TIMEOUT, opening).await.unwrap_or_else(|late| Err(late.into()));
        let mut state = self.state.lock();
        if let Some(at) = state.connecting.iter().position(|other| *other == since) {
            state.connecting.swap_remove(at);
        }
        match opened {
            Ok(Opened::Multiplexed(sender, connection)) => {
                let peer = Arc::new(Peer::new(connection.current_max_send_streams()));
                let id = state.next_id;
                state.next_id += 1;
                tokio::spawn(drive(connection, peer.clone(), Arc::downgrade(&self), id));
                let idle_since = Instant::now();
                state.multiplexed.push(Multiplexed { id, sender, peer, in_flight: 0, heard: 0, idle_since });
            }
            Ok(Opened::Single(sender)) => {
                (state.expected, state.is_known) = (1, true);
                state.idle.push((sender, Instant::now()));
            }
            Err(error) => {
                state.failures += 1;
                state.failure = Some(NoConnection::new(error));
                if state.open() + state.coming() == 0 {
                    drop(state);
                    self.freed.notify_waiters();
                }
                return;
            }
        }
        self.connect_as_needed(&mut state);
        drop(state);
        self.freed.notify_one();
    }

    /// Sets the number of concurrent requests that the peer allows.
    pub(super) fn set_stream_limit(self: &Arc<Self>, streams: usize) {
        let mut state = self.state.lock();
        (state.expected, state.is_known) = (streams.min(self.limits.streams).max(1), true);
        self.go_on(state);
    }

    /// Ends a request on an HTTP/2 connection. If it was abandoned and the peer has responded to nothing in the
    /// meantime, the connection may be dead without our knowing, so it takes no further requests.
    pub(super) fn release(self: &Arc<Self>, id: u64, heard: bool, heard_before: u64) {
        let mut state = self.state.lock();
        let Some(at) = state.multiplexed.iter().position(|connection| connection.id == id) else { return };
        let connection = &mut state.multiplexed[at];
        connection.in_flight -= 1;
        connection.idle_since = Instant::now();
        if heard {
            connection.heard += 1;
            // A peer that responds has already announced its limit. Apple allows one request at first, and many after
            // that.
            if connection.heard % LOOK_EVERY == 1 || connection.peer.streams() < PRESUMED_STREAMS {
                connection.peer.look_again();
            }
        } else if connection.heard == heard_before {
            state.multiplexed.swap_remove(at);
        }
        self.go_on(state);
    }

    /// Sends nothing more on a connection; requests in flight on it continue.
    pub(super) fn retire(self: &Arc<Self>, id: u64) {
        let mut state = self.state.lock();
        state.multiplexed.retain(|connection| connection.id != id);
        self.go_on(state);
    }

    /// Ends a request on an HTTP/1.1 connection, which returns to the pool if it is reusable.
    pub(super) fn give_back(self: &Arc<Self>, sender: Option<Http1>) {
        let mut state = self.state.lock();
        state.busy -= 1;
        state.idle.extend(sender.map(|sender| (sender, Instant::now())));
        self.go_on(state);
    }

    /// Serves the queue after a change.
    fn go_on(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.waiting > 0 {
            self.connect_as_needed(&mut state);
            drop(state);
            self.freed.notify_one();
        }
    }

    /// When a connection was last requested.
    pub(super) fn last_used(&self) -> Instant {
        self.state.lock().used
    }

    /// Closes connections that have been idle too long; returns false if nothing is left to keep.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let idle = self.limits.idle;
        let is_fresh = |since: Instant| now.saturating_duration_since(since) < idle;
        let mut state = self.state.lock();
        state.multiplexed.retain(|connection| {
            !connection.sender.is_closed() && (connection.in_flight > 0 || is_fresh(connection.idle_since))
        });
        state.idle.retain(|(sender, since)| !sender.is_closed() && is_fresh(*since));
        state.open() + state.connecting.len() + state.waiting > 0
    }

    /// Whether no connection is in use.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.busy + state.connecting.len() == 0
    }
}

impl State {
    fn open(&self) -> usize {
        self.multiplexed.len() + self.idle.len() + self.busy
    }

    /// Connections that are expected to open soon.
    fn coming(&self) -> usize {
        self.connecting.iter().filter(|since| since.elapsed() < STALLED_AFTER).count()
    }
}

/// Drives a connection until it ends, and keeps track of the limit that the peer sets.
async fn drive(mut connection: Http2Connection, peer: Arc<Peer>, origin: Weak<Origin>, id: u64) {
    let first_look = sleep(FIRST_LOOK);
    tokio::pin!(first_look);
    let mut looked = false;
    loop {
        tokio::select! {
            biased;
            () = poll_fn(|context| Pin::new(&mut connection).poll(context).map(drop)) => break,
            () = peer.look.notified() => {}
            () = &mut first_look, if !looked => looked = true,
        }
        let allowed = connection.current_max_send_streams();
        peer.streams.store(allowed, Ordering::Relaxed);
        if let Some(origin) = origin.upgrade() {
            origin.set_stream_limit(allowed);
        }
    }
    tracing::debug!("an outbound connection was closed");
    if let Some(origin) = origin.upgrade() {
        origin.retire(id);
    }
}
