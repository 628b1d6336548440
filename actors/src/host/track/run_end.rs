//! How a run ends whose main process has ended: what it leaves is kept, asked to end or killed, and its end is reported when
//! nothing is left.
//!
//! ```text
//! main_ended --+--> finish_keeping_rest, or the rest is released ------------------------------> finish
//!              +--> kill_rest --------+                                                            ^
//!              +--> ask_the_rest .....+--> queue_final_sweep --> final_sweep -- nothing is left ---+
//!              +--> the group is empty+                          ^   | something outside the group is left
//!                                                                +---+ it is asked to end or killed, and waited for
//! ```
//!
//! The final sweep is done by a thread of its own, [`ProcessTracker::sweep_for_ever`].

use std::{
    collections::BTreeMap,
    iter,
    sync::{Arc, MutexGuard},
    thread,
};

use crossbeam_channel::Receiver;
use gaggled_core::{
    base::ids::InstanceId,
    host::{Ending, ExitAction, HostEvent, HostReport},
    process::ExitStatus,
};
use nix::{poll::PollTimeout, sys::signal::Signal};

use crate::host::{
    messages::{Emptied, MonitorCommand, SpawnRequest},
    procfs,
    track::{
        process_table::{MainProcess, Process, ProcessTable},
        process_tree::{Held, ProcessesByToken, wait_for},
        tracker::ProcessTracker,
    },
};

impl ProcessTracker {
    /// The main process of a run has ended.
    pub(crate) fn main_ended(&self, mut table: MutexGuard<'_, ProcessTable>, pid: i32, status: ExitStatus) {
        let Some(process) = table.by_pid.get_mut(&pid) else { return };
        process.ended = Some(status);
        let (program, instance) = (process.program, process.instance);
        let is_command = process.stage == MainProcess::Command;
        match self.programs[program].exit.action(status, process.ending, is_command) {
            ExitAction::AwaitDaemon => {
                process.stage = MainProcess::AwaitingDaemon;
                self.monitor(MonitorCommand::AwaitDaemon(program, instance));
            }
            ExitAction::Keep => {
                drop(table);
                self.finish_keeping_rest(pid, status);
            }
            ExitAction::Release => self.finish(&mut table, pid, status),
            ExitAction::AwaitRest => {
                let lives = process.lives(pid);
                match table.helper_of(program, instance) {
                    // Whether the other processes are asked is decided when the stop command has ended.
                    Some(_) => {}
                    None if lives => self.ask_the_rest(&mut table, pid),
                    None => self.queue_final_sweep(&mut table, pid),
                }
            }
            ExitAction::KillRest if process.lives(pid) => {
                drop(table);
                self.kill_rest(pid);
            }
            ExitAction::KillRest => self.queue_final_sweep(&mut table, pid),
        }
    }

    /// The last process of a group may have ended.
    pub(crate) fn finish_if_empty(&self, table: &mut ProcessTable, main: i32) {
        let last_of =
            table.by_pid.get(&main).filter(|process| process.stage != MainProcess::AwaitingDaemon).filter(|process| {
                let helped =
                    process.ending == Ending::Asked && table.helper_of(process.program, process.instance).is_some();
                !helped && !process.lives(main)
            });
        if last_of.is_some_and(|process| process.ended.is_some()) {
            self.queue_final_sweep(table, main);
        }
    }

    /// A run has ended well and its other processes are kept: they are counted, and later recognised by their token.
    fn finish_keeping_rest(&self, pid: i32, status: ExitStatus) {
        let group = self.table().by_pid.get(&pid).map_or(pid, |process| process.group);
        let members = procfs::members(group);
        let left = self.count_kept(pid, &members);
        let mut table = self.table();
        let Some(process) = table.by_pid.get_mut(&pid) else { return };
        match process.ending {
            Ending::No => {
                process.left_in_group = left;
                self.finish(&mut table, pid, status);
            }
            // It was asked to end meanwhile: nothing of it is kept.
            Ending::Signalled | Ending::Asked | Ending::Killed => {
                drop(table);
                self.kill_rest(pid);
            }
        }
    }

    /// Counts and kills what the main process of an instance has left behind, and reports its end.
    pub(crate) fn kill_rest(&self, pid: i32) {
        let group = self.table().by_pid.get(&pid).map_or(pid, |process| process.group);
        let members = procfs::members(group);
        let mut table = self.table();
        let Some(process) = table.by_pid.get(&pid).filter(|process| process.ended.is_some()) else { return };
        // Found while they still have their parents.
        let others = self.outside(&table, process, &members, &BTreeMap::new());
        process.signal(pid, Signal::SIGKILL);
        if let Some(process) = table.by_pid.get_mut(&pid) {
            // A process that has just created a session is among the others.
            let is_other = |pid: &&i32| others.iter().any(|other| other.pid == **pid);
            process.left_in_group = members.iter().filter(|pid| !is_other(pid)).count();
            process.kill_others(&others);
            // A thread may still wait for the processes that were killed just now.
            process.awaits_others = false;
        }
        self.queue_final_sweep(&mut table, pid);
    }

    /// The group of a run is empty. The run has ended when no other process of it is left either; the thread of
    /// [`ProcessTracker::sweep_for_ever`] looks for those.
    pub(crate) fn queue_final_sweep(&self, table: &mut ProcessTable, main: i32) {
        if let Some(process) = table.by_pid.get_mut(&main).filter(|process| !process.awaits_others) {
            process.awaits_others = true;
            let _ = self.emptied.send((main, process.instance));
        }
    }

    /// Looks for processes outside the groups of runs, for all runs whose groups are empty at once: a scan of all
    /// processes costs the same for one run as for a thousand.
    pub(crate) fn sweep_for_ever(&self, emptied: &Receiver<Emptied>) {
        for first in emptied {
            let batch: Vec<Emptied> = iter::once(first).chain(emptied.try_iter()).collect();
            let is_orphaned = |(main, _): &Emptied| {
                let table = self.table();
                table.by_pid.get(main).is_some_and(|process| process.may_be_orphaned)
            };
            let tagged = self.tagged(batch.iter().any(is_orphaned));
            for (main, instance) in batch {
                self.final_sweep(&mut self.table(), main, instance, &tagged);
            }
        }
    }

    /// A run has ended when no process of it is left outside its group. Until then these are asked to end, or killed
    /// when their time is over. When they have ended the search is repeated, since they may have started others.
    fn final_sweep(&self, table: &mut ProcessTable, main: i32, instance: InstanceId, tagged: &ProcessesByToken) {
        let Some(process) = table.by_pid.get_mut(&main).filter(|process| process.instance == instance) else { return };
        process.awaits_others = false;
        let Some(status) = process.ended else { return };
        let left = table.by_pid.get(&main).map(|process| self.outside(table, process, &[], tagged));
        let Some((process, left)) = table.by_pid.get_mut(&main).zip(left.filter(|left| !left.is_empty())) else {
            return self.finish(table, main, status);
        };
        if process.ending == Ending::Asked {
            process.ask(&left, self.programs[process.program].stop_signal);
        } else {
            process.kill_others(&left);
        }
        if let Err(left) = self.await_others(process, main, left) {
            process.kill_others(&left);
            self.finish(table, main, status);
        }
    }

    /// Waits in a thread until these have ended, or returns them if no thread can be started.
    fn await_others(&self, process: &mut Process, main: i32, left: Vec<Held>) -> Result<(), Vec<Held>> {
        let (shared, instance) = (self.own.clone(), process.instance);
        let left = Arc::new(left);
        let held = Arc::clone(&left);
        let wait = move || {
            wait_for(&held, PollTimeout::NONE);
            if let Some(shared) = shared.upgrade() {
                shared.others_ended(main, instance);
            }
        };
        process.awaits_others = thread::Builder::new().name("others".into()).spawn(wait).is_ok();
        if process.awaits_others { Ok(()) } else { Err(Arc::into_inner(left).unwrap_or_default()) }
    }

    fn others_ended(&self, main: i32, instance: InstanceId) {
        let mut table = self.table();
        let Some(process) = table.by_pid.get_mut(&main).filter(|process| process.instance == instance) else { return };
        process.awaits_others = false;
        if process.ended.is_some() {
            self.queue_final_sweep(&mut table, main);
        }
    }

    /// Removes a run from the table, cleans up, and reports its end.
    pub(crate) fn finish(&self, table: &mut ProcessTable, pid: i32, status: ExitStatus) {
        if let Some(process) = table.remove(pid) {
            let orphans = process.orphans();
            Self::end_check_in(table, process.program);
            let is_kept = self.programs[process.program].exit.is_kept(status, process.ending);
            let status = if is_kept { status } else { self.end_cgroup(&process, status) };
            if self.programs[process.program].is_monitored {
                self.monitor(MonitorCommand::End(process.program));
            }
            let event = HostEvent::Exited { status, orphans };
            match &self.programs[process.program].pid_file {
                // Files are not accessed under the lock. The run is reported as ended when its pid file is removed.
                Some(file) => self.order(SpawnRequest::RemovePidFile {
                    path: file.path().clone(),
                    pid,
                    ended: HostReport { program: process.program, instance: process.instance, event },
                }),
                None => self.report(&process, event),
            }
        }
    }

    /// Removes the cgroup of a run, and returns the exit status, corrected if the kernel has killed it for lack of
    /// memory.
    fn end_cgroup(&self, process: &Process, status: ExitStatus) -> ExitStatus {
        let Some(cgroup) = &process.cgroup else { return status };
        let status = if process.ending == Ending::Killed { status } else { cgroup.oom_status(status) };
        if !cgroup.remove() {
            cgroup.kill();
            self.queue_cgroup_removal(cgroup.clone());
        }
        status
    }

    /// Asks what is left of the group of a main process to end, if it was not asked before.
    pub(crate) fn ask_the_rest(&self, table: &mut ProcessTable, main: i32) {
        if let Some(process) = table.by_pid.get_mut(&main).filter(|process| !process.is_group_asked) {
            process.terminate_group(main, self.programs[process.program].stop_signal);
        }
    }
}
