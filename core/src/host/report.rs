//! What a host reports.

use super::probe::ProbeError;
use crate::{
    base::ids::{InstanceId, ProgramId},
    process::{ExitStatus, SpawnStage, StartTime},
};

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

/// What is found of the last instance of a program when a daemon starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovered {
    /// It runs.
    Running {
        /// The run. The previous daemon may not have recorded it.
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
    /// The previous daemon has died between the decision to start it and the start.
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
