//! Listens to programs, and asks them how they are: a thread of its own, on which nothing else waits.
//!
//! When something is asked and what follows from the answer is decided by the rules; here it is only carried out, each
//! check within its time and not too many at once.

mod checks;
mod notify;
mod watches;

use std::{collections::BTreeMap, fs::File, io, os::unix::net::UnixDatagram, rc::Rc, sync::Arc, thread};

use gaggled_core::{
    health::{Check, Complaint, Health, Probe, Ready},
    host::{Fact, Launch},
    ids::{InstanceId, ProgramId, Table},
};
use inotify::Inotify;
use tokio::{
    runtime,
    sync::{Semaphore, mpsc::UnboundedReceiver},
    task::LocalSet,
};

pub(super) use self::notify::Addresses;
pub use self::notify::notify_directory;
use self::{
    notify::{Ear, Sockets},
    watches::{Goal, Watches},
};
use super::{linux::Environment, pid_file, shared::Shared, stash::Stash};

/// What a run was given to say something with, beyond its notify socket.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    /// What it writes to, if it is ready by a descriptor.
    pub descriptor: Option<File>,
    /// How long its log was when it began, if it is ready by a line of that.
    pub log_from: Option<u64>,
    /// Its notify socket, if that could not be made before.
    pub notify_socket: Option<UnixDatagram>,
}

/// What the attendant is to do.
#[derive(Debug)]
pub(super) enum Task {
    /// Listen to a run that has begun, or was taken over.
    Begin { program: ProgramId, instance: InstanceId, pid: i32, hearing: Hearing },
    /// Listen to what programs say: what has survived is known.
    Listen,
    /// Report everything that a run has said so far, and then that it was heard.
    Hear(ProgramId, InstanceId),
    /// Ask a run.
    Check(ProgramId, InstanceId, Check),
    /// The command of a run has ended well: find the daemon that it has left.
    AwaitDaemon { program: ProgramId, instance: InstanceId, path: String },
    /// A process that belongs to nobody has ended: what was its child may be ours now.
    LookAgain,
    /// The run of a program has ended.
    End(ProgramId),
}

/// How many checks are carried out at once.
const AT_ONCE: usize = 64;
/// How many threads they may take.
const THREADS: usize = 16;

/// What is asked of a program, and how it says that it is ready.
#[derive(Clone, Debug)]
struct Attended {
    ready: Option<Ready>,
    health: Option<Health>,
    log: Option<String>,
}

/// Listens and asks.
pub(super) struct Attendant {
    programs: Table<ProgramId, Attended>,
    sockets: Sockets,
    inotify: Inotify,
    shared: Arc<Shared>,
}

/// The attendant at work.
struct Attending {
    programs: Table<ProgramId, Attended>,
    shared: Arc<Shared>,
    watches: Watches,
    /// Where programs say something; empty until they are listened to.
    ears: BTreeMap<ProgramId, Rc<Ear>>,
    slots: Arc<Semaphore>,
    /// The pid files that are looked at until they name a daemon.
    awaited: BTreeMap<ProgramId, (InstanceId, String, Option<Complaint>)>,
}

impl Attendant {
    /// Makes what programs need to be heard.
    pub(super) fn new(
        launches: &Table<ProgramId, Launch>,
        environment: &Environment,
        stash: Arc<Stash>,
        shared: Arc<Shared>,
    ) -> io::Result<(Self, Addresses)> {
        let attended = |launch: &Launch| Attended {
            ready: launch.ready.clone(),
            health: launch.health.clone(),
            log: launch.log.path().cloned(),
        };
        let directory = environment.notify_directory.clone();
        let (sockets, addresses) = Sockets::bind(launches, &environment.journal, directory, stash);
        let inotify = Inotify::init()
            .map_err(|error| io::Error::new(error.kind(), format!("files cannot be watched (inotify): {error}")))?;
        Ok((Self { programs: launches.values().map(attended).collect(), sockets, inotify, shared }, addresses))
    }

    /// Starts the thread.
    pub(super) fn start(self, mut tasks: UnboundedReceiver<Task>) -> io::Result<()> {
        let Self { programs, sockets, inotify, shared } = self;
        let runtime = runtime::Builder::new_current_thread().enable_all().max_blocking_threads(THREADS).build()?;
        let live = async move || {
            let (watches, mut concerned) = Watches::new(inotify)?;
            let mut sockets = Some(sockets);
            let slots = Arc::new(Semaphore::new(AT_ONCE));
            let (ears, awaited) = (BTreeMap::new(), BTreeMap::new());
            let mut attending = Attending { programs, shared, watches, ears, slots, awaited };
            loop {
                tokio::select! {
                    task = tasks.recv() => match task {
                        // Whoever spoke before is known now.
                        Some(Task::Listen) => {
                            if let Some(sockets) = sockets.take() {
                                attending.ears.append(&mut sockets.listen(&attending.shared));
                            }
                        }
                        Some(task) => attending.carry_out(task),
                        None => return Ok::<(), io::Error>(()),
                    },
                    Some(program) = concerned.recv() => attending.look(program),
                }
            }
        };
        thread::Builder::new().name("attendant".into()).spawn(move || {
            // Without it programs that have to be asked are never ready, and are told to stop for that.
            let _ = LocalSet::new().block_on(&runtime, live());
        })?;
        Ok(())
    }
}

impl Attending {
    fn carry_out(&mut self, task: Task) {
        match task {
            Task::Begin { program, instance, pid, hearing } => self.begin((program, instance), pid, hearing),
            Task::Listen => {}
            Task::Hear(program, instance) => {
                self.ears.get(&program).into_iter().for_each(|ear| ear.hear());
                self.look(program);
                self.shared.tell(program, instance, Fact::Heard);
            }
            Task::Check(program, instance, check) => self.check(program, instance, check),
            Task::AwaitDaemon { program, instance, path } => {
                self.watches.directory_of(program, &path);
                self.awaited.insert(program, (instance, path, None));
                self.look_for_daemon(program);
            }
            Task::LookAgain => {
                for program in self.awaited.keys().copied().collect::<Vec<_>>() {
                    self.look_for_daemon(program);
                }
            }
            Task::End(program) => {
                self.awaited.remove(&program);
                self.watches.forget(program);
            }
        }
    }

    fn begin(&mut self, (program, instance): (ProgramId, InstanceId), pid: i32, hearing: Hearing) {
        let ear = hearing.notify_socket.and_then(|socket| Ear::listen(program, socket, &self.shared).ok());
        self.ears.extend(ear.map(|ear| (program, ear)));
        let Attended { ready, log, .. } = &self.programs[program];
        match (ready, log) {
            (Some(Ready::Descriptor(fd)), _) => {
                let given = hearing.descriptor.or_else(|| watches::given_before(pid, *fd));
                if let Some(file) = given {
                    self.watches.file(program, instance, file, Goal::Line);
                }
            }
            (Some(Ready::Line(text)), Some(log)) => {
                self.watches.log(program, instance, log, hearing.log_from, text);
            }
            (Some(_) | None, _) => {}
        }
        self.look(program);
    }

    /// Something that a program writes to has changed.
    fn look(&mut self, program: ProgramId) {
        if let Some(instance) = self.watches.is_reached(program) {
            self.shared.tell(program, instance, Fact::Ready);
        }
        self.look_for_daemon(program);
    }

    fn look_for_daemon(&mut self, program: ProgramId) {
        let Some((instance, path, last)) = self.awaited.get_mut(&program) else { return };
        let taken = match pid_file::read(path) {
            Ok(named) => self.shared.take_daemon(program, *instance, named),
            Err(complaint) => Some(Err(complaint)),
        };
        if let Some(Err(complaint)) = taken {
            if *last != Some(complaint) {
                *last = Some(complaint);
                self.shared.tell(program, *instance, Fact::Complained(complaint));
            }
        } else {
            self.awaited.remove(&program);
            self.watches.forget_directory(program);
        }
    }

    fn check(&self, program: ProgramId, instance: InstanceId, check: Check) {
        let Attended { ready, health, .. } = &self.programs[program];
        let (probe, timeout) = match (check, health) {
            (Check::Health, Some(health)) => (Some(health.check.clone()), health.timeout),
            (Check::Ready | Check::Health, _) => (ready.as_ref().and_then(Ready::probe), Health::READY_TIMEOUT),
        };
        let Some(probe) = probe else { return };
        let (shared, slots) = (self.shared.clone(), self.slots.clone());
        tokio::task::spawn_local(async move {
            let _slot = slots.acquire().await;
            let timeout = timeout.as_duration();
            let result = match probe {
                Probe::Tcp(address) => checks::tcp(&address, timeout).await,
                Probe::Http(url) => checks::http(url, timeout).await,
                Probe::Command(line) => checks::command(&shared, program, instance, line, timeout).await,
            };
            shared.tell(program, instance, Fact::Checked(result));
        });
    }
}
