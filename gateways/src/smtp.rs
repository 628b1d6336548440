//! Mail: composing it, and getting it delivered by a server that may be slow, down or hostile.

pub mod alert_rules;
mod delivery;
mod mail;
mod outbox;
mod spool;

pub use self::{
    delivery::{Delivery, DeliveryError},
    mail::{Composer, MailError},
    outbox::{DeliveryOutcome, Outbox, Report, check, mails},
    spool::{MailSpool, QueuedMail, SpoolError},
};
