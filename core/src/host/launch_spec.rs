//! What a host has to know to start a program.

use serde::{Deserialize, Serialize};

use super::probe::{Health, ReadinessProbe};
use crate::{
    base::time::Millis,
    config::sandbox::{Cgroup, Sandbox},
    host::ExitPolicy,
};

/// Everything needed to start a program, decided before the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LaunchSpec {
    /// The name of the program.
    pub name: String,
    /// The executable: a path if it contains a slash, else a name to look for.
    pub command: String,
    /// The arguments after the command.
    pub argv: Vec<String>,
    /// The line of shell that stops it, or undoes what it has done.
    pub stop_command: Option<String>,
    /// What becomes of a run whose main process has ended.
    pub exit: ExitPolicy,
    /// Variables over those that every program gets, in the order of their names.
    pub env: Vec<(String, String)>,
    /// The directory to run in; the daemon's own if there is none.
    pub wd: Option<String>,
    /// Where the output goes.
    pub log: LogTarget,
    /// Where its process id is.
    pub pid_file: Option<PidFile>,
    /// How it shows that it is ready.
    pub ready: Option<ReadinessProbe>,
    /// How it is looked after.
    pub health: Option<Health>,
    /// How long it may be silent.
    pub watchdog: Option<Millis>,
    /// The cgroup that each of its runs gets.
    pub cgroup: Option<Cgroup>,
    /// What the kernel holds it to; `None` if that cannot be found out, so that it must not be started.
    pub sandbox: Option<Sandbox>,
}

/// A file with the process id of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidFile {
    /// It is written when the program starts, and removed when it has ended.
    Write(String),
    /// The command makes a daemon of itself, and writes there which process that is.
    Read(String),
}

impl PidFile {
    /// The file.
    pub fn path(&self) -> &String {
        let (Self::Write(path) | Self::Read(path)) = self;
        path
    }
}

/// Where the output of a program goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogTarget {
    /// To the daemon's own output.
    #[default]
    Inherit,
    /// Appended to a file.
    File(String),
    /// To a pipe, from which another process takes it.
    Pipe {
        /// The pipe.
        pipe: String,
        /// The file that it comes to, if it is one.
        file: Option<String>,
    },
}

impl LogTarget {
    /// The file, if it is one.
    pub fn path(&self) -> Option<&String> {
        match self {
            Self::Inherit => None,
            Self::File(path) => Some(path),
            Self::Pipe { file, .. } => file.as_ref(),
        }
    }
}
