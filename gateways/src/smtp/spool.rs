//! The persistent state of a gate: the last event it has received, what it has reported, and the undelivered mails.
//!
//! It is one file, replaced as a whole. A mail is written to it, together with the position of the event that it is
//! about, before it is given to a server, and removed as soon as the server has accepted it. So a gate that is killed
//! neither loses a mail nor sends one twice. The exception is a gate killed between the server's acceptance and the
//! write: its mail is sent again, with the same Message-ID.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gaggled_core::base::ids::Position;
use nix::fcntl::{Flock, FlockArg, OFlag};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::smtp::alert_rules::AlertRules;

/// The version of the file.
const FORMAT: u32 = 1;

/// Why the spool cannot be opened.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// A system call failed.
    #[error("{path} cannot be used ({error}): correct that, or give another directory (gaggled.state_directory)")]
    Io {
        /// The file.
        path: String,
        /// Why not.
        error: io::Error,
    },
    /// Another gate has it open.
    #[error("{0} is in use by another gate: stop that gate")]
    InUse(String),
    /// Its content cannot be parsed.
    #[error("{path} is not understood ({why}): move it away; the undelivered mails in it are lost")]
    Garbled {
        /// The file.
        path: String,
        /// Why not.
        why: String,
    },
}

/// A mail for one recipient that is not delivered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedMail {
    /// Its number.
    pub number: u64,
    /// What it is about, for the log.
    pub subject: String,
    /// The sender, if there is one.
    pub from: Option<String>,
    /// The recipient.
    pub to: String,
    /// The whole message.
    pub text: String,
    /// How often it was tried.
    #[serde(default)]
    pub attempts: u32,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct SpoolFile {
    v: u32,
    position: Option<Position>,
    alert_rules: Option<AlertRules>,
    next: u64,
    mails: Vec<QueuedMail>,
}

/// The spool file. All clones share it.
#[derive(Clone, Debug)]
pub struct MailSpool {
    path: PathBuf,
    spool_file: Arc<Mutex<SpoolFile>>,
    _lock: Arc<Flock<File>>,
}

impl MailSpool {
    /// Opens the spool in a directory, and locks it against other processes until the last clone is dropped.
    pub fn open(directory: &Path) -> Result<Self, SpoolError> {
        let path = directory.join("smtpgate.json");
        let failed = |error| SpoolError::Io { path: path.display().to_string(), error };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits() | OFlag::O_CLOEXEC.bits());
        let lock = options.clone().write(true).create(true).open(directory.join("smtpgate.lock")).map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock)
            .map_err(|_| SpoolError::InUse(path.display().to_string()))?;
        let mut text = String::new();
        match options.open(&path) {
            Ok(mut file) => drop(file.read_to_string(&mut text).map_err(failed)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let garbled = |why: String| SpoolError::Garbled { path: path.display().to_string(), why };
        let spool_file = if text.is_empty() {
            SpoolFile::default()
        } else {
            serde_json::from_str(&text).map_err(|why| garbled(why.to_string()))?
        };
        if spool_file.v > FORMAT {
            return Err(garbled(format!("it has format {}", spool_file.v)));
        }
        Ok(Self {
            spool_file: Arc::new(Mutex::new(SpoolFile { v: FORMAT, ..spool_file })),
            path,
            _lock: Arc::new(lock),
        })
    }

    fn spool_file(&self) -> MutexGuard<'_, SpoolFile> {
        self.spool_file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The position of the last event that was received.
    pub fn position(&self) -> Option<Position> {
        self.spool_file().position
    }

    /// The alert rules, with what was last reported.
    pub fn alert_rules(&self) -> Option<AlertRules> {
        self.spool_file().alert_rules.clone()
    }

    /// The mails that are not delivered.
    pub fn mails(&self) -> Vec<QueuedMail> {
        self.spool_file().mails.clone()
    }

    /// Saves the position, the alert rules and new mails, which get their numbers.
    pub fn advance(
        &self,
        position: Option<Position>,
        alert_rules: &AlertRules,
        mut mails: Vec<QueuedMail>,
    ) -> (Vec<QueuedMail>, io::Result<()>) {
        let mut spool_file = self.spool_file();
        spool_file.position = position;
        spool_file.alert_rules = Some(alert_rules.clone());
        for mail in &mut mails {
            spool_file.next += 1;
            mail.number = spool_file.next;
        }
        spool_file.mails.extend(mails.iter().cloned());
        let written = self.write(&spool_file);
        (mails, written)
    }

    /// Removes a mail that was delivered or given up.
    pub fn forget(&self, number: u64) -> io::Result<()> {
        let mut spool_file = self.spool_file();
        spool_file.mails.retain(|mail| mail.number != number);
        self.write(&spool_file)
    }

    fn write(&self, spool_file: &SpoolFile) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
        let mut file = options.open(&new)?;
        file.write_all(&serde_json::to_vec(spool_file)?)?;
        file.sync_data()?;
        fs::rename(&new, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use gaggled_core::base::{
        ids::{EpochId, Seq},
        time::{Instant, Millis},
    };

    use super::*;

    fn mail(to: &str) -> QueuedMail {
        QueuedMail { number: 0, subject: "s".into(), from: None, to: to.into(), text: "t".into(), attempts: 0 }
    }

    #[test]
    fn what_was_written_is_there_after_the_gate_has_gone() {
        let directory = tempfile::tempdir().expect("a directory");
        let alert_rules = AlertRules::new(Millis(10), Millis(0), Instant::default());
        let position = Some(Position { epoch: EpochId(7), seq: Seq(42) });
        let spool = MailSpool::open(directory.path()).expect("a ledger");
        assert_eq!(spool.position(), None);
        assert!(matches!(MailSpool::open(directory.path()), Err(SpoolError::InUse(_))));
        let (mails, written) = spool.advance(position, &alert_rules, vec![mail("a"), mail("b")]);
        written.expect("it can be written");
        assert_eq!(mails.iter().map(|mail| mail.number).collect::<Vec<_>>(), [1, 2]);
        spool.forget(1).expect("it can be written");
        drop(spool);
        let again = MailSpool::open(directory.path()).expect("a ledger");
        assert_eq!(again.position(), position);
        assert_eq!(again.mails(), [QueuedMail { number: 2, ..mail("b") }]);
        drop(again);
        fs::write(directory.path().join("smtpgate.json"), "{\"v\":1").expect("a file");
        assert!(matches!(MailSpool::open(directory.path()), Err(SpoolError::Garbled { .. })));
    }
}
