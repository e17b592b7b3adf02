//! Notifications to systemd, if it asked for them (`Type=notify`): ready, reloading, stopping. A no-op otherwise.
//!
//! Source: sd_notify(3).

use sd_notify::NotifyState;

/// The service takes requests.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The configuration is being reloaded; [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// No more requests are accepted.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager could not be notified");
    }
}
