//! Load over keep-alive connections, with as little work as possible on this side: the server runs on the same machine.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// The results of a run.
pub(crate) struct Run {
    /// Requests per second.
    pub(crate) per_second: f64,
    /// The median latency.
    pub(crate) p50: Duration,
    /// The 99th percentile of the latency.
    pub(crate) p99: Duration,
    /// The body of one answer.
    pub(crate) body: Vec<u8>,
}

/// Sends the requests that `request` builds from a number, over `connections` connections, for `time`. Every answer has
/// to be 200.
#[allow(clippy::cast_precision_loss)]
pub(crate) async fn run(
    address: SocketAddr,
    connections: u64,
    time: Duration,
    request: impl Fn(u64) -> Vec<u8> + Clone + Send + 'static,
) -> Run {
    let begun = Instant::now();
    let tasks: Vec<_> = (0..connections)
        .map(|connection| {
            let request = request.clone();
            tokio::spawn(async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                stream.set_nodelay(true).unwrap();
                let (mut latencies, mut buffer, mut body) = (Vec::new(), Vec::new(), Vec::new());
                for number in (connection << 40).. {
                    if begun.elapsed() >= time {
                        break;
                    }
                    let request = request(number);
                    let sent = Instant::now();
                    stream.write_all(&request).await.unwrap();
                    body = answer(&mut stream, &mut buffer).await;
                    latencies.push(sent.elapsed());
                }
                (latencies, body)
            })
        })
        .collect();
    let (mut latencies, mut last) = (Vec::new(), Vec::new());
    for task in tasks {
        let (some, body) = task.await.unwrap();
        latencies.extend(some);
        last = body;
    }
    let took = begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Run {
        per_second: latencies.len() as f64 / took,
        p50: latencies[latencies.len() / 2],
        p99: latencies[latencies.len() * 99 / 100],
        body: last,
    }
}

async fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Vec<u8> {
    buffer.clear();
    loop {
        assert!(stream.read_buf(buffer).await.unwrap() > 0, "the connection was closed");
        let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = std::str::from_utf8(&buffer[..end]).unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{}", String::from_utf8_lossy(&buffer[end..]));
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let whole = end + 4 + length.parse::<usize>().unwrap();
        while buffer.len() < whole {
            assert!(stream.read_buf(buffer).await.unwrap() > 0, "the connection was closed");
        }
        return buffer.split_off(end + 4);
    }
}
