//! A client of Redis and Valkey: one connection that all share, commands in a row, and hardly a wait for a server that
//! is away. It knows what `deliveries` needs, and no more (docs/decisions/0006).
//!
//! Source: Redis, "Redis serialization protocol specification" (RESP 2).

mod address;

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use prometheus_client::metrics::gauge::Gauge;
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    pin,
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_rustls::TlsConnector;
use waypost_shared::client::{Outbound, retry::Backoff};

pub(crate) use self::address::Address;

/// Commands that wait to be sent at the most; who comes when there are as many is not served.
const MOST_WAITING: usize = 10_000;
/// Commands that go out in one write.
const TOGETHER: usize = 64;
/// A connection, TLS included, takes no longer, and a reply neither: a push has to go out meanwhile.
const PATIENCE: Duration = Duration::from_secs(1);
/// Waits between two tries to connect.
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) };
/// Bytes of a reply's line, and of a text in it. All that was ever stored is shorter.
const MAX_REPLY: u64 = 4096;

/// What the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It did it.
    Done,
    /// There is nothing under the key; or `SET … NX` found something, and did nothing.
    Nothing,
    /// What is under the key.
    Text(Vec<u8>),
}

/// The one connection, from the first command on. Where it cannot be had, commands are not served.
pub(crate) struct Redis {
    calls: mpsc::Sender<Call>,
    /// Until the first command.
    link: Mutex<Option<Link>>,
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Redis")
    }
}

/// A command, and who waits for its reply.
struct Call {
    command: Vec<u8>,
    reply: oneshot::Sender<Reply>,
}

impl Redis {
    /// Connects nowhere yet. `up` is 1 while there is a connection.
    pub(crate) fn new(address: Address, outbound: Outbound, up: Gauge) -> Self {
        let (sender, calls) = mpsc::channel(MOST_WAITING);
        let link = Link { address, outbound, calls, up, is_told: false };
        Self { calls: sender, link: Mutex::new(Some(link)) }
    }

    /// Sends a command and waits for its reply. None when the server is away.
    pub(crate) async fn call(&self, command: &[&[u8]]) -> Option<Reply> {
        self.enqueue(command)?.await.ok()
    }

    /// Sends a command whose reply does not matter.
    pub(crate) fn post(&self, command: &[&[u8]]) {
        drop(self.enqueue(command));
    }

    fn enqueue(&self, command: &[&[u8]]) -> Option<oneshot::Receiver<Reply>> {
        if let Some(link) = self.link.lock().take() {
            tokio::spawn(Box::pin(link.run()));
        }
        let (reply, answer) = oneshot::channel();
        self.calls.try_send(Call { command: encoded(command), reply }).ok()?;
        Some(answer)
    }
}

/// A command as the server reads it: an array of texts.
fn encoded(command: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
    for part in command {
        bytes.extend(format!("${}\r\n", part.len()).into_bytes());
        bytes.extend(*part);
        bytes.extend(b"\r\n");
    }
    bytes
}

/// The far end of the commands: connects, and connects again.
struct Link {
    address: Address,
    outbound: Outbound,
    calls: mpsc::Receiver<Call>,
    up: Gauge,
    /// Whether the log says that the server is away.
    is_told: bool,
}

impl Link {
    /// Until nobody is left who could call.
    async fn run(mut self) {
        let mut failures = 0;
        loop {
            let Err(error) = self.session(&mut failures).await else { return };
            self.up.set(0);
            if !self.is_told {
                self.is_told = true;
                tracing::warn!(%error, "Redis is away: what was pushed is remembered here, and not shared");
            }
            let pause = sleep(BACKOFF.delay(failures));
            failures = failures.saturating_add(1);
            pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    // Dropped, so that its caller goes on without a reply.
                    call = self.calls.recv() => if call.is_none() { return },
                }
            }
        }
    }

    /// One connection, from its beginning to its end. Commands wait while it begins.
    async fn session(&mut self, failures: &mut u32) -> io::Result<()> {
        let stream = timeout(PATIENCE, self.tcp()).await??;
        if !self.address.is_tls {
            return Box::pin(self.converse(stream, failures)).await;
        }
        let name = ServerName::try_from(self.address.host.clone()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::new(self.outbound.tls()));
        let stream = timeout(PATIENCE, connector.connect(name, stream)).await??;
        Box::pin(self.converse(stream, failures)).await
    }

    async fn tcp(&self) -> io::Result<TcpStream> {
        let found = self.outbound.resolver().addresses(&self.address.host).await.map_err(io::Error::other)?;
        let mut last = io::Error::other("the name has no address");
        for address in found {
            match TcpStream::connect(SocketAddr::new(address, self.address.port)).await {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn converse<S>(&mut self, stream: S, failures: &mut u32) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite,
    {
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = BufReader::new(reader);
        for command in self.address.greeting() {
            let parts: Vec<_> = command.iter().map(String::as_bytes).collect();
            writer.write_all(&encoded(&parts)).await?;
            writer.flush().await?;
            timeout(PATIENCE, read_reply(&mut reader)).await??;
        }
        *failures = 0;
        self.up.set(1);
        if self.is_told {
            self.is_told = false;
            tracing::info!("Redis is back: what was pushed is shared again");
        }

        let (waiting, mut due) = mpsc::unbounded_channel::<oneshot::Sender<Reply>>();
        let calls = &mut self.calls;
        let writing = async {
            let mut together = Vec::with_capacity(TOGETHER);
            while calls.recv_many(&mut together, TOGETHER).await > 0 {
                let mut bytes = Vec::new();
                for Call { command, reply } in together.drain(..) {
                    bytes.extend(command);
                    // Before it is written: a reply never finds nobody waiting. The other end is in this function.
                    drop(waiting.send(reply));
                }
                timeout(PATIENCE, writer.write_all(&bytes)).await??;
                timeout(PATIENCE, writer.flush()).await??;
            }
            Ok::<(), io::Error>(())
        };
        let reading = async {
            loop {
                let next = tokio::select! {
                    biased;
                    next = due.recv() => next,
                    // Nobody waits: all that can come is the end.
                    _ = reader.fill_buf() => return Err(io::Error::from(io::ErrorKind::ConnectionReset)),
                };
                let Some(caller) = next else { return Ok(()) };
                let reply = timeout(PATIENCE, read_reply(&mut reader)).await??;
                // Who has gone meanwhile does not want it.
                drop(caller.send(reply));
            }
        };
        tokio::select! {
            ended = writing => ended,
            ended = reading => ended,
        }
    }
}

/// An error that the server answers with is one of the connection: it is loading, was demoted, is full, or does not
/// know us. Another try may find another server behind the name.
async fn read_reply(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Reply> {
    let mut line = Vec::new();
    (&mut *reader).take(MAX_REPLY).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
    }
    let text = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok()).ok_or_else(unreadable)?;
    if let Some(text) = text.strip_prefix('-') {
        // Its first word is a code; the rest may quote the command.
        let code: String = text.split(' ').next().unwrap_or_default().chars().take(32).collect();
        return Err(io::Error::other(format!("the server answered {code}")));
    }
    if text.starts_with(['+', ':']) {
        return Ok(Reply::Done);
    }
    match text.strip_prefix('$').ok_or_else(unreadable)? {
        "-1" => Ok(Reply::Nothing),
        length => {
            let length: u64 = length.parse().ok().filter(|length| *length <= MAX_REPLY).ok_or_else(unreadable)?;
            let mut text = Vec::new();
            (&mut *reader).take(length + 2).read_to_end(&mut text).await?;
            match text.strip_suffix(b"\r\n") {
                Some(text) => Ok(Reply::Text(text.to_vec())),
                None => Err(unreadable()),
            }
        }
    }
}

fn unreadable() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the server does not speak RESP 2")
}

#[cfg(test)]
#[path = "redis_tests.rs"]
mod tests;
