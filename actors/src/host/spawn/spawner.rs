//! Starts processes, one after the other, in a thread of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{CStr, CString},
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, OpenOptionsExt},
    },
    path::Path,
    sync::Arc,
};

use crossbeam_channel::Receiver;
use gaggled_core::{
    base::ids::{GroupId, IdVec, InstanceId, ProgramId},
    config::sandbox::Rlimit,
    host::{LaunchSpec, LogTarget, PidFile, probe::ReadinessProbe},
    process::{ExitStatus, SpawnStage},
};
use nix::unistd::mkfifo;
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    sys::{
        memfd::{MFdFlags, memfd_create},
        stat::Mode,
    },
};
use tokio::sync::oneshot;

use crate::{
    host::{
        cgroup::Cgroup,
        messages::{Environment, PermitCheck, ReadinessChannel, SpawnRequest, Spawned},
        monitor::Addresses,
        recover::flight_recorder::RunSlot,
        spawn::{
            pid_file,
            sys::{self, PreparedSandbox, SpawnError, SpawnPlan, Stack},
            token::{self, Token},
        },
        track::tracker::ProcessTracker,
    },
    safe_path::SafePath,
};

/// The name of the thread; a child has it, too, until it executes its command.
pub(crate) const THREAD: &str = "spawner";

/// The kind of process that is started for a program.
#[derive(Clone, Copy)]
enum ChildKind<'a> {
    Command,
    /// Its stop command, as the main process of a run.
    Stop,
    /// Its stop command, beside its main process of this id.
    Help(i32),
    /// A line of shell that checks it, beside its main process of this id.
    Check(&'a str, i32),
}

/// Starts processes.
pub(crate) struct Spawner {
    specs: IdVec<ProgramId, LaunchSpec>,
    variables: Vec<(String, CString)>,
    withheld: BTreeSet<String>,
    descriptors: Option<Rlimit>,
    search: Vec<String>,
    journal: String,
    keep_ignored: Vec<i32>,
    permits: PermitCheck,
    stdin: OwnedFd,
    /// Where the output of checks goes.
    nowhere: OwnedFd,
    stack: Stack,
    reserve: Reserve,
    /// The tokens of the groups that run on one node at a time, and are held.
    tokens: BTreeMap<GroupId, u64>,
    /// Where programs say that they are ready.
    addresses: Addresses,
    shared: Arc<ProcessTracker>,
}

impl Spawner {
    pub(crate) fn new(
        specs: IdVec<ProgramId, LaunchSpec>,
        environment: Environment,
        addresses: Addresses,
        shared: Arc<ProcessTracker>,
    ) -> io::Result<Self> {
        let variables =
            environment.variables.iter().filter_map(|(name, value)| Some((name.clone(), variable(name, value)?)));
        Ok(Self {
            specs,
            variables: variables.collect(),
            withheld: environment.withheld,
            descriptors: environment.descriptors,
            search: environment.search,
            journal: environment.journal,
            keep_ignored: environment.keep_ignored,
            permits: environment.permits,
            stdin: File::open("/dev/null")?.into(),
            nowhere: OpenOptions::new().write(true).open("/dev/null")?.into(),
            stack: Stack::new()?,
            reserve: Reserve::new(),
            tokens: BTreeMap::new(),
            addresses,
            shared,
        })
    }

    pub(crate) fn run(mut self, orders: &Receiver<SpawnRequest>) {
        for order in orders {
            match order {
                SpawnRequest::Start(program, instance) => self.run_as(program, instance, ChildKind::Command),
                SpawnRequest::SetToken(group, token) => drop(self.tokens.insert(group, token)),
                SpawnRequest::UndoCommand(program, instance) => self.run_as(program, instance, ChildKind::Stop),
                // The run may have ended meanwhile, and another may be about to begin.
                SpawnRequest::StopCommand(program, instance, _)
                    if self.shared.current(program).is_none_or(|(run, _)| run != instance) => {}
                SpawnRequest::StopCommand(program, instance, main) => {
                    match self.start(program, instance, ChildKind::Help(main)) {
                        Ok(started) => self.shared.register_helper(started.pid, program, instance),
                        Err(_) => self.shared.no_helper(program, instance),
                    }
                }
                SpawnRequest::Check { program, instance, line, answer } => self.check(program, instance, &line, answer),
                SpawnRequest::RemovePidFile { path, pid, ended } => {
                    pid_file::remove(&path, pid);
                    self.shared.tell(ended.program, ended.instance, ended.event);
                }
                SpawnRequest::Barrier(reached) => drop(reached.send(())),
            }
        }
    }

    fn run_as(&mut self, program: ProgramId, instance: InstanceId, what: ChildKind<'_>) {
        match (self.start(program, instance, what), what) {
            (Ok(started), ChildKind::Stop) => self.shared.register_undo((program, instance), started),
            (Ok(started), _) => self.shared.register((program, instance), started),
            (Err(error), _) => {
                if matches!(what, ChildKind::Stop) {
                    self.shared.kill_kept(program, instance);
                }
                self.shared.failed(program, instance, error);
            }
        }
    }

    /// Starts a check. If that fails the sender is dropped, which the receiver notices.
    fn check(&mut self, program: ProgramId, instance: InstanceId, line: &str, answer: oneshot::Sender<ExitStatus>) {
        let current = self.shared.current(program).filter(|(run, _)| *run == instance);
        // The receiver may have given up by now.
        let Some((_, main)) = current.filter(|_| !answer.is_closed()) else { return };
        match self.start(program, instance, ChildKind::Check(line, main)) {
            Ok(started) => self.shared.register_check(started.pid, program, answer),
            Err(_) => self.shared.not_started(),
        }
    }

    /// Starts a process; if no descriptors are left, with those of the reserve.
    fn start(&mut self, program: ProgramId, instance: InstanceId, what: ChildKind<'_>) -> Result<Spawned, SpawnError> {
        let started = self.try_start(program, instance, what);
        match started {
            Err(SpawnError { errno: libc::EMFILE, .. }) => {
                self.reserve.release();
                let started = self.try_start(program, instance, what);
                self.reserve.fill();
                started
            }
            started => started,
        }
    }

    fn try_start(
        &mut self,
        program: ProgramId,
        instance: InstanceId,
        what: ChildKind<'_>,
    ) -> Result<Spawned, SpawnError> {
        let missing = SpawnError { stage: SpawnStage::Exec, errno: libc::ENOENT };
        let launch = self.specs.get(program).ok_or(missing)?;
        let nul = |_| SpawnError { stage: SpawnStage::Exec, errno: libc::EINVAL };
        let words: Vec<&str> = match what {
            ChildKind::Command => [&launch.command].into_iter().chain(&launch.argv).map(String::as_str).collect(),
            // Without a stop command, a command that does nothing is run, after which kept processes are asked to end.
            ChildKind::Stop => vec!["/bin/sh", "-c", launch.stop_command.as_deref().unwrap_or(":")],
            ChildKind::Help(_) => vec!["/bin/sh", "-c", launch.stop_command.as_deref().ok_or(missing)?],
            ChildKind::Check(line, _) => vec!["/bin/sh", "-c", line],
        };
        let candidates = candidates(words[0], &self.search).map_err(nul)?;
        let argv: Vec<CString> = words.into_iter().map(CString::new).collect::<Result<_, _>>().map_err(nul)?;
        let mark = match what {
            // A stop command or a check is not part of the run that the token names.
            ChildKind::Help(main) | ChildKind::Check(_, main) => variable("GAGGLED_PROGRAM_PID", &main.to_string()),
            ChildKind::Command | ChildKind::Stop => {
                variable(token::VARIABLE, &Token::write(&self.journal, &launch.name, instance))
            }
        };
        let is_command = matches!(what, ChildKind::Command);
        let (address, notify_socket) =
            if is_command { self.addresses.of(program, launch).map_err(no_socket)? } else { (None, None) };
        let notify = address.into_iter().filter_map(|address| variable("NOTIFY_SOCKET", &address));
        let watchdog = launch.watchdog.filter(|_| is_command);
        let watchdog = watchdog.and_then(|span| variable("WATCHDOG_USEC", &(span.0 * 1000).to_string()));
        let set = launch.env.iter().filter_map(|(name, value)| variable(name, value));
        let beside = matches!(what, ChildKind::Help(_) | ChildKind::Check(..));
        let helper = beside.then(|| Token::write(&self.journal, &launch.name, instance));
        let helper = helper.and_then(|helper| variable(token::HELPER, &helper));
        let token = launch.shared_group.and_then(|group| self.tokens.get(&group));
        let token = token.and_then(|token| variable("GAGGLED_CLUSTER_TOKEN", &token.to_string()));
        let own: Vec<CString> = set.chain(token).chain(mark).chain(notify).chain(watchdog).chain(helper).collect();
        let of_others = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
        let is_of_another = launch.sandbox.as_ref().is_some_and(|sandbox| sandbox.identity.is_some());
        let is_withheld = |name: &str| is_of_another && self.withheld.contains(name);
        let replaced = |name: &str| {
            of_others.contains(&name) || is_withheld(name) || launch.env.iter().any(|(own, _)| own == name)
        };
        let env: Vec<&CStr> = self
            .variables
            .iter()
            .filter(|(name, _)| !replaced(name))
            .map(|(_, text)| text.as_c_str())
            .chain(own.iter().map(CString::as_c_str))
            .collect();
        let wd = launch.wd.as_deref().map(CString::new).transpose().map_err(nul)?;
        let output = match &launch.log {
            LogTarget::Inherit => None,
            LogTarget::File(_) | LogTarget::Pipe { .. } if matches!(what, ChildKind::Check(..)) => {
                Some(self.nowhere.try_clone().map_err(no_descriptor)?)
            }
            LogTarget::File(path) => Some(open_log(path)?),
            LogTarget::Pipe { pipe, .. } => Some(open_pipe(pipe)?),
        };
        let mut hearing = if is_command { hearing(launch)? } else { ReadinessChannel::default() };
        hearing.notify_socket = notify_socket;
        let is_part = matches!(what, ChildKind::Command | ChildKind::Stop);
        let user = SpawnError { stage: SpawnStage::User, errno: libc::EINVAL };
        let confinement =
            launch.sandbox.as_ref().and_then(|sandbox| PreparedSandbox::new(sandbox, self.descriptors)).ok_or(user)?;
        let run = self.shared.cgroup_of(program, instance).filter(|_| !is_part);
        let undoes = matches!(what, ChildKind::Stop);
        let (cgroup, procs_file) = enter(launch, instance, run, is_part, undoes)?;
        let pid_file = match &launch.pid_file {
            Some(PidFile::Write(path)) if matches!(what, ChildKind::Command) => Some(pid_file::create(path)?),
            Some(_) | None => None,
        };
        let place = is_part.then(|| self.shared.recorder.place(program, instance)).flatten();
        let plan = SpawnPlan {
            candidates: &candidates,
            argv: &argv,
            env: &env,
            wd: wd.as_deref(),
            cgroup: procs_file.as_ref(),
            stdin: &self.stdin,
            output: output.as_ref(),
            descriptor: hearing.descriptor.as_ref().zip(launch.ready.as_ref().and_then(ReadinessProbe::descriptor)),
            pid_file: pid_file.as_ref().map(pid_file::PendingPidFile::plan),
            confinement: &confinement,
            keep_ignored: &self.keep_ignored,
            record: place.map(|(file, at)| (file, at, RunSlot { instance, pid: 0, ended: None }.encode())),
        };
        let may_run = launch.permit.as_ref().filter(|_| is_command).is_none_or(|group| (self.permits.0)(group));
        let spawned = if may_run {
            sys::spawn(&plan, &mut self.stack, &self.shared.in_flight)
        } else {
            Err(SpawnError { stage: SpawnStage::Fork, errno: SpawnStage::CANCELLED })
        };
        if let Err(SpawnError { stage, .. }) = spawned {
            if let Some(created) = pid_file {
                created.abandon(stage);
            }
            if let Some(cgroup) = cgroup.as_ref().filter(|_| is_part) {
                cgroup.remove();
            }
        }
        spawned.map(|pid| Spawned { pid, hearing, cgroup })
    }
}

/// The cgroup of a process, and the file through which it enters: a new cgroup for a run, or that of the run beside
/// which the process runs.
fn enter(
    launch: &LaunchSpec,
    instance: InstanceId,
    beside: Option<Cgroup>,
    is_part: bool,
    undoes: bool,
) -> Result<(Option<Cgroup>, Option<File>), SpawnError> {
    let failed =
        |error: io::Error| SpawnError { stage: SpawnStage::Cgroup, errno: error.raw_os_error().unwrap_or(libc::EIO) };
    match &launch.cgroup {
        Some(wanted) if is_part => {
            let cgroup = Cgroup::new(Path::new(&wanted.parent), &launch.name, instance);
            let procs_file = match cgroup.make(&wanted.settings) {
                // The processes that the run has left may still be in it.
                Err(error) if undoes && error.kind() == io::ErrorKind::AlreadyExists => cgroup.procs_file(),
                made => made,
            };
            let procs_file = procs_file.map_err(failed)?;
            Ok((Some(cgroup), Some(procs_file)))
        }
        _ => {
            let procs_file = beside.as_ref().map(Cgroup::procs_file).transpose().map_err(failed)?;
            Ok((beside, procs_file))
        }
    }
}

/// Descriptors held in reserve, so that a process can be started when all others are in use.
struct Reserve(Vec<File>);

impl Reserve {
    /// As many as a start needs.
    const SIZE: usize = 16;

    fn new() -> Self {
        let mut reserve = Self(Vec::new());
        reserve.fill();
        reserve
    }

    fn release(&mut self) {
        self.0.clear();
    }

    fn fill(&mut self) {
        let more = (self.0.len()..Self::SIZE).map_while(|_| File::open("/dev/null").ok());
        self.0.extend(more);
    }
}

fn variable(name: &str, value: &str) -> Option<CString> {
    CString::new(format!("{name}={value}")).ok()
}

/// The paths at which a command is looked for.
fn candidates(command: &str, search: &[String]) -> Result<Vec<CString>, std::ffi::NulError> {
    if command.contains('/') {
        return Ok(vec![CString::new(command)?]);
    }
    search.iter().map(|directory| CString::new(format!("{directory}/{command}"))).collect()
}

/// Creates the channel through which a run reports that it is ready.
fn hearing(launch: &LaunchSpec) -> Result<ReadinessChannel, SpawnError> {
    let failed = |errno: Errno| SpawnError { stage: SpawnStage::Session, errno: errno as i32 };
    match launch.ready {
        // A memory file and not a pipe: the next daemon can read what was written, and a program that writes is not
        // affected when gaggled does not run.
        Some(ReadinessProbe::Fd(_)) => {
            let file = memfd_create(c"ready", MFdFlags::MFD_CLOEXEC).map_err(failed)?;
            // inotify reports writes to another descriptor of such a file, but not to the first.
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            let file = OpenOptions::new().read(true).write(true).open(path).map_err(no_descriptor)?;
            Ok(ReadinessChannel { descriptor: Some(file), ..ReadinessChannel::default() })
        }
        Some(ReadinessProbe::LogLine(_)) => {
            let log = launch.log.path().and_then(|path| SafePath::find(Path::new(path)).ok());
            let log_from = log.and_then(|log| log.directory.size(&log.name));
            Ok(ReadinessChannel { log_from, ..ReadinessChannel::default() })
        }
        Some(
            ReadinessProbe::Notify | ReadinessProbe::Command(_) | ReadinessProbe::Tcp(_) | ReadinessProbe::Http(_),
        )
        | None => Ok(ReadinessChannel::default()),
    }
}

fn no_socket(error: io::Error) -> SpawnError {
    SpawnError { stage: SpawnStage::Notify, errno: error.raw_os_error().unwrap_or(libc::EIO) }
}

fn no_descriptor(error: io::Error) -> SpawnError {
    SpawnError { stage: SpawnStage::Fork, errno: error.raw_os_error().unwrap_or(libc::EMFILE) }
}

/// Opens a pipe for reading as well, so that it always has a reader, and a program that writes gets no SIGPIPE while
/// the logger does not run.
fn open_pipe(path: &str) -> Result<OwnedFd, SpawnError> {
    let failed = |errno| SpawnError { stage: SpawnStage::Log, errno };
    let open = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let pipe = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
                // The logger may have made it meanwhile.
                Ok(()) | Err(Errno::EEXIST) => open(),
                Err(errno) => return Err(failed(errno as i32)),
            }
        }
        opened => opened,
    };
    let pipe = pipe.map_err(|error| failed(error.raw_os_error().unwrap_or(libc::EIO)))?;
    if !pipe.metadata().is_ok_and(|found| found.file_type().is_fifo()) {
        return Err(failed(libc::EINVAL));
    }
    Ok(pipe.into())
}

/// Opens a log. It may be a fifo or a device that root has put there. The descriptor for the program is a blocking one.
fn open_log(path: &str) -> Result<OwnedFd, SpawnError> {
    let failed =
        |error: io::Error| SpawnError { stage: SpawnStage::Log, errno: error.raw_os_error().unwrap_or(libc::EIO) };
    let file = SafePath::find(Path::new(path)).and_then(|path| path.append()).map_err(failed)?;
    fcntl(file.as_fd(), FcntlArg::F_SETFL(OFlag::O_APPEND)).map_err(|errno| failed(errno.into()))?;
    Ok(file.into())
}
