//! The right to send one request over a connection of an origin, and how it is given back.

use std::{mem, sync::Arc};

use http::{Request, Response};
use hyper::body::Incoming;

use super::{
    connection::{Body, Http1, Http2, Unanswered, is_untouched, prepare_for_http1},
    connector::NoConnection,
    origin::{Origin, Taken},
};

/// The right to send one request, until it is dropped.
pub(super) enum Lease {
    /// One of several on a connection of HTTP/2.
    Multiplexed(Http2, Slot),
    /// A connection of HTTP/1.1.
    Single(Http1, Place),
}

/// One request's place on a connection of HTTP/2.
pub(super) struct Slot {
    origin: Arc<Origin>,
    id: u64,
    /// How many requests the peer had said something to when this one began.
    heard_before: u64,
    heard: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.origin.release(self.id, self.heard, self.heard_before);
    }
}

/// A connection's place among those of its origin.
pub(super) struct Place {
    origin: Arc<Origin>,
    /// The connection, once it can be used again.
    sender: Option<Http1>,
}

impl Place {
    /// Ends with a connection that can be used again.
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
    /// A place on a connection of `origin`, as soon as there is one.
    pub(super) async fn of(origin: &Arc<Origin>) -> Result<Self, NoConnection> {
        Ok(match origin.take_in_turn().await? {
            Taken::Multiplexed { sender, id, heard_before } => {
                Self::Multiplexed(sender, Slot { origin: origin.clone(), id, heard_before, heard: false })
            }
            Taken::Single(sender) => Self::Single(sender, Place { origin: origin.clone(), sender: None }),
        })
    }

    /// Sends a request, up to the answer's body.
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
                        // It takes no more requests, or for now: others go elsewhere.
                        slot.origin.retire(slot.id);
                    }
                    Unanswered { is_untouched, error }
                })
            }
        }
    }

    /// Gives the connection back after the whole answer was read.
    pub(super) fn finish(self) {
        let Self::Single(mut sender, place) = self else { return };
        tokio::spawn(async move {
            if sender.ready().await.is_ok() {
                place.take_back(sender);
            }
        });
    }
}
