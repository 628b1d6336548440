//! Mail: composing it, and getting it delivered by a server that may be slow, down or hostile.

pub mod alert_rules;
mod mail;
mod outbox;
mod spool;

pub use self::{
    mail::{Composer, MailError},
    outbox::{DeliveryOutcome, Outbox, Report, check, mails},
    spool::{MailSpool, QueuedMail, SpoolError},
};
