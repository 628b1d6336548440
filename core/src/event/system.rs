//! What can happen to the whole system.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What can happen to the whole system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event")]
pub enum SystemEvent {
    /// A daemon has started.
    DaemonStarted {
        /// The version of gaggled.
        version: String,
        /// The number of configured programs.
        programs: u32,
        /// How the previous daemon ended.
        start_kind: StartKind,
        /// How many programs were found running.
        adopted: u32,
        /// How many programs have ended since the previous daemon.
        exited_meanwhile: u32,
    },
    /// This daemon hands over to the next one; no program notices.
    HandoverStarted {
        /// Why.
        kind: Handover,
    },
    /// Everything is being stopped.
    ShutdownStarted,
    /// Everything has been stopped.
    ShutdownCompleted {
        /// How many programs could not be ended.
        unkillable: u32,
    },
    /// The journal cannot be written; everything else goes on.
    JournalDegraded {
        /// Why, in words.
        reason: String,
    },
    /// The journal is written again, beginning with a snapshot.
    JournalRestored {
        /// How many events were never written.
        lost_events: u64,
    },
    /// A part of the journal could not be read when this daemon started.
    JournalDamaged {
        /// The file that was quarantined.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A command was refused.
    CommandRefused {
        /// The code of the refusal.
        code: String,
        /// The refusal in words.
        reason: String,
    },
    /// A bug in gaggled: the rules of one program or dependency panicked and were rebuilt from the journal.
    ActorPanicked {
        /// The actor whose rules panicked.
        actor: String,
        /// The message of the panic.
        message: String,
    },
}

/// What preceded the start of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartKind {
    /// Nothing: there was no journal.
    First,
    /// The previous daemon completed a shutdown.
    CleanShutdown,
    /// The previous daemon died without a shutdown or handover event.
    Crash,
    /// The machine was rebooted, which ended all programs.
    Reboot,
    /// The state directory is a copy of that of another gaggled.
    CopiedState,
    /// The previous daemon handed over to this one.
    Handover(Handover),
}

/// Why one daemon hands over to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handover {
    /// A changed configuration.
    Reload,
    /// Another version of gaggled.
    Upgrade,
    /// The subreaper has died: this process takes its place, and starts the next daemon.
    Subreaper,
}

impl StartKind {
    /// Whether no program of the previous daemon can still run.
    pub fn is_elsewhere(self) -> bool {
        match self {
            Self::Reboot | Self::CopiedState => true,
            Self::First | Self::CleanShutdown | Self::Crash | Self::Handover(_) => false,
        }
    }
}

impl fmt::Display for StartKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First | Self::CleanShutdown => Ok(()),
            Self::Crash => f.write_str(" again after a crash"),
            Self::Reboot => f.write_str(" after a reboot"),
            Self::CopiedState => f.write_str(" from a copy of another state directory"),
            Self::Handover(to) => write!(f, " as the next daemon, for {to},"),
        }
    }
}

impl fmt::Display for Handover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reload => "a changed configuration",
            Self::Upgrade => "another version of gaggled",
            Self::Subreaper => "a new subreaper",
        })
    }
}
