//! A DNS server over UDP (RFC 1035) for a few names: A, AAAA and SRV.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::record::Record;

const A: u16 = 1;
const AAAA: u16 = 28;
const SRV: u16 = 33;
const INTERNET: u16 = 1;
/// TTL of all answers, in seconds.
const TTL: u32 = 60;

#[derive(Clone, Debug)]
enum Entry {
    Address(Ipv4Addr),
    Service { priority: u16, weight: u16, port: u16, target: String },
}

type Zone = HashMap<String, Vec<Entry>>;

/// The running server, stopped on drop.
#[derive(Debug)]
pub struct Dns {
    /// Where it listens.
    pub address: SocketAddr,
    /// The names queried, in lower case, without the trailing dot.
    pub queries: Arc<Record<String>>,
    zone: Arc<Mutex<Zone>>,
    task: JoinHandle<()>,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Dns {
    /// Listens on a free port of 127.0.0.1, with an empty zone.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone::new()));
        let queries = Arc::new(Record::default());
        let task = tokio::spawn({
            let (zone, queries) = (Arc::clone(&zone), Arc::clone(&queries));
            async move {
                let mut packet = [0; 1500];
                while let Ok((length, from)) = socket.recv_from(&mut packet).await {
                    let Some((question, end)) = Question::parse(&packet[..length]) else { continue };
                    queries.push(question.name.clone());
                    let answer = {
                        let zone = zone.lock();
                        respond(&packet[..end], &question, zone.get(&question.name))
                    };
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self { address, queries, zone, task }
    }

    /// Gives `name` an address.
    pub fn host(&self, name: &str, address: Ipv4Addr) {
        self.add(name, Entry::Address(address));
    }

    /// Gives `name` (such as `_matrix-fed._tcp.hs.test`) a service record.
    pub fn service(&self, name: &str, port: u16, target: &str) {
        let target = target.to_owned();
        self.add(name, Entry::Service { priority: 10, weight: 5, port, target });
    }

    fn add(&self, name: &str, entry: Entry) {
        let mut zone = self.zone.lock();
        zone.entry(name.to_ascii_lowercase()).or_default().push(entry);
    }
}

struct Question {
    name: String,
    kind: u16,
}

impl Question {
    /// Parses the first question, and returns where it ends.
    fn parse(packet: &[u8]) -> Option<(Self, usize)> {
        // The header has 12 bytes.
        let mut at = 12;
        let mut labels = Vec::new();
        loop {
            let length = usize::from(*packet.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            let label = packet.get(at..at + length)?;
            labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
            at += length;
        }
        let kind = u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]);
        Some((Self { name: labels.join("."), kind }, at + 4))
    }
}

/// Builds the answer. `query` is the packet up to the end of its question, which is echoed byte for byte, mixed case
/// included.
fn respond(query: &[u8], question: &Question, entries: Option<&Vec<Entry>>) -> Vec<u8> {
    let records: Vec<Vec<u8>> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| match entry {
            Entry::Address(address) if question.kind == A => Some(address.octets().to_vec()),
            Entry::Service { priority, weight, port, target } if question.kind == SRV => {
                let mut data = [*priority, *weight, *port].map(u16::to_be_bytes).concat();
                data.extend(name(target));
                Some(data)
            }
            _ => None,
        })
        .collect();
    // A known name without records of this type is no error (such as AAAA for a name with only A).
    debug_assert!(question.kind != AAAA || records.is_empty());
    let code: u8 = if entries.is_some() { 0 } else { 3 };

    let mut answer = query[..2].to_vec();
    // Flags: response, authoritative, recursion desired as in the query, recursion available.
    answer.extend([0x84 | (query[2] & 1), 0x80 | code]);
    answer.extend(1_u16.to_be_bytes());
    answer.extend(u16::try_from(records.len()).unwrap().to_be_bytes());
    answer.extend([0; 4]);
    answer.extend(&query[12..]);
    for data in records {
        // Compressed: a pointer to the question's name at byte 12.
        answer.extend([0xc0, 12]);
        answer.extend(question.kind.to_be_bytes());
        answer.extend(INTERNET.to_be_bytes());
        answer.extend(TTL.to_be_bytes());
        answer.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
        answer.extend(data);
    }
    answer
}

fn name(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.push(0);
    bytes
}
