//! Composes mails about alerts.

use gaggled_core::config::SmtpgateConfig;
use lettre::{
    Message,
    message::{
        Mailbox,
        header::{ContentType, MIME_VERSION_1_0},
    },
};
use thiserror::Error;

use crate::smtp::alert_rules::{Alert, batch_subject};

/// Why a mail cannot be composed or sent.
#[derive(Debug, Error)]
pub enum MailError {
    /// A mail address is not valid.
    #[error("smtpgate.{field}: \"{address}\" is not a mail address ({why}): write name@example.com")]
    Address {
        /// The field.
        field: &'static str,
        /// The address.
        address: String,
        /// Why.
        why: String,
    },
    /// The message cannot be built.
    #[error("mail cannot be composed: {0}")]
    Compose(#[from] lettre::error::Error),
    /// The connection to the server cannot be set up as configured.
    #[error("smtpgate.{field}: {why}")]
    Transport {
        /// The field.
        field: &'static str,
        /// Why.
        why: String,
    },
}

/// Composes messages.
#[derive(Clone, Debug)]
pub struct Composer {
    from: Mailbox,
    to: Vec<Mailbox>,
    prefix: String,
    host: String,
}

impl Composer {
    /// A composer for this configuration, on a host of this name.
    pub fn new(config: &SmtpgateConfig, host: &str) -> Result<Self, MailError> {
        let mailbox = |field, address: &str| {
            address.parse::<Mailbox>().map_err(|why| MailError::Address {
                field,
                address: address.to_owned(),
                why: why.to_string(),
            })
        };
        Ok(Self {
            from: mailbox("from", &config.from)?,
            to: config.to.iter().map(|address| mailbox("to", address)).collect::<Result<_, _>>()?,
            prefix: config.spfix.replacen("__HOSTNAME__", host, 1),
            host: host.to_owned(),
        })
    }

    /// One mail about these alerts. Its Message-ID names the event of the first one, so that a duplicate can be
    /// recognised.
    pub fn compose(&self, statements: &[Alert], batch: bool, all_ok: bool) -> Result<Message, MailError> {
        let (subject, body) = if batch { self.several(statements, all_ok) } else { self.single(statements) };
        let mut message = Message::builder().from(self.from.clone()).subject(subject);
        for to in &self.to {
            message = message.to(to.clone());
        }
        let first = statements.first().map(|first| (&first.basis, &*first.program, first.is));
        if let Some((basis, program, is)) = first {
            let is = is.to_string().replace(' ', "-");
            let id = format!("<{}.{}.{program}.{is}@{}>", basis.epoch, basis.seq, self.host);
            message = message.message_id(Some(id));
        }
        Ok(message.date_now().header(MIME_VERSION_1_0).header(ContentType::TEXT_PLAIN).body(body)?)
    }

    fn single(&self, statements: &[Alert]) -> (String, String) {
        let text: Vec<String> = statements.iter().map(|statement| statement.text(", ")).collect();
        let text = text.join("; ");
        (format!("{}{text}", self.prefix), format!("{text}\r\n"))
    }

    fn several(&self, statements: &[Alert], all_ok: bool) -> (String, String) {
        let count = statements.len();
        let plural = if count == 1 { "" } else { "s" };
        let mut body =
            format!("There {} {count} state change{plural} of note:\r\n", if count == 1 { "is" } else { "are" });
        for statement in statements {
            body.push_str("\r\n");
            body.push_str(&statement.text("\r\n  "));
            body.push_str("\r\n");
        }
        (format!("{} {}", self.prefix, batch_subject(statements, all_ok)).trim_start().to_owned(), body)
    }
}
