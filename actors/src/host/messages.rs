//! What the parts of the host send each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    os::unix::net::UnixDatagram,
    path::PathBuf,
    sync::Arc,
};

use crossbeam_channel::Sender;
use gaggled_core::{
    base::ids::{GroupId, InstanceId, ProgramId},
    config::sandbox::Rlimit,
    host::{Ending, HostReport, probe::ProbeKind},
    process::{ExitStatus, StartTime},
};
use tokio::sync::oneshot;

use super::{cgroup::Cgroup, track::process_table::MainProcess};

/// Receives the reports of the host.
pub type HostReportFn = Box<dyn Fn(HostReport) + Send + Sync>;

/// What every program gets.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The variables, which those of a program override.
    pub variables: BTreeMap<String, String>,
    /// Variables that programs of other users do not get, because they change what any program does, such as
    /// `LD_PRELOAD`.
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
    /// Whether this node may still run a group that runs on one node at a time.
    pub permits: PermitCheck,
}

/// Whether this node may still run a group, by its name: a start that was committed before the permit ended may come to be
/// carried out after that, if the daemon was stopped in between.
#[derive(Clone)]
pub struct PermitCheck(pub Arc<dyn Fn(&str) -> bool + Send + Sync>);

impl Default for PermitCheck {
    fn default() -> Self {
        Self(Arc::new(|_| true))
    }
}

impl fmt::Debug for PermitCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PermitCheck")
    }
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
    /// The kind of its main process. If its daemon is awaited, this process has ended.
    pub(crate) stage: MainProcess,
    /// Whether the previous daemon has asked it to end.
    pub(crate) ending: Ending,
    /// Its cgroup, if it has one to itself.
    pub(crate) cgroup: Option<Cgroup>,
}

/// A request to the spawner thread.
pub(crate) enum SpawnRequest {
    /// Start this run of a program.
    Start(ProgramId, InstanceId),
    /// Give this token to the programs of this group from now on.
    SetToken(GroupId, u64),
    /// Run the stop command of a program as the main process of this run, whose own main process has ended.
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
    /// The channels through which it reports that it is ready.
    pub(crate) hearing: ReadinessChannel,
    /// Its cgroup, if it has one.
    pub(crate) cgroup: Option<Cgroup>,
}

/// A run whose process group is empty: its main process, and the run.
pub(crate) type Emptied = (i32, InstanceId);

/// The channels through which a run reports that it is ready.
#[derive(Debug, Default)]
pub(crate) struct ReadinessChannel {
    /// The file that it writes to, if it reports through a descriptor.
    pub descriptor: Option<File>,
    /// The size of its log when it began, if a line of the log shows that it is ready.
    pub log_from: Option<u64>,
    /// Its notify socket, if that was created at this start.
    pub notify_socket: Option<UnixDatagram>,
}

/// A request to the monitor thread.
#[derive(Debug)]
pub(crate) enum MonitorCommand {
    /// Listen to a run that has begun, or was taken over.
    Begin { program: ProgramId, instance: InstanceId, pid: i32, hearing: ReadinessChannel },
    /// Begin to read the notify sockets: the surviving runs are registered now.
    Listen,
    /// Report all messages of a run so far, and then that this is done.
    Hear(ProgramId, InstanceId),
    /// Probe a run.
    Check(ProgramId, InstanceId, ProbeKind),
    /// The command of a run has ended well: find the daemon that it has left.
    AwaitDaemon(ProgramId, InstanceId),
    /// A process other than a main process has ended, and its children may now be gaggled's: check the awaited pid
    /// files.
    RecheckPidFiles,
    /// The run of a program has ended.
    End(ProgramId),
}
