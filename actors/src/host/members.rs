//! The processes of a run that are not in the process group of its main process: they have made sessions of their own.
//!
//! They are part of the run all the same: they are asked to end with it, have the same time for that, and are killed when
//! it is over. They are found as descendants of the group, by the token that they carry when their parents have gone, and
//! in the cgroup of the run if it has one.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, OwnedFd},
    thread,
};

use gaggled_core::{
    host::{ExitStatus, StartTime},
    ids::{InstanceId, ProgramId},
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::getpid,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{
    living::{Ending, Living, Process},
    proc::{self, Stat},
    shared::Shared,
    token::Token,
};

/// A process that cannot be mistaken for another that gets its id later.
pub(super) struct Held {
    pid: i32,
    birth: StartTime,
    process: OwnedFd,
}

impl Held {
    /// Holds a process that was seen, if it is still there.
    fn new(pid: i32, stat: &Stat) -> Option<Self> {
        let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        let is_same = proc::stat(pid).is_some_and(|now| now.birth == stat.birth && !now.is_zombie());
        is_same.then_some(Self { pid, birth: stat.birth, process })
    }

    /// Asks it to end. One that stands still could not hear that.
    pub(super) fn terminate(&self) {
        let _ = pidfd_send_signal(&self.process, Signal::TERM);
        let _ = pidfd_send_signal(&self.process, Signal::CONT);
    }

    /// Kills it; whether it was there.
    pub(super) fn kill(&self) -> bool {
        pidfd_send_signal(&self.process, Signal::KILL).is_ok()
    }
}

impl Process {
    /// Asks processes outside its group to end, those of them that were not asked before.
    pub(super) fn ask(&mut self, others: &[Held]) {
        let since = *self.asked_since.get_or_insert_with(proc::now);
        for held in others.iter().filter(|held| held.birth.0 <= since.0) {
            if self.asked.insert(held.pid) {
                held.terminate();
            }
        }
    }
}

impl Shared {
    /// The processes of a run that are not in its group. `roots` are those of its group, as far as they are known.
    pub(super) fn outside(&self, table: &Living, process: &Process, roots: &[i32]) -> Vec<Held> {
        let mut found = BTreeMap::new();
        for root in roots {
            descendants(*root, &mut found);
        }
        let name = &self.traits[process.program].name;
        let carries = |pid: i32| {
            let token = Token::of(pid, &self.journal);
            token.is_some_and(|token| token.instance == process.instance && token.program == *name)
        };
        // What has lost its parent became a child of the first thread of this process. After another run of gaggled it
        // may be anybody's.
        let own = getpid().as_raw();
        let is_stray = |child: &i32| !table.by_pid.contains_key(child) && carries(*child);
        if !process.own || proc::children(own, own).iter().any(is_stray) {
            let bearers = proc::all().filter(|pid| carries(*pid));
            found.extend(bearers.filter_map(|pid| Some((pid, proc::stat(pid)?))));
        }
        if let Some(cgroup) = &process.cgroup {
            found.extend(cgroup.members().into_iter().filter_map(|pid| Some((pid, proc::stat(pid)?))));
        }
        let is_other = |pid: i32, stat: &Stat| {
            let known = table.by_pid.contains_key(&pid) || table.helpers.contains_key(&stat.group);
            !known && stat.group != process.group && !stat.is_zombie()
        };
        let others = found.into_iter().filter(|(pid, stat)| is_other(*pid, stat));
        others.filter_map(|(pid, stat)| Held::new(pid, &stat)).collect()
    }

    /// Everything in the group of a run that was asked to end is gone: it has ended when the rest is gone, too.
    pub(super) fn settle(&self, table: &mut Living, main: i32, status: ExitStatus) {
        let Some(process) = table.by_pid.get(&main) else { return };
        if process.awaits_others {
            return;
        }
        if process.ending != Ending::Asked {
            return self.finish(table, main, status, 0);
        }
        let left = self.outside(table, process, &[]);
        if left.is_empty() {
            self.conclude(table, main, status, 0);
        } else if !self.await_others(table, main, left) {
            self.finish(table, main, status, 0);
        }
    }

    /// Kills what a run has left that ended well, when nothing of it is wanted after all.
    pub(super) fn kill_kept(&self, program: ProgramId, instance: InstanceId) {
        let own = self.own.clone();
        // To find it takes a look at all processes, for which the actors do not wait.
        let kill = move || {
            let Some(shared) = own.upgrade() else { return };
            let table = shared.table();
            if table.pid_of.contains_key(&program) {
                return;
            }
            let gone = Process::new(program, instance, 0, StartTime::default(), false);
            let left = shared.outside(&table, &gone, &[]);
            drop(table);
            for held in left {
                held.kill();
            }
        };
        let _ = thread::Builder::new().name("counter".into()).spawn(kill);
    }

    /// Asks these processes to end, those of them that were not asked before, and waits for them in a thread; false if
    /// there is none to be had.
    fn await_others(&self, table: &mut Living, main: i32, left: Vec<Held>) -> bool {
        let Some(process) = table.by_pid.get_mut(&main) else { return false };
        process.ask(&left);
        let (shared, instance) = (self.own.clone(), process.instance);
        let wait = move || {
            wait_for(&left);
            if let Some(shared) = shared.upgrade() {
                shared.others_ended(main, instance);
            }
        };
        let waits = thread::Builder::new().name("others".into()).spawn(wait).is_ok();
        process.awaits_others = waits;
        waits
    }

    fn others_ended(&self, main: i32, instance: InstanceId) {
        let mut table = self.table();
        let Some(process) = table.by_pid.get_mut(&main).filter(|process| process.instance == instance) else { return };
        process.awaits_others = false;
        if let Some(status) = process.ended.filter(|_| process.ending != Ending::Killed) {
            self.settle(&mut table, main, status);
        }
    }
}

/// Everything below a process, without what has lost its parent.
fn descendants(root: i32, found: &mut BTreeMap<i32, Stat>) {
    let mut pending = vec![root];
    let mut seen = BTreeSet::new();
    while let Some(parent) = pending.pop() {
        for child in proc::all_children(parent) {
            if seen.insert(child)
                && let Some(stat) = proc::stat(child)
            {
                found.insert(child, stat);
                pending.push(child);
            }
        }
    }
}

/// Waits until all of these have ended.
fn wait_for(left: &[Held]) {
    for held in left {
        let mut waits = [PollFd::new(held.process.as_fd(), PollFlags::POLLIN)];
        while poll(&mut waits, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
    }
}

/// Kills a process of gaggled's own that checks or stops a program, with everything that it has started.
pub(super) fn kill_tree(root: i32) {
    let mut found = BTreeMap::new();
    descendants(root, &mut found);
    super::living::kill_group(root);
    for (pid, stat) in found {
        if let Some(held) = Held::new(pid, &stat) {
            held.kill();
        }
    }
}
