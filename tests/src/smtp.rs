//! An SMTP server (RFC 5321) that keeps what it gets.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::mail::{Part, first_link};
use crate::record::Record;

/// A mail as it arrived.
#[derive(Clone, Debug)]
pub struct Mail {
    /// Sender of the envelope.
    pub from: String,
    /// Recipients of the envelope.
    pub to: Vec<String>,
    /// The message, dots unstuffed.
    pub raw: String,
}

impl Mail {
    /// The message taken apart.
    pub fn message(&self) -> Part {
        Part::parse(&self.raw)
    }

    /// The text part.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn text(&self) -> String {
        self.message().find("text/plain").expect("a mail has a text part")
    }

    /// The first link in the text part.
    ///
    /// # Panics
    ///
    /// When there is none.
    pub fn link(&self) -> String {
        let text = self.text();
        first_link(&text).unwrap_or_else(|| panic!("no link in this mail:\n{text}"))
    }
}

/// The running server. It stops when it is dropped.
#[derive(Debug)]
pub struct Smtp {
    /// Where it listens.
    pub address: SocketAddr,
    /// Every mail accepted.
    pub mails: Arc<Record<Mail>>,
    refused: Arc<Mutex<HashSet<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Smtp {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Smtp {
    /// Listens on a free port of 127.0.0.1.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mails = Arc::new(Record::default());
        let refused = Arc::new(Mutex::new(HashSet::new()));
        let task = tokio::spawn({
            let (mails, refused) = (Arc::clone(&mails), Arc::clone(&refused));
            async move {
                let mut sessions = JoinSet::new();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let Ok((stream, _)) = accepted else { continue };
                            let (mails, refused) = (Arc::clone(&mails), Arc::clone(&refused));
                            sessions.spawn(async move {
                                let _ = session(stream, &mails, &refused).await;
                            });
                        }
                        Some(_) = sessions.join_next(), if !sessions.is_empty() => {}
                    }
                }
            }
        });
        Self { address, mails, refused, task }
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// From now on answers 550 to mail for `recipient`.
    pub fn refuse(&self, recipient: &str) {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).insert(recipient.to_owned());
    }

    /// How many mails came for `recipient` so far.
    pub fn count_for(&self, recipient: &str) -> usize {
        self.mails.all().iter().filter(|mail| is_for(mail, recipient)).count()
    }

    /// The `number`th mail (from 1) for `recipient`, as soon as it is there.
    ///
    /// # Panics
    ///
    /// When it does not come.
    pub async fn mail_for(&self, recipient: &str, number: usize) -> Mail {
        self.mails
            .wait_for(&format!("mail {number} for {recipient}"), |mail| {
                is_for(mail, recipient) && self.count_for(recipient) >= number
            })
            .await;
        let all = self.mails.all();
        all.into_iter().filter(|mail| is_for(mail, recipient)).nth(number - 1).unwrap()
    }
}

fn is_for(mail: &Mail, recipient: &str) -> bool {
    mail.to.iter().any(|to| to.eq_ignore_ascii_case(recipient))
}

async fn session(stream: TcpStream, mails: &Record<Mail>, refused: &Mutex<HashSet<String>>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 mail.test ESMTP stand-in\r\n").await?;
    let mut from = String::new();
    let mut to = Vec::new();
    loop {
        let mut line = Vec::new();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let answer = match verb.as_str() {
            "EHLO" => "250-mail.test\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 10485760",
            "HELO" | "NOOP" => "250 OK",
            "RSET" => {
                from.clear();
                to.clear();
                "250 OK"
            }
            "MAIL" => {
                from = address(&line);
                to.clear();
                "250 OK"
            }
            "RCPT" => {
                let recipient = address(&line);
                let refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
                if refused.contains(&recipient) {
                    "550 5.1.1 no such mailbox here"
                } else {
                    to.push(recipient);
                    "250 OK"
                }
            }
            "DATA" if to.is_empty() => "503 5.5.1 no recipient",
            "DATA" => {
                stream.write_all(b"354 go ahead\r\n").await?;
                let raw = data(&mut stream).await?;
                mails.push(Mail { from: std::mem::take(&mut from), to: std::mem::take(&mut to), raw });
                "250 2.0.0 kept"
            }
            "QUIT" => {
                stream.write_all(b"221 bye\r\n").await?;
                return Ok(());
            }
            _ => "502 5.5.2 not known here",
        };
        stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
    }
}

/// The message up to the line with a single dot.
async fn data(stream: &mut BufReader<TcpStream>) -> std::io::Result<String> {
    let mut raw = Vec::new();
    loop {
        let mut line = Vec::new();
        if stream.read_until(b'\n', &mut line).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == b".\r\n" || line == b".\n" {
            return Ok(String::from_utf8_lossy(&raw).into_owned());
        }
        let unstuffed = line.strip_prefix(b".").unwrap_or(&line);
        raw.extend_from_slice(unstuffed);
    }
}

/// What stands between the angle brackets.
fn address(line: &str) -> String {
    let start = line.find('<').map_or(line.len(), |at| at + 1);
    let end = line.find('>').unwrap_or(line.len());
    line.get(start..end).unwrap_or_default().to_owned()
}
