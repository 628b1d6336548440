//! What becomes of a process that has ended, and of what it leaves behind.

use std::{
    collections::BTreeMap,
    sync::{MutexGuard, PoisonError, atomic::Ordering},
};

use gaggled_core::{
    host::{Ending, ExitAction, HostEvent, HostReport},
    process::ExitStatus,
};
use nix::{
    sys::signal::Signal,
    unistd::{Pid, getpgid},
};

use crate::host::{
    messages::{MonitorCommand, SpawnRequest},
    procfs,
    recover::flight_recorder::RunSlot,
    spawn::sys,
    track::{
        process_table::{Helper, MainProcess, Process, ProcessTable},
        process_tree::kill_tree,
        tracker::ProcessTracker,
    },
};

impl ProcessTracker {
    pub(crate) fn reap_for_ever(&self) {
        loop {
            match sys::wait_for_any() {
                Some((pid, status)) => self.ended(pid, status),
                None => self.await_child(),
            }
        }
    }

    /// Without a child nothing is left of an instance whose main process has ended: what that left behind became ours.
    fn await_child(&self) {
        let mut table = self.table();
        let own = table.by_pid.iter().filter(|(_, process)| process.own);
        let ended = own.filter(|(_, process)| process.ended.is_some()).map(|(pid, _)| *pid);
        for pid in ended.collect::<Vec<_>>() {
            self.settle(&mut table, pid);
        }
        let runs = |process: &Process| process.own && process.ended.is_none();
        while table.helpers.is_empty() && !table.by_pid.values().any(runs) {
            table = self.registered.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A child has ended: the main process of an instance, or a stray that became ours when its parent ended.
    fn ended(&self, pid: i32, status: ExitStatus) {
        let mut table = self.table();
        while table.handed_over || self.in_flight.load(Ordering::SeqCst) == pid {
            table = self.registered.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let group = getpgid(Some(Pid::from_raw(pid))).map_or(pid, Pid::as_raw);
        table.follow_group(pid);
        if let Some(process) = table.by_pid.get(&pid).filter(|process| process.own) {
            // Before it is taken from the kernel, which reports it only once.
            self.recorder.write(process.program, RunSlot { instance: process.instance, pid, ended: Some(status) });
        }
        sys::reap(pid);
        match table.by_pid.get(&pid) {
            None if table.helpers.contains_key(&pid) => self.helper_ended(&mut table, pid, status),
            Some(process) if process.own && process.ended.is_none() => self.main_ended(table, pid, status),
            _ => {
                if let Some(program) = table.strays.remove(&pid)
                    && !table.strays.values().any(|other| *other == program)
                {
                    self.kill_helper_strays(&mut table, program);
                }
                let main = table.main_of(group);
                self.finish_if_empty(&mut table, main);
                self.look_again(&table);
            }
        }
    }

    /// The process that has just ended may have been between a daemon and the command that has left it.
    fn look_again(&self, table: &ProcessTable) {
        if table.by_pid.values().any(|process| process.stage == MainProcess::AwaitingDaemon) {
            self.monitor(MonitorCommand::RecheckPidFiles);
        }
    }

    /// A process that is not our child has ended and was reaped.
    pub(crate) fn ended_elsewhere(&self, pid: i32, status: ExitStatus) {
        let mut table = self.table();
        match table.by_pid.get(&pid) {
            Some(process) if !process.own && process.ended.is_none() => {
                // A report about an earlier process of the same id is not about this one.
                if procfs::stat(pid).is_some_and(|stat| stat.start_time == process.start_time && !stat.is_zombie()) {
                    return;
                }
                self.recorder.write(process.program, RunSlot { instance: process.instance, pid, ended: Some(status) });
                self.main_ended(table, pid, status);
            }
            // A stray; its group cannot be found any more.
            _ => {
                let foreign = table.by_pid.iter().filter(|(_, process)| !process.own && process.ended.is_some());
                for group in foreign.map(|(pid, _)| *pid).collect::<Vec<_>>() {
                    self.finish_if_empty(&mut table, group);
                }
                self.look_again(&table);
            }
        }
    }

    fn main_ended(&self, mut table: MutexGuard<'_, ProcessTable>, pid: i32, status: ExitStatus) {
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
                self.keep(pid, status);
            }
            ExitAction::Release => self.conclude(&mut table, pid, status),
            ExitAction::AwaitRest => {
                let lives = process.lives(pid);
                match table.helper_of(program, instance) {
                    // What is left is asked, or has ended, when the stop command has.
                    Some(_) => {}
                    None if lives => ask_the_rest(&mut table, pid),
                    None => self.settle(&mut table, pid),
                }
            }
            ExitAction::KillRest if process.lives(pid) => {
                drop(table);
                self.sweep(pid);
            }
            ExitAction::KillRest => self.settle(&mut table, pid),
        }
    }

    fn finish_if_empty(&self, table: &mut ProcessTable, main: i32) {
        let last_of =
            table.by_pid.get(&main).filter(|process| process.stage != MainProcess::AwaitingDaemon).filter(|process| {
                let helped =
                    process.ending == Ending::Asked && table.helper_of(process.program, process.instance).is_some();
                !helped && !process.lives(main)
            });
        if last_of.is_some_and(|process| process.ended.is_some()) {
            self.settle(table, main);
        }
    }

    /// A stop command has ended. What it has started does not outlive it.
    fn helper_ended(&self, table: &mut ProcessTable, pid: i32, status: ExitStatus) {
        kill_tree(pid);
        let helper = table.helpers.remove(&pid);
        if let Some(Helper::Stop(program, _) | Helper::Check(program, _)) = &helper {
            self.kill_helper_strays(table, *program);
        }
        match helper {
            Some(Helper::Stop(program, instance)) => {
                let Some((main, _)) = table.find(program, instance) else { return };
                if let Some(process) = table.by_pid.get(&main).filter(|process| process.ending != Ending::Killed) {
                    if !status.is_success() {
                        self.report(process, HostEvent::StopCommandFailed { status });
                    } else if process.ended.is_some() {
                        ask_the_rest(table, main);
                    }
                }
                self.finish_if_empty(table, main);
            }
            // The receiver may have gone.
            Some(Helper::Check(_, answer)) => drop(answer.send(status)),
            None => {}
        }
    }

    /// A run has ended well, and what it has left is part of what it has done: it is counted, and runs on. It is known again
    /// by its token.
    fn keep(&self, pid: i32, status: ExitStatus) {
        let group = self.table().by_pid.get(&pid).map_or(pid, |process| process.group);
        let members = procfs::members(group);
        let left = self.count_kept(pid, &members);
        let mut table = self.table();
        let Some(process) = table.by_pid.get_mut(&pid) else { return };
        match process.ending {
            Ending::No => {
                process.left_in_group = left;
                self.conclude(&mut table, pid, status);
            }
            // It was asked to end meanwhile: nothing of it is kept.
            Ending::Signalled | Ending::Asked | Ending::Killed => {
                drop(table);
                self.sweep(pid);
            }
        }
    }

    /// Counts and kills what the main process of an instance has left behind, and reports its end.
    pub(crate) fn sweep(&self, pid: i32) {
        let group = self.table().by_pid.get(&pid).map_or(pid, |process| process.group);
        let members = procfs::members(group);
        let mut table = self.table();
        let Some(process) = table.by_pid.get(&pid).filter(|process| process.ended.is_some()) else { return };
        // Found while they still have their parents.
        let others = self.outside(&table, process, &members, &BTreeMap::new());
        process.signal(pid, Signal::SIGKILL);
        if let Some(process) = table.by_pid.get_mut(&pid) {
            // One that has just made a session of its own is among the others.
            let is_other = |pid: &&i32| others.iter().any(|other| other.pid == **pid);
            process.left_in_group = members.iter().filter(|pid| !is_other(pid)).count();
            process.kill_others(&others);
            // A thread may still wait for the processes that were killed just now.
            process.awaits_others = false;
        }
        self.settle(&mut table, pid);
    }

    /// Nothing is left of a run.
    pub(crate) fn conclude(&self, table: &mut ProcessTable, pid: i32, status: ExitStatus) {
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
                // Files are not touched under the lock. It has ended when there is no file any more.
                Some(file) => self.order(SpawnRequest::RemovePidFile {
                    path: file.path().clone(),
                    pid,
                    ended: HostReport { program: process.program, instance: process.instance, event },
                }),
                None => self.report(&process, event),
            }
        }
    }

    /// Ends the cgroup of a run, and says how that has ended, now that the kernel can be asked why.
    fn end_cgroup(&self, process: &Process, status: ExitStatus) -> ExitStatus {
        let Some(cgroup) = &process.cgroup else { return status };
        let status = if process.ending == Ending::Killed { status } else { cgroup.oom_status(status) };
        if !cgroup.remove() {
            cgroup.kill();
            self.queue_cgroup_removal(cgroup.clone());
        }
        status
    }
}

/// Asks what is left of the group of a main process to end, if it was not asked before.
fn ask_the_rest(table: &mut ProcessTable, main: i32) {
    if let Some(process) = table.by_pid.get_mut(&main).filter(|process| !process.is_group_asked) {
        process.terminate(main);
    }
}
