//! The process table, under one lock. A process is reaped only under it, so that no signal can reach another process
//! that was given its id.
//!
//! An instance has ended when it has no processes left.

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
    base::ids::{IdVec, InstanceId, ProgramId},
    host::{Ending, ExitPolicy, HostEvent, HostReport, LaunchSpec, PidFile},
    process::{ExitStatus, Signal},
};
use nix::{
    sys::signal::Signal::{SIGKILL, SIGTERM},
    unistd::geteuid,
};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use crate::host::{
    cgroup::Cgroup,
    messages::{Emptied, HostReportFn, MonitorCommand, ReadinessChannel, SpawnRequest, Spawned, SurvivingProcess},
    procfs,
    recover::flight_recorder::Recorder,
    spawn::sys::{self, SpawnError},
    track::{
        process_table::{Helper, MainProcess, Process, ProcessTable},
        process_tree::{ProcessesByToken, hold, kill_tree},
    },
};

pub(crate) struct ProcessTracker {
    table: Mutex<ProcessTable>,
    pub(crate) registered: Condvar,
    /// The process that is being started and is not yet in the table.
    pub(crate) in_flight: AtomicI32,
    pub(crate) recorder: Recorder,
    /// Held while reports of the subreaper are read, and for ever after a handover.
    pub(crate) listening: Mutex<()>,
    /// The id of the journal, with which tokens are verified.
    pub(crate) journal: String,
    pub(crate) programs: IdVec<ProgramId, ProgramInfo>,
    /// Itself, for threads that wait for something.
    pub(crate) own: Weak<Self>,
    /// Runs whose process groups are empty.
    pub(crate) emptied: Sender<Emptied>,
    orders: Sender<SpawnRequest>,
    tasks: UnboundedSender<MonitorCommand>,
    dead: Sender<Cgroup>,
    report: HostReportFn,
}

impl std::fmt::Debug for ProcessTracker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProcessTracker").field("table", &self.table).finish_non_exhaustive()
    }
}

/// What has to be known of a program while it runs.
#[derive(Debug)]
pub(crate) struct ProgramInfo {
    pub(crate) name: String,
    /// The signal that asks it to end.
    pub(crate) stop_signal: Signal,
    /// What becomes of a run whose main process has ended.
    pub(crate) exit: ExitPolicy,
    pub(crate) pid_file: Option<PidFile>,
    /// The id of its user.
    pub(crate) uid: u32,
    /// Whether the monitor has to listen for its messages.
    pub(crate) is_monitored: bool,
}

impl ProgramInfo {
    fn of(launch: &LaunchSpec) -> Self {
        let identity = launch.sandbox.as_ref().and_then(|sandbox| sandbox.identity.as_ref());
        Self {
            name: launch.name.clone(),
            stop_signal: launch.stop_signal.unwrap_or(Signal::TERM),
            exit: launch.exit.clone(),
            pid_file: launch.pid_file.clone(),
            uid: identity.map_or_else(|| geteuid().as_raw(), |identity| identity.uid),
            is_monitored: launch.ready.is_some() || launch.watchdog.is_some(),
        }
    }

    /// The pid file in which the command names its daemon.
    pub(crate) fn daemon_file(&self) -> Option<&str> {
        self.pid_file.as_ref().and_then(|file| match file {
            PidFile::Read(path) => Some(path.as_str()),
            PidFile::Write(_) => None,
        })
    }
}

impl ProcessTracker {
    pub(crate) fn new(
        specs: &IdVec<ProgramId, LaunchSpec>,
        journal: String,
        recorder: Recorder,
        (orders, tasks, dead, emptied): (
            Sender<SpawnRequest>,
            UnboundedSender<MonitorCommand>,
            Sender<Cgroup>,
            Sender<Emptied>,
        ),
        report: HostReportFn,
    ) -> Arc<Self> {
        Arc::new_cyclic(|own| Self {
            own: own.clone(),
            table: Mutex::new(ProcessTable::default()),
            registered: Condvar::new(),
            in_flight: AtomicI32::new(0),
            recorder,
            listening: Mutex::new(()),
            journal,
            programs: specs.values().map(ProgramInfo::of).collect(),
            emptied,
            orders,
            tasks,
            dead,
            report,
        })
    }

    /// From now on nothing is reaped any more, and reports of the subreaper stay in its pipe.
    pub(crate) fn hand_over(&self) {
        self.table().handed_over = true;
        std::mem::forget(self.listening.lock());
    }

    /// Whether what happens is left to the next run of gaggled.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.table().handed_over
    }

    /// Gives the monitor something to do.
    pub(crate) fn monitor(&self, task: MonitorCommand) {
        // It lives as long as the daemon.
        let _ = self.tasks.send(task);
    }

    /// The current run of a program, and its main process.
    pub(crate) fn current(&self, program: ProgramId) -> Option<(InstanceId, i32)> {
        let table = self.table();
        let pid = *table.pid_of.get(&program)?;
        Some((table.by_pid.get(&pid)?.instance, pid))
    }

    /// Gives the spawner something to do.
    pub(crate) fn order(&self, order: SpawnRequest) {
        // It lives as long as the daemon.
        let _ = self.orders.send(order);
    }

    pub(crate) fn tell(&self, program: ProgramId, instance: InstanceId, event: HostEvent) {
        (self.report)(HostReport { program, instance, event });
    }

    pub(crate) fn table(&self) -> MutexGuard<'_, ProcessTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn report(&self, process: &Process, event: HostEvent) {
        (self.report)(HostReport { program: process.program, instance: process.instance, event });
    }

    /// Runs the stop command of a run beside it, unless everything in its group has ended.
    pub(crate) fn run_stop_command(&self, program: ProgramId, instance: InstanceId) {
        let mut table = self.table();
        let Some((pid, process)) = table.ask_to_end(program, instance) else { return };
        if process.ended.is_none() || process.lives(pid) {
            self.order(SpawnRequest::StopCommand(program, instance, pid));
        } else {
            self.queue_final_sweep(&mut table, pid);
        }
    }

    /// Asks everything that a run consists of to end, by a signal.
    pub(crate) fn terminate_run(&self, program: ProgramId, instance: InstanceId) {
        let mut table = self.table();
        let Some((pid, _)) = table.ask_to_end(program, instance) else { return };
        self.terminate_processes(&mut table, pid);
        if table.by_pid.get(&pid).is_some_and(|process| process.ended.is_some() && !process.lives(pid)) {
            self.queue_final_sweep(&mut table, pid);
        }
    }

    /// Asks all processes of a run to end, except orphans outside its group: those are looked for when the group is
    /// empty.
    pub(crate) fn terminate_processes(&self, table: &mut ProcessTable, main: i32) {
        let Some(process) = table.by_pid.get(&main) else { return };
        let others = self.outside(table, process, &[main], &ProcessesByToken::new());
        if let Some(process) = table.by_pid.get_mut(&main) {
            let signal = self.programs[process.program].stop_signal;
            process.terminate_group(main, signal);
            process.ask(&others, signal);
        }
    }

    pub(crate) fn kill(&self, program: ProgramId, instance: InstanceId) {
        let mut table = self.table();
        let Some((_, process)) = table.find(program, instance) else {
            drop(table);
            return self.kill_kept(program, instance);
        };
        process.ending = Ending::Killed;
        let runs = process.ended.is_none();
        if let Some(helper) = table.helper_of(program, instance) {
            kill_tree(helper);
        }
        let Some((pid, process)) = table.find(program, instance) else { return };
        if runs {
            return process.signal(pid, SIGKILL);
        }
        // Its main process has ended, so the reaper reports nothing more about it. Counting the rest takes a scan of
        // all processes, for which the actors must not wait.
        let later = self.own.upgrade();
        let count = move || later.iter().for_each(|shared| shared.kill_rest(pid));
        let counting = thread::Builder::new().name("kill-kept".into()).spawn(count);
        if counting.is_err() {
            process.signal(pid, SIGKILL);
            self.queue_final_sweep(&mut table, pid);
        }
    }

    /// An operator's signal: TERM and KILL go to the whole group, anything else to the main process.
    pub(crate) fn signal(&self, program: ProgramId, instance: InstanceId, signal: Signal) {
        let mut table = self.table();
        let Some((pid, process)) = table.find(program, instance) else { return };
        if signal.asks_to_end() && process.ending == Ending::No {
            process.ending = Ending::Signalled;
        }
        if signal == Signal::TERM {
            process.signal(pid, SIGTERM);
        } else if signal == Signal::KILL {
            if process.ended.is_none() {
                process.ending = Ending::Killed;
            }
            process.signal(pid, SIGKILL);
        } else if process.ended.is_none() && (process.own || procfs::start_time(pid) == process.start_time) {
            sys::send(pid, signal.0);
        }
    }

    /// Adds a process of the previous daemon to the table. Returns it, to be watched, if neither we nor the subreaper
    /// will reap it.
    pub(crate) fn adopt(&self, survivor: SurvivingProcess, subreaper: Option<i32>) -> Option<(i32, OwnedFd)> {
        let SurvivingProcess { program, instance, pid, start_time, parent, stage, ending, cgroup } = survivor;
        let process = Process::new(program, instance, pid, start_time, false).in_cgroup(cgroup);
        // A command whose daemon is awaited has ended, and its process id may be that of another process.
        let process = match procfs::stat(pid).filter(|stat| stat.start_time == start_time) {
            Some(stat) => process.in_group(stat.group),
            None => process,
        };
        // Orphans of a run that is undone may be children of any process.
        let may_be_orphaned = subreaper != Some(parent) || ending == Ending::Asked;
        self.table().insert(pid, process.found_as(stage, ending, may_be_orphaned));
        if stage == MainProcess::Daemon {
            // The journal may not know yet that it is the daemon.
            self.tell(program, instance, HostEvent::Daemonized { pid, start_time });
        }
        self.monitor_run(program, instance, pid, ReadinessChannel::default());
        if stage == MainProcess::AwaitingDaemon {
            self.monitor(MonitorCommand::AwaitDaemon(program, instance));
            return None;
        }
        if subreaper == Some(parent) {
            // The subreaper reports its end, or has reported it already.
            return None;
        }
        if let Some(held) = hold(pid, start_time) {
            Some((pid, held))
        } else {
            self.ended_elsewhere(pid, ExitStatus::Unknown);
            None
        }
    }

    /// Queues the cgroup of a finished run to be killed and removed.
    pub(crate) fn queue_cgroup_removal(&self, cgroup: Cgroup) {
        // The receiver lives as long as the daemon, if there are cgroups.
        let _ = self.dead.send(cgroup);
    }

    /// The cgroup of a run.
    pub(crate) fn cgroup_of(&self, program: ProgramId, instance: InstanceId) -> Option<Cgroup> {
        self.table().find(program, instance)?.1.cgroup.clone()
    }

    /// Registers the stop command that undoes a run: what the run has left is asked to end after it, within the same
    /// time.
    pub(crate) fn register_undo(&self, run: (ProgramId, InstanceId), started: Spawned) {
        self.register_as(run, started, true);
    }

    /// A run has begun.
    pub(crate) fn register(&self, run: (ProgramId, InstanceId), started: Spawned) {
        self.register_as(run, started, false);
    }

    fn register_as(&self, run: (ProgramId, InstanceId), started: Spawned, undoes: bool) {
        let ((program, instance), Spawned { pid, hearing, cgroup }) = (run, started);
        // It cannot be reaped before it is in the table, so its start time can be read here.
        let start_time = procfs::start_time(pid);
        let mut process = Process::new(program, instance, pid, start_time, true).in_cgroup(cgroup);
        if undoes {
            // What the run has left may be a child of any earlier process of gaggled.
            (process.ending, process.may_be_orphaned) = (Ending::Asked, true);
        }
        let mut table = self.table();
        self.report(&process, HostEvent::Spawned { pid, start_time });
        table.insert(pid, process);
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
        drop(table);
        self.monitor_run(program, instance, pid, hearing);
    }

    fn monitor_run(&self, program: ProgramId, instance: InstanceId, pid: i32, hearing: ReadinessChannel) {
        if self.programs[program].is_monitored {
            self.monitor(MonitorCommand::Begin { program, instance, pid, hearing });
        }
    }

    /// Registers the process of a stop command.
    pub(crate) fn register_helper(&self, pid: i32, program: ProgramId, instance: InstanceId) {
        let mut table = self.table();
        table.helpers.insert(pid, Helper::Stop(program, instance));
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
    }

    /// Registers the process of a check.
    pub(crate) fn register_check(&self, pid: i32, program: ProgramId, answer: oneshot::Sender<ExitStatus>) {
        let mut table = self.table();
        // The run may have ended, or the check may have timed out, while this was started.
        if answer.is_closed() || !table.pid_of.contains_key(&program) {
            kill_tree(pid);
        }
        table.helpers.insert(pid, Helper::Check(program, answer));
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
    }

    /// A command that was to run beside a program could not be started.
    pub(crate) fn not_started(&self) {
        let _table = self.table();
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
    }

    /// Kills the check of a program, with all its descendants, because it has timed out.
    pub(crate) fn end_check(&self, program: ProgramId) {
        Self::end_check_in(&self.table(), program);
    }

    /// The same, under the lock.
    pub(crate) fn end_check_in(table: &ProcessTable, program: ProgramId) {
        let checks = |helper: &Helper| matches!(helper, Helper::Check(checked, _) if *checked == program);
        for (pid, _) in table.helpers.iter().filter(|(_, helper)| checks(helper)) {
            kill_tree(*pid);
        }
    }

    /// The stop command of a program could not be started.
    pub(crate) fn no_helper(&self, program: ProgramId, instance: InstanceId) {
        self.not_started();
        self.tell(program, instance, HostEvent::StopCommandFailed { status: ExitStatus::Unknown });
    }

    pub(crate) fn failed(&self, program: ProgramId, instance: InstanceId, error: SpawnError) {
        self.recorder.clear(program, instance);
        let table = self.table();
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
        drop(table);
        let SpawnError { stage, errno } = error;
        (self.report)(HostReport { program, instance, event: HostEvent::SpawnFailed { stage, errno } });
    }
}
