//! Whether a connection is idle.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Whether a connection has requests in flight, and if not, since when.
pub(super) struct Activity {
    opened: Instant,
    under_way: AtomicUsize,
    /// Milliseconds from `opened` to the end of the last request.
    quiet_since_ms: AtomicU64,
}

impl Activity {
    pub(super) fn new() -> Self {
        Self { opened: Instant::now(), under_way: AtomicUsize::new(0), quiet_since_ms: AtomicU64::new(0) }
    }

    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        Busy(self.clone())
    }

    pub(super) fn quiet_since(&self) -> Instant {
        self.opened + Duration::from_millis(self.quiet_since_ms.load(Ordering::SeqCst))
    }

    pub(super) fn is_quiet_for(&self, time: Duration) -> bool {
        self.under_way.load(Ordering::SeqCst) == 0 && self.quiet_since().elapsed() >= time
    }
}

/// A request in flight; ends on drop.
pub(super) struct Busy(Arc<Activity>);

impl Drop for Busy {
    fn drop(&mut self) {
        let now_ms = u64::try_from(self.0.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.quiet_since_ms.store(now_ms, Ordering::SeqCst);
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}
