//! The instances that have processes left. Each has the process group of its main process.

use std::collections::{BTreeMap, BTreeSet};

use gaggled_core::{
    base::ids::{InstanceId, ProgramId},
    host::Ending,
    process::{ExitStatus, Signal as StopSignal, StartTime},
};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use tokio::sync::oneshot;

use crate::host::{
    cgroup::Cgroup,
    procfs::{self, Stat},
    track::process_tree::Held,
};

/// The instances that have processes left.
#[derive(Debug, Default)]
pub(crate) struct ProcessTable {
    /// By the id of the main process.
    pub(crate) by_pid: BTreeMap<i32, Process>,
    /// The main process of each group whose id is another: a daemon is seldom the first process of its group.
    by_group: BTreeMap<i32, i32>,
    /// The main process of each program.
    pub(crate) pid_of: BTreeMap<ProgramId, i32>,
    /// The stop commands and checks that run beside programs.
    pub(crate) helpers: BTreeMap<i32, Helper>,
    /// The processes that these have put into other sessions, and that were killed and have not ended yet.
    pub(crate) strays: BTreeMap<i32, ProgramId>,
    /// Whether reaping is left to the next daemon.
    pub(crate) handed_over: bool,
}

/// A command that runs beside a program.
#[derive(Debug)]
pub(crate) enum Helper {
    /// The stop command of a run.
    Stop(ProgramId, InstanceId),
    /// A check, and the channel for its exit status.
    Check(ProgramId, oneshot::Sender<ExitStatus>),
}

/// The kind of an instance's main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MainProcess {
    /// Its command.
    Command,
    /// Its command, which has ended, while the daemon that it has left is looked for.
    AwaitingDaemon,
    /// The daemon that its command has left.
    Daemon,
}

/// One instance.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) program: ProgramId,
    pub(crate) instance: InstanceId,
    pub(crate) start_time: StartTime,
    /// Its process group, and the start time of the group's first process, if that exists.
    pub(crate) group: i32,
    leader: Option<StartTime>,
    /// Its cgroup, if it has one to itself.
    pub(crate) cgroup: Option<Cgroup>,
    /// What its main process is.
    pub(crate) stage: MainProcess,
    /// Whether it is our child; if not, it has survived the previous daemon.
    pub(crate) own: bool,
    /// Whether it is to end.
    pub(crate) ending: Ending,
    /// Whether its group was asked to end by a signal.
    pub(crate) is_group_asked: bool,
    /// Whether its group is empty, and its processes outside the group are waited for.
    pub(crate) awaits_others: bool,
    /// Processes outside its group that were asked to end, and when the first was: processes that begin later may be
    /// part of the shutdown, and are not asked.
    pub(crate) asked: BTreeMap<i32, StartTime>,
    pub(crate) asked_since: Option<StartTime>,
    /// Processes outside its group that were killed, each once.
    pub(crate) killed: BTreeSet<(i32, StartTime)>,
    /// How many processes of its group were killed, or are kept.
    pub(crate) left_in_group: usize,
    /// Whether its orphans may be children of any process: the daemon and the subreaper were both killed while it ran.
    pub(crate) may_be_orphaned: bool,
    /// How the main process ended, while others of its group are still there.
    pub(crate) ended: Option<ExitStatus>,
}

impl Process {
    /// A process that is the first of its group.
    pub(crate) fn new(program: ProgramId, instance: InstanceId, pid: i32, start_time: StartTime, own: bool) -> Self {
        Self {
            program,
            instance,
            start_time,
            group: pid,
            leader: Some(start_time),
            cgroup: None,
            stage: MainProcess::Command,
            own,
            ending: Ending::No,
            is_group_asked: false,
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
    pub(crate) fn in_cgroup(self, cgroup: Option<Cgroup>) -> Self {
        Self { cgroup, ..self }
    }

    /// The same, as it was found by this daemon. A command whose daemon is awaited has ended.
    pub(crate) fn found_as(self, stage: MainProcess, ending: Ending, may_be_orphaned: bool) -> Self {
        let ended = (stage == MainProcess::AwaitingDaemon).then_some(ExitStatus::Unknown);
        Self { stage, ending, may_be_orphaned, ended, ..self }
    }

    /// The same run with the daemon that its command has left as its main process.
    pub(crate) fn replaced_by(self, pid: i32, stat: &Stat) -> Self {
        let daemon = Self::new(self.program, self.instance, pid, stat.start_time, self.own);
        let daemon = daemon.in_cgroup(self.cgroup).in_group(stat.group);
        daemon.found_as(MainProcess::Daemon, self.ending, self.may_be_orphaned)
    }

    /// The same, in the group that it is in, which seldom is its own if it is a daemon.
    pub(crate) fn in_group(self, group: i32) -> Self {
        if group == self.group {
            return self;
        }
        Self { group, leader: procfs::stat(group).map(|leader| leader.start_time), ..self }
    }

    /// How many processes it has left behind.
    pub(crate) fn orphans(&self) -> u16 {
        u16::try_from(self.left_in_group.saturating_add(self.killed.len())).unwrap_or(u16::MAX)
    }

    /// Asks everything in its group to end.
    pub(crate) fn terminate_group(&mut self, pid: i32, signal: StopSignal) {
        self.is_group_asked = true;
        self.signal(pid, Signal::try_from(signal.0).unwrap_or(Signal::SIGTERM));
        // A stopped process could not handle the signal.
        self.signal(pid, Signal::SIGCONT);
    }

    /// Asks those processes outside its group to end that were not asked before.
    pub(crate) fn ask(&mut self, others: &[Held], signal: StopSignal) {
        // Start times are rounded: a process as late as the first request may have begun after it, and is not asked.
        let since = self.asked_since.replace(self.asked_since.unwrap_or_else(procfs::now));
        for held in others.iter().filter(|held| since.is_none_or(|since| held.start_time.0 < since.0)) {
            if self.asked.insert(held.pid, held.start_time).is_none() {
                held.terminate(signal);
            }
        }
    }

    /// Kills processes outside its group, and counts each once.
    pub(crate) fn kill_others(&mut self, others: &[Held]) {
        for held in others {
            held.kill();
            self.killed.insert((held.pid, held.start_time));
        }
    }

    /// Sends a signal to its group, if that is still its own.
    pub(crate) fn signal(&self, pid: i32, signal: Signal) {
        if self.lives(pid) {
            let _ = killpg(Pid::from_raw(self.group), signal);
        }
    }

    /// Whether anything is left of its group.
    ///
    /// A process id is not reused while there is a group with that number. So once our own main process has been
    /// reaped, a process with its id means that the group was empty before. In any other case the start time of the
    /// group's first process shows whether it is still the same group.
    pub(crate) fn lives(&self, pid: i32) -> bool {
        let group = Pid::from_raw(self.group);
        if self.own && self.group == pid {
            let reused = self.ended.is_some() && kill(group, None) != Err(Errno::ESRCH);
            return !reused && killpg(group, None) != Err(Errno::ESRCH);
        }
        let reused = procfs::stat(self.group).is_some_and(|leader| Some(leader.start_time) != self.leader);
        let there = !reused && killpg(group, None) != Err(Errno::ESRCH);
        // A main process that has ended may stay a zombie for ever, and with it its group.
        there && (self.ended.is_none() || !procfs::members(self.group).is_empty())
    }
}

impl ProcessTable {
    pub(crate) fn insert(&mut self, pid: i32, process: Process) {
        self.pid_of.insert(process.program, pid);
        if process.group != pid {
            self.by_group.insert(process.group, pid);
        }
        self.by_pid.insert(pid, process);
    }

    pub(crate) fn remove(&mut self, pid: i32) -> Option<Process> {
        let process = self.by_pid.remove(&pid)?;
        self.pid_of.remove(&process.program);
        self.by_group.remove(&process.group);
        Some(process)
    }

    /// Updates the group of a daemon, which may create its own after it was found. The group of a daemon that has ended
    /// can be read until it is reaped.
    pub(crate) fn follow_group(&mut self, pid: i32) {
        let Some(process) = self.by_pid.get_mut(&pid) else { return };
        if process.stage != MainProcess::Daemon || process.ended.is_some() {
            return;
        }
        let Some(stat) =
            procfs::stat(pid).filter(|stat| stat.start_time == process.start_time && stat.group != process.group)
        else {
            return;
        };
        self.by_group.remove(&process.group);
        process.group = stat.group;
        process.leader = procfs::stat(stat.group).map(|leader| leader.start_time);
        if stat.group != pid {
            self.by_group.insert(stat.group, pid);
        }
    }

    /// The main process of a group.
    pub(crate) fn main_of(&self, group: i32) -> i32 {
        self.by_group.get(&group).copied().unwrap_or(group)
    }

    /// The process of the stop command that runs beside a run of a program.
    pub(crate) fn helper_of(&self, program: ProgramId, instance: InstanceId) -> Option<i32> {
        let stops =
            |helper: &Helper| matches!(helper, Helper::Stop(helped, run) if (*helped, *run) == (program, instance));
        self.helpers.iter().find(|(_, helper)| stops(helper)).map(|(pid, _)| *pid)
    }

    /// Finds a run and notes that it is to end now. A daemon that it has left is not looked for any more.
    pub(crate) fn ask_to_end(&mut self, program: ProgramId, instance: InstanceId) -> Option<(i32, &mut Process)> {
        let (pid, process) = self.find(program, instance)?;
        process.ending = process.ending.max(Ending::Asked);
        if process.stage == MainProcess::AwaitingDaemon {
            process.stage = MainProcess::Command;
        }
        Some((pid, process))
    }

    pub(crate) fn find(&mut self, program: ProgramId, instance: InstanceId) -> Option<(i32, &mut Process)> {
        let pid = *self.pid_of.get(&program)?;
        self.follow_group(pid);
        let process = self.by_pid.get_mut(&pid).filter(|process| process.instance == instance)?;
        Some((pid, process))
    }
}
