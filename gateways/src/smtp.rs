//! Mail: composing it, and getting it delivered by a server that may be slow, down or hostile.

mod ledger;
mod mail;
mod outbox;

pub use self::{
    ledger::{Ledger, LedgerError, Letter},
    mail::{Composer, MailError},
    outbox::{Outbox, Outcome, Report, check, letters},
};
