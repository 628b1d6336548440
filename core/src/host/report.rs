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

/// The state of the last instance of a program, as the host finds it when a daemon starts.
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
    /// It has ended.
    Exited {
        /// The run.
        instance: InstanceId,
        /// How its main process ended.
        status: ExitStatus,
        /// How many processes of its group had to be killed.
        orphans: u16,
    },
    /// The previous daemon died after it had committed the start, and before it started the instance.
    NeverStarted {
        /// The run that never began.
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
    /// The process could not be started.
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
    /// It has notified that it is ready.
    Ready,
    /// The result of a readiness probe or health check.
    ProbeResult(Result<(), ProbeError>),
    /// It is not ready yet, for this reason.
    NotReadyYet(ProbeError),
    /// It has sent a watchdog message.
    WatchdogPing,
    /// All messages that had arrived when `FlushReports` was executed have been reported.
    ReportsFlushed,
    /// Its stop command did not end well.
    StopCommandFailed {
        /// How the stop command ended.
        status: ExitStatus,
    },
    /// The instance has ended.
    Exited {
        /// How its main process ended.
        status: ExitStatus,
        /// How many processes it has left behind: they were killed or, if the program keeps them, run on.
        orphans: u16,
    },
}
