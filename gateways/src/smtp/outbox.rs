//! Mails on their way: a bounded queue, tried again until the server takes or refuses them.
//!
//! A thread of its own speaks to the server, so nothing else ever waits for it. What the server has said yes to is
//! never sent again.

use std::{fs, io, thread, time::Duration};

use crossbeam_channel::{Sender, TrySendError};
use gaggled_core::config::{SmtpgateConfig, Tls};
use lettre::{
    AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor,
    transport::smtp::{
        Error,
        authentication::Credentials,
        client::{Certificate, Tls as Protection, TlsParameters},
        extension::ClientId,
    },
};

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
    mails: Sender<(String, Message)>,
}

/// Is told what becomes of mails, as it becomes known.
pub type Report = Box<dyn Fn(&Outcome) + Send>;

/// How many mails may wait.
const CAPACITY: usize = 1000;
/// How long it takes until a mail is tried again, at first.
const FIRST_RETRY: Duration = Duration::from_secs(2);
/// How long it takes at most.
const LAST_RETRY: Duration = Duration::from_secs(300);

impl Outbox {
    /// Begins to deliver to the server of a configuration.
    pub fn new(config: &SmtpgateConfig, host: &str, report: Report) -> Result<Self, MailError> {
        let transport = transport(config, host)?;
        let (mails, queue) = crossbeam_channel::bounded::<(String, Message)>(CAPACITY);
        let timeout = config.timeout.as_duration();
        let failed = |error: io::Error| MailError::Transport { field: "mx", why: error.to_string() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        thread::Builder::new()
            .name("outbox".into())
            .spawn(move || {
                for (subject, mail) in queue {
                    runtime.block_on(deliver(&transport, &subject, mail, timeout, &report));
                }
            })
            .map_err(failed)?;
        Ok(Self { mails })
    }

    /// Puts a mail into the queue.
    pub fn send(&self, subject: String, mail: Message) -> Option<Outcome> {
        match self.mails.try_send((subject, mail)) {
            Ok(()) => None,
            Err(TrySendError::Full((subject, _)) | TrySendError::Disconnected((subject, _))) => {
                Some(Outcome::Overflow(subject))
            }
        }
    }
}

type Transport = AsyncSmtpTransport<Tokio1Executor>;

async fn deliver(transport: &Transport, subject: &str, mail: Message, timeout: Duration, report: &Report) {
    let mut retry = FIRST_RETRY;
    loop {
        // The transport limits only its connecting, so everything is limited here.
        let why = match tokio::time::timeout(timeout, transport.send(mail.clone())).await {
            Ok(Ok(_)) => {
                report(&Outcome::Delivered(subject.to_owned()));
                return;
            }
            Ok(Err(error)) if is_final(&error) => {
                report(&Outcome::Refused(format!("{subject}: {}", in_words(&error))));
                return;
            }
            Ok(Err(error)) => in_words(&error),
            Err(_) => format!("the server took longer than {} s", timeout.as_secs_f32()),
        };
        report(&Outcome::Postponed(format!("{subject}: {why}"), retry));
        let _ = tokio::time::timeout(retry, std::future::pending::<()>()).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

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
