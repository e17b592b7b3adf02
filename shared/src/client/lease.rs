//! Leases: the right to send one request over a connection of an origin, returned on drop.

use std::{mem, sync::Arc};

use http::{Request, Response};
use hyper::body::Incoming;

use super::{
    connection::{Body, Http1, Http2, Unanswered, is_untouched, prepare_for_http1},
    connector::NoConnection,
    origin::{Origin, Taken},
};

/// The right to send one request, until dropped.
pub(super) enum Lease {
    /// A stream on an HTTP/2 connection.
    Multiplexed(Http2, Slot),
    /// An exclusive HTTP/1.1 connection.
    Single(Http1, Place),
}

/// One request's slot on an HTTP/2 connection.
pub(super) struct Slot {
    origin: Arc<Origin>,
    id: u64,
    /// The number of requests the peer had responded to when this one began.
    heard_before: u64,
    heard: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.origin.release(self.id, self.heard, self.heard_before);
    }
}

/// An HTTP/1.1 connection's place in its origin's pool.
pub(super) struct Place {
    origin: Arc<Origin>,
    /// The connection, once it is reusable.
    sender: Option<Http1>,
}

impl Place {
    /// Returns a reusable connection to the pool.
    fn take_back(mut self, sender: Http1) {
        self.sender = Some(sender);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.origin.give_back(mem::take(&mut self.sender));
    }
}

impl Lease {
    /// Waits for a slot on a connection of `origin`.
    pub(super) async fn of(origin: &Arc<Origin>) -> Result<Self, NoConnection> {
        Ok(match origin.take_in_turn().await? {
            Taken::Multiplexed { sender, id, heard_before } => {
                Self::Multiplexed(sender, Slot { origin: origin.clone(), id, heard_before, heard: false })
            }
            Taken::Single(sender) => Self::Single(sender, Place { origin: origin.clone(), sender: None }),
        })
    }

    /// Sends a request and returns the response, its body unread.
    pub(super) async fn send(&mut self, mut request: Request<Body>) -> Result<Response<Incoming>, Unanswered> {
        match self {
            Self::Single(sender, _) => {
                prepare_for_http1(&mut request);
                sender.try_send_request(request).await.map_err(|mut unsent| Unanswered {
                    is_untouched: unsent.take_message().is_some(),
                    error: unsent.into_error(),
                })
            }
            Self::Multiplexed(sender, slot) => {
                let answer = sender.try_send_request(request).await;
                slot.heard = true;
                answer.map_err(|mut unsent| {
                    let never_left = unsent.take_message().is_some();
                    let error = unsent.into_error();
                    let is_untouched = never_left || is_untouched(&error);
                    if is_untouched {
                        // The connection takes no more requests, at least for now, so others must not use it.
                        slot.origin.retire(slot.id);
                    }
                    Unanswered { is_untouched, error }
                })
            }
        }
    }

    /// Returns the connection once the whole response has been read.
    pub(super) fn finish(self) {
        let Self::Single(mut sender, place) = self else { return };
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                place.take_back(sender);
            }
        });
    }
}
