//! What is known of the processes, under one lock. A process is reaped only under it, so that no signal can go to a
//! process id that belongs to somebody else by then.
//!
//! An instance has ended when nothing of its process group is left.

use std::{
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use crossbeam_channel::Sender;
use gaggled_core::{
    graph::Leaves,
    host::{ExitStatus, Fact, Launch, Observed, PidFile, Signal},
    ids::{InstanceId, ProgramId, Table},
};
use nix::{
    sys::signal::Signal::{SIGKILL, SIGTERM},
    unistd::geteuid,
};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use super::{
    attendant::{Hearing, Task},
    cgroup::Cgroup,
    kernel::{self, SpawnError},
    linux::{Report, Survivor},
    living::{Ending, Helper, Living, Process, Stage},
    members::{Emptied, kill_tree},
    proc,
    recorder::Recorder,
    starter::{Order, Started},
    watch::hold,
};

pub(super) struct Shared {
    table: Mutex<Living>,
    pub(super) registered: Condvar,
    /// The process that is being started and is not yet in the table.
    pub(super) in_flight: AtomicI32,
    pub(super) recorder: Recorder,
    /// Held while the launcher is listened to, and for ever after a handover.
    pub(super) listening: Mutex<()>,
    /// For the tokens of strays.
    pub(super) journal: String,
    pub(super) traits: Table<ProgramId, Traits>,
    /// Itself, for threads that wait for something.
    pub(super) own: Weak<Self>,
    /// Runs of which everything in their groups is gone.
    pub(super) emptied: Sender<Emptied>,
    orders: Sender<Order>,
    tasks: UnboundedSender<Task>,
    dead: Sender<Cgroup>,
    report: Report,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("table", &self.table).finish_non_exhaustive()
    }
}

/// What has to be known of a program while it runs.
#[derive(Debug)]
pub(super) struct Traits {
    pub(super) name: String,
    pub(super) has_stop: bool,
    /// What becomes of what a run leaves when it has ended well, and the exit codes that say so.
    leaves: Leaves,
    success: Vec<i32>,
    pub(super) pid_file: Option<PidFile>,
    /// As whom it runs.
    pub(super) uid: u32,
    /// Whether somebody has to listen to what it says.
    pub(super) is_attended: bool,
}

impl Traits {
    fn of(launch: &Launch) -> Self {
        let identity = launch.confines.as_ref().and_then(|confines| confines.identity.as_ref());
        Self {
            name: launch.name.clone(),
            has_stop: launch.stop.is_some(),
            leaves: launch.leaves,
            success: launch.success.clone(),
            pid_file: launch.pid_file.clone(),
            uid: identity.map_or_else(|| geteuid().as_raw(), |identity| identity.uid),
            is_attended: launch.ready.is_some() || launch.watchdog.is_some(),
        }
    }

    /// What becomes of what a run leaves that has ended like this by itself.
    pub(super) fn leaves_after(&self, status: ExitStatus) -> Leaves {
        if status.is_one_of(&self.success) { self.leaves } else { Leaves::Kill }
    }

    /// The file in which the command writes which process its daemon is.
    pub(super) fn daemon_file(&self) -> Option<&str> {
        self.pid_file.as_ref().and_then(|file| match file {
            PidFile::Read(path) => Some(path.as_str()),
            PidFile::Write(_) => None,
        })
    }
}

impl Shared {
    pub(super) fn new(
        launches: &Table<ProgramId, Launch>,
        journal: String,
        recorder: Recorder,
        (orders, tasks, dead, emptied): (Sender<Order>, UnboundedSender<Task>, Sender<Cgroup>, Sender<Emptied>),
        report: Report,
    ) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            own: own.clone(),
            table: Mutex::new(Living::default()),
            registered: Condvar::new(),
            in_flight: AtomicI32::new(0),
            recorder,
            listening: Mutex::new(()),
            journal,
            traits: launches.values().map(Traits::of).collect(),
            emptied,
            orders,
            tasks,
            dead,
            report,
        })
    }

    /// From now on nothing is reaped any more, and what the launcher tells stays in its pipe.
    pub(super) fn hand_over(&self) {
        self.table().handed_over = true;
        std::mem::forget(self.listening.lock());
    }

    /// Whether what happens is left to the next run of gaggled.
    pub(super) fn is_handed_over(&self) -> bool {
        self.table().handed_over
    }

    /// Gives the attendant something to do.
    pub(super) fn attend(&self, task: Task) {
        // It lives as long as the daemon.
        let _ = self.tasks.send(task);
    }

    /// The run of a program that there is, and its main process.
    pub(super) fn current(&self, program: ProgramId) -> Option<(InstanceId, i32)> {
        let table = self.table();
        let pid = *table.pid_of.get(&program)?;
        Some((table.by_pid.get(&pid)?.instance, pid))
    }

    /// Gives the starter something to do.
    pub(super) fn order(&self, order: Order) {
        // It lives as long as the daemon.
        let _ = self.orders.send(order);
    }

    pub(super) fn tell(&self, program: ProgramId, instance: InstanceId, fact: Fact) {
        (self.report)(Observed { program, instance, fact });
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Living> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn report(&self, process: &Process, fact: Fact) {
        (self.report)(Observed { program: process.program, instance: process.instance, fact });
    }

    pub(super) fn stop(&self, program: ProgramId, instance: InstanceId) {
        let mut table = self.table();
        let Some((pid, process)) = table.find(program, instance) else { return };
        process.ending = Ending::Asked;
        if process.stage == Stage::Awaiting {
            process.stage = Stage::Command;
        }
        let is_there = process.ended.is_none() || process.lives(pid);
        if self.traits[program].has_stop && is_there {
            self.order(Order::Help(program, instance, pid));
            return;
        }
        self.terminate(&mut table, pid);
        let Some(process) = table.by_pid.get_mut(&pid) else { return };
        if process.ended.is_some() && !process.lives(pid) {
            self.settle(&mut table, pid);
        }
    }

    pub(super) fn kill(&self, program: ProgramId, instance: InstanceId) {
        let mut table = self.table();
        let Some((_, process)) = table.find(program, instance) else {
            drop(table);
            return self.kill_kept(program, instance);
        };
        process.ending = Ending::Killed;
        let runs = process.ended.is_none();
        if let Some(helper) = table.helper_of(program) {
            kill_tree(helper);
        }
        let Some((pid, process)) = table.find(program, instance) else { return };
        if runs {
            return process.signal(pid, SIGKILL);
        }
        // Its main process has gone, so nothing more will be heard of it. To count the rest takes a look at all
        // processes, for which the actors do not wait.
        let later = self.own.upgrade();
        let count = move || later.iter().for_each(|shared| shared.sweep(pid));
        let counting = thread::Builder::new().name("counter".into()).spawn(count);
        if counting.is_err() {
            process.signal(pid, SIGKILL);
            self.settle(&mut table, pid);
        }
    }

    /// An operator's signal: TERM and KILL go to the whole group, anything else to the main process.
    pub(super) fn signal(&self, program: ProgramId, instance: InstanceId, signal: Signal) {
        let mut table = self.table();
        let Some((pid, process)) = table.find(program, instance) else { return };
        if signal.asks_to_end() && process.ending == Ending::No {
            process.ending = Ending::Urged;
        }
        if signal == Signal::TERM {
            process.signal(pid, SIGTERM);
        } else if signal == Signal::KILL {
            if process.ended.is_none() {
                process.ending = Ending::Killed;
            }
            process.signal(pid, SIGKILL);
        } else if process.ended.is_none() && (process.own || proc::birth(pid) == process.birth) {
            kernel::send(pid, signal.0);
        }
    }

    /// Takes a process of the life before into the table. What neither we nor the launcher will reap is returned, to be
    /// watched.
    pub(super) fn adopt(&self, survivor: Survivor, launcher: Option<i32>) -> Option<(i32, OwnedFd)> {
        let Survivor { program, instance, pid, birth, parent, is_daemon, cgroup } = survivor;
        let process = Process::new(program, instance, pid, birth, false).in_cgroup(cgroup);
        let process = match proc::stat(pid).map(|stat| stat.group).filter(|group| *group != pid) {
            Some(group) => process.in_group(group),
            None => process,
        };
        let mut process = if is_daemon { process.into_daemon() } else { process };
        process.may_be_orphaned = launcher != Some(parent);
        self.table().insert(pid, process);
        if is_daemon {
            // That it is may not have been written.
            self.tell(program, instance, Fact::Daemonized { pid, birth });
        }
        self.attend_run(program, instance, pid, Hearing::default());
        if launcher == Some(parent) {
            // The launcher tells of its end, or has told it already.
            return None;
        }
        if let Some(held) = hold(pid, birth) {
            Some((pid, held))
        } else {
            self.ended_elsewhere(pid, ExitStatus::Unknown);
            None
        }
    }

    /// Takes what is left in the cgroup of a run that has ended out of the world.
    pub(super) fn bury(&self, cgroup: Cgroup) {
        // Whoever does that lives as long as the daemon, if there are cgroups.
        let _ = self.dead.send(cgroup);
    }

    /// The cgroup of a run.
    pub(super) fn cgroup_of(&self, program: ProgramId, instance: InstanceId) -> Option<Cgroup> {
        self.table().find(program, instance)?.1.cgroup.clone()
    }

    /// What undoes a run has begun: what that has left is asked to end after it, and has the same time.
    pub(super) fn register_undo(&self, run: (ProgramId, InstanceId), started: Started) {
        self.register_as(run, started, true);
    }

    /// A run has begun.
    pub(super) fn register(&self, run: (ProgramId, InstanceId), started: Started) {
        self.register_as(run, started, false);
    }

    fn register_as(&self, run: (ProgramId, InstanceId), started: Started, undoes: bool) {
        let ((program, instance), Started { pid, hearing, cgroup }) = (run, started);
        // Its start time is read before it can be reaped: it is the reaper that waits for the table.
        let birth = proc::birth(pid);
        let mut process = Process::new(program, instance, pid, birth, true).in_cgroup(cgroup);
        if undoes {
            // What the run has left may be a child of any earlier process of gaggled.
            (process.ending, process.may_be_orphaned) = (Ending::Asked, true);
        }
        let mut table = self.table();
        self.report(&process, Fact::Spawned { pid, birth });
        table.insert(pid, process);
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
        drop(table);
        self.attend_run(program, instance, pid, hearing);
    }

    fn attend_run(&self, program: ProgramId, instance: InstanceId, pid: i32, hearing: Hearing) {
        if self.traits[program].is_attended {
            self.attend(Task::Begin { program, instance, pid, hearing });
        }
    }

    /// The stop command of a program runs.
    pub(super) fn register_helper(&self, pid: i32, program: ProgramId, instance: InstanceId) {
        let mut table = self.table();
        table.helpers.insert(pid, Helper::Stop(program, instance));
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
    }

    /// The command that checks a program runs.
    pub(super) fn register_check(&self, pid: i32, program: ProgramId, answer: oneshot::Sender<ExitStatus>) {
        let mut table = self.table();
        // The run, or the task that has asked, may have gone while this was started.
        if answer.is_closed() || !table.pid_of.contains_key(&program) {
            kill_tree(pid);
        }
        table.helpers.insert(pid, Helper::Check(program, answer));
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
    }

    /// A command that was to run beside a program could not be started.
    pub(super) fn not_started(&self) {
        let _table = self.table();
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
    }

    /// Ends the command that checks a program, with everything that it has started: it has had its time.
    pub(super) fn end_check(&self, program: ProgramId) {
        Self::end_check_in(&self.table(), program);
    }

    /// The same, under the lock.
    pub(super) fn end_check_in(table: &Living, program: ProgramId) {
        let checks = |helper: &Helper| matches!(helper, Helper::Check(checked, _) if *checked == program);
        for (pid, _) in table.helpers.iter().filter(|(_, helper)| checks(helper)) {
            kill_tree(*pid);
        }
    }

    /// The stop command of a program could not be started.
    pub(super) fn no_helper(&self, program: ProgramId, instance: InstanceId) {
        let mut table = self.table();
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
        if let Some((pid, process)) = table.find(program, instance) {
            (self.report)(Observed {
                program,
                instance,
                fact: Fact::StopCommandFailed { status: ExitStatus::Unknown },
            });
            process.terminate(pid);
        }
    }

    pub(super) fn failed(&self, program: ProgramId, instance: InstanceId, error: SpawnError) {
        self.recorder.clear(program, instance);
        let table = self.table();
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
        drop(table);
        let SpawnError { stage, errno } = error;
        (self.report)(Observed { program, instance, fact: Fact::SpawnFailed { stage, errno } });
    }
}
