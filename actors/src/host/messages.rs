//! What the parts of the host send each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    os::unix::net::UnixDatagram,
    path::PathBuf,
};

use crossbeam_channel::Sender;
use gaggled_core::{
    base::ids::{InstanceId, ProgramId},
    config::sandbox::Rlimit,
    host::{Ending, HostReport, probe::ProbeKind},
    process::{ExitStatus, StartTime},
};
use tokio::sync::oneshot;

use super::{cgroup::Cgroup, track::process_table::MainProcess};

/// Takes what the host sees. The daemon connects it to the host actor: `start_host` in `tools/src/daemon/run.rs`.
pub type HostReportFn = Box<dyn Fn(HostReport) + Send + Sync>;

/// What every program gets.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The variables, over which those of the program go.
    pub variables: BTreeMap<String, String>,
    /// Those of them that only programs of gaggled's own user get: they change what any program does that is started.
    pub withheld: BTreeSet<String>,
    /// The limit of descriptors that programs have, if it is not that of gaggled.
    pub descriptors: Option<Rlimit>,
    /// The directories in which a command without a slash is looked for.
    pub search: Vec<String>,
    /// The id of the journal, for the token that each instance carries.
    pub journal: String,
    /// Where the notify sockets of programs are.
    pub notify_directory: PathBuf,
    /// Signals that programs ignore as the daemon does.
    pub keep_ignored: Vec<i32>,
}

/// A program that was found running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SurvivingProcess {
    /// The program.
    pub program: ProgramId,
    /// Its run.
    pub instance: InstanceId,
    /// Its process id.
    pub pid: i32,
    /// When it began.
    pub start_time: StartTime,
    /// Whose child it was when it was found.
    pub parent: i32,
    /// What its main process is. A command whose daemon is awaited has ended.
    pub(crate) stage: MainProcess,
    /// Whether the previous daemon has asked it to end.
    pub(crate) ending: Ending,
    /// Its cgroup, if it has one to itself.
    pub(crate) cgroup: Option<Cgroup>,
}

/// What the thread is to do.
pub(crate) enum SpawnRequest {
    /// Start this run of a program.
    Start(ProgramId, InstanceId),
    /// Run the stop command of a program as the process of this run, which has ended.
    UndoCommand(ProgramId, InstanceId),
    /// Run the stop command of a program beside this run, whose main process has this id.
    StopCommand(ProgramId, InstanceId, i32),
    /// Run a command that probes a run of a program, and report how it ends.
    Check {
        program: ProgramId,
        instance: InstanceId,
        /// A line of shell.
        line: String,
        answer: oneshot::Sender<ExitStatus>,
    },
    /// Remove a pid file if it still names this process, and then report that it has ended.
    RemovePidFile { path: String, pid: i32, ended: HostReport },
    /// Say that everything before this has been done.
    Barrier(Sender<()>),
}

/// A process that was started.
pub(crate) struct Spawned {
    pub(crate) pid: i32,
    /// What it shows that it is ready with.
    pub(crate) hearing: ReadinessChannel,
    /// Its cgroup, if it has one.
    pub(crate) cgroup: Option<Cgroup>,
}

/// A run of which everything in its group is gone: its main process, and which run it is.
pub(crate) type Emptied = (i32, InstanceId);

/// What a run was given to say something with, beyond its notify socket.
#[derive(Debug, Default)]
pub(crate) struct ReadinessChannel {
    /// What it writes to, if it is ready by a descriptor.
    pub descriptor: Option<File>,
    /// How long its log was when it began, if it is ready by a line of that.
    pub log_from: Option<u64>,
    /// Its notify socket, if that could not be made before.
    pub notify_socket: Option<UnixDatagram>,
}

/// What the monitor is to do.
#[derive(Debug)]
pub(crate) enum MonitorCommand {
    /// Listen to a run that has begun, or was taken over.
    Begin { program: ProgramId, instance: InstanceId, pid: i32, hearing: ReadinessChannel },
    /// Listen to what programs say: what has survived is known.
    Listen,
    /// Report everything that a run has said so far, and then that it was heard.
    Hear(ProgramId, InstanceId),
    /// Ask a run.
    Check(ProgramId, InstanceId, ProbeKind),
    /// The command of a run has ended well: find the daemon that it has left.
    AwaitDaemon(ProgramId, InstanceId),
    /// A process of no run has ended: its children may be ours now.
    RecheckPidFiles,
    /// The run of a program has ended.
    End(ProgramId),
}
