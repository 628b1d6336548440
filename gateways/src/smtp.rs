//! Mail: composing it, and getting it delivered by a server that may be slow, down or hostile.

mod mail;
mod outbox;
mod spool;

pub use self::{
    mail::{Composer, MailError},
    outbox::{DeliveryOutcome, Outbox, Report, check, letters},
    spool::{MailSpool, QueuedMail, SpoolError},
};
