//! The instances of which something is left: an instance is the process group of its main process.

use std::collections::{BTreeMap, BTreeSet};

use gaggled_core::{
    host::{ExitStatus, StartTime},
    ids::{InstanceId, ProgramId},
};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::sync::oneshot;

use super::{cgroup::Cgroup, proc};

/// The instances of which something is left.
#[derive(Debug, Default)]
pub(super) struct Living {
    /// By the id of the main process.
    pub(super) by_pid: BTreeMap<i32, Process>,
    /// The main process of each group that has not its number: a daemon is seldom the first of its group.
    by_group: BTreeMap<i32, i32>,
    /// The main process of each program.
    pub(super) pid_of: BTreeMap<ProgramId, i32>,
    /// What runs beside programs, to stop or to check them.
    pub(super) helpers: BTreeMap<i32, Helper>,
    /// Whether nothing is reaped any more: it is left to the next life.
    pub(super) handed_over: bool,
}

/// A command that runs beside a program.
#[derive(Debug)]
pub(super) enum Helper {
    /// It stops it.
    Stop(ProgramId, InstanceId),
    /// It checks it, and how it ends is awaited.
    Check(ProgramId, oneshot::Sender<ExitStatus>),
}

/// What the main process of an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Its command.
    Command,
    /// Its command, which has ended and has left a daemon that is looked for.
    Awaiting,
    /// The daemon that its command has left.
    Daemon,
}

/// Whether an instance is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Nothing was done to it.
    No,
    /// An operator has sent it a signal that may end it: what it leaves behind then is not kept.
    Urged,
    /// It was asked to: what it leaves behind then has time to end as well.
    Asked,
    /// That time is over, or an operator has killed it.
    Killed,
}

/// One instance.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) program: ProgramId,
    pub(super) instance: InstanceId,
    pub(super) birth: StartTime,
    /// Its process group, and when the first process of that began, if it is there.
    pub(super) group: i32,
    leader: Option<StartTime>,
    /// Its cgroup, if it has one to itself.
    pub(super) cgroup: Option<Cgroup>,
    /// What its main process is.
    pub(super) stage: Stage,
    /// Whether it is our child, or has survived the life before.
    pub(super) own: bool,
    /// Whether it is to end.
    pub(super) ending: Ending,
    /// Whether everything in its group is gone, and others of its processes are waited for.
    pub(super) awaits_others: bool,
    /// Those of them that were asked to end, and when the first was: what began later only helps them to.
    pub(super) asked: BTreeMap<i32, StartTime>,
    pub(super) asked_since: Option<StartTime>,
    /// Those of them that were killed, each once.
    pub(super) killed: BTreeSet<(i32, StartTime)>,
    /// How many processes of its group were killed, or are kept.
    pub(super) left_in_group: usize,
    /// Whether a process that has lost its parent may be the child of any process: both processes of gaggled were killed while it ran.
    pub(super) may_be_orphaned: bool,
    /// How the main process ended, while others of its group are still there.
    pub(super) ended: Option<ExitStatus>,
}

impl Process {
    /// A process that is the first of its group.
    pub(super) fn new(program: ProgramId, instance: InstanceId, pid: i32, birth: StartTime, own: bool) -> Self {
        Self {
            program,
            instance,
            birth,
            group: pid,
            leader: Some(birth),
            cgroup: None,
            stage: Stage::Command,
            own,
            ending: Ending::No,
            awaits_others: false,
            asked: BTreeMap::new(),
            killed: BTreeSet::new(),
            left_in_group: 0,
            may_be_orphaned: false,
            asked_since: None,
            ended: None,
        }
    }

    /// The same, with this cgroup.
    pub(super) fn in_cgroup(self, cgroup: Option<Cgroup>) -> Self {
        Self { cgroup, ..self }
    }

    /// The same, as the daemon that its command has left.
    pub(super) fn into_daemon(self) -> Self {
        Self { stage: Stage::Daemon, ..self }
    }

    /// The same, in the group that it is in.
    pub(super) fn in_group(self, group: i32) -> Self {
        Self { group, leader: proc::stat(group).map(|leader| leader.birth), ..self }
    }

    /// How many processes it has left behind.
    pub(super) fn left_behind(&self) -> u16 {
        u16::try_from(self.left_in_group.saturating_add(self.killed.len())).unwrap_or(u16::MAX)
    }

    /// Asks everything in its group to end.
    pub(super) fn terminate(&self, pid: i32) {
        self.signal(pid, Signal::SIGTERM);
        // One that stands still could not hear it.
        self.signal(pid, Signal::SIGCONT);
    }

    /// Sends a signal to its group, if that is still its own.
    pub(super) fn signal(&self, pid: i32, signal: Signal) {
        if self.lives(pid) {
            let _ = killpg(Pid::from_raw(self.group), signal);
        }
    }

    /// Whether anything is left of its group.
    ///
    /// A number is not given to a new process while there is a group of that number. So once the main process of our own
    /// has been reaped, a process of that number means that the group was empty before. In any other case the start time
    /// of the first process of the group tells whether it is still the same.
    pub(super) fn lives(&self, pid: i32) -> bool {
        let group = Pid::from_raw(self.group);
        if self.own && self.group == pid {
            let reused = self.ended.is_some() && kill(group, None) != Err(Errno::ESRCH);
            return !reused && killpg(group, None) != Err(Errno::ESRCH);
        }
        let reused = proc::stat(self.group).is_some_and(|leader| Some(leader.birth) != self.leader);
        let there = !reused && killpg(group, None) != Err(Errno::ESRCH);
        // A main process that has ended may stay a zombie for ever, and with it its group.
        there && (self.ended.is_none() || !proc::members(self.group).is_empty())
    }
}

impl Living {
    pub(super) fn insert(&mut self, pid: i32, process: Process) {
        self.pid_of.insert(process.program, pid);
        if process.group != pid {
            self.by_group.insert(process.group, pid);
        }
        self.by_pid.insert(pid, process);
    }

    pub(super) fn remove(&mut self, pid: i32) -> Option<Process> {
        let process = self.by_pid.remove(&pid)?;
        self.pid_of.remove(&process.program);
        self.by_group.remove(&process.group);
        Some(process)
    }

    /// A daemon may make a group of its own after it was found. That is still to be seen of one that has ended, until it is
    /// reaped.
    pub(super) fn follow_group(&mut self, pid: i32) {
        let Some(process) = self.by_pid.get_mut(&pid) else { return };
        if process.stage != Stage::Daemon || process.ended.is_some() {
            return;
        }
        let Some(stat) = proc::stat(pid).filter(|stat| stat.birth == process.birth && stat.group != process.group)
        else {
            return;
        };
        self.by_group.remove(&process.group);
        process.group = stat.group;
        process.leader = proc::stat(stat.group).map(|leader| leader.birth);
        if stat.group != pid {
            self.by_group.insert(stat.group, pid);
        }
    }

    /// The main process of a group.
    pub(super) fn main_of(&self, group: i32) -> i32 {
        self.by_group.get(&group).copied().unwrap_or(group)
    }

    /// The process of the stop command that runs beside a program.
    pub(super) fn helper_of(&self, program: ProgramId) -> Option<i32> {
        let stops = |helper: &Helper| matches!(helper, Helper::Stop(helped, _) if *helped == program);
        self.helpers.iter().find(|(_, helper)| stops(helper)).map(|(pid, _)| *pid)
    }

    pub(super) fn find(&mut self, program: ProgramId, instance: InstanceId) -> Option<(i32, &mut Process)> {
        let pid = *self.pid_of.get(&program)?;
        self.follow_group(pid);
        let process = self.by_pid.get_mut(&pid).filter(|process| process.instance == instance)?;
        Some((pid, process))
    }
}

/// Kills what is left of the group of a helper, whose number nobody else has as long as anything is.
pub(super) fn kill_group(pid: i32) {
    let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
}
