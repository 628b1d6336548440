//! The monitor thread: receives what programs report about themselves, and probes them.
//!
//! The rules decide when to probe and what follows from a result. The monitor only carries probes out, each within its
//! timeout and not too many at once.

mod file_watch;
mod notify_socket;
mod probes;

use crate::host::{
    messages::{Environment, MonitorCommand, ReadinessChannel},
    recover::stash::Stash,
    spawn::pid_file,
    track::tracker::ProcessTracker,
};
use std::{collections::BTreeMap, io, rc::Rc, sync::Arc, thread};

use gaggled_core::{
    base::ids::{IdVec, InstanceId, ProgramId},
    host::{
        HostEvent, LaunchSpec,
        probe::{Health, Probe, ProbeError, ProbeKind, ReadinessProbe},
    },
};
use inotify::Inotify;
use tokio::{
    runtime,
    sync::{Semaphore, mpsc::UnboundedReceiver},
    task::LocalSet,
};

pub(crate) use self::notify_socket::Addresses;
pub use self::notify_socket::notify_directory;
use self::{
    file_watch::{FileWatches, Pattern},
    notify_socket::{NotifyReader, Sockets},
};

/// How many checks are carried out at once.
const AT_ONCE: usize = 64;
/// How many threads probes may use.
const THREADS: usize = 16;

/// How a program is probed, and how it reports that it is ready.
#[derive(Clone, Debug)]
struct Monitored {
    ready: Option<ReadinessProbe>,
    health: Option<Health>,
    log: Option<String>,
}

/// The monitor before its thread is started.
pub(crate) struct Monitor {
    programs: IdVec<ProgramId, Monitored>,
    sockets: Sockets,
    inotify: Inotify,
    shared: Arc<ProcessTracker>,
}

/// The state of the monitor thread.
struct MonitorLoop {
    programs: IdVec<ProgramId, Monitored>,
    shared: Arc<ProcessTracker>,
    watches: FileWatches,
    /// The readers of notify sockets; empty until [`MonitorCommand::Listen`].
    ears: BTreeMap<ProgramId, Rc<NotifyReader>>,
    slots: Arc<Semaphore>,
    /// The pid files that are looked at until they name a daemon.
    awaited: BTreeMap<ProgramId, (InstanceId, String, Option<ProbeError>)>,
}

impl Monitor {
    /// Binds the notify sockets and initialises inotify.
    pub(crate) fn new(
        specs: &IdVec<ProgramId, LaunchSpec>,
        environment: &Environment,
        stash: Arc<Stash>,
        shared: Arc<ProcessTracker>,
    ) -> io::Result<(Self, Addresses)> {
        let attended = |launch: &LaunchSpec| Monitored {
            ready: launch.ready.clone(),
            health: launch.health.clone(),
            log: launch.log.path().cloned(),
        };
        let directory = environment.notify_directory.clone();
        let (sockets, addresses) = Sockets::bind(specs, &environment.journal, directory, stash);
        let inotify = Inotify::init()
            .map_err(|error| io::Error::new(error.kind(), format!("files cannot be watched (inotify): {error}")))?;
        Ok((Self { programs: specs.values().map(attended).collect(), sockets, inotify, shared }, addresses))
    }

    /// Starts the thread.
    pub(crate) fn start(self, mut tasks: UnboundedReceiver<MonitorCommand>) -> io::Result<()> {
        let Self { programs, sockets, inotify, shared } = self;
        let runtime = runtime::Builder::new_current_thread().enable_all().max_blocking_threads(THREADS).build()?;
        let live = async move || {
            let (watches, concerned) = FileWatches::new(inotify)?;
            let mut sockets = Some(sockets);
            let slots = Arc::new(Semaphore::new(AT_ONCE));
            let (ears, awaited) = (BTreeMap::new(), BTreeMap::new());
            let mut attending = MonitorLoop { programs, shared, watches, ears, slots, awaited };
            loop {
                tokio::select! {
                    task = tasks.recv() => match task {
                        // The senders of earlier messages are in the process table by now.
                        Some(MonitorCommand::Listen) => {
                            if let Some(sockets) = sockets.take() {
                                attending.ears.append(&mut sockets.listen(&attending.shared));
                            }
                        }
                        Some(task) => attending.carry_out(task),
                        None => return Ok::<(), io::Error>(()),
                    },
                    program = concerned.next() => attending.look(program),
                }
            }
        };
        thread::Builder::new().name("monitor".into()).spawn(move || {
            // Without this thread, programs with a readiness probe never become ready, and are stopped for that.
            let _ = LocalSet::new().block_on(&runtime, live());
        })?;
        Ok(())
    }
}

impl MonitorLoop {
    fn carry_out(&mut self, task: MonitorCommand) {
        match task {
            MonitorCommand::Begin { program, instance, pid, hearing } => self.begin((program, instance), pid, hearing),
            MonitorCommand::Listen => {}
            MonitorCommand::Hear(program, instance) => {
                self.ears.get(&program).into_iter().for_each(|ear| ear.hear());
                self.look(program);
                self.shared.tell(program, instance, HostEvent::ReportsFlushed);
            }
            MonitorCommand::Check(program, instance, check) => self.check(program, instance, check),
            MonitorCommand::AwaitDaemon(program, instance) => {
                if let Some(path) = self.shared.programs[program].daemon_file().map(str::to_owned) {
                    self.watches.directory_of(program, &path);
                    self.awaited.insert(program, (instance, path, None));
                    self.look_for_daemon(program);
                }
            }
            MonitorCommand::RecheckPidFiles => {
                for program in self.awaited.keys().copied().collect::<Vec<_>>() {
                    self.look_for_daemon(program);
                }
            }
            MonitorCommand::End(program) => {
                self.awaited.remove(&program);
                self.watches.forget(program);
            }
        }
    }

    fn begin(&mut self, (program, instance): (ProgramId, InstanceId), pid: i32, hearing: ReadinessChannel) {
        let ear = hearing.notify_socket.and_then(|socket| NotifyReader::listen(program, socket, &self.shared).ok());
        self.ears.extend(ear.map(|ear| (program, ear)));
        let Monitored { ready, log, .. } = &self.programs[program];
        match (ready, log) {
            (Some(ReadinessProbe::Fd(fd)), _) => {
                let given = hearing.descriptor.or_else(|| file_watch::reopen_ready_fd(pid, *fd));
                if let Some(file) = given {
                    self.watches.file(program, instance, file, Pattern::Line);
                }
            }
            (Some(ReadinessProbe::LogLine(text)), Some(log)) => {
                self.watches.log(program, instance, log, hearing.log_from, text);
            }
            (Some(_) | None, _) => {}
        }
        self.look(program);
    }

    /// Checks the files of a program, one of which may have changed.
    fn look(&mut self, program: ProgramId) {
        if let Some(instance) = self.watches.is_reached(program) {
            self.shared.tell(program, instance, HostEvent::Ready);
        }
        self.look_for_daemon(program);
    }

    fn look_for_daemon(&mut self, program: ProgramId) {
        let Some((instance, path, last)) = self.awaited.get_mut(&program) else { return };
        let taken = match pid_file::read(path) {
            Ok(named) => self.shared.adopt_daemon(program, *instance, named),
            Err(error) => Some(Err(error)),
        };
        if let Some(Err(error)) = taken {
            if *last != Some(error) {
                *last = Some(error);
                self.shared.tell(program, *instance, HostEvent::NotReadyYet(error));
            }
        } else {
            self.awaited.remove(&program);
            self.watches.forget_directory(program);
        }
    }

    fn check(&self, program: ProgramId, instance: InstanceId, check: ProbeKind) {
        let Monitored { ready, health, .. } = &self.programs[program];
        let (probe, timeout) = match (check, health) {
            (ProbeKind::Health, Some(health)) => (Some(health.probe.clone()), health.timeout),
            (ProbeKind::Ready | ProbeKind::Health, _) => {
                (ready.as_ref().and_then(ReadinessProbe::probe), Health::PROBE_TIMEOUT)
            }
        };
        let Some(probe) = probe else { return };
        let (shared, slots) = (self.shared.clone(), self.slots.clone());
        tokio::task::spawn_local(async move {
            let _slot = slots.acquire().await;
            let timeout = timeout.as_duration();
            let result = match probe {
                Probe::Tcp(address) => probes::tcp(&address, timeout).await,
                Probe::Http(url) => probes::http(url, timeout).await,
                Probe::Command(line) => probes::command(&shared, program, instance, line, timeout).await,
            };
            shared.tell(program, instance, HostEvent::ProbeResult(result));
        });
    }
}
