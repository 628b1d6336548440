//! Waits for processes that have ended, and finds out what each of them was: a main process, a helper or a stray.

use std::sync::{PoisonError, atomic::Ordering};

use gaggled_core::{
    host::{Ending, HostEvent},
    process::ExitStatus,
};
use nix::unistd::{Pid, getpgid};

use crate::host::{
    messages::MonitorCommand,
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

    /// Waits for a child. While there is none, an instance whose main process has ended has no processes left: its
    /// orphans would be our children.
    fn await_child(&self) {
        let mut table = self.table();
        let own = table.by_pid.iter().filter(|(_, process)| process.own);
        let ended = own.filter(|(_, process)| process.ended.is_some()).map(|(pid, _)| *pid);
        for pid in ended.collect::<Vec<_>>() {
            self.queue_final_sweep(&mut table, pid);
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
            // Before it is reaped: the kernel reports it only once.
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

    /// Checks the awaited pid files again: the parent of a daemon may just have ended.
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
                // The report is about an earlier process with the same id.
                if procfs::stat(pid).is_some_and(|stat| stat.start_time == process.start_time && !stat.is_zombie()) {
                    return;
                }
                self.recorder.write(process.program, RunSlot { instance: process.instance, pid, ended: Some(status) });
                self.main_ended(table, pid, status);
            }
            // An orphan, whose group cannot be found any more.
            _ => {
                let foreign = table.by_pid.iter().filter(|(_, process)| !process.own && process.ended.is_some());
                for group in foreign.map(|(pid, _)| *pid).collect::<Vec<_>>() {
                    self.finish_if_empty(&mut table, group);
                }
                self.look_again(&table);
            }
        }
    }

    /// A stop command or a check has ended. The processes that it has started are killed.
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
                        self.ask_the_rest(table, main);
                    }
                }
                self.finish_if_empty(table, main);
            }
            // The receiver may have gone.
            Some(Helper::Check(_, answer)) => drop(answer.send(status)),
            None => {}
        }
    }
}
