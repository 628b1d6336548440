//! What a host has to know to start a program.

use serde::{Deserialize, Serialize};

use super::probe::{Health, ReadinessProbe};
use crate::{
    base::{ids::GroupId, time::Millis},
    config::sandbox::{Cgroup, Sandbox},
    host::ExitPolicy,
    process::Signal,
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
    /// The shell command that stops it, or undoes its effects.
    pub stop_command: Option<String>,
    /// The signal that asks it to end, if that is not TERM.
    pub stop_signal: Option<Signal>,
    /// What the host does with a run whose main process has ended.
    pub exit: ExitPolicy,
    /// Variables that are added to those of every program, or replace them; sorted by name.
    pub env: Vec<(String, String)>,
    /// The directory to run in; the daemon's own if there is none.
    pub wd: Option<String>,
    /// Where the output goes.
    pub log: LogTarget,
    /// Its pid file.
    pub pid_file: Option<PidFile>,
    /// How it shows that it is ready.
    pub ready: Option<ReadinessProbe>,
    /// Its periodic health check.
    pub health: Option<Health>,
    /// How long it may go without a watchdog message.
    pub watchdog: Option<Millis>,
    /// The cgroup that each of its runs gets.
    pub cgroup: Option<Cgroup>,
    /// Its group, if that runs on one node at a time: then it gets the token of the group.
    pub shared_group: Option<GroupId>,
    /// The name of that group, if the program may only be started while the node has a permit for it: it does not clean up.
    pub permit: Option<String>,
    /// User, limits and other restrictions; `None` if they cannot be determined: it must not be started then.
    pub sandbox: Option<Sandbox>,
}

/// A file with the process id of a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PidFile {
    /// gaggled writes the file when the program starts, and removes it when the program has ended.
    Write(String),
    /// The command leaves a daemon behind, and the file contains the process id of that daemon.
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
    /// To a pipe that the logger reads.
    Pipe {
        /// The pipe.
        pipe: String,
        /// The file that the logger writes, if there is one.
        file: Option<String>,
    },
}

impl LogTarget {
    /// The file that the output ends up in, if there is one.
    pub fn path(&self) -> Option<&String> {
        match self {
            Self::Inherit => None,
            Self::File(path) => Some(path),
            Self::Pipe { file, .. } => file.as_ref(),
        }
    }
}
