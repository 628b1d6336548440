//! What the rules ask of a host.

use super::probe::ProbeKind;
use crate::{
    base::ids::{GroupId, InstanceId, ProgramId},
    process::Signal,
};

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
    /// The programs of this group that are started from now on get this token: this node holds the group.
    SetToken {
        /// The group.
        group: GroupId,
        /// The token.
        token: u64,
    },
    /// Send TERM to all processes of this instance. Processes that its main process leaves have time to end as well.
    Terminate {
        /// The program.
        program: ProgramId,
        /// The run that is meant; a later one is never hit.
        instance: InstanceId,
    },
    /// Run the stop command of the program beside this instance. When the command has succeeded and the main process
    /// has ended, the remaining processes are asked to end by a signal.
    RunStopCommand {
        /// The program.
        program: ProgramId,
        /// The run that is meant; a later one is never hit.
        instance: InstanceId,
    },
    /// Run the stop command that undoes the effects of this instance, which has ended; the command is its main process.
    Undo {
        /// The program.
        program: ProgramId,
        /// The run that is meant.
        instance: InstanceId,
    },
    /// Run a readiness probe or a health check of this instance.
    Probe {
        /// The program.
        program: ProgramId,
        /// The run that is meant.
        instance: InstanceId,
        /// Which of the two.
        kind: ProbeKind,
    },
    /// Report all messages of this instance that have arrived so far, and then `ReportsFlushed`: a message may have
    /// arrived in time while gaggled was suspended.
    FlushReports {
        /// The program.
        program: ProgramId,
        /// The run that is meant.
        instance: InstanceId,
    },
    /// Kill all processes of this instance, including those that it left when it ended well.
    Kill {
        /// The program.
        program: ProgramId,
        /// The run that is meant; a later one is never hit.
        instance: InstanceId,
    },
    /// Send an operator's signal: TERM and KILL to all processes of the instance, others to its main process.
    Signal {
        /// The program.
        program: ProgramId,
        /// The run that is meant; a later one is never hit.
        instance: InstanceId,
        /// What to send.
        signal: Signal,
    },
}
