//! The request to stop.

use std::io;

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

/// A request to stop, seen by everyone who holds a copy.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A stop that is requested by hand: send `true`.
    #[must_use]
    pub fn manual() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Waits for the request to stop. A sender that is gone will never ask, so that counts as asked.
    pub async fn requested(&self) {
        let mut receiver = self.0.clone();
        drop(receiver.wait_for(|stop| *stop).await);
    }
}

/// Asks to stop at SIGTERM and SIGINT.
///
/// # Errors
///
/// When the signals cannot be listened to.
pub fn stop_on_signals(ask_to_stop: watch::Sender<bool>) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        ask_to_stop.send_replace(true);
    });
    Ok(())
}
