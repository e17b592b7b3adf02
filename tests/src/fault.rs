//! Injects connection failures that no HTTP library would produce, by speaking HTTP/2 frame by frame (RFC 9113).

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
// Frame types.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
// Flags.
const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
// Error codes.
const NO_ERROR: u32 = 0;
const REFUSED_STREAM: u32 = 7;
/// `:status: 200`, as an index into HPACK's static table.
const STATUS_200: u8 = 0x88;

/// A failure of a connection.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Closed after the handshake, before a request.
    CutBefore,
    /// Closed after a whole request, without an answer.
    CutAfter,
    /// `taken` requests are answered with 200, then GOAWAY says that the others were not processed.
    GoAway {
        /// The number of requests answered.
        taken: u32,
    },
    /// GOAWAY says that the request may have been processed, and the connection is closed.
    GoAwayUnsure,
    /// Each request is refused (RST_STREAM with REFUSED_STREAM), so it was not processed.
    Refuse,
    /// Accepted, and then silent, without even a TLS handshake.
    Silence,
    /// A different certificate is presented.
    Certificate(Arc<rustls::ServerConfig>),
}

/// Decides which connections fail: queued faults first, then the permanent one, if set.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<(VecDeque<Fault>, Option<Fault>)>,
    taken: AtomicU32,
}

impl Faults {
    /// Makes the next connection fail. Several calls queue up.
    pub fn once(&self, fault: Fault) {
        self.with(|(once, _)| once.push_back(fault));
    }

    /// Makes every connection fail from now on.
    pub fn always(&self, fault: Fault) {
        self.with(|(_, always)| *always = Some(fault));
    }

    /// Clears all faults.
    pub fn end(&self) {
        self.with(|state| *state = (VecDeque::new(), None));
    }

    /// The number of requests answered with 200 on connections that failed afterwards. Their content is ignored.
    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::SeqCst)
    }

    /// Whether all queued faults have happened.
    pub fn happened(&self) -> bool {
        self.with(|(once, _)| once.is_empty())
    }

    pub(crate) fn next(&self) -> Option<Fault> {
        self.with(|(once, always)| once.pop_front().or_else(|| always.clone()))
    }

    fn with<R>(&self, change: impl FnOnce(&mut (VecDeque<Fault>, Option<Fault>)) -> R) -> R {
        change(&mut self.state.lock())
    }

    /// Speaks HTTP/2 until the fault has happened and the client has disconnected.
    pub(crate) async fn play(&self, fault: &Fault, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface).await?;
        send(&mut stream, SETTINGS, 0, 0, &[]).await?;
        let (mut requests, mut last_taken, mut gone) = (0, 0, false);
        loop {
            let frame = Frame::read(&mut stream).await?;
            match frame.kind {
                SETTINGS if frame.flags & ACK == 0 => send(&mut stream, SETTINGS, ACK, 0, &[]).await?,
                PING if frame.flags & ACK == 0 => send(&mut stream, PING, ACK, 0, &frame.payload).await?,
                DATA | HEADERS if frame.flags & END_STREAM != 0 => {
                    requests += 1;
                    match fault {
                        Fault::GoAway { taken } if requests <= *taken => {
                            let flags = END_STREAM | END_HEADERS;
                            send(&mut stream, HEADERS, flags, frame.stream, &[STATUS_200]).await?;
                            self.taken.fetch_add(1, Ordering::SeqCst);
                            last_taken = frame.stream;
                        }
                        Fault::GoAway { .. } if !gone => {
                            gone = true;
                            let mut payload = last_taken.to_be_bytes().to_vec();
                            payload.extend(NO_ERROR.to_be_bytes());
                            send(&mut stream, GOAWAY, 0, 0, &payload).await?;
                        }
                        Fault::GoAwayUnsure => {
                            let mut payload = frame.stream.to_be_bytes().to_vec();
                            payload.extend(NO_ERROR.to_be_bytes());
                            return send(&mut stream, GOAWAY, 0, 0, &payload).await;
                        }
                        Fault::Refuse => {
                            let code = REFUSED_STREAM.to_be_bytes();
                            send(&mut stream, RST_STREAM, 0, frame.stream, &code).await?;
                        }
                        Fault::CutAfter => return Ok(()),
                        Fault::GoAway { .. } | Fault::CutBefore | Fault::Silence | Fault::Certificate(_) => {}
                    }
                }
                _ => {}
            }
        }
    }
}

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    async fn read(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Self> {
        let mut head = [0; 9];
        from.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).map_err(io::Error::other)?;
        let mut payload = vec![0; length];
        from.read_exact(&mut payload).await?;
        Ok(Self { kind, flags, stream: u32::from_be_bytes(stream) & 0x7fff_ffff, payload })
    }
}

async fn send(to: &mut (impl AsyncWrite + Unpin), kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?.to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    to.write_all(&frame).await?;
    to.flush().await
}
