//! Mail: composing it, and getting it delivered by a server that may be slow, down or hostile.

mod mail;
mod outbox;

pub use self::{
    mail::{Composer, MailError},
    outbox::{Outbox, Outcome, Report},
};
