//! Mails on their way: a bounded queue, tried again until the server takes or refuses them.
//!
//! A thread of its own speaks to the server, so nothing else ever waits for it. What the server has said yes to is
//! never sent again, not even by the next gate: the spool is written first.

use std::{
    collections::VecDeque,
    fs, io, thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use gaggled_core::config::{SmtpgateConfig, Tls};
use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    address::Envelope,
    transport::smtp::{
        Error,
        authentication::Credentials,
        client::{Certificate, Tls as Protection, TlsParameters},
        extension::ClientId,
    },
};

use tokio::runtime::Runtime;

use super::{Composer, MailError, MailSpool, QueuedMail};

/// What became of a mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// The server took it.
    Delivered(String),
    /// It will be tried again after this span.
    Postponed(String, Duration),
    /// The server will never take it, so it is dropped.
    Refused(String),
    /// There were too many, so it was dropped.
    Overflow(String),
    /// The ledger cannot be written: a gate that is killed now forgets what has happened since.
    SpoolFailed(String),
}

/// The queue.
#[derive(Debug)]
pub struct Outbox {
    mails: Sender<QueuedMail>,
    spool: MailSpool,
}

/// Gets the outcome of each delivery.
pub type Report = Box<dyn Fn(&DeliveryOutcome) + Send>;

/// How many mails may wait, counted for each recipient.
const CAPACITY: usize = 1000;
/// How long it takes until a mail is tried again, at first.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// How long it takes at most.
const LAST_RETRY: Duration = Duration::from_secs(300);
/// How often a mail is tried before it is given up: for more than a day.
const ATTEMPTS: u32 = 300;

/// A mail and when it is tried next.
#[derive(Debug)]
struct RetryEntry {
    mail: QueuedMail,
    next: Instant,
}

/// Whether mails could be sent with this configuration.
pub fn check(config: &SmtpgateConfig) -> Result<(), MailError> {
    Composer::new(config, "localhost")?;
    transport(config, "localhost").map(drop)
}

impl Outbox {
    /// Begins to deliver to the server of a configuration, beginning with what the ledger has.
    pub fn new(config: &SmtpgateConfig, host: &str, spool: MailSpool, report: Report) -> Result<Self, MailError> {
        let transport = transport(config, host)?;
        let (mails, queue) = crossbeam_channel::bounded(CAPACITY);
        let failed = |error: io::Error| MailError::Transport { field: "mx", why: error.to_string() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let next = now();
        let waiting = spool.mails().into_iter().map(|mail| RetryEntry { mail, next }).collect();
        let timeout = config.timeout.as_duration();
        let mut postman = DeliveryWorker { transport, timeout, runtime, queue, waiting, spool: spool.clone(), report };
        thread::Builder::new().name("outbox".into()).spawn(move || while postman.go() {}).map_err(failed)?;
        Ok(Self { mails, spool })
    }

    /// Takes a mail that the ledger has.
    pub fn send(&self, mail: QueuedMail) -> Option<DeliveryOutcome> {
        match self.mails.try_send(mail) {
            Ok(()) => None,
            Err(TrySendError::Full(mail) | TrySendError::Disconnected(mail)) => {
                let _ = self.spool.forget(mail.number);
                Some(DeliveryOutcome::Overflow(mail.subject))
            }
        }
    }
}

/// A message as mails, one for each recipient: what one server refuses for one of them the others get all the same.
pub fn mails(subject: &str, mail: &Message) -> Vec<QueuedMail> {
    let text = String::from_utf8_lossy(&mail.formatted()).into_owned();
    let from = mail.envelope().from().map(ToString::to_string);
    let queued = |to: &Address| QueuedMail {
        number: 0,
        subject: subject.to_owned(),
        from: from.clone(),
        to: to.to_string(),
        text: text.clone(),
        attempts: 0,
    };
    mail.envelope().to().iter().map(queued).collect()
}

/// Carries mails to the server, one after the other; what cannot be delivered waits for its turn behind the others.
struct DeliveryWorker {
    transport: Transport,
    timeout: Duration,
    runtime: Runtime,
    queue: Receiver<QueuedMail>,
    waiting: VecDeque<RetryEntry>,
    spool: MailSpool,
    report: Report,
}

impl DeliveryWorker {
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
            Ok(mail) => self.waiting.push_back(RetryEntry { mail, next: now() }),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        if let Some(at) = self.waiting.iter().position(|mail| mail.next <= now()) {
            self.waiting.remove(at).into_iter().for_each(|mail| self.deliver(mail));
        }
        true
    }

    fn deliver(&mut self, mut mail: RetryEntry) {
        let subject = mail.mail.subject.clone();
        let why = match self.attempt(&mail.mail) {
            Ok(()) => return self.done(&mail.mail, &DeliveryOutcome::Delivered(subject)),
            Err(DeliveryError { last: true, why }) => {
                return self.done(&mail.mail, &DeliveryOutcome::Refused(format!("{subject}: {why}")));
            }
            Err(DeliveryError { last: false, why }) => why,
        };
        mail.mail.attempts += 1;
        if mail.mail.attempts >= ATTEMPTS {
            return self.done(&mail.mail, &DeliveryOutcome::Refused(format!("{subject}: tried too often: {why}")));
        }
        let retry = FIRST_RETRY.saturating_mul(1 << (mail.mail.attempts - 1).min(16)).min(LAST_RETRY);
        mail.next = now() + retry;
        (self.report)(&DeliveryOutcome::Postponed(format!("{subject}: {why}"), retry));
        self.waiting.push_back(mail);
    }

    /// Nothing more will happen to a mail.
    fn done(&self, mail: &QueuedMail, outcome: &DeliveryOutcome) {
        let forgotten = self.spool.forget(mail.number);
        (self.report)(outcome);
        if let Err(error) = forgotten {
            (self.report)(&DeliveryOutcome::SpoolFailed(error.to_string()));
        }
    }

    fn attempt(&self, mail: &QueuedMail) -> Result<(), DeliveryError> {
        let wrong = |why: lettre::address::AddressError| DeliveryError { last: true, why: why.to_string() };
        let from = mail.from.as_deref().map(str::parse::<Address>).transpose().map_err(wrong)?;
        let to = mail.to.parse::<Address>().map_err(wrong)?;
        let envelope =
            Envelope::new(from, vec![to]).map_err(|why| DeliveryError { last: true, why: why.to_string() })?;
        let send = self.transport.send_raw(&envelope, mail.text.as_bytes());
        // The transport limits only its connecting, so everything is limited here.
        let limited = async { tokio::time::timeout(self.timeout, send).await };
        match self.runtime.block_on(limited) {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(DeliveryError { last: is_final(&error), why: describe_smtp_error(&error) }),
            Err(_) => {
                let why = format!("the server took longer than {} s", self.timeout.as_secs_f32());
                Err(DeliveryError { last: false, why })
            }
        }
    }
}

/// Why a mail was not delivered, and whether that is the end of it.
struct DeliveryError {
    last: bool,
    why: String,
}

type Transport = AsyncSmtpTransport<Tokio1Executor>;

/// Whether trying again is pointless: the server refuses this mail, not just our login or this moment.
fn is_final(error: &Error) -> bool {
    let login = error.status().is_some_and(|code| ["530", "534", "535", "538"].contains(&code.to_string().as_str()));
    error.is_permanent() && !login
}

fn describe_smtp_error(error: &Error) -> String {
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
        Tls::None => Protection::None,
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
