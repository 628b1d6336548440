//! What can happen to the whole system.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What can happen to the whole system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event")]
pub enum SystemEvent {
    /// A life of the daemon began.
    EpochOpened {
        /// The version of gaggled.
        version: String,
        /// The number of configured programs.
        programs: u32,
        /// What went before.
        beginning: Beginning,
        /// Programs that were found running.
        adopted: u32,
        /// Programs that have ended since the life before.
        ended: u32,
    },
    /// This life of the daemon gives everything to the next one; no program notices.
    HandoverBegun {
        /// What for.
        to: Handover,
    },
    /// Everything is being stopped.
    ShutdownBegun,
    /// Everything has been stopped.
    ShutdownCompleted {
        /// How many programs could not be ended.
        survivors: u32,
    },
    /// The journal cannot be written; everything else goes on.
    JournalDegraded {
        /// Why, in words.
        why: String,
    },
    /// The journal is written again, beginning with a snapshot.
    JournalRestored {
        /// How many events are on no disk.
        missed: u64,
    },
    /// A part of the journal could not be read when this life of the daemon began.
    JournalDamaged {
        /// The file that was put aside.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A command was refused.
    CommandRefused {
        /// The code of the refusal.
        code: String,
        /// The refusal in words.
        why: String,
    },
    /// A bug in gaggled: the rules of one program or dependency panicked and were rebuilt from the journal.
    ActorPanicked {
        /// Whose rules.
        actor: String,
        /// The message of the panic.
        message: String,
    },
}

/// What went before a life of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Beginning {
    /// Nothing: there was no journal.
    First,
    /// A life that ended as it should.
    Orderly,
    /// A life that ended without a word.
    Crash,
    /// Another boot of the machine, with which all programs ended.
    Reboot,
    /// The life of another gaggled, whose journal was copied.
    Copy,
    /// A life that gave everything to this one.
    Handover(Handover),
}

/// What one life of the daemon gives everything to the next for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handover {
    /// A changed configuration.
    Reload,
    /// Another version of gaggled.
    Upgrade,
    /// The launcher has died, and this life takes its place.
    Launcher,
}

impl Beginning {
    /// Whether the programs of the life before are not there to be found.
    pub fn is_elsewhere(self) -> bool {
        match self {
            Self::Reboot | Self::Copy => true,
            Self::First | Self::Orderly | Self::Crash | Self::Handover(_) => false,
        }
    }
}

impl fmt::Display for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First | Self::Orderly => Ok(()),
            Self::Crash => f.write_str(" again after it had died"),
            Self::Reboot => f.write_str(" after a boot of the machine"),
            Self::Copy => f.write_str(" with a copy of the journal of another"),
            Self::Handover(to) => write!(f, " its next life, for {to},"),
        }
    }
}

impl fmt::Display for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reload => "a changed configuration",
            Self::Upgrade => "another version of gaggled",
            Self::Launcher => "a launcher that has died",
        })
    }
}
