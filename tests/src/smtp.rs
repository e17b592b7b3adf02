//! A stand-in for an SMTP server (RFC 5321) that records the mail it receives.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::mail::{Part, first_link};
use crate::record::Record;

/// A received mail.
#[derive(Clone, Debug)]
pub struct Mail {
    /// The envelope's sender.
    pub from: String,
    /// The envelope's recipients.
    pub to: Vec<String>,
    /// The message, after dot-unstuffing.
    pub raw: String,
    /// Whether it came over TLS.
    pub encrypted: bool,
    /// The authenticated user, if any.
    pub user: Option<String>,
}

/// When a server encrypts.
#[derive(Clone)]
pub enum Tls {
    /// Never.
    None,
    /// After STARTTLS, with this certificate; no mail is accepted before.
    Starttls(Arc<rustls::ServerConfig>),
    /// From the first byte.
    Immediate(Arc<rustls::ServerConfig>),
}

/// What a server requires of its clients.
#[derive(Clone)]
pub struct Demands {
    /// Encryption.
    pub tls: Tls,
    /// User name and password (AUTH PLAIN or LOGIN).
    pub login: Option<(String, String)>,
}

impl Mail {
    /// The parsed message.
    pub fn message(&self) -> Part {
        Part::parse(&self.raw)
    }

    /// The text part.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn text(&self) -> String {
        self.message().find("text/plain").expect("a mail has a text part")
    }

    /// The first link in the text part.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn link(&self) -> String {
        let text = self.text();
        first_link(&text).unwrap_or_else(|| panic!("no link in this mail:\n{text}"))
    }
}

/// The running server, stopped on drop.
#[derive(Debug)]
pub struct Smtp {
    /// Where it listens.
    pub address: SocketAddr,
    /// Every accepted mail.
    pub mails: Arc<Record<Mail>>,
    /// Answers to mail from or to an address.
    refused: Arc<Mutex<HashMap<String, &'static str>>>,
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
        Self::start_with(Demands { tls: Tls::None, login: None }).await
    }

    /// Listens on a free port of 127.0.0.1, with these requirements.
    pub async fn start_with(demands: Demands) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mails = Arc::new(Record::default());
        let refused = Arc::new(Mutex::new(HashMap::new()));
        let task = tokio::spawn({
            let (mails, refused) = (Arc::clone(&mails), Arc::clone(&refused));
            async move {
                let mut sessions = JoinSet::new();
                loop {
                    tokio::select! {
                        accepted = listener.accept() => {
                            let Ok((stream, _)) = accepted else { continue };
                            let (mails, refused) = (Arc::clone(&mails), Arc::clone(&refused));
                            let demands = demands.clone();
                            sessions.spawn(async move {
                                let _ = stream.set_nodelay(true);
                                let _ = connection(Box::new(stream), &demands, &mails, &refused).await;
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

    /// Answers 550 to mail to or from `address` from now on: it is refused for good.
    pub fn refuse(&self, address: &str) {
        self.refused.lock().insert(address.to_owned(), "550 5.1.1 no such mailbox here");
    }

    /// Answers 451 to mail to or from `address` from now on: the server has a problem.
    pub fn defer(&self, address: &str) {
        self.refused.lock().insert(address.to_owned(), "451 4.3.0 try again later");
    }

    /// Accepts mail to and from `address` again.
    pub fn accept(&self, address: &str) {
        self.refused.lock().remove(address);
    }

    /// The number of mails for `recipient` so far.
    pub fn count_for(&self, recipient: &str) -> usize {
        self.mails.all().iter().filter(|mail| is_for(mail, recipient)).count()
    }

    /// Waits for the `number`th mail (counted from 1) for `recipient`.
    ///
    /// # Panics
    ///
    /// If it does not arrive in time.
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

/// A connection, encrypted or not.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// Serves a connection, with TLS as required. A failed handshake ends it.
async fn connection(
    stream: Box<dyn Wire>,
    demands: &Demands,
    mails: &Record<Mail>,
    refused: &Mutex<HashMap<String, &'static str>>,
) -> std::io::Result<()> {
    let mut session = Session { demands, mails, refused, encrypted: false, user: None };
    match &demands.tls {
        Tls::None => session.serve(stream, true).await.map(|_| ()),
        Tls::Immediate(config) => {
            let stream: Box<dyn Wire> = Box::new(TlsAcceptor::from(Arc::clone(config)).accept(stream).await?);
            session.encrypted = true;
            session.serve(stream, true).await.map(|_| ())
        }
        Tls::Starttls(config) => {
            let Some(stream) = session.serve(stream, true).await? else { return Ok(()) };
            let stream: Box<dyn Wire> = Box::new(TlsAcceptor::from(Arc::clone(config)).accept(stream).await?);
            session.encrypted = true;
            // No second greeting after STARTTLS (RFC 3207, 4.2).
            session.serve(stream, false).await.map(|_| ())
        }
    }
}

struct Session<'a> {
    demands: &'a Demands,
    mails: &'a Record<Mail>,
    refused: &'a Mutex<HashMap<String, &'static str>>,
    encrypted: bool,
    user: Option<String>,
}

impl Session<'_> {
    /// Runs the protocol until the client disconnects, or sends STARTTLS: then the connection is returned.
    async fn serve(&mut self, stream: Box<dyn Wire>, greet: bool) -> std::io::Result<Option<Box<dyn Wire>>> {
        let mut stream = BufReader::new(stream);
        if greet {
            stream.write_all(b"220 mail.test ESMTP stand-in\r\n").await?;
        }
        let mut from = String::new();
        let mut to = Vec::new();
        loop {
            let Some(line) = read_line(&mut stream).await? else { return Ok(None) };
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            let answer = match verb.as_str() {
                "EHLO" => self.capabilities(),
                "HELO" | "NOOP" => "250 OK".to_owned(),
                "STARTTLS" if self.may_start_tls() => {
                    stream.write_all(b"220 2.0.0 go ahead\r\n").await?;
                    return Ok(Some(stream.into_inner()));
                }
                "AUTH" => self.login(&line, &mut stream).await?,
                "MAIL" if self.may_start_tls() => "530 5.7.0 STARTTLS first".to_owned(),
                "MAIL" if self.demands.login.is_some() && self.user.is_none() => "530 5.7.0 AUTH first".to_owned(),
                "RSET" => {
                    from.clear();
                    to.clear();
                    "250 OK".to_owned()
                }
                "MAIL" => {
                    from = address(&line);
                    to.clear();
                    self.refused.lock().get(&from).copied().unwrap_or("250 OK").to_owned()
                }
                "RCPT" => {
                    let recipient = address(&line);
                    let refused = self.refused.lock().get(&recipient).copied();
                    if refused.is_none() {
                        to.push(recipient);
                    }
                    refused.unwrap_or("250 OK").to_owned()
                }
                "DATA" if to.is_empty() => "503 5.5.1 no recipient".to_owned(),
                "DATA" => {
                    stream.write_all(b"354 go ahead\r\n").await?;
                    let raw = data(&mut stream).await?;
                    self.mails.push(Mail {
                        from: std::mem::take(&mut from),
                        to: std::mem::take(&mut to),
                        raw,
                        encrypted: self.encrypted,
                        user: self.user.clone(),
                    });
                    "250 2.0.0 kept".to_owned()
                }
                "QUIT" => {
                    stream.write_all(b"221 bye\r\n").await?;
                    return Ok(None);
                }
                _ => "502 5.5.2 not known here".to_owned(),
            };
            stream.write_all(format!("{answer}\r\n").as_bytes()).await?;
        }
    }

    fn may_start_tls(&self) -> bool {
        matches!(self.demands.tls, Tls::Starttls(_)) && !self.encrypted
    }

    fn capabilities(&self) -> String {
        let mut lines = vec!["mail.test", "8BITMIME", "SMTPUTF8"];
        if self.may_start_tls() {
            lines.push("STARTTLS");
        } else if self.demands.login.is_some() {
            lines.push("AUTH PLAIN LOGIN");
        }
        let lines: Vec<String> = lines.into_iter().map(|line| format!("250-{line}\r\n")).collect();
        format!("{}250 SIZE 10485760", lines.concat())
    }

    /// AUTH PLAIN (RFC 4616) and AUTH LOGIN, with or without an initial response.
    async fn login(&mut self, line: &str, stream: &mut BufReader<Box<dyn Wire>>) -> std::io::Result<String> {
        let mut words = line.split(' ').skip(1);
        let mechanism = words.next().unwrap_or_default().to_ascii_uppercase();
        let initial = words.next().map(str::to_owned);
        let said = match mechanism.as_str() {
            "PLAIN" => {
                let response = match initial {
                    Some(response) => response,
                    None => ask(stream, "").await?,
                };
                let response = decoded(&response);
                let mut parts = response.split('\0').skip(1).map(str::to_owned);
                (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
            }
            "LOGIN" => {
                let user = match initial {
                    Some(user) => user,
                    None => ask(stream, "VXNlcm5hbWU6").await?,
                };
                let password = ask(stream, "UGFzc3dvcmQ6").await?;
                (decoded(&user), decoded(&password))
            }
            _ => return Ok("504 5.5.4 not known here".to_owned()),
        };
        if self.demands.login.as_ref() == Some(&said) {
            self.user = Some(said.0);
            return Ok("235 2.7.0 welcome".to_owned());
        }
        Ok("535 5.7.8 wrong user or password".to_owned())
    }
}

async fn ask(stream: &mut BufReader<Box<dyn Wire>>, challenge: &str) -> std::io::Result<String> {
    stream.write_all(format!("334 {challenge}\r\n").as_bytes()).await?;
    Ok(read_line(stream).await?.unwrap_or_default())
}

fn decoded(text: &str) -> String {
    String::from_utf8_lossy(&STANDARD.decode(text).unwrap_or_default()).into_owned()
}

/// Reads a line without its end; None if the client has disconnected.
async fn read_line(stream: &mut BufReader<Box<dyn Wire>>) -> std::io::Result<Option<String>> {
    let mut line = Vec::new();
    if stream.read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
}

/// Reads the message up to the line with a single dot.
async fn data(stream: &mut BufReader<Box<dyn Wire>>) -> std::io::Result<String> {
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

/// The text between the angle brackets.
fn address(line: &str) -> String {
    let start = line.find('<').map_or(line.len(), |at| at + 1);
    let end = line.find('>').unwrap_or(line.len());
    line.get(start..end).unwrap_or_default().to_owned()
}
