//! What owns processes: the words in which the rules and a host speak to each other.
//!
//! There is no implementation here. The real host lives in the actors crate, a simulated one in the tests.

mod signal;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::signal::Signal;
use crate::{
    graph::Leaves,
    health::{Health, ProbeError, ProbeKind, ReadinessProbe},
    ids::{InstanceId, ProgramId},
    sandbox::{Cgroup, Sandbox},
    time::Millis,
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
    /// What becomes of processes that a run leaves when it has ended well.
    pub leaves: Leaves,
    /// The exit codes that mean success; only 0 if there is none.
    pub success_exit_codes: Vec<i32>,
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
    /// Becoming the user, and giving up what the user has not.
    User,
    /// Changing to the working directory.
    WorkingDirectory,
    /// Executing the command.
    Exec,
}

impl SpawnStage {
    /// The error number of a start that was given up before it was tried: ECANCELED.
    pub const CANCELLED: i32 = 125;

    /// Whether the same start may well succeed later without anybody changing anything: the machine lacked processes,
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
            Self::Fork => "making the process",
            Self::Cgroup => "entering its cgroup",
            Self::Log => "opening the log",
            Self::Session => "making a session",
            Self::Notify => "making its notify socket",
            Self::PidFile => "writing the pid file",
            Self::Limits => "setting its limits",
            Self::Chroot => "changing the root directory",
            Self::User => "becoming the user",
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
    /// The kernel killed it for want of memory.
    OutOfMemory,
    /// It is gone and nobody can know how it ended.
    Unknown,
}

impl ExitStatus {
    /// Whether it says that all went well.
    pub fn is_success(self) -> bool {
        self == Self::Code(0)
    }

    /// Whether it is one of the exit codes that mean success; only 0 does if there is none.
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
            Self::OutOfMemory => f.write_str("was killed by the kernel for want of memory"),
            Self::Unknown => f.write_str("ended, nobody knows how"),
        }
    }
}

/// When a process began, as the kernel counts it: clock ticks since the machine was booted. 0 if it is not known.
///
/// A process id is given to another process sooner or later; together with this it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StartTime(pub u64);

/// An effect that the rules ask of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostCommand {
    /// Start this instance.
    Spawn {
        /// The program.
        program: ProgramId,
        /// The run that is to begin.
        instance: InstanceId,
    },
    /// Ask everything that this instance consists of to end; what it leaves behind has time to do so as well.
    Stop {
        /// The program.
        program: ProgramId,
        /// The run that is meant; a later one is never hit.
        instance: InstanceId,
    },
    /// Run the command that undoes what this instance, which has ended, has done: as its process.
    RunStopCommand {
        /// The program.
        program: ProgramId,
        /// The run that is meant.
        instance: InstanceId,
    },
    /// Ask this instance whether it is ready, or well.
    Probe {
        /// The program.
        program: ProgramId,
        /// The run that is meant.
        instance: InstanceId,
        /// What is asked.
        kind: ProbeKind,
    },
    /// Report everything that this instance has said so far, and then that all of it was heard: it may have spoken in time
    /// while gaggled stood still.
    FlushReports {
        /// The program.
        program: ProgramId,
        /// The run that is meant.
        instance: InstanceId,
    },
    /// Kill everything that this instance consists of, also what it has left when it ended well.
    Kill {
        /// The program.
        program: ProgramId,
        /// The run that is meant; a later one is never hit.
        instance: InstanceId,
    },
    /// Send an operator's signal: TERM and KILL to everything, others to the main process.
    Signal {
        /// The program.
        program: ProgramId,
        /// The run that is meant; a later one is never hit.
        instance: InstanceId,
        /// What to send.
        signal: Signal,
    },
}

/// What the host saw of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// The program.
    pub program: ProgramId,
    /// Which of its runs.
    pub instance: InstanceId,
    /// What was seen.
    pub event: HostEvent,
}

/// What is found of the last instance of a program when a life of the daemon begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// It runs.
    Running {
        /// The run. It may be one that the life before did not live to write down.
        instance: InstanceId,
        /// Its process id.
        pid: i32,
        /// When that process began.
        start_time: StartTime,
    },
    /// Nothing of it is left.
    Exited {
        /// The run.
        instance: InstanceId,
        /// How its main process ended.
        status: ExitStatus,
        /// How many processes of its group had to be killed.
        orphans: u16,
    },
    /// The life before has died between the decision to start it and the start.
    NeverStarted {
        /// The run that never was.
        instance: InstanceId,
    },
}

impl Recovered {
    /// Whether it runs.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// The run.
    pub fn instance(self) -> InstanceId {
        match self {
            Self::Running { instance, .. } | Self::Exited { instance, .. } | Self::NeverStarted { instance } => {
                instance
            }
        }
    }
}

/// What can be seen of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// The command runs: the exec has succeeded.
    Spawned {
        /// Its process id, which is also its process group and session.
        pid: i32,
        /// When it began.
        start_time: StartTime,
    },
    /// There is no process.
    SpawnFailed {
        /// The step that failed.
        stage: SpawnStage,
        /// The error number of the system call.
        errno: i32,
    },
    /// Its command has ended and has left a daemon, which is its main process from now on.
    Daemonized {
        /// Its process id.
        pid: i32,
        /// When it began.
        start_time: StartTime,
    },
    /// It has said that it is ready.
    Ready,
    /// It was asked, and this came of it.
    ProbeResult(Result<(), ProbeError>),
    /// It is not ready yet, and this is why.
    NotReadyYet(ProbeError),
    /// It has said that it is alive.
    WatchdogPing,
    /// Everything that it had said when that was asked for has been reported.
    ReportsFlushed,
    /// Its stop command did not end well.
    StopCommandFailed {
        /// How that ended.
        status: ExitStatus,
    },
    /// Nothing of the instance is left.
    Exited {
        /// How its main process ended.
        status: ExitStatus,
        /// How many processes it has left: they were killed, or, if they are part of what it has done, run on.
        orphans: u16,
    },
}

/// What owns processes must do. An observation comes back through whatever the implementation was given to report to.
pub trait Host {
    /// Carries out an effect. Must not block.
    fn execute(&mut self, command: HostCommand);

    /// From now on there is somebody to report to.
    fn start(&mut self) {}
}
