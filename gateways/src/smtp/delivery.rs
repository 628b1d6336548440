//! One attempt to deliver a mail to the server.

use std::{fs, io, time::Duration};

use gaggled_core::config::{SmtpgateConfig, Tls};
use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport, Tokio1Executor,
    address::Envelope,
    transport::smtp::{
        Error,
        authentication::Credentials,
        client::{Certificate, Tls as Protection, TlsParameters},
        extension::ClientId,
    },
};
use tokio::runtime::Runtime;

use super::{MailError, QueuedMail};

/// The connection to the configured server, opened when it is needed.
pub struct Delivery {
    transport: Transport,
    timeout: Duration,
    runtime: Runtime,
}

impl std::fmt::Debug for Delivery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Delivery").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl Delivery {
    /// Prepares deliveries; nothing is sent yet. Fails if the configuration names a file that cannot be used.
    pub fn new(config: &SmtpgateConfig, host: &str) -> Result<Self, MailError> {
        let transport = transport(config, host)?;
        let failed = |error: io::Error| MailError::Transport { field: "mx", why: error.to_string() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        Ok(Self { transport, timeout: config.timeout.as_duration(), runtime })
    }

    /// Gives a mail to the server, and waits for its answer.
    pub fn attempt(&self, mail: &QueuedMail) -> Result<(), DeliveryError> {
        let wrong = |why: lettre::address::AddressError| DeliveryError { last: true, why: why.to_string() };
        let from = mail.from.as_deref().map(str::parse::<Address>).transpose().map_err(wrong)?;
        let to = mail.to.parse::<Address>().map_err(wrong)?;
        let envelope =
            Envelope::new(from, vec![to]).map_err(|why| DeliveryError { last: true, why: why.to_string() })?;
        let send = self.transport.send_raw(&envelope, mail.text.as_bytes());
        // The transport limits only the time to connect, so the whole attempt is limited here.
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

/// Why a mail was not delivered.
#[derive(Debug)]
pub struct DeliveryError {
    /// Whether trying again is pointless.
    pub last: bool,
    /// What the server has said, or what has failed.
    pub why: String,
}

pub(super) type Transport = AsyncSmtpTransport<Tokio1Executor>;

/// Whether trying again is pointless: the server refuses the mail for good, and not just the login.
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

/// The transport of a configuration. It is made without a runtime, so that a configuration can be checked anywhere.
pub(super) fn transport(config: &SmtpgateConfig, host: &str) -> Result<Transport, MailError> {
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
