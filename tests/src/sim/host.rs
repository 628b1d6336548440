//! A simulated host without processes: it reports what a real host would, when the world says, and records what ran.
//!
//! It checks I6 (a program has one process), I33 (a run that has pinged in time gets no watchdog timeout), I38 (a
//! program with a stop command gets no signal before the command has failed) and I39 (after the failure it gets a TERM
//! before it is killed).

use std::collections::{BTreeMap, BTreeSet};

use gaggled_core::{
    base::{
        ids::{DenseId, InstanceId, ProgramId},
        time::{Instant, Millis},
    },
    event::{Envelope, Event, ProgramEvent},
    graph::{Leaves, Readiness},
    host::{
        Ending, ExitAction, ExitPolicy, HostCommand, HostEvent, HostReport,
        probe::{ProbeError, ProbeKind, UnhealthyReason},
    },
    process::{ExitStatus, Signal, SpawnStage, StartTime},
};

use super::{
    random::{Pick, Random},
    world::World,
};

/// Something that will happen to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduledEvent {
    /// The host reports this.
    Report(HostReport),
    /// The process of this instance ends.
    End(ProgramId, InstanceId, ExitStatus),
    /// The process of this instance sends a watchdog ping, again and again.
    Speak {
        /// The program.
        program: ProgramId,
        /// Which of its runs.
        instance: InstanceId,
        /// The time between two pings.
        every: Millis,
        /// When the pings end.
        last: Instant,
    },
}

/// A run that has a process.
#[derive(Debug)]
struct LiveRun {
    instance: InstanceId,
    pid: i32,
    ending: Ending,
    /// Whether its main process is the command, and not the daemon that the command has left.
    is_command: bool,
    /// The exit status of its command, while the host waits for the daemon that the command leaves.
    awaits_daemon: Option<ExitStatus>,
    /// Whether `KillRequested` was committed.
    kill_requested: bool,
}

/// The simulated host.
#[derive(Debug)]
pub struct SimHost {
    world: World,
    live: BTreeMap<ProgramId, LiveRun>,
    /// Runs of which it was reported that their stop command has failed.
    stop_failed: BTreeSet<(ProgramId, InstanceId)>,
    /// Runs with a committed failure of their stop command that got no TERM since.
    must_terminate: BTreeSet<(ProgramId, InstanceId)>,
    /// When the last process of each program came up.
    since: BTreeMap<ProgramId, Instant>,
    /// The exit statuses that the process knows that has reaped the runs.
    ended: BTreeMap<(ProgramId, InstanceId), ExitStatus>,
    /// Whether that process has survived since the daemon last started.
    remembers: bool,
    next_pid: i32,
    /// Runs with a watchdog ping that was not delivered yet.
    unheard: BTreeSet<(ProgramId, InstanceId)>,
    /// When a delayed watchdog ping of a run was last delivered.
    heard_late: BTreeMap<(ProgramId, InstanceId), Instant>,
    /// The violations found so far.
    pub violations: Vec<String>,
}

impl SimHost {
    /// The host of a world.
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            live: BTreeMap::new(),
            stop_failed: BTreeSet::new(),
            must_terminate: BTreeSet::new(),
            since: BTreeMap::new(),
            ended: BTreeMap::new(),
            remembers: true,
            next_pid: 2,
            unheard: BTreeSet::new(),
            heard_late: BTreeMap::new(),
            violations: Vec::new(),
        }
    }

    /// The programs that have a process.
    pub fn living(&self) -> BTreeSet<ProgramId> {
        self.live.keys().copied().collect()
    }

    /// Whether this program has a process.
    pub fn lives(&self, program: ProgramId) -> bool {
        self.live.contains_key(&program)
    }

    /// The run of a program that has a process, and its process id.
    pub fn alive(&self, program: ProgramId) -> Option<(InstanceId, i32)> {
        self.live.get(&program).map(|run| (run.instance, run.pid))
    }

    /// How a run ended.
    pub fn ended(&self, program: ProgramId, instance: InstanceId) -> Option<ExitStatus> {
        self.ended.get(&(program, instance)).copied()
    }

    /// The last run of a program that has ended.
    pub fn last_ended(&self, program: ProgramId) -> Option<(InstanceId, ExitStatus)> {
        let runs = self.ended.range((program, InstanceId(0))..=(program, InstanceId(u64::MAX)));
        runs.last().map(|((_, instance), status)| (*instance, *status))
    }

    /// The process that reaps has died: the exit statuses of ended runs are lost.
    pub fn forget(&mut self) {
        self.ended.clear();
        self.remembers = false;
    }

    /// A daemon has started: exit statuses are recorded from now on. Returns the events that running processes still
    /// cause; messages that were not delivered are lost.
    pub fn begin(&mut self, now: Instant) -> Vec<(Instant, ScheduledEvent)> {
        self.remembers = true;
        // The failure of a stop command may not have reached the disk; then the command is run again.
        self.must_terminate.clear();
        for run in self.live.values_mut() {
            // A daemon that was waited for was found by its token: it is the main process from now on.
            run.is_command &= run.awaits_daemon.take().is_none();
            run.ending = Ending::No;
        }
        let living: Vec<_> = self.live.iter().map(|(program, run)| (*program, run.instance)).collect();
        let mut scheduled = Vec::new();
        for (program, instance) in living {
            let since = self.since.get(&program).copied().unwrap_or(now);
            scheduled.extend(self.daemon(now.max(since), program, instance));
            scheduled.extend(self.signs_of_life(now, since, program, instance));
        }
        scheduled
    }

    /// Checks a committed event: a run that has pinged in time gets no watchdog timeout, however late the ping was
    /// delivered.
    pub fn committed(&mut self, envelope: &Envelope) {
        match &envelope.event {
            Event::Program(program, ProgramEvent::StopCommandFailed { instance, .. })
                if self.live.get(program).is_some_and(|run| run.instance == *instance && !run.kill_requested) =>
            {
                self.must_terminate.insert((*program, *instance));
            }
            Event::Program(program, ProgramEvent::KillRequested { instance }) => {
                if let Some(run) = self.live.get_mut(program).filter(|run| run.instance == *instance) {
                    run.kill_requested = true;
                }
            }
            _ => {}
        }
        if let Event::Program(program, ProgramEvent::Unhealthy { instance, reason: UnhealthyReason::WatchdogTimeout }) =
            &envelope.event
            && let Some(span) = self.world.graph.programs[*program].health.watchdog
            && self
                .heard_late
                .get(&(*program, *instance))
                .is_some_and(|heard| heard.until(envelope.monotonic) < span.half())
        {
            self.violations.push(format!("I33: event {}: {program:?} had spoken in time", envelope.seq));
        }
    }

    /// Whether every exit status since the daemon's start is known: a run without process and status has never started.
    pub fn remembers(&self) -> bool {
        self.remembers
    }

    /// Carries out a command; returns the events that follow, and their times.
    pub fn perform(&mut self, now: Instant, command: HostCommand) -> Vec<(Instant, ScheduledEvent)> {
        match command {
            HostCommand::Spawn { program, instance } => self.spawn(now, program, instance),
            HostCommand::Undo { program, instance } => self.undo(now, program, instance),
            HostCommand::RunStopCommand { program, instance } => self.run_stop_command(now, program, instance),
            HostCommand::Terminate { program, instance } => self.terminate(now, program, instance),
            HostCommand::Probe { program, instance, kind: check } => self.check(now, program, instance, check),
            HostCommand::FlushReports { program, instance } => self.listen(now, program, instance),
            HostCommand::SetToken { .. } => Vec::new(),
            HostCommand::Kill { program, instance } => self.kill(now, program, instance),
            HostCommand::Signal { program, instance, signal } => {
                if signal.asks_to_end() {
                    self.is_ending(program, instance, Ending::Signalled);
                }
                self.signal(now, program, instance, signal)
            }
        }
    }

    /// The next occurrence of a repeated event that happens now.
    pub fn again(&self, now: Instant, scheduled_event: ScheduledEvent) -> Option<(Instant, ScheduledEvent)> {
        let ScheduledEvent::Speak { program, instance, every, last } = scheduled_event else { return None };
        (now + every < last && self.runs(program, instance)).then_some((now + every, scheduled_event))
    }

    /// What the host reports when a scheduled event happens, if anything.
    pub fn deliver_event(&mut self, scheduled_event: ScheduledEvent) -> Option<HostReport> {
        match scheduled_event {
            ScheduledEvent::Report(HostReport { program, instance, event: HostEvent::Daemonized { pid, .. } }) => {
                let run = self.live.get_mut(&program).filter(|run| run.instance == instance)?;
                (run.pid, run.is_command, run.awaits_daemon) = (pid, false, None);
                Some(HostReport {
                    program,
                    instance,
                    event: HostEvent::Daemonized { pid, start_time: StartTime(instance.0) },
                })
            }
            ScheduledEvent::Report(report)
                if pings_for(report.event) && !self.runs(report.program, report.instance) =>
            {
                None
            }
            ScheduledEvent::Report(report) => {
                if let HostEvent::StopCommandFailed { .. } = report.event {
                    self.stop_failed.insert((report.program, report.instance));
                }
                Some(report)
            }
            ScheduledEvent::End(program, instance, status) => self.main_ended(program, instance, status),
            ScheduledEvent::Speak { program, instance, .. } if self.runs(program, instance) => {
                if self.world.behaviours[program.index()].is_heard_late {
                    self.unheard.insert((program, instance));
                    return None;
                }
                Some(HostReport { program, instance, event: HostEvent::WatchdogPing })
            }
            ScheduledEvent::Speak { .. } => None,
        }
    }

    /// The main process of a run has ended, or a run is killed whose command has ended without leaving a daemon.
    fn main_ended(&mut self, program: ProgramId, instance: InstanceId, status: ExitStatus) -> Option<HostReport> {
        let run = self.live.get_mut(&program).filter(|run| run.instance == instance)?;
        let exit = ExitPolicy::from(&self.world.graph.programs[program]);
        let is_command = run.is_command && run.awaits_daemon.is_none();
        if run.awaits_daemon.is_some() && run.ending <= Ending::Signalled {
            return None;
        }
        if exit.action(status, run.ending, is_command) == ExitAction::AwaitDaemon {
            run.awaits_daemon = Some(status);
            return None;
        }
        let status = run.awaits_daemon.unwrap_or(status);
        self.live.remove(&program);
        self.must_terminate.remove(&(program, instance));
        self.ended.insert((program, instance), status);
        let orphans = self.leaves(program, instance, status);
        Some(HostReport { program, instance, event: HostEvent::Exited { status, orphans } })
    }

    /// Records by which means a run is being ended; once it is killed, its daemon is not waited for any more.
    fn is_ending(&mut self, program: ProgramId, instance: InstanceId, ending: Ending) {
        if let Some(run) = self.live.get_mut(&program).filter(|run| run.instance == instance) {
            run.ending = run.ending.max(ending);
        }
    }

    /// How many processes a run that ends with this exit status leaves that are kept.
    pub fn leaves(&self, program: ProgramId, instance: InstanceId, status: ExitStatus) -> u16 {
        let policy = &self.world.graph.programs[program];
        let mut random = Random::new(self.world.seed ^ (u64::from(program.0) << 48) ^ instance.0);
        let leaves = random.percent(self.world.behaviours[program.index()].leaves);
        if policy.leaves == Leaves::Keep && policy.succeeds(status) && leaves { 2 } else { 0 }
    }

    fn runs(&self, program: ProgramId, instance: InstanceId) -> bool {
        self.live.get(&program).is_some_and(|run| run.instance == instance)
    }

    fn spawn(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, ScheduledEvent)> {
        let behaviour = self.world.behaviours[program.index()];
        // The random numbers of a run do not depend on what has happened before it.
        let mut random = Random::new(self.world.seed ^ (u64::from(program.0) << 40) ^ instance.0);
        let healed = now >= self.world.faults_end_at;
        let up = now + if healed { Millis(0) } else { behaviour.spawn };
        if !healed && random.percent(behaviour.fork_fails) {
            let event = HostEvent::SpawnFailed { stage: SpawnStage::Fork, errno: 11 };
            return vec![(up, ScheduledEvent::Report(HostReport { program, instance, event }))];
        }
        self.next_pid = self.next_pid % 50 + 2;
        if let Some(other) = self.live.insert(program, LiveRun::new(instance, self.next_pid)) {
            self.violations.push(format!("I6: {program:?} run {instance} was started beside run {}", other.instance));
        }
        let started = ScheduledEvent::Report(HostReport {
            program,
            instance,
            event: HostEvent::Spawned { pid: self.next_pid, start_time: StartTime(instance.0) },
        });
        let mut scheduled = vec![(up, started)];
        self.since.insert(program, up);
        scheduled.extend(self.daemon(up, program, instance));
        scheduled.extend(self.word(up, program, instance));
        let lifetime = behaviour.lifetime.0 / 2 + random.below(behaviour.lifetime.0 / 2 + 1);
        let end = up + Millis(lifetime);
        if healed && self.world.graph.programs[program].health.run_timeout.is_some() {
            // What has a limited time ends, and well.
            scheduled.push((end, ScheduledEvent::End(program, instance, ExitStatus::Code(0))));
        } else if end < self.world.faults_end_at {
            let status =
                random.pick(&[ExitStatus::Code(0), ExitStatus::Code(1), ExitStatus::Signal(9), ExitStatus::Core(11)]);
            scheduled.push((end, ScheduledEvent::End(program, instance, status)));
        }
        scheduled.extend(self.signs_of_life(up, up, program, instance));
        scheduled
    }

    /// How long after its start a program is ready: not long after the end of the faults.
    fn readiness(&self, up: Instant, program: ProgramId) -> Option<Millis> {
        let behaviour = self.world.behaviours[program.index()];
        if up >= self.world.faults_end_at {
            Some(behaviour.ready.unwrap_or_default().min(Millis(100)))
        } else {
            behaviour.ready
        }
    }

    /// When the command of a forking daemon leaves its daemon.
    fn daemon(&self, up: Instant, program: ProgramId, instance: InstanceId) -> Option<(Instant, ScheduledEvent)> {
        let daemonizes = self.world.graph.programs[program].health.daemonizes;
        let after = self.readiness(up, program).filter(|_| daemonizes)?;
        let pid = 100 + self.live.get(&program).map_or(0, |run| run.pid % 100);
        let event = HostEvent::Daemonized { pid, start_time: StartTime(instance.0) };
        Some((up + after, ScheduledEvent::Report(HostReport { program, instance, event })))
    }

    /// When a program with `ready: Notify` or the like reports that it is ready.
    fn word(&self, up: Instant, program: ProgramId, instance: InstanceId) -> Option<(Instant, ScheduledEvent)> {
        let told = self.world.graph.programs[program].health.readiness == Some(Readiness::Notified);
        let after = self.readiness(up, program).filter(|_| told)?;
        Some((up + after, ScheduledEvent::Report(HostReport { program, instance, event: HostEvent::Ready })))
    }

    /// The watchdog pings of a program from now on, if it has a watchdog.
    fn signs_of_life(
        &self,
        now: Instant,
        up: Instant,
        program: ProgramId,
        instance: InstanceId,
    ) -> Option<(Instant, ScheduledEvent)> {
        let span = self.world.graph.programs[program].health.watchdog?;
        let healed = up >= self.world.faults_end_at;
        let last = if healed { self.world.shutdown_at } else { up + self.world.behaviours[program.index()].pings_for };
        Some((
            now,
            ScheduledEvent::Speak { program, instance, every: span.half(), last: last.min(self.world.shutdown_at) },
        ))
    }

    /// Runs a readiness probe or a health check.
    fn check(
        &mut self,
        now: Instant,
        program: ProgramId,
        instance: InstanceId,
        check: ProbeKind,
    ) -> Vec<(Instant, ScheduledEvent)> {
        if !self.runs(program, instance) {
            return Vec::new();
        }
        let behaviour = self.world.behaviours[program.index()];
        let up = self.since.get(&program).copied().unwrap_or(now);
        let mut random = Random::new(self.world.seed ^ now.as_micros() ^ (u64::from(program.0) << 40));
        let healed = now >= self.world.faults_end_at;
        let well = match check {
            ProbeKind::Ready => healed || self.readiness(up, program).is_some_and(|after| up + after <= now),
            ProbeKind::Health => healed || !random.percent(behaviour.probe_failure_percent),
        };
        let event = HostEvent::ProbeResult(if well { Ok(()) } else { Err(ProbeError::Os(111)) });
        vec![(now + Millis(random.pick(&[0, 1, 30])), ScheduledEvent::Report(HostReport { program, instance, event }))]
    }

    /// Delivers a delayed watchdog ping, and reports that all reports are flushed.
    fn listen(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, ScheduledEvent)> {
        let event = |event| (now, ScheduledEvent::Report(HostReport { program, instance, event }));
        let unheard = self.unheard.remove(&(program, instance)).then(|| event(HostEvent::WatchdogPing));
        if unheard.is_some() {
            self.heard_late.insert((program, instance), now);
        }
        unheard.into_iter().chain([event(HostEvent::ReportsFlushed)]).collect()
    }

    /// Runs a stop command that undoes a run, as the process of the program; it ends at the latest when it is killed.
    fn undo(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, ScheduledEvent)> {
        if self.live.contains_key(&program) {
            self.violations.push(format!("I6: what run {instance} of {program:?} has done is undone beside a process"));
        }
        self.next_pid = self.next_pid % 50 + 2;
        let run = LiveRun { ending: Ending::Asked, ..LiveRun::new(instance, self.next_pid) };
        self.live.insert(program, run);
        let event = HostEvent::Spawned { pid: self.next_pid, start_time: StartTime(instance.0) };
        let after = self.world.behaviours[program.index()].after_term.unwrap_or(Millis(3_600_000));
        let end = ScheduledEvent::End(program, instance, ExitStatus::Code(0));
        vec![(now, ScheduledEvent::Report(HostReport { program, instance, event })), (now + after, end)]
    }

    /// Runs a stop command beside the program: it ends the program as a TERM would, or fails and does nothing.
    fn run_stop_command(
        &mut self,
        now: Instant,
        program: ProgramId,
        instance: InstanceId,
    ) -> Vec<(Instant, ScheduledEvent)> {
        let behaviour = self.world.behaviours[program.index()];
        self.is_ending(program, instance, Ending::Asked);
        let mut random = Random::new(self.world.seed ^ (u64::from(program.0) << 32) ^ instance.0);
        if random.percent(behaviour.stop_command_fails) {
            let event = HostEvent::StopCommandFailed { status: ExitStatus::Code(1) };
            let report = ScheduledEvent::Report(HostReport { program, instance, event });
            return vec![(now + Millis(random.below(20)), report)];
        }
        self.signal(now, program, instance, Signal::TERM)
    }

    fn terminate(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, ScheduledEvent)> {
        if self.world.graph.programs[program].has_stop_command && !self.stop_failed.contains(&(program, instance)) {
            self.violations
                .push(format!("I38: {program:?} run {instance} got a signal, and its stop command has not failed"));
        }
        self.must_terminate.remove(&(program, instance));
        self.is_ending(program, instance, Ending::Asked);
        self.signal(now, program, instance, Signal::TERM)
    }

    fn kill(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, ScheduledEvent)> {
        if self.must_terminate.remove(&(program, instance)) {
            self.violations.push(format!(
                "I39: {program:?} run {instance} was killed without a signal after its stop command failed"
            ));
        }
        self.is_ending(program, instance, Ending::Killed);
        self.signal(now, program, instance, Signal::KILL)
    }

    fn signal(
        &mut self,
        now: Instant,
        program: ProgramId,
        instance: InstanceId,
        signal: Signal,
    ) -> Vec<(Instant, ScheduledEvent)> {
        if !self.runs(program, instance) {
            return Vec::new();
        }
        let end = |after: Millis, status| vec![(now + after, ScheduledEvent::End(program, instance, status))];
        match signal {
            Signal::KILL => end(Millis(1), ExitStatus::Signal(9)),
            _ => match self.world.behaviours[program.index()].after_term {
                Some(after) => end(after, ExitStatus::Signal(15)),
                None => Vec::new(),
            },
        }
    }
}

impl LiveRun {
    fn new(instance: InstanceId, pid: i32) -> Self {
        Self { instance, pid, ending: Ending::No, is_command: true, awaits_daemon: None, kill_requested: false }
    }
}

/// Whether only a run with a process can cause this event.
fn pings_for(event: HostEvent) -> bool {
    matches!(
        event,
        HostEvent::Ready
            | HostEvent::ProbeResult(_)
            | HostEvent::WatchdogPing
            | HostEvent::ReportsFlushed
            | HostEvent::StopCommandFailed { .. }
    )
}
