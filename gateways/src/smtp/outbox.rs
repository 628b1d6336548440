//! Mails on their way: a bounded queue, tried again until the server takes or refuses them.
//!
//! A separate thread talks to the server, so that nothing else waits for it. A mail that the server has accepted is
//! removed from the spool before the next attempt, so that a restarted gate does not send it again.

use std::{
    collections::VecDeque,
    io, thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError};
use gaggled_core::config::SmtpgateConfig;
use lettre::{Address, Message};

use super::{
    Composer, MailError, MailSpool, QueuedMail,
    delivery::{self, Delivery, DeliveryError},
};

/// What happened to a mail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryOutcome {
    /// The server took it.
    Delivered(String),
    /// It will be tried again after this span.
    Postponed(String, Duration),
    /// The server will never take it, so it is dropped.
    Refused(String),
    /// The queue was full, so it was dropped.
    Overflow(String),
    /// The spool cannot be written: a gate that is killed now loses all changes since the last write.
    SpoolFailed(String),
}

/// The queue.
#[derive(Debug)]
pub struct Outbox {
    mails: Sender<QueuedMail>,
    spool: MailSpool,
}

/// A callback for the outcome of each delivery.
pub type Report = Box<dyn Fn(&DeliveryOutcome) + Send>;

/// How many mails may wait, counted for each recipient.
const CAPACITY: usize = 1000;
/// The delay before the first retry of a mail.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// The longest delay between retries.
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
    delivery::transport(config, "localhost").map(drop)
}

impl Outbox {
    /// Starts to deliver to the configured server, beginning with the mails in the spool.
    pub fn new(config: &SmtpgateConfig, host: &str, spool: MailSpool, report: Report) -> Result<Self, MailError> {
        let delivery = Delivery::new(config, host)?;
        let (mails, queue) = crossbeam_channel::bounded(CAPACITY);
        let failed = |error: io::Error| MailError::Transport { field: "mx", why: error.to_string() };
        let next = now();
        let waiting = spool.mails().into_iter().map(|mail| RetryEntry { mail, next }).collect();
        let mut postman = DeliveryWorker { delivery, queue, waiting, spool: spool.clone(), report };
        thread::Builder::new().name("outbox".into()).spawn(move || while postman.go() {}).map_err(failed)?;
        Ok(Self { mails, spool })
    }

    /// Queues a mail that is in the spool already.
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

/// Splits a message into one mail for each recipient: a refusal for one of them does not affect the others.
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

/// Delivers mails to the server, one after the other; a mail that was not delivered is queued behind the others.
struct DeliveryWorker {
    delivery: Delivery,
    queue: Receiver<QueuedMail>,
    waiting: VecDeque<RetryEntry>,
    spool: MailSpool,
    report: Report,
}

impl DeliveryWorker {
    /// Waits for a new mail or for one that is due, and delivers one that is due; false when the queue is closed.
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
        let why = match self.delivery.attempt(&mail.mail) {
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

    /// Removes a finished mail from the spool, and reports its outcome.
    fn done(&self, mail: &QueuedMail, outcome: &DeliveryOutcome) {
        let forgotten = self.spool.forget(mail.number);
        (self.report)(outcome);
        if let Err(error) = forgotten {
            (self.report)(&DeliveryOutcome::SpoolFailed(error.to_string()));
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "retries happen in real time")]
fn now() -> Instant {
    Instant::now()
}
