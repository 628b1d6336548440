//! One run of the daemon: it takes over what the previous daemon has left, begins, and ends.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::Duration,
};

use actix::{Actor, Addr, Arbiter, Recipient};
use crossbeam_channel::Receiver;
use gaggled_actors::{
    actor_system::{self, Actors, HostAddress},
    clock::Clock,
    control::{ControlActor, ControlRequest, ControlServices, DaemonInfo, DrainReplies},
    host::{self, Environment, HandOver, HostActor, LinuxHost, PermitCheck, Recorder, TakeoverState},
    journal::{
        JournalActor, JournalOutputs,
        reader::JournalReader,
        writer_command::{JournalStatusFn, Retention, WriterInit},
        writer_handle::{Healed, JournalWriterHandle},
    },
    messages::{Flush, HostReported, Propose},
    spec,
};
use gaggled_core::{
    base::ids::{IdVec, ProgramId},
    config::{LOGGER, log_policy::LogRoute},
    event::{Cause, Event, Handover, ProgramEvent, SystemEvent},
    host::LaunchSpec,
    process::ExitStatus,
};
use gaggled_gateways::bus::PermitSlot;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::{
    event_sinks::{ControlSink, LastEvent, ThreadSinks},
    handover::HandoverManager,
    loaded_config::LoadedConfig,
    startup::{Startup, StartupState},
    subreaper_link::SubreaperLink,
};
use crate::{
    VERSION,
    common::endpoints::{CONTROL_VARIABLE, EVENT_VARIABLE},
    daemon::event_log::JournalLog,
    daemon::subreaper::{DaemonStatus, HandoffFile},
    logger,
};

/// How long a log that is not read may hold up the end.
const LOG_TIMEOUT: Duration = Duration::from_millis(200);
/// How long the disk may hold up the beginning or a handover.
const DISK_TIMEOUT: Duration = Duration::from_secs(3);
/// How long starts that are under way may hold up a handover.
const STARTS_TIMEOUT: Duration = Duration::from_secs(5);

/// How a daemon has ended.
pub(super) enum DaemonExit {
    /// Everything has stopped except `survivors` programs. `essential_exit` is set if an essential program has caused
    /// that.
    Stopped { survivors: u32, essential_exit: Option<ExitStatus> },
    /// Another daemon follows.
    HandedOver(Handover),
}

/// A daemon that runs.
struct RunningDaemon {
    control: Addr<ControlActor>,
    host: Addr<HostActor<LinuxHost>>,
    actors: Actors,
    file: JournalWriterHandle,
    renewer: HandoverManager,
    publishing: thread::JoinHandle<()>,
    logged: Receiver<()>,
    place: String,
    /// The id of the journal.
    identity: String,
    /// The directories of the cgroups of this daemon and of previous ones.
    cgroups: Vec<PathBuf>,
    notify_directory: PathBuf,
    subreaper: Option<SubreaperLink>,
}

impl Startup<'_> {
    /// Runs the daemon until it ends.
    pub(super) async fn run(mut self) -> Result<DaemonExit, String> {
        let clock = Clock::real();
        let taken = self.take_over(clock)?;
        let (running, ending) = self.begin(clock, taken).map_err(|error| error.to_string())?;
        running.publish_status(DaemonStatus::Running, "");
        let end = ending.await.map_err(|_| "the journal ended early".to_owned())?;
        Ok(running.end(end).await)
    }

    /// Starts everything. The receiver gets the last event.
    fn begin(
        &mut self,
        clock: Clock,
        taken: StartupState,
    ) -> io::Result<(RunningDaemon, oneshot::Receiver<LastEvent>)> {
        let StartupState { head, state, committed, recorder, mut pipe, survivors, kept, reaped, before, own_cgroups } =
            taken;
        let cgroups = head.cgroups.clone();
        let (publisher, server, slot_of_server) = self.channels.take().ok_or(io::ErrorKind::NotFound)?;
        let (system, mut subreaper) = (self.system, self.subreaper.take());
        let stash = subreaper.as_mut().map(|subreaper| std::mem::take(&mut subreaper.stash)).unwrap_or_default();
        let health = JournalStatusSlot::default();
        let path = self.directory.path().to_owned();
        let journaled = WriterInit { head: head.clone(), state: state.clone(), opening: committed.1.clone() };
        let restorer = Restorer::new(&path, &system.log_routes);
        let (file, _) = JournalWriterHandle::start(
            path.clone(),
            journaled,
            system.retention(),
            health.health(),
            restorer.healed(),
        )?;
        // The recorder may be reset only when the journal has what it holds.
        let _ = file.written(DISK_TIMEOUT);
        // At worst an exit status is lost.
        let _ = recorder.reset(head.epoch, state.graph.programs.len());
        if let Some(pipe) = &mut pipe {
            pipe.take(reaped.len());
        }

        let (events, envelopes) = crossbeam_channel::unbounded();
        let permits = PermitSlot::default();
        let permitted = permits.clone();
        let may_run = PermitCheck(Arc::new(move |group: &str| permitted.allows(group, clock.now())));
        let publishing = publisher.publish(state.clone(), envelopes, permits.clone())?;
        let (log, logged) = JournalLog::start(state.graph.clone())?;
        let (gone, subreaper_gone) = oneshot::channel();
        let tell = move || {
            let _ = gone.send(());
        };
        let inheritance =
            TakeoverState { stash, pipe, survivors, cgroups: cgroups.clone(), kept, reaped, gone: Box::new(tell) };
        // Programs run even if their logs cannot be found by name.
        let _ = logger::leave(&path, &system.log_routes);
        let own = own_cgroups.as_deref();
        let to_launch = spec::specs(&system.config, before.as_ref(), &state.graph, &system.log_routes, own);
        let (host, address) = system.start_host(&path, &head.journal, to_launch, recorder, inheritance, may_run)?;
        let writes_logs = state.graph.names().get(LOGGER).copied();
        let (ended, ending) = oneshot::channel();
        let slot = ControlSink::default();
        // The journal comes first, so that the writer has every event for which the control actor delays a reply.
        let sinks = vec![file.sink(), slot.sink(), ThreadSinks { events, log, ended }.sink()];
        let permitted = Box::new(move |known| permits.set(known));
        let outputs = JournalOutputs { sinks, refused: slot.decline(), permitted };
        let actors = actor_system::start(committed, clock, &address, outputs);
        health.fill(&actors.journal);
        restorer.fill(&actors.journal, writes_logs);

        let renewer = HandoverManager::new(
            system,
            path.clone(),
            &head.journal,
            file.clone(),
            subreaper.as_ref().map(|subreaper| subreaper.binary.clone()),
        );
        let means = ControlServices {
            clock,
            journal: actors.journal.clone(),
            file: file.clone(),
            reader: JournalReader::new(&path),
            prepare_handover: renewer.renewal(),
            info: system.about(&path, &head.journal),
        };
        let entries = std::mem::take(&mut self.recovered.entries);
        // Clients are served by a separate thread, so that supervision never waits for them.
        let clients = Arbiter::new();
        let control =
            ControlActor::start_in_arbiter(&clients.handle(), move |_| ControlActor::new(state, entries, means));
        slot.fill(control.clone());
        let _ = slot_of_server.set(control.clone().recipient());
        server.serve().map_err(io::Error::other)?;
        actor_system::open(&actors.journal);
        watch_signals(system.ignore_interrupts, &actors.journal, control.clone().recipient())?;
        watch_subreaper(subreaper_gone, &actors.journal);
        let place = path.display().to_string();
        let notify_directory = host::notify_directory(&path, &head.journal);
        let running = RunningDaemon {
            control,
            host,
            actors,
            file,
            renewer,
            publishing,
            logged,
            place,
            identity: head.journal.clone(),
            cgroups,
            notify_directory,
            subreaper,
        };
        Ok((running, ending))
    }
}

impl RunningDaemon {
    fn publish_status(&self, status: DaemonStatus, binary: &str) {
        if let Some(subreaper) = &self.subreaper {
            let (state, identity, binary) = (self.place.clone(), self.identity.clone(), binary.to_owned());
            subreaper.write(&HandoffFile { state, binary, status, identity });
        }
    }

    async fn end(self, end: LastEvent) -> DaemonExit {
        let ended = match end {
            LastEvent::Stopped { survivors, essential_exit } => {
                let _ = self.host.send(HandOver(STARTS_TIMEOUT)).await;
                let _ = self.control.send(DrainReplies).await;
                self.cgroups.iter().for_each(|own| host::cgroup::remove_directory(own));
                // No program is left that could send a message.
                let _ = fs::remove_dir_all(&self.notify_directory);
                self.publish_status(DaemonStatus::Exiting, "");
                DaemonExit::Stopped { survivors, essential_exit }
            }
            LastEvent::HandedOver(to) => {
                let _ = self.host.send(HandOver(STARTS_TIMEOUT)).await;
                self.actors.machines.flush().await;
                let _ = self.actors.journal.send(Flush).await;
                let binary = self.renewer.next_binary().filter(|_| to == Handover::Upgrade).unwrap_or_default();
                self.publish_status(DaemonStatus::HandingOver, &binary);
                DaemonExit::HandedOver(to)
            }
        };
        let _ = self.file.flush(DISK_TIMEOUT);
        if matches!(ended, DaemonExit::Stopped { .. }) {
            // These end after the last event; a log that is stuck is not waited for long.
            let _ = self.publishing.join();
            let _ = self.logged.recv_timeout(LOG_TIMEOUT);
        }
        ended
    }
}

/// Where the thread of the journal reports its status: reports before the actors run are kept.
#[derive(Clone, Default)]
struct JournalStatusSlot(Arc<Mutex<Hearing>>);

#[derive(Default)]
struct Hearing {
    journal: Option<Addr<JournalActor>>,
    kept: Vec<SystemEvent>,
}

impl JournalStatusSlot {
    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn health(&self) -> JournalStatusFn {
        let slot = self.clone();
        Arc::new(move |event| {
            let mut hearing = slot.hearing();
            match &hearing.journal {
                Some(journal) => journal.do_send(told(event)),
                None => hearing.kept.push(event),
            }
        })
    }

    fn fill(&self, journal: &Addr<JournalActor>) {
        let mut hearing = self.hearing();
        for event in std::mem::take(&mut hearing.kept) {
            journal.do_send(told(event));
        }
        hearing.journal = Some(journal.clone());
    }
}

/// Restores what belongs into the state directory besides the journal, after it was created again: the list of logs,
/// and the pipes of those that are rotated, which the logger creates when it starts.
#[derive(Clone)]
struct Restorer {
    state: PathBuf,
    log_routes: Vec<LogRoute>,
    logger: Arc<OnceLock<(Addr<JournalActor>, ProgramId)>>,
}

impl Restorer {
    fn new(state: &Path, log_routes: &[LogRoute]) -> Self {
        Self { state: state.to_owned(), log_routes: log_routes.to_vec(), logger: Arc::default() }
    }

    fn healed(&self) -> Healed {
        let own = self.clone();
        Arc::new(move || {
            // Programs run even if their logs cannot be found by name.
            let _ = logger::leave(&own.state, &own.log_routes);
            if let Some((journal, logger)) = own.logger.get() {
                let event = Event::Program(*logger, ProgramEvent::RestartRequested);
                journal.do_send(Propose { from: None, event, cause: Cause::Kernel });
            }
        })
    }

    fn fill(&self, journal: &Addr<JournalActor>, logger: Option<ProgramId>) {
        if let Some(logger) = logger {
            let _ = self.logger.set((journal.clone(), logger));
        }
    }
}

fn told(event: SystemEvent) -> Propose {
    Propose { from: None, event: Event::System(event), cause: Cause::Kernel }
}

fn watch_signals(
    ignore_interrupts: bool,
    journal: &Addr<JournalActor>,
    control: Recipient<ControlRequest>,
) -> io::Result<()> {
    let mut wanted = vec![(SignalKind::terminate(), "SIGTERM")];
    if !ignore_interrupts {
        wanted.push((SignalKind::interrupt(), "SIGINT"));
    }
    for (kind, name) in wanted {
        let (mut stream, journal) = (signal(kind)?, journal.downgrade());
        actix::spawn(async move {
            while stream.recv().await.is_some() {
                let cause = Cause::Operator { who: name.into(), command: "".into() };
                let event = Event::System(SystemEvent::ShutdownStarted);
                if let Some(journal) = journal.upgrade() {
                    journal.do_send(Propose { from: None, event, cause });
                }
            }
        });
    }
    let mut hangups = signal(SignalKind::hangup())?;
    actix::spawn(async move {
        while hangups.recv().await.is_some() {
            super::handover::reload_by_signal(&control);
        }
    });
    // Unblocks signals that have arrived since the start.
    nix::sys::signal::SigSet::empty().thread_set_mask().map_err(io::Error::from)
}

/// When the subreaper has died, this process takes its place, and its programs stay its children.
fn watch_subreaper(gone: oneshot::Receiver<()>, journal: &Addr<JournalActor>) {
    let journal = journal.downgrade();
    actix::spawn(async move {
        if gone.await.is_ok()
            && let Some(journal) = journal.upgrade()
        {
            let event = Event::System(SystemEvent::HandoverStarted { kind: Handover::Subreaper });
            journal.do_send(Propose { from: None, event, cause: Cause::Kernel });
        }
    });
}

impl LoadedConfig {
    /// The directory in which the cgroups of programs are made, if they get any.
    pub(super) fn cgroups(&self, journal: &str) -> Option<PathBuf> {
        Some(host::cgroup::own_directory(self.config.gaggled.cgroup.as_deref()?, journal))
    }

    fn retention(&self) -> Retention {
        let journal = self.config.gaggled.journal;
        Retention { bytes: journal.megabytes.saturating_mul(1 << 20), age: journal.age }
    }

    fn about(&self, state: &Path, journal: &str) -> DaemonInfo {
        DaemonInfo {
            version: VERSION,
            pid: std::process::id(),
            binary: std::env::current_exe().map_or_else(|_| String::new(), |path| path.display().to_string()),
            journal: host::public_id(journal),
            eventurl: self.urls.event.clone(),
            controlurl: self.urls.control.clone(),
            state: state.display().to_string(),
            published: self.published.clone(),
        }
    }

    fn start_host(
        &self,
        state: &Path,
        journal: &str,
        specs: IdVec<ProgramId, LaunchSpec>,
        recorder: Recorder,
        inheritance: TakeoverState,
        permits: PermitCheck,
    ) -> io::Result<(Addr<HostActor<LinuxHost>>, HostAddress)> {
        let about = [
            (EVENT_VARIABLE, self.urls.event.clone()),
            (CONTROL_VARIABLE, self.urls.control.clone()),
            (
                "GAGGLED_HOST",
                nix::unistd::gethostname().map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned()),
            ),
        ];
        let own =
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
        let environment = Environment {
            variables: spec::variables(&self.config, own, &self.search, about),
            withheld: spec::withheld(&self.config, names),
            descriptors: Some(host::raise_descriptors()?),
            search: self.search.clone(),
            journal: journal.to_owned(),
            notify_directory: host::notify_directory(state, journal),
            keep_ignored: if self.ignore_interrupts { vec![nix::libc::SIGINT] } else { Vec::new() },
            permits,
        };
        let saw: Arc<OnceLock<Recipient<HostReported>>> = Arc::default();
        let to_actor = saw.clone();
        let report = move |report| {
            if let Some(actor) = to_actor.get() {
                actor.do_send(HostReported(report));
            }
        };
        let host = LinuxHost::new(specs, environment, recorder, inheritance, Box::new(report))?;
        let address = HostActor::new(host).start();
        let _ = saw.set(address.clone().recipient());
        let connected = HostAddress { perform: address.clone().recipient(), connect: address.clone().recipient() };
        Ok((address, connected))
    }
}
