//! Reading a body within its limits of size, time and memory.

use std::{
    pin::{Pin, pin},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_LENGTH, EXPECT},
};
use tokio::time::{Instant, timeout_at};

use crate::http::{
    body::{Body, Held, NoMemory},
    error::MatrixError,
};

/// A body that arrives more slowly than this many bytes a second is abandoned ...
const LEAST_RATE: usize = 1024;
/// ... except within this time from its start.
const SLOW_START: Duration = Duration::from_secs(5);
/// A body that was fast at first may not pause for longer than this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// The `Retry-After` of a request whose body does not fit into memory. Bodies are parsed within milliseconds.
const WAIT_FOR_MEMORY: Duration = Duration::from_secs(1);
/// Bytes of a refused body that are read and thrown away, so that its client reads the response.
const MOST_DISCARDED: usize = 1024 * 1024;

/// Reads a body of up to `limit` bytes, chunked or not, that arrives within `longest` and at the minimum rate.
///
/// # Errors
///
/// 408, 413, 429, 503, or 400 if the body was cut off.
pub(super) async fn read<B: Buf>(
    body: impl Stream<Item = Result<B, warp::Error>>,
    headers: &HeaderMap,
    limit: usize,
    longest: Duration,
    mut held: Held,
) -> Result<Body, MatrixError> {
    let now = Instant::now();
    let mut arriving = Arriving { body: pin!(body), arrived: 0, begun: now, last: now, longest };
    let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let read = if announced.is_some_and(|length: usize| length > limit) {
        Err(Unread::Refused(too_large(limit)))
    } else {
        arriving.collect(limit, &mut held).await
    };
    match read {
        Ok(bytes) => Ok(Body::new(bytes, held)),
        Err(Unread::Abandoned(error)) => Err(error),
        Err(Unread::Refused(error)) => {
            drop(held);
            // Closing the connection with unread bytes resets it, and a client that is still writing would not see the
            // response. One that waits for `100 Continue` is not writing.
            if !headers.contains_key(EXPECT) {
                arriving.discard(MOST_DISCARDED).await;
            }
            Err(error)
        }
    }
}

/// Why there is no body.
enum Unread {
    /// It arrives no further.
    Abandoned(MatrixError),
    /// It may still be arriving.
    Refused(MatrixError),
}

/// A body that is arriving.
struct Arriving<'a, S> {
    body: Pin<&'a mut S>,
    arrived: usize,
    begun: Instant,
    /// When the last bytes arrived.
    last: Instant,
    longest: Duration,
}

impl<B: Buf, S: Stream<Item = Result<B, warp::Error>>> Arriving<'_, S> {
    async fn collect(&mut self, limit: usize, held: &mut Held) -> Result<Bytes, Unread> {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(mut chunk) = self.next().await.map_err(Unread::Abandoned)? {
            if self.arrived > limit {
                return Err(Unread::Refused(too_large(limit)));
            }
            held.grow(chunk.remaining()).map_err(|reason| Unread::Refused(no_memory(reason)))?;
            let chunk = chunk.copy_to_bytes(chunk.remaining());
            // Most bodies arrive as a single chunk, which need not be copied.
            if first.is_empty() && all.is_empty() {
                first = chunk;
            } else {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&chunk);
            }
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    }

    /// Throws away up to `most` bytes.
    async fn discard(&mut self, most: usize) {
        let most = self.arrived.saturating_add(most);
        while self.arrived < most && matches!(self.next().await, Ok(Some(_))) {}
    }

    /// The next bytes; `None` at the end.
    async fn next(&mut self) -> Result<Option<B>, MatrixError> {
        let due = due(self.arrived, self.begun, self.last, self.longest);
        let Ok(next) = timeout_at(due, self.body.next()).await else {
            let text =
                format!("The body did not arrive within {} seconds, or arrived too slowly", self.longest.as_secs());
            return Err(MatrixError::new(StatusCode::REQUEST_TIMEOUT, "M_UNKNOWN", text));
        };
        let Some(chunk) = next else { return Ok(None) };
        let chunk = chunk.map_err(|_| MatrixError::bad_request("M_UNKNOWN", "The body was cut off"))?;
        self.arrived += chunk.remaining();
        self.last = Instant::now();
        Ok(Some(chunk))
    }
}

/// The deadline for the next bytes.
fn due(arrived: usize, begun: Instant, last: Instant, longest: Duration) -> Instant {
    let at_least_rate = begun + SLOW_START + Duration::from_secs((arrived / LEAST_RATE) as u64);
    at_least_rate.min(last + LONGEST_PAUSE).min(begun + longest)
}

/// Refused at once rather than queued: half-read bodies that wait for each other's memory would all time out.
fn no_memory(reason: NoMemory) -> MatrixError {
    let (status, text) = match reason {
        NoMemory::Source => (StatusCode::TOO_MANY_REQUESTS, "Too many large requests from this source at once"),
        NoMemory::All => (StatusCode::SERVICE_UNAVAILABLE, "No memory for another request"),
    };
    MatrixError::new(status, "M_LIMIT_EXCEEDED", text).retry_after(WAIT_FOR_MEMORY)
}

fn too_large(limit: usize) -> MatrixError {
    let text = format!("The body is larger than {limit} bytes");
    MatrixError::new(StatusCode::PAYLOAD_TOO_LARGE, "M_TOO_LARGE", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_must_arrive_at_a_minimum_rate_and_without_long_pauses() {
        let (begun, secs) = (Instant::now(), Duration::from_secs);
        for (arrived, last, longest, expected) in [
            (0, 0, 30, 5),
            (2 * LEAST_RATE, 2, 30, 7),
            (20 * LEAST_RATE, 20, 60, 25),
            // All but the end arrived at once.
            (1 << 20, 1, 60, 11),
            (1 << 20, 25, 30, 30),
            (0, 0, 1, 1),
        ] {
            assert_eq!(due(arrived, begun, begun + secs(last), secs(longest)), begun + secs(expected), "{arrived}");
        }
    }
}
