//! What the rules ask of a host.

use super::probe::ProbeKind;
use crate::{
    base::ids::{InstanceId, ProgramId},
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
    /// Ask everything that this instance consists of to end, by a signal; what it leaves behind has time to do so as well.
    Terminate {
        /// The program.
        program: ProgramId,
        /// The run that is meant; a later one is never hit.
        instance: InstanceId,
    },
    /// Run the stop command of the program beside this instance. When that has ended well and the main process has ended,
    /// what is left is asked to end by a signal.
    RunStopCommand {
        /// The program.
        program: ProgramId,
        /// The run that is meant; a later one is never hit.
        instance: InstanceId,
    },
    /// Run the command that undoes what this instance, which has ended, has done: as its process.
    Undo {
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
