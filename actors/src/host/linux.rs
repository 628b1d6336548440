//! The processes of this machine.
//!
//! Two threads do what may wait: one starts processes, one waits for their end. Signals are sent at once. What is known
//! of the processes is under one lock, and a process is reaped only under it, so that no signal can go to a process id
//! that belongs to somebody else by then.
//!
//! An instance is the process group of its main process. It has ended when nothing of that is left.

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString},
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
    thread,
};

use crossbeam_channel::{Receiver, Sender};
use gaggled_core::{
    host::{ExecStage, ExitStatus, Fact, HostCommand, Launch, Log, Observed, Processes, Signal},
    ids::{EpochId, InstanceId, ProgramId, Table},
};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::signal::{kill, killpg},
    unistd::{Pid, getpgid},
};

use super::kernel::{self, Plan, SpawnError, Stack};

/// What every program gets.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The variables, over which those of the program go.
    pub variables: BTreeMap<String, String>,
    /// The directories in which a command without a slash is looked for.
    pub search: Vec<String>,
    /// The life of the daemon, for the token that each instance carries.
    pub epoch: EpochId,
    /// Signals that programs ignore as the daemon does.
    pub keep_ignored: Vec<i32>,
}

/// The processes of this machine.
#[derive(Debug)]
pub struct LinuxHost {
    shared: Arc<Shared>,
    starts: Sender<(ProgramId, InstanceId)>,
}

/// Takes what the host sees.
pub type Report = Box<dyn Fn(Observed) + Send + Sync>;

struct Shared {
    table: Mutex<Living>,
    registered: Condvar,
    /// The process that is being started and is not yet in the table.
    in_flight: AtomicI32,
    report: Report,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("table", &self.table).finish_non_exhaustive()
    }
}

/// The instances of which something is left.
#[derive(Debug, Default)]
struct Living {
    /// By the id of the main process, which is that of the group.
    by_pid: BTreeMap<i32, Process>,
    /// The main process of each program.
    pid_of: BTreeMap<ProgramId, i32>,
}

/// One instance.
#[derive(Debug)]
struct Process {
    program: ProgramId,
    instance: InstanceId,
    /// Whether it was asked to end: what it leaves behind then has time to end as well.
    stopping: bool,
    /// Whether that time is over.
    killed: bool,
    /// How the main process ended, while others of its group are still there.
    ended: Option<ExitStatus>,
}

impl LinuxHost {
    /// Starts the two threads.
    pub fn new(launches: Table<ProgramId, Launch>, environment: Environment, report: Report) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            table: Mutex::new(Living::default()),
            registered: Condvar::new(),
            in_flight: AtomicI32::new(0),
            report,
        });
        let (starts, orders) = crossbeam_channel::unbounded();
        let starter = Starter::new(launches, environment, shared.clone())?;
        thread::Builder::new().name("starter".into()).spawn(move || starter.run(&orders))?;
        let reaper = shared.clone();
        thread::Builder::new().name("reaper".into()).spawn(move || reaper.reap_for_ever())?;
        Ok(Self { shared, starts })
    }
}

impl Processes for LinuxHost {
    fn perform(&mut self, command: HostCommand) {
        match command {
            HostCommand::Spawn { program, instance } => {
                // The starter lives as long as the sender.
                let _ = self.starts.send((program, instance));
            }
            HostCommand::Stop { program, instance } => self.shared.stop(program, instance),
            HostCommand::Kill { program, instance } => Shared::kill(&self.shared, program, instance),
            HostCommand::Signal { program, instance, signal } => self.shared.signal(program, instance, signal),
        }
    }
}

impl Living {
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
        if let Some((pid, process)) = table.find(program, instance) {
            process.stopping = true;
            signal_group(pid, process, nix::sys::signal::SIGTERM);
            // One that stands still could not hear it.
            signal_group(pid, process, nix::sys::signal::SIGCONT);
        }
    }

    fn kill(shared: &Arc<Self>, program: ProgramId, instance: InstanceId) {
        let mut table = shared.table();
        let Some((pid, process)) = table.find(program, instance) else { return };
        process.killed = true;
        if process.ended.is_none() {
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
        let Ok(number) = nix::sys::signal::Signal::try_from(signal.0) else { return };
        if [Signal::TERM, Signal::KILL].contains(&signal) {
            signal_group(pid, process, number);
        } else if process.ended.is_none() {
            let _ = kill(Pid::from_raw(pid), number);
        }
    }

    /// Counts and kills what the main process of an instance has left behind, and reports its end.
    fn sweep(&self, pid: i32) {
        let left_behind = count_group(pid);
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
            self.report(&process, Fact::Exited { status, left_behind });
        }
    }

    fn register(&self, pid: i32, process: Process) {
        let mut table = self.table();
        self.report(&process, Fact::Spawned { pid });
        table.pid_of.insert(process.program, pid);
        table.by_pid.insert(pid, process);
        self.in_flight.store(0, Ordering::SeqCst);
        self.registered.notify_all();
    }

    fn reap_for_ever(&self) {
        loop {
            match kernel::wait_for_any() {
                Some(pid) => self.ended(pid),
                None => self.await_child(),
            }
        }
    }

    /// Without a child nothing is left of an instance whose main process has ended: what that left behind became ours.
    fn await_child(&self) {
        let mut table = self.table();
        let ended = table.by_pid.iter().filter_map(|(pid, process)| Some((*pid, process.ended?)));
        for (pid, status) in ended.collect::<Vec<_>>() {
            self.finish(&mut table, pid, status, 0);
        }
        while table.by_pid.is_empty() {
            table = self.registered.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A child has ended: the main process of an instance, or a stray that became ours when its parent ended.
    fn ended(&self, pid: i32) {
        let mut table = self.table();
        while self.in_flight.load(Ordering::SeqCst) == pid {
            table = self.registered.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let group = getpgid(Some(Pid::from_raw(pid))).map_or(pid, Pid::as_raw);
        let status = kernel::reap(pid);
        match table.by_pid.get_mut(&pid) {
            Some(process) if process.ended.is_none() => {
                process.ended = Some(status);
                let lives = group_lives(pid, process);
                let waits = process.stopping && !process.killed;
                match (lives, waits) {
                    (false, _) => self.finish(&mut table, pid, status, 0),
                    (true, true) => {}
                    (true, false) => {
                        drop(table);
                        self.sweep(pid);
                    }
                }
            }
            _ => {
                let last_of = table.by_pid.get(&group).filter(|process| !group_lives(group, process));
                if let Some(status) = last_of.and_then(|process| process.ended) {
                    self.finish(&mut table, group, status, 0);
                }
            }
        }
    }
}

fn signal_group(pid: i32, process: &Process, signal: nix::sys::signal::Signal) {
    if group_lives(pid, process) {
        let _ = killpg(Pid::from_raw(pid), signal);
    }
}

/// Whether anything is left of a group.
///
/// A number is not given to a new process while there is a group of that number. So once the main process has been
/// reaped, a process of that number means that the group was empty before.
fn group_lives(pid: i32, process: &Process) -> bool {
    let reused = process.ended.is_some() && kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH);
    !reused && killpg(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

/// How many processes there are in a group.
fn count_group(group: i32) -> u16 {
    let in_group = |entry: io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let fields = stat.rsplit_once(") ")?.1;
        let of: i32 = fields.split(' ').nth(2)?.parse().ok()?;
        (of == group && !fields.starts_with('Z')).then_some(())
    };
    let count = std::fs::read_dir("/proc").map_or(0, |entries| entries.filter_map(in_group).count());
    u16::try_from(count).unwrap_or(u16::MAX)
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

/// Starts processes, one after the other.
struct Starter {
    launches: Table<ProgramId, Launch>,
    variables: Vec<(String, CString)>,
    search: Vec<String>,
    epoch: EpochId,
    keep_ignored: Vec<i32>,
    stdin: OwnedFd,
    stack: Stack,
    shared: Arc<Shared>,
}

impl Starter {
    fn new(launches: Table<ProgramId, Launch>, environment: Environment, shared: Arc<Shared>) -> io::Result<Self> {
        let variables =
            environment.variables.iter().filter_map(|(name, value)| Some((name.clone(), variable(name, value)?)));
        Ok(Self {
            launches,
            variables: variables.collect(),
            search: environment.search,
            epoch: environment.epoch,
            keep_ignored: environment.keep_ignored,
            stdin: File::open("/dev/null")?.into(),
            stack: Stack::new()?,
            shared,
        })
    }

    fn run(mut self, orders: &Receiver<(ProgramId, InstanceId)>) {
        for (program, instance) in orders {
            match self.start(program, instance) {
                Ok(pid) => {
                    self.shared
                        .register(pid, Process { program, instance, stopping: false, killed: false, ended: None });
                }
                Err(SpawnError { stage, errno }) => {
                    let table = self.shared.table();
                    self.shared.in_flight.store(0, Ordering::SeqCst);
                    self.shared.registered.notify_all();
                    drop(table);
                    (self.shared.report)(Observed { program, instance, fact: Fact::SpawnFailed { stage, errno } });
                }
            }
        }
    }

    fn start(&mut self, program: ProgramId, instance: InstanceId) -> Result<i32, SpawnError> {
        let Some(launch) = self.launches.get(program) else {
            return Err(SpawnError { stage: ExecStage::Exec, errno: libc::ENOENT });
        };
        let nul = |_| SpawnError { stage: ExecStage::Exec, errno: libc::EINVAL };
        let candidates = candidates(&launch.command, &self.search).map_err(nul)?;
        let argv0 = candidates.first().cloned().unwrap_or_default();
        let arguments: Result<Vec<CString>, _> = launch.argv.iter().map(|word| CString::new(word.as_str())).collect();
        let argv: Vec<CString> = [argv0].into_iter().chain(arguments.map_err(nul)?).collect();
        let token = variable("GAGGLED_INSTANCE", &format!("{}.{program}.{instance}", self.epoch));
        let own: Vec<CString> =
            launch.env.iter().filter_map(|(name, value)| variable(name, value)).chain(token).collect();
        let replaced = |name: &str| launch.env.iter().any(|(own, _)| own == name);
        let env: Vec<&CStr> = self
            .variables
            .iter()
            .filter(|(name, _)| !replaced(name))
            .map(|(_, text)| text.as_c_str())
            .chain(own.iter().map(CString::as_c_str))
            .collect();
        let wd = launch.wd.as_deref().map(CString::new).transpose().map_err(nul)?;
        let output = match &launch.log {
            Log::Inherit => None,
            Log::File(path) => Some(open_log(path)?),
        };
        let plan = Plan {
            candidates: &candidates,
            argv: &argv,
            env: &env,
            wd: wd.as_deref(),
            stdin: &self.stdin,
            output: output.as_ref(),
            keep_ignored: &self.keep_ignored,
        };
        kernel::spawn(&plan, &mut self.stack, &self.shared.in_flight)
    }
}

fn variable(name: &str, value: &str) -> Option<CString> {
    CString::new(format!("{name}={value}")).ok()
}

/// The paths that a command may stand for.
fn candidates(command: &str, search: &[String]) -> Result<Vec<CString>, std::ffi::NulError> {
    if command.contains('/') {
        return Ok(vec![CString::new(command)?]);
    }
    search.iter().map(|directory| CString::new(format!("{directory}/{command}"))).collect()
}

fn open_log(path: &str) -> Result<OwnedFd, SpawnError> {
    let failed = |errno| SpawnError { stage: ExecStage::Log, errno };
    // Not to wait for the reader of a fifo; the program itself gets a descriptor that waits as usual.
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = file.map_err(|error| failed(error.raw_os_error().unwrap_or(libc::EIO)))?;
    fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::O_APPEND)).map_err(|errno| failed(errno as i32))?;
    Ok(file.into())
}
