//! Mails on their way: a bounded queue, tried again until the server takes or refuses them.
//!
//! A thread of its own speaks to the server, so nothing else ever waits for it. What the server has said yes to is
//! never sent again.

use std::{
    collections::VecDeque,
    fs, io, thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use gaggled_core::config::{SmtpgateConfig, Tls};
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    address::Envelope,
    transport::smtp::{
        Error,
        authentication::Credentials,
        client::{Certificate, Tls as Protection, TlsParameters},
        extension::ClientId,
    },
};

use tokio::runtime::Runtime;

use super::MailError;

/// What became of a mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The server took it.
    Delivered(String),
    /// It will be tried again after this span.
    Postponed(String, Duration),
    /// The server will never take it, so it is dropped.
    Refused(String),
    /// There were too many, so it was dropped.
    Overflow(String),
}

/// The queue.
#[derive(Debug)]
pub struct Outbox {
    mails: Sender<Mail>,
}

/// Is told what becomes of mails, as it becomes known.
pub type Report = Box<dyn Fn(&Outcome) + Send>;

/// How many mails may wait, counted for each recipient.
const CAPACITY: usize = 1000;
/// How long it takes until a mail is tried again, at first.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// How long it takes at most.
const LAST_RETRY: Duration = Duration::from_secs(300);
/// How often a mail is tried before it is given up: for more than a day.
const ATTEMPTS: u32 = 300;

/// A mail for one recipient: what one server refuses for one of them the others get all the same.
#[derive(Debug)]
struct Mail {
    subject: String,
    envelope: Envelope,
    text: Vec<u8>,
    attempts: u32,
    next: Instant,
}

impl Outbox {
    /// Begins to deliver to the server of a configuration.
    pub fn new(config: &SmtpgateConfig, host: &str, report: Report) -> Result<Self, MailError> {
        let transport = transport(config, host)?;
        let (mails, queue) = crossbeam_channel::bounded(CAPACITY);
        let failed = |error: io::Error| MailError::Transport { field: "mx", why: error.to_string() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let mut postman = Postman {
            transport,
            timeout: config.timeout.as_duration(),
            runtime,
            queue,
            waiting: VecDeque::new(),
            report,
        };
        thread::Builder::new().name("outbox".into()).spawn(move || while postman.go() {}).map_err(failed)?;
        Ok(Self { mails })
    }

    /// Puts a mail into the queue, once for each recipient.
    pub fn send(&self, subject: &str, mail: &Message) -> Option<Outcome> {
        let overflow = || Some(Outcome::Overflow(subject.to_owned()));
        for to in mail.envelope().to() {
            let Ok(envelope) = Envelope::new(mail.envelope().from().cloned(), vec![to.clone()]) else {
                return overflow();
            };
            let mail = Mail { subject: subject.to_owned(), envelope, text: mail.formatted(), attempts: 0, next: now() };
            if self.mails.try_send(mail).is_err() {
                return overflow();
            }
        }
        None
    }
}

/// Carries mails to the server, one after the other; what cannot be delivered waits for its turn behind the others.
struct Postman {
    transport: Transport,
    timeout: Duration,
    runtime: Runtime,
    queue: Receiver<Mail>,
    waiting: VecDeque<Mail>,
    report: Report,
}

impl Postman {
    /// Takes in what has come, and delivers what is due; false when nothing can come any more.
    fn go(&mut self) -> bool {
        let due = self.waiting.iter().map(|mail| mail.next).min();
        let room = self.waiting.len() < CAPACITY;
        let came = match due {
            Some(moment) if room => self.queue.recv_deadline(moment),
            Some(moment) => crossbeam_channel::never().recv_deadline(moment),
            None => self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        match came {
            Ok(mail) => self.waiting.push_back(mail),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        if let Some(at) = self.waiting.iter().position(|mail| mail.next <= now()) {
            self.waiting.remove(at).into_iter().for_each(|mail| self.deliver(mail));
        }
        true
    }

    fn deliver(&mut self, mut mail: Mail) {
        let send = self.transport.send_raw(&mail.envelope, &mail.text);
        // The transport limits only its connecting, so everything is limited here.
        let limited = async { tokio::time::timeout(self.timeout, send).await };
        let why = match self.runtime.block_on(limited) {
            Ok(Ok(_)) => return (self.report)(&Outcome::Delivered(mail.subject)),
            Ok(Err(error)) if is_final(&error) => {
                return (self.report)(&Outcome::Refused(format!("{}: {}", mail.subject, in_words(&error))));
            }
            Ok(Err(error)) => in_words(&error),
            Err(_) => format!("the server took longer than {} s", self.timeout.as_secs_f32()),
        };
        mail.attempts += 1;
        if mail.attempts >= ATTEMPTS {
            return (self.report)(&Outcome::Refused(format!("{}: tried too often: {why}", mail.subject)));
        }
        let retry = FIRST_RETRY.saturating_mul(1 << (mail.attempts - 1).min(16)).min(LAST_RETRY);
        mail.next = now() + retry;
        (self.report)(&Outcome::Postponed(format!("{}: {why}", mail.subject), retry));
        self.waiting.push_back(mail);
    }
}

type Transport = AsyncSmtpTransport<Tokio1Executor>;

/// Whether trying again is pointless: the server refuses this mail, not just our login or this moment.
fn is_final(error: &Error) -> bool {
    let login = error.status().is_some_and(|code| ["530", "534", "535", "538"].contains(&code.to_string().as_str()));
    error.is_permanent() && !login
}

fn in_words(error: &Error) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    words
}

fn transport(config: &SmtpgateConfig, host: &str) -> Result<Transport, MailError> {
    let helo = if config.helo.is_empty() { host } else { &config.helo };
    let port = config.port.unwrap_or(if config.tls == Tls::Implicit { 465 } else { 25 });
    let protection = match config.tls {
        Tls::Plain => Protection::None,
        Tls::StartTls => Protection::Required(parameters(config)?),
        Tls::Implicit => Protection::Wrapper(parameters(config)?),
    };
    let mut transport = Transport::builder_dangerous(&config.mx)
        .port(port)
        .hello_name(ClientId::Domain(helo.to_owned()))
        .tls(protection)
        .timeout(Some(config.timeout.as_duration()));
    if let (Some(user), Some(path)) = (&config.user, &config.password_file) {
        let password = fs::read_to_string(path).map_err(|error| MailError::Transport {
            field: "password_file",
            why: format!("cannot read {path} ({error}): create it, readable for gaggled alone"),
        })?;
        transport =
            transport.credentials(Credentials::new(user.clone(), password.trim_end_matches(['\r', '\n']).to_owned()));
    }
    Ok(transport.build())
}

fn parameters(config: &SmtpgateConfig) -> Result<TlsParameters, MailError> {
    let mut builder = TlsParameters::builder(config.mx.clone());
    if let Some(path) = &config.ca {
        let wrong = |why: String| MailError::Transport { field: "ca", why };
        let pem = fs::read(path).map_err(|error| wrong(format!("cannot read {path} ({error}): correct the path")))?;
        let certificate =
            Certificate::from_pem(&pem).map_err(|error| wrong(format!("{path} holds no certificate: {error}")))?;
        builder = builder.add_root_certificate(certificate);
    }
    builder.build().map_err(|error| MailError::Transport { field: "tls", why: error.to_string() })
}

#[expect(clippy::disallowed_methods, reason = "mail servers live in real time")]
fn now() -> Instant {
    Instant::now()
}
