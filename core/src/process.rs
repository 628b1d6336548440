//! What the kernel reports of processes: how they start, what identifies them, and how they end.

mod signal;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::signal::Signal;

/// The step of a start that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SpawnStage {
    /// Making the process: out of memory, processes or descriptors.
    Fork,
    /// Making its cgroup and entering it.
    Cgroup,
    /// Opening the log file.
    Log,
    /// Making a session and resetting signals.
    Session,
    /// Making its notify socket.
    Notify,
    /// Writing the pid file.
    PidFile,
    /// Setting limits, niceness or the file mode mask.
    Limits,
    /// Changing the root directory.
    Chroot,
    /// Switching to the user, and dropping the rights that the user does not have.
    User,
    /// Changing to the working directory.
    WorkingDirectory,
    /// Executing the command.
    Exec,
}

impl SpawnStage {
    /// The error number of a start that was abandoned before it was attempted: ECANCELED.
    pub const CANCELLED: i32 = 125;

    /// Whether the same start may succeed later without any change: the machine lacked processes,
    /// memory or descriptors.
    pub fn is_transient(self, errno: i32) -> bool {
        const EAGAIN: i32 = 11;
        const ENOMEM: i32 = 12;
        const ENFILE: i32 = 23;
        const EMFILE: i32 = 24;
        self == Self::Fork || [EAGAIN, ENOMEM, ENFILE, EMFILE].contains(&errno)
    }
}

impl fmt::Display for SpawnStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fork => "creating the process",
            Self::Cgroup => "entering its cgroup",
            Self::Log => "opening the log",
            Self::Session => "creating a session",
            Self::Notify => "creating its notify socket",
            Self::PidFile => "writing the pid file",
            Self::Limits => "setting its limits",
            Self::Chroot => "changing the root directory",
            Self::User => "switching to the user",
            Self::WorkingDirectory => "changing to the working directory",
            Self::Exec => "executing the command",
        })
    }
}

/// How an instance ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
    /// A signal killed it and it left a core.
    Core(i32),
    /// The kernel killed it because memory ran out.
    OutOfMemory,
    /// It has ended, and its status is not known.
    Unknown,
}

impl ExitStatus {
    /// Whether it is exit code 0.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }

    /// Whether it is one of the exit codes in `success`; without any, whether it is 0.
    pub fn is_one_of(self, success: &[i32]) -> bool {
        match self {
            Self::Code(code) if !success.is_empty() => success.contains(&code),
            Self::Code(_) | Self::Signal(_) | Self::Core(_) | Self::OutOfMemory | Self::Unknown => self.is_success(),
        }
    }
}

impl fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exited with code {code}"),
            Self::Signal(number) => write!(f, "was killed by {}", Signal(*number)),
            Self::Core(number) => write!(f, "was killed by {} and dumped core", Signal(*number)),
            Self::OutOfMemory => f.write_str("was killed by the kernel because memory ran out"),
            Self::Unknown => f.write_str("ended with an unknown status"),
        }
    }
}

/// When a process began, as the kernel counts it: clock ticks since the machine was booted. 0 if it is not known.
///
/// The kernel reuses process ids; a process id together with a start time is unique.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StartTime(pub u64);

/// How the last run ended, or why it could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ran and ended.
    Exited(ExitStatus),
    /// It could not be started.
    SpawnFailed {
        /// The step that failed.
        stage: SpawnStage,
        /// The error number.
        errno: i32,
    },
}
