//! The processes of this machine.
//!
//! Threads do the work that may block: one starts processes, one reaps them, one probes them. Signals are sent at once.

use std::{io, path::PathBuf, sync::Arc, thread, time::Duration};

use crossbeam_channel::Sender;
use gaggled_core::{
    base::ids::{IdVec, ProgramId},
    config::sandbox::Rlimit,
    host::{Host, HostCommand, LaunchSpec},
    process::ExitStatus,
};
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::getppid,
};

use crate::host::{
    cgroup::{self, Cgroup},
    messages::{Environment, HostReportFn, MonitorCommand, SpawnRequest, SurvivingProcess},
    monitor::Monitor,
    recover::{flight_recorder::Recorder, stash::Stash},
    spawn::{
        spawner::{self, Spawner},
        sys,
    },
    track::{
        orphan_watch::{ExitPipe, OrphanWatch},
        tracker::ProcessTracker,
    },
};

/// What a daemon takes over from the previous daemon and from its subreaper.
pub struct TakeoverState {
    /// The sockets that were kept.
    pub stash: Stash,
    /// The subreaper's pipe, if there is a subreaper.
    pub pipe: Option<ExitPipe>,
    /// The programs that were found running.
    pub survivors: Vec<SurvivingProcess>,
    /// The directories of the cgroups of this daemon and of previous ones.
    pub cgroups: Vec<PathBuf>,
    /// The cgroups of runs that have ended and whose remaining processes are kept.
    pub kept: Vec<Cgroup>,
    /// The process ids and exit statuses that the subreaper has reported so far.
    pub reaped: Vec<(i32, ExitStatus)>,
    /// Is called when the subreaper has died.
    pub gone: Box<dyn FnOnce() + Send>,
}

impl std::fmt::Debug for TakeoverState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TakeoverState").field("survivors", &self.survivors).finish_non_exhaustive()
    }
}

/// The processes of this machine.
#[derive(Debug)]
pub struct LinuxHost {
    shared: Arc<ProcessTracker>,
    orders: Sender<SpawnRequest>,
    /// What is taken over as soon as reports can be sent.
    inheritance: Option<TakeoverState>,
}

impl LinuxHost {
    /// Starts the threads that start and reap.
    pub fn new(
        specs: IdVec<ProgramId, LaunchSpec>,
        environment: Environment,
        recorder: Recorder,
        mut inheritance: TakeoverState,
        report: HostReportFn,
    ) -> io::Result<Self> {
        let (orders, received) = crossbeam_channel::unbounded();
        let (tasks, attended) = tokio::sync::mpsc::unbounded_channel();
        let (queue_cgroup_removal, dead) = crossbeam_channel::unbounded();
        let (tell_emptied, emptied) = crossbeam_channel::unbounded();
        let ways = (orders.clone(), tasks, queue_cgroup_removal, tell_emptied);
        let shared = ProcessTracker::new(&specs, environment.journal.clone(), recorder, ways, report);
        let stash = Arc::new(std::mem::take(&mut inheritance.stash));
        let (monitor, addresses) = Monitor::new(&specs, &environment, stash, shared.clone())?;
        monitor.start(attended)?;
        let spawner = Spawner::new(specs, environment, addresses, shared.clone())?;
        thread::Builder::new().name(spawner::THREAD.into()).spawn(move || spawner.run(&received))?;
        if !inheritance.cgroups.is_empty() {
            cgroup::start_remover(dead)?;
        }
        let sweeper = shared.clone();
        thread::Builder::new().name("sweeper".into()).spawn(move || sweeper.sweep_for_ever(&emptied))?;
        let reaper = shared.clone();
        thread::Builder::new().name("reaper".into()).spawn(move || reaper.reap_for_ever())?;
        Ok(Self { shared, orders, inheritance: Some(inheritance) })
    }

    /// Carries out the commands so far, and then reaps nothing any more: processes that end from now on are left to the
    /// next daemon. Starts that take longer than `within` are not waited for.
    pub fn hand_over(&self, within: Duration) {
        let (reached, mark) = crossbeam_channel::bounded(1);
        let _ = self.orders.send(SpawnRequest::Barrier(reached));
        let _ = mark.recv_timeout(within);
        self.shared.hand_over();
    }
}

impl Host for LinuxHost {
    fn start(&mut self) {
        let Some(TakeoverState { pipe, survivors, cgroups, kept, reaped, gone, .. }) = self.inheritance.take() else {
            return;
        };
        let subreaper = pipe.as_ref().map(|_| getppid().as_raw());
        let known = survivors.iter().filter_map(|survivor| survivor.cgroup.clone()).chain(kept).collect();
        cgroups
            .iter()
            .flat_map(|own| cgroup::others(own, &known))
            .for_each(|cgroup| self.shared.queue_cgroup_removal(cgroup));
        let orphans = survivors.into_iter().filter_map(|survivor| self.shared.adopt(survivor, subreaper)).collect();
        for (pid, status) in reaped {
            self.shared.ended_elsewhere(pid, status);
        }
        self.shared.monitor(MonitorCommand::Listen);
        // Without this thread the ends of survivors go unnoticed, but everything else works.
        let _ = OrphanWatch { pipe, orphans }.start(self.shared.clone(), gone);
    }

    fn execute(&mut self, command: HostCommand) {
        match command {
            HostCommand::Spawn { program, instance } => {
                // The spawner lives as long as the sender.
                let _ = self.orders.send(SpawnRequest::Start(program, instance));
            }
            HostCommand::SetToken { group, token } => {
                let _ = self.orders.send(SpawnRequest::SetToken(group, token));
            }
            HostCommand::Undo { program, instance } => {
                let _ = self.orders.send(SpawnRequest::UndoCommand(program, instance));
            }
            HostCommand::Probe { program, instance, kind: check } => {
                self.shared.monitor(MonitorCommand::Check(program, instance, check));
            }
            HostCommand::FlushReports { program, instance } => {
                self.shared.monitor(MonitorCommand::Hear(program, instance));
            }
            HostCommand::RunStopCommand { program, instance } => self.shared.run_stop_command(program, instance),
            HostCommand::Terminate { program, instance } => self.shared.terminate_run(program, instance),
            HostCommand::Kill { program, instance } => self.shared.kill(program, instance),
            HostCommand::Signal { program, instance, signal } => self.shared.signal(program, instance, signal),
        }
    }
}

/// Makes this process the parent of its orphaned descendants, so that no process escapes by losing its parent.
pub fn become_subreaper() -> io::Result<()> {
    nix::sys::prctl::set_child_subreaper(true).map_err(io::Error::from)
}

/// The fewest descriptors that gaggled can work with.
pub const DESCRIPTORS_MIN: u64 = 64;

/// Raises the descriptor limit of this process as far as allowed. Returns the previous limit, which programs get: some
/// break with more than 1,024.
pub fn raise_descriptors() -> io::Result<Rlimit> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(Rlimit { soft, hard })
}

/// Sets close-on-exec on all descriptors above 2 that this process was given, so that no program gets them.
pub fn close_on_exec() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number: Option<i32> = entry?.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(fd) = number.filter(|fd| *fd > 2) {
            sys::set_close_on_exec(fd);
        }
    }
    Ok(())
}
