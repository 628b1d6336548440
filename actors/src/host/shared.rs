//! What is known of the processes, under one lock. A process is reaped only under it, so that no signal can go to a
//! process id that belongs to somebody else by then.
//!
//! An instance is the process group of its main process. It has ended when nothing of that is left.

use std::{
    collections::BTreeMap,
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use crossbeam_channel::Sender;
use gaggled_core::{
    host::{ExitStatus, Fact, Launch, Observed, PidFile, Signal, StartTime},
    ids::{InstanceId, ProgramId, Table},
};
use nix::{
    errno::Errno,
    sys::signal::{kill, killpg},
    unistd::{Pid, geteuid, getpgid, getpid, getppid},
};
use tokio::sync::{mpsc::UnboundedSender, oneshot};

use super::{
    attendant::{Hearing, Task},
    kernel::{self, SpawnError},
    linux::{Report, Survivor},
    proc,
    recorder::{Recorder, Slot},
    starter::Order,
    token::Token,
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
    orders: Sender<Order>,
    tasks: UnboundedSender<Task>,
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
    has_stop: bool,
    pid_file: Option<PidFile>,
    /// As whom it runs.
    pub(super) uid: u32,
    /// Whether somebody has to listen to what it says.
    is_attended: bool,
}

impl Traits {
    fn of(launch: &Launch) -> Self {
        let identity = launch.confines.as_ref().and_then(|confines| confines.identity.as_ref());
        Self {
            name: launch.name.clone(),
            has_stop: launch.stop.is_some(),
            pid_file: launch.pid_file.clone(),
            uid: identity.map_or_else(|| geteuid().as_raw(), |identity| identity.uid),
            is_attended: launch.ready.is_some() || launch.watchdog.is_some(),
        }
    }

    /// The file in which the command writes which process its daemon is.
    fn daemon_file(&self) -> Option<&str> {
        self.pid_file.as_ref().and_then(|file| match file {
            PidFile::Read(path) => Some(path.as_str()),
            PidFile::Write(_) => None,
        })
    }
}

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
    handed_over: bool,
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

/// One instance.
#[derive(Debug)]
pub(super) struct Process {
    program: ProgramId,
    pub(super) instance: InstanceId,
    pub(super) birth: StartTime,
    /// Its process group, and when the first process of that began, if it is there.
    group: i32,
    leader: Option<StartTime>,
    /// What its main process is.
    pub(super) stage: Stage,
    /// Whether it is our child, or has survived the life before.
    pub(super) own: bool,
    /// Whether it was asked to end: what it leaves behind then has time to end as well.
    stopping: bool,
    /// Whether that time is over.
    killed: bool,
    /// How the main process ended, while others of its group are still there.
    ended: Option<ExitStatus>,
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
            stage: Stage::Command,
            own,
            stopping: false,
            killed: false,
            ended: None,
        }
    }

    /// The same, as the daemon that its command has left.
    pub(super) fn into_daemon(self) -> Self {
        Self { stage: Stage::Daemon, ..self }
    }

    /// The same, in the group that it is in.
    pub(super) fn in_group(self, group: i32) -> Self {
        Self { group, leader: proc::stat(group).map(|leader| leader.birth), ..self }
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

    /// A daemon may make a group of its own after it was found.
    fn follow_group(&mut self, pid: i32) {
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
    fn main_of(&self, group: i32) -> i32 {
        self.by_group.get(&group).copied().unwrap_or(group)
    }

    /// The process of the stop command that runs beside a program.
    fn helper_of(&self, program: ProgramId) -> Option<i32> {
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

impl Shared {
    pub(super) fn new(
        launches: &Table<ProgramId, Launch>,
        journal: String,
        recorder: Recorder,
        (orders, tasks): (Sender<Order>, UnboundedSender<Task>),
        report: Report,
    ) -> Self {
        Self {
            table: Mutex::new(Living::default()),
            registered: Condvar::new(),
            in_flight: AtomicI32::new(0),
            recorder,
            listening: Mutex::new(()),
            journal,
            traits: launches.values().map(Traits::of).collect(),
            orders,
            tasks,
            report,
        }
    }

    /// From now on nothing is reaped any more, and what the launcher tells stays in its pipe.
    pub(super) fn hand_over(&self) {
        self.table().handed_over = true;
        std::mem::forget(self.listening.lock());
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
        process.stopping = true;
        if process.stage == Stage::Awaiting {
            process.stage = Stage::Command;
        }
        let is_there = process.ended.is_none() || group_lives(pid, process);
        if self.traits[program].has_stop && is_there {
            self.order(Order::Help(program, instance, pid));
            return;
        }
        terminate(pid, process);
        if let Some(status) = process.ended.filter(|_| !group_lives(pid, process)) {
            self.finish(&mut table, pid, status, 0);
        }
    }

    pub(super) fn kill(shared: &Arc<Self>, program: ProgramId, instance: InstanceId) {
        let mut table = shared.table();
        let Some((_, process)) = table.find(program, instance) else { return };
        process.killed = true;
        let runs = process.ended.is_none();
        if let Some(helper) = table.helper_of(program) {
            kill_group(helper);
        }
        let Some((pid, process)) = table.find(program, instance) else { return };
        if runs {
            return signal_group(pid, process, nix::sys::signal::SIGKILL);
        }
        // Its main process has gone, so nothing more will be heard of it. To count the rest takes a look at all
        // processes, for which the actors do not wait.
        let later = shared.clone();
        let counting = thread::Builder::new().name("counter".into()).spawn(move || later.sweep(pid));
        if counting.is_err() {
            signal_group(pid, process, nix::sys::signal::SIGKILL);
            if let Some(status) = process.ended {
                shared.finish(&mut table, pid, status, 0);
            }
        }
    }

    /// An operator's signal: TERM and KILL go to the whole group, anything else to the main process.
    pub(super) fn signal(&self, program: ProgramId, instance: InstanceId, signal: Signal) {
        let mut table = self.table();
        let Some((pid, process)) = table.find(program, instance) else { return };
        if signal == Signal::TERM {
            signal_group(pid, process, nix::sys::signal::SIGTERM);
        } else if signal == Signal::KILL {
            signal_group(pid, process, nix::sys::signal::SIGKILL);
        } else if process.ended.is_none() && (process.own || proc::birth(pid) == process.birth) {
            kernel::send(pid, signal.0);
        }
    }

    /// Counts and kills what the main process of an instance has left behind, and reports its end.
    fn sweep(&self, pid: i32) {
        let group = self.table().by_pid.get(&pid).map_or(pid, |process| process.group);
        let left_behind = proc::count_group(group);
        let mut table = self.table();
        let Some(process) = table.by_pid.get(&pid) else { return };
        if let Some(status) = process.ended {
            signal_group(pid, process, nix::sys::signal::SIGKILL);
            self.finish(&mut table, pid, status, left_behind);
        }
    }

    fn finish(&self, table: &mut Living, pid: i32, status: ExitStatus, left_behind: u16) {
        if let Some(process) = table.remove(pid) {
            let escaped = self.kill_strays(table, &process);
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
        let killed = escaped.filter(|stray| kill(Pid::from_raw(*stray), nix::sys::signal::SIGKILL).is_ok()).count();
        u16::try_from(killed).unwrap_or(u16::MAX)
    }

    /// Takes a process of the life before into the table. What neither we nor the launcher will reap is returned, to be
    /// watched.
    pub(super) fn adopt(&self, survivor: Survivor, launcher: Option<i32>) -> Option<(i32, OwnedFd)> {
        let Survivor { program, instance, pid, birth, parent, is_daemon } = survivor;
        let process = Process::new(program, instance, pid, birth, false);
        let process = match proc::stat(pid).map(|stat| stat.group).filter(|group| *group != pid) {
            Some(group) => process.in_group(group),
            None => process,
        };
        let stage = if is_daemon { Stage::Daemon } else { Stage::Command };
        self.table().insert(pid, Process { stage, ..process });
        if is_daemon {
            // That it is may not have been written.
            self.tell(program, instance, Fact::Daemonized { pid, birth });
        }
        self.attend_run(program, instance, pid, Hearing::default());
        if launcher == Some(parent) {
            // The launcher tells of its end, or has told it already.
            return None;
        }
        let held = Pid::from_raw(pid).as_raw();
        let held = rustix::process::Pid::from_raw(held);
        let held = held.and_then(|pid| rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok());
        // It may have ended, and its id been given away, before it could be held.
        if let Some(held) = held.filter(|_| proc::birth(pid) == birth) {
            Some((pid, held))
        } else {
            self.ended_elsewhere(pid, ExitStatus::Unknown);
            None
        }
    }

    pub(super) fn register(&self, run: (ProgramId, InstanceId), pid: i32, hearing: Hearing) {
        let (program, instance) = run;
        // Its start time is read before it can be reaped: it is the reaper that waits for the table.
        let birth = proc::birth(pid);
        let process = Process::new(program, instance, pid, birth, true);
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
        if answer.is_closed() {
            kill_group(pid);
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

    /// Ends the command that checks a program: it has had its time.
    pub(super) fn end_check(&self, program: ProgramId) {
        let table = self.table();
        let checks = |helper: &Helper| matches!(helper, Helper::Check(checked, _) if *checked == program);
        for (pid, _) in table.helpers.iter().filter(|(_, helper)| checks(helper)) {
            kill_group(*pid);
        }
    }

    /// The stop command of a program could not be started.
    pub(super) fn no_helper(&self, program: ProgramId, instance: InstanceId) {
        let mut table = self.table();
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
        if let Some((pid, process)) = table.find(program, instance) {
            terminate(pid, process);
        }
    }

    /// A stop command has ended. What it has started does not outlive it.
    fn helper_ended(&self, table: &mut Living, pid: i32, status: ExitStatus) {
        kill_group(pid);
        match table.helpers.remove(&pid) {
            Some(Helper::Stop(program, instance)) => {
                let Some((main, _)) = table.find(program, instance) else { return };
                // What a stop command cannot do, a signal may.
                if let Some(process) = table.by_pid.get(&main).filter(|_| !status.is_success()) {
                    terminate(main, process);
                }
                self.finish_if_empty(table, main);
            }
            // Whoever has asked may have gone.
            Some(Helper::Check(_, answer)) => drop(answer.send(status)),
            None => {}
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
        let lives = group_lives(pid, process);
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
            !helped && !group_lives(main, process)
        });
        if let Some(status) = last_of.and_then(|process| process.ended) {
            self.finish(table, main, status, 0);
        }
    }
}

fn terminate(pid: i32, process: &Process) {
    signal_group(pid, process, nix::sys::signal::SIGTERM);
    // One that stands still could not hear it.
    signal_group(pid, process, nix::sys::signal::SIGCONT);
}

/// Kills what is left of the group of a helper, whose number nobody else has as long as anything is.
fn kill_group(pid: i32) {
    let _ = killpg(Pid::from_raw(pid), nix::sys::signal::SIGKILL);
}

fn signal_group(pid: i32, process: &Process, signal: nix::sys::signal::Signal) {
    if group_lives(pid, process) {
        let _ = killpg(Pid::from_raw(process.group), signal);
    }
}

/// Whether anything is left of a group that belongs to it.
///
/// A number is not given to a new process while there is a group of that number. So once the main process of our own has
/// been reaped, a process of that number means that the group was empty before. In any other case the start time of the
/// first process of the group tells whether it is still the same.
fn group_lives(pid: i32, process: &Process) -> bool {
    let group = Pid::from_raw(process.group);
    if process.own && process.group == pid {
        let reused = process.ended.is_some() && kill(group, None) != Err(Errno::ESRCH);
        return !reused && killpg(group, None) != Err(Errno::ESRCH);
    }
    let reused = proc::stat(process.group).is_some_and(|leader| Some(leader.birth) != process.leader);
    let there = !reused && killpg(group, None) != Err(Errno::ESRCH);
    // A main process that has ended may stay a zombie for ever, and with it its group.
    there && (process.ended.is_none() || proc::count_group(process.group) > 0)
}
