//! The processes of this machine.
//!
//! Two threads do what may wait: one starts processes, one waits for their end. Signals are sent at once. What is known
//! of the processes is under one lock, and a process is reaped only under it, so that no signal can go to a process id
//! that belongs to somebody else by then.
//!
//! An instance is the process group of its main process. It has ended when nothing of that is left.

use std::{
    collections::BTreeMap,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
    time::Duration,
};

use crossbeam_channel::Sender;
use gaggled_core::{
    host::{ExitStatus, Fact, HostCommand, Launch, Observed, PidFile, Processes, Signal, StartTime},
    ids::{InstanceId, ProgramId, Table},
};
use nix::{
    errno::Errno,
    sys::signal::{kill, killpg},
    unistd::{Pid, getpgid, getpid, getppid},
};

use super::{
    kernel::{self, SpawnError},
    pid_file, proc,
    recorder::{Recorder, Slot},
    starter::{self, Order, Starter},
    token::Token,
    watch::{LauncherPipe, Watch},
};

/// What every program gets.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The variables, over which those of the program go.
    pub variables: BTreeMap<String, String>,
    /// The directories in which a command without a slash is looked for.
    pub search: Vec<String>,
    /// The id of the journal, for the token that each instance carries.
    pub journal: String,
    /// Signals that programs ignore as the daemon does.
    pub keep_ignored: Vec<i32>,
}

/// What a life of the daemon has from the one before and from its launcher.
pub struct Inheritance {
    /// The launcher's pipe, if there is a launcher.
    pub pipe: Option<LauncherPipe>,
    /// The programs that were found running.
    pub survivors: Vec<Survivor>,
    /// What the launcher has told so far.
    pub reaped: Vec<(i32, ExitStatus)>,
    /// Is called when the launcher has died.
    pub gone: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for Inheritance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inheritance").field("survivors", &self.survivors).finish_non_exhaustive()
    }
}

/// A program that was found running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survivor {
    /// The program.
    pub program: ProgramId,
    /// Its run.
    pub instance: InstanceId,
    /// Its process id.
    pub pid: i32,
    /// When it began.
    pub birth: StartTime,
    /// Whose child it was when it was found.
    pub parent: i32,
}

/// The processes of this machine.
#[derive(Debug)]
pub struct LinuxHost {
    shared: Arc<Shared>,
    orders: Sender<Order>,
    /// What is taken over as soon as there is somebody to report to.
    inheritance: Option<Inheritance>,
}

/// Takes what the host sees.
pub type Report = Box<dyn Fn(Observed) + Send + Sync>;

pub(super) struct Shared {
    table: Mutex<Living>,
    registered: Condvar,
    /// The process that is being started and is not yet in the table.
    pub(super) in_flight: AtomicI32,
    pub(super) recorder: Recorder,
    /// Held while the launcher is listened to, and for ever after a handover.
    pub(super) listening: Mutex<()>,
    /// For the tokens of strays.
    journal: String,
    traits: Table<ProgramId, Traits>,
    orders: Sender<Order>,
    report: Report,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("table", &self.table).finish_non_exhaustive()
    }
}

/// What has to be known of a program while it runs.
#[derive(Debug)]
struct Traits {
    name: String,
    has_stop: bool,
    pid_file: Option<PidFile>,
}

impl Traits {
    fn of(launch: &Launch) -> Self {
        Self { name: launch.name.clone(), has_stop: launch.stop.is_some(), pid_file: launch.pid_file.clone() }
    }
}

/// The instances of which something is left.
#[derive(Debug, Default)]
struct Living {
    /// By the id of the main process, which is that of the group.
    by_pid: BTreeMap<i32, Process>,
    /// The main process of each program.
    pid_of: BTreeMap<ProgramId, i32>,
    /// The stop commands that run, and the programs that they are to stop.
    helpers: BTreeMap<i32, ProgramId>,
    /// Whether nothing is reaped any more: it is left to the next life.
    handed_over: bool,
}

/// One instance.
#[derive(Debug)]
struct Process {
    program: ProgramId,
    instance: InstanceId,
    birth: StartTime,
    /// Whether it is our child, or has survived the life before.
    own: bool,
    /// Whether it was asked to end: what it leaves behind then has time to end as well.
    stopping: bool,
    /// Whether that time is over.
    killed: bool,
    /// How the main process ended, while others of its group are still there.
    ended: Option<ExitStatus>,
}

impl LinuxHost {
    /// Starts the threads that start and reap.
    pub fn new(
        launches: Table<ProgramId, Launch>,
        environment: Environment,
        recorder: Recorder,
        inheritance: Inheritance,
        report: Report,
    ) -> io::Result<Self> {
        let (orders, received) = crossbeam_channel::unbounded();
        let shared = Arc::new(Shared {
            table: Mutex::new(Living::default()),
            registered: Condvar::new(),
            in_flight: AtomicI32::new(0),
            recorder,
            listening: Mutex::new(()),
            journal: environment.journal.clone(),
            traits: launches.values().map(Traits::of).collect(),
            orders: orders.clone(),
            report,
        });
        let starter = Starter::new(launches, environment, shared.clone())?;
        thread::Builder::new().name(starter::THREAD.into()).spawn(move || starter.run(&received))?;
        let reaper = shared.clone();
        thread::Builder::new().name("reaper".into()).spawn(move || reaper.reap_for_ever())?;
        Ok(Self { shared, orders, inheritance: Some(inheritance) })
    }

    /// Carries out what was asked for so far, and then leaves everything as it is: whatever ends from now on is left for
    /// the next life to hear of. A start that takes longer than `within` is not waited for.
    pub fn hand_over(&self, within: Duration) {
        let (reached, mark) = crossbeam_channel::bounded(1);
        let _ = self.orders.send(Order::Mark(reached));
        let _ = mark.recv_timeout(within);
        self.shared.table().handed_over = true;
        // What the launcher tells from now on stays in its pipe.
        std::mem::forget(self.shared.listening.lock());
    }
}

impl Processes for LinuxHost {
    fn begin(&mut self) {
        let Some(Inheritance { pipe, survivors, reaped, gone }) = self.inheritance.take() else { return };
        let launcher = pipe.as_ref().map(|_| getppid().as_raw());
        let orphans = survivors.into_iter().filter_map(|survivor| self.shared.adopt(survivor, launcher)).collect();
        for (pid, status) in reaped {
            self.shared.ended_elsewhere(pid, status);
        }
        // Without this thread the ends of survivors are not heard of, and everything else works.
        let _ = Watch { pipe, orphans }.start(self.shared.clone(), gone);
    }

    fn perform(&mut self, command: HostCommand) {
        match command {
            HostCommand::Spawn { program, instance } => {
                // The starter lives as long as the sender.
                let _ = self.orders.send(Order::Start(program, instance));
            }
            HostCommand::Undo { program, instance } => {
                let _ = self.orders.send(Order::Undo(program, instance));
            }
            HostCommand::Stop { program, instance } => self.shared.stop(program, instance),
            HostCommand::Kill { program, instance } => Shared::kill(&self.shared, program, instance),
            HostCommand::Signal { program, instance, signal } => self.shared.signal(program, instance, signal),
        }
    }
}

impl Living {
    fn insert(&mut self, pid: i32, process: Process) {
        self.pid_of.insert(process.program, pid);
        self.by_pid.insert(pid, process);
    }

    /// The process of the stop command that runs beside a program.
    fn helper_of(&self, program: ProgramId) -> Option<i32> {
        self.helpers.iter().find(|(_, helped)| **helped == program).map(|(pid, _)| *pid)
    }

    fn find(&mut self, program: ProgramId, instance: InstanceId) -> Option<(i32, &mut Process)> {
        let pid = *self.pid_of.get(&program)?;
        let process = self.by_pid.get_mut(&pid).filter(|process| process.instance == instance)?;
        Some((pid, process))
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Living> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, process: &Process, fact: Fact) {
        (self.report)(Observed { program: process.program, instance: process.instance, fact });
    }

    fn stop(&self, program: ProgramId, instance: InstanceId) {
        let mut table = self.table();
        let Some((pid, process)) = table.find(program, instance) else { return };
        process.stopping = true;
        if self.traits[program].has_stop {
            let _ = self.orders.send(Order::Help(program, instance, pid));
        } else {
            terminate(pid, process);
        }
    }

    fn kill(shared: &Arc<Self>, program: ProgramId, instance: InstanceId) {
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
    fn signal(&self, program: ProgramId, instance: InstanceId, signal: Signal) {
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
        let left_behind = proc::count_group(pid);
        let mut table = self.table();
        let Some(process) = table.by_pid.get(&pid) else { return };
        if let Some(status) = process.ended {
            signal_group(pid, process, nix::sys::signal::SIGKILL);
            self.finish(&mut table, pid, status, left_behind);
        }
    }

    fn finish(&self, table: &mut Living, pid: i32, status: ExitStatus, left_behind: u16) {
        if let Some(process) = table.by_pid.remove(&pid) {
            table.pid_of.remove(&process.program);
            let escaped = self.kill_strays(table, pid, &process);
            if let Some(file) = &self.traits[process.program].pid_file {
                pid_file::remove(file.path(), pid);
            }
            self.report(&process, Fact::Exited { status, left_behind: left_behind.saturating_add(escaped) });
        }
    }

    /// Kills what has escaped from the group of an instance by making a session of its own: when it lost its parent it
    /// became a child of the first thread of this process, or of the launcher's.
    fn kill_strays(&self, table: &Living, group: i32, process: &Process) -> u16 {
        let parent = if process.own { getpid() } else { getppid() }.as_raw();
        let name = &self.traits[process.program].name;
        let is_own = |pid: i32| {
            let token = Token::of(pid, &self.journal);
            token.is_some_and(|token| token.instance == process.instance && token.program == *name)
        };
        let is_stray = |child: &i32| {
            let known = table.by_pid.contains_key(child) || proc::stat(*child).is_none_or(|stat| stat.group == group);
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
    fn adopt(&self, survivor: Survivor, launcher: Option<i32>) -> Option<(i32, OwnedFd)> {
        let Survivor { program, instance, pid, birth, parent } = survivor;
        let process = Process { program, instance, birth, own: false, stopping: false, killed: false, ended: None };
        self.table().insert(pid, process);
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

    pub(super) fn register(&self, pid: i32, birth: StartTime, program: ProgramId, instance: InstanceId) {
        let process = Process { program, instance, birth, own: true, stopping: false, killed: false, ended: None };
        let mut table = self.table();
        self.report(&process, Fact::Spawned { pid, birth });
        table.insert(pid, process);
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
    }

    /// The stop command of a program runs.
    pub(super) fn register_helper(&self, pid: i32, program: ProgramId) {
        let mut table = self.table();
        table.helpers.insert(pid, program);
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
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
    fn helper_ended(&self, table: &mut Living, pid: i32) {
        let Some(program) = table.helpers.remove(&pid) else { return };
        kill_group(pid);
        if let Some(main) = table.pid_of.get(&program).copied() {
            self.finish_if_empty(table, main);
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

    fn reap_for_ever(&self) {
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
            None if table.helpers.contains_key(&pid) => self.helper_ended(&mut table, pid),
            Some(process) if process.own && process.ended.is_none() => self.main_ended(table, pid, status),
            _ => self.finish_if_empty(&mut table, group),
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
            }
        }
    }

    fn main_ended(&self, mut table: MutexGuard<'_, Living>, pid: i32, status: ExitStatus) {
        let Some(process) = table.by_pid.get_mut(&pid) else { return };
        process.ended = Some(status);
        let program = process.program;
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

    fn finish_if_empty(&self, table: &mut Living, group: i32) {
        let last_of = table.by_pid.get(&group).filter(|process| {
            let helped = process.stopping && !process.killed && table.helper_of(process.program).is_some();
            !helped && !group_lives(group, process)
        });
        if let Some(status) = last_of.and_then(|process| process.ended) {
            self.finish(table, group, status, 0);
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
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

/// Whether anything is left of a group that belongs to it.
///
/// The end of one that is not our child may not have been heard of yet, so its start time tells whether it is still
/// the same.
///
/// A number is not given to a new process while there is a group of that number. So once the main process has been
/// reaped, a process of that number means that the group was empty before.
fn group_lives(pid: i32, process: &Process) -> bool {
    let reused = process.ended.is_some() && kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH);
    if !process.own {
        // A main process that has ended may stay a zombie for ever, and with it its group.
        let unheard = process.ended.is_none() && proc::birth(pid) != process.birth;
        let there = !unheard && killpg(Pid::from_raw(pid), None) != Err(Errno::ESRCH);
        return there && (process.ended.is_none() || proc::count_group(pid) > 0);
    }
    !reused && killpg(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// Makes this process the parent of what its descendants leave behind, so that nothing escapes by losing its parent.
pub fn become_subreaper() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// Sees to it that no program gets a descriptor that this process was given.
pub fn close_on_exec() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number: Option<i32> = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(fd) = number.filter(|fd| *fd > 2) {
            kernel::set_close_on_exec(fd);
        }
    }
    Ok(())
}
