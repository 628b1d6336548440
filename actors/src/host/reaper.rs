//! What becomes of a process that has ended, and of what it leaves behind.

use std::sync::{MutexGuard, PoisonError, atomic::Ordering};

use gaggled_core::host::{ExitStatus, Fact, Observed};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getpgid, getpid, getppid},
};

use super::{
    attendant::Task,
    kernel,
    living::{Helper, Living, Process, Stage, kill_group},
    proc,
    recorder::Slot,
    shared::Shared,
    starter::Order,
    token::Token,
};

impl Shared {
    pub(super) fn reap_for_ever(&self) {
        loop {
            match kernel::wait_for_any() {
                Some((pid, status)) => self.ended(pid, status),
                None => self.await_child(),
            }
        }
    }

    /// Without a child nothing is left of an instance whose main process has ended: what that left behind became ours.
    fn await_child(&self) {
        let mut table = self.table();
        let own = table.by_pid.iter().filter(|(_, process)| process.own);
        let ended = own.filter_map(|(pid, process)| Some((*pid, process.ended?)));
        for (pid, status) in ended.collect::<Vec<_>>() {
            self.finish(&mut table, pid, status, 0);
        }
        while table.helpers.is_empty() && !table.by_pid.values().any(|process| process.own) {
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
            // Before it is taken from the kernel, which tells it only once.
            self.recorder.write(process.program, Slot { instance: process.instance, pid, ended: Some(status) });
        }
        kernel::reap(pid);
        match table.by_pid.get(&pid) {
            None if table.helpers.contains_key(&pid) => self.helper_ended(&mut table, pid, status),
            Some(process) if process.own && process.ended.is_none() => self.main_ended(table, pid, status),
            _ => {
                let main = table.main_of(group);
                self.finish_if_empty(&mut table, main);
                self.look_again(&table);
            }
        }
    }

    /// Whoever has just ended may have been between a daemon and the command that has left it.
    fn look_again(&self, table: &Living) {
        if table.by_pid.values().any(|process| process.stage == Stage::Awaiting) {
            self.attend(Task::LookAgain);
        }
    }

    /// A process that is not our child has ended and was reaped.
    pub(super) fn ended_elsewhere(&self, pid: i32, status: ExitStatus) {
        let mut table = self.table();
        match table.by_pid.get(&pid) {
            Some(process) if !process.own && process.ended.is_none() => {
                // What was told of an earlier process of the same id is not about this one.
                if proc::stat(pid).is_some_and(|stat| stat.birth == process.birth && !stat.is_zombie()) {
                    return;
                }
                self.recorder.write(process.program, Slot { instance: process.instance, pid, ended: Some(status) });
                self.main_ended(table, pid, status);
            }
            // A stray; nobody can tell any more to which group it belonged.
            _ => {
                let foreign = table.by_pid.iter().filter(|(_, process)| !process.own && process.ended.is_some());
                for group in foreign.map(|(pid, _)| *pid).collect::<Vec<_>>() {
                    self.finish_if_empty(&mut table, group);
                }
                self.look_again(&table);
            }
        }
    }

    fn main_ended(&self, mut table: MutexGuard<'_, Living>, pid: i32, status: ExitStatus) {
        let Some(process) = table.by_pid.get_mut(&pid) else { return };
        process.ended = Some(status);
        let program = process.program;
        let leaves_daemon =
            self.traits[program].daemon_file().filter(|_| process.stage == Stage::Command && status.is_success());
        if let Some(file) = leaves_daemon.filter(|_| !process.stopping) {
            process.stage = Stage::Awaiting;
            let (instance, path) = (process.instance, file.to_owned());
            return self.attend(Task::AwaitDaemon { program, instance, path });
        }
        let lives = process.lives(pid);
        let waits = process.stopping && !process.killed;
        match (lives, waits) {
            (false, true) if table.helper_of(program).is_some() => {}
            (false, _) => self.finish(&mut table, pid, status, 0),
            (true, true) => {}
            (true, false) => {
                drop(table);
                self.sweep(pid);
            }
        }
    }

    fn finish_if_empty(&self, table: &mut Living, main: i32) {
        let last_of = table.by_pid.get(&main).filter(|process| process.stage != Stage::Awaiting).filter(|process| {
            let helped = process.stopping && !process.killed && table.helper_of(process.program).is_some();
            !helped && !process.lives(main)
        });
        if let Some(status) = last_of.and_then(|process| process.ended) {
            self.finish(table, main, status, 0);
        }
    }

    /// A stop command has ended. What it has started does not outlive it.
    fn helper_ended(&self, table: &mut Living, pid: i32, status: ExitStatus) {
        kill_group(pid);
        match table.helpers.remove(&pid) {
            Some(Helper::Stop(program, instance)) => {
                let Some((main, _)) = table.find(program, instance) else { return };
                // What a stop command cannot do, a signal may.
                if let Some(process) = table.by_pid.get(&main).filter(|process| !status.is_success() && !process.killed)
                {
                    self.report(process, Fact::StopCommandFailed { status });
                    process.terminate(main);
                }
                self.finish_if_empty(table, main);
            }
            // Whoever has asked may have gone.
            Some(Helper::Check(_, answer)) => drop(answer.send(status)),
            None => {}
        }
    }

    /// Counts and kills what the main process of an instance has left behind, and reports its end.
    pub(super) fn sweep(&self, pid: i32) {
        let group = self.table().by_pid.get(&pid).map_or(pid, |process| process.group);
        let left_behind = proc::count_group(group);
        let mut table = self.table();
        let Some(process) = table.by_pid.get(&pid) else { return };
        if let Some(status) = process.ended {
            process.signal(pid, Signal::SIGKILL);
            self.finish(&mut table, pid, status, left_behind);
        }
    }

    pub(super) fn finish(&self, table: &mut Living, pid: i32, status: ExitStatus, left_behind: u16) {
        if let Some(process) = table.remove(pid) {
            let (in_cgroup, status) = self.end_cgroup(table, &process, status);
            let escaped = self.kill_strays(table, &process).saturating_add(in_cgroup);
            if self.traits[process.program].is_attended {
                self.attend(Task::End(process.program));
            }
            let fact = Fact::Exited { status, left_behind: left_behind.saturating_add(escaped) };
            match &self.traits[process.program].pid_file {
                // Files are not touched under the lock. It has ended when there is no file any more.
                Some(file) => self.order(Order::RemovePidFile {
                    path: file.path().clone(),
                    pid,
                    ended: Observed { program: process.program, instance: process.instance, fact },
                }),
                None => self.report(&process, fact),
            }
        }
    }

    /// Kills what is left in the cgroup of an instance, and says how many those are that are not of its group; and how
    /// it has ended, now that the kernel can be asked why.
    fn end_cgroup(&self, table: &Living, process: &Process, status: ExitStatus) -> (u16, ExitStatus) {
        let Some(cgroup) = &process.cgroup else { return (0, status) };
        let is_left = |pid: &i32| {
            let is_other = |stat: proc::Stat| stat.group != process.group && !table.helpers.contains_key(&stat.group);
            !table.by_pid.contains_key(pid) && proc::stat(*pid).is_some_and(|stat| is_other(stat) && !stat.is_zombie())
        };
        let left = cgroup.members().iter().filter(|pid| is_left(pid)).count();
        let status = if process.killed { status } else { cgroup.explain(status) };
        if !cgroup.remove() {
            cgroup.kill();
            self.bury(cgroup.clone());
        }
        (u16::try_from(left).unwrap_or(u16::MAX), status)
    }

    /// Kills what has escaped from the group of an instance by making a session of its own: when it lost its parent it
    /// became a child of the first thread of this process, or of the launcher's.
    fn kill_strays(&self, table: &Living, process: &Process) -> u16 {
        let parent = if process.own { getpid() } else { getppid() }.as_raw();
        let name = &self.traits[process.program].name;
        let is_own = |pid: i32| {
            let token = Token::of(pid, &self.journal);
            token.is_some_and(|token| token.instance == process.instance && token.program == *name)
        };
        let is_stray = |child: &i32| {
            let known =
                table.by_pid.contains_key(child) || proc::stat(*child).is_none_or(|stat| stat.group == process.group);
            !known && is_own(*child)
        };
        if !proc::children(parent, parent).iter().any(is_stray) {
            return 0;
        }
        // What it has started in turn still has a parent.
        let escaped = proc::all().filter(|pid| proc::stat(*pid).is_some_and(|stat| !stat.is_zombie()) && is_own(*pid));
        let killed = escaped.filter(|stray| kill(Pid::from_raw(*stray), Signal::SIGKILL).is_ok()).count();
        u16::try_from(killed).unwrap_or(u16::MAX)
    }
}
