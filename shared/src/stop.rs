//! The shutdown signal.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// A shutdown signal that all clones observe.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A signal that is triggered by hand: send `true`.
    #[must_use]
    pub fn manual() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Whether the stop was requested.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits for the signal. A dropped sender counts as triggered, since it can never send.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        drop(receiver.wait_for(|stop| *stop).await);
    }
}

/// Triggers the signal on SIGTERM and SIGINT.
///
/// # Errors
///
/// If the signal handlers cannot be installed.
pub fn stop_on_signals(ask_to_stop: watch::Sender<bool>) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("received a stop signal; shutting down");
        ask_to_stop.send_replace(true);
    });
    Ok(())
}
