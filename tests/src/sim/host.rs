//! A host without processes: it does what a real one does, when the world says, and remembers what really ran.

use std::collections::{BTreeMap, BTreeSet};

use gaggled_core::{
    base::{
        ids::{DenseId, InstanceId, ProgramId},
        time::{Instant, Millis},
    },
    event::{Envelope, Event, ProgramEvent},
    graph::{Leaves, Readiness},
    host::{
        HostCommand, HostEvent, HostReport,
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
    /// The process of this instance says that it is alive, again and again.
    Speak {
        /// Which.
        program: ProgramId,
        /// Which of its runs.
        instance: InstanceId,
        /// How often.
        every: Millis,
        /// Until when.
        last: Instant,
    },
}

/// The processes that there are.
#[derive(Debug)]
pub struct SimHost {
    world: World,
    live: BTreeMap<ProgramId, (InstanceId, i32)>,
    /// When each of them came up.
    since: BTreeMap<ProgramId, Instant>,
    /// How runs ended, as whoever has reaped them knows.
    ended: BTreeMap<(ProgramId, InstanceId), ExitStatus>,
    /// Whether whoever knows that has lived since the last beginning.
    remembers: bool,
    next_pid: i32,
    /// The runs that have said that they are alive and were not heard yet.
    unheard: BTreeSet<(ProgramId, InstanceId)>,
    /// When runs were last heard, late but not too late.
    heard_late: BTreeMap<(ProgramId, InstanceId), Instant>,
    /// What a real host would have done wrong.
    pub violations: Vec<String>,
}

impl SimHost {
    /// The host of a world.
    pub fn new(world: &World) -> Self {
        Self {
            world: world.clone(),
            live: BTreeMap::new(),
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
        self.live.get(&program).copied()
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

    /// Whoever has reaped has died: nobody can tell any more how anything ended.
    pub fn forget(&mut self) {
        self.ended.clear();
        self.remembers = false;
    }

    /// A run of the daemon has begun: from now on somebody remembers. What is still to be seen of those that live is
    /// seen now; what they have said is lost.
    pub fn begin(&mut self, now: Instant) -> Vec<(Instant, ScheduledEvent)> {
        self.remembers = true;
        let living: Vec<_> = self.live.iter().map(|(program, (instance, _))| (*program, *instance)).collect();
        let mut scheduled = Vec::new();
        for (program, instance) in living {
            let since = self.since.get(&program).copied().unwrap_or(now);
            scheduled.extend(self.daemon(now.max(since), program, instance));
            scheduled.extend(self.signs_of_life(now, since, program, instance));
        }
        scheduled
    }

    /// Looks at an event that was committed: a run that has spoken in time is not silent, however late it was heard.
    pub fn committed(&mut self, envelope: &Envelope) {
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

    /// Whether what nobody tells of cannot have been.
    pub fn remembers(&self) -> bool {
        self.remembers
    }

    /// Carries out a command; says what follows, and when.
    pub fn perform(&mut self, now: Instant, command: HostCommand) -> Vec<(Instant, ScheduledEvent)> {
        match command {
            HostCommand::Spawn { program, instance } => self.spawn(now, program, instance),
            HostCommand::RunStopCommand { program, instance } => self.undo(now, program, instance),
            HostCommand::Stop { program, instance } => self.stop(now, program, instance),
            HostCommand::Probe { program, instance, kind: check } => self.check(now, program, instance, check),
            HostCommand::FlushReports { program, instance } => self.listen(now, program, instance),
            HostCommand::Kill { program, instance } => self.signal(now, program, instance, Signal::KILL),
            HostCommand::Signal { program, instance, signal } => self.signal(now, program, instance, signal),
        }
    }

    /// The same again, when it has been met now.
    pub fn again(&self, now: Instant, scheduled_event: ScheduledEvent) -> Option<(Instant, ScheduledEvent)> {
        let ScheduledEvent::Speak { program, instance, every, last } = scheduled_event else { return None };
        (now + every < last && self.runs(program, instance)).then_some((now + every, scheduled_event))
    }

    /// What the host reports when a fate is met, if anything.
    pub fn deliver_event(&mut self, scheduled_event: ScheduledEvent) -> Option<HostReport> {
        match scheduled_event {
            ScheduledEvent::Report(HostReport { program, instance, event: HostEvent::Daemonized { pid, .. } }) => {
                let (run, known) = self.live.get_mut(&program).filter(|(run, _)| *run == instance)?;
                *known = pid;
                Some(HostReport {
                    program,
                    instance: *run,
                    event: HostEvent::Daemonized { pid, start_time: StartTime(instance.0) },
                })
            }
            ScheduledEvent::Report(report)
                if pings_for(report.event) && !self.runs(report.program, report.instance) =>
            {
                None
            }
            ScheduledEvent::Report(report) => Some(report),
            ScheduledEvent::End(program, instance, status) if self.runs(program, instance) => {
                self.live.remove(&program);
                self.ended.insert((program, instance), status);
                let orphans = self.leaves(program, instance, status);
                Some(HostReport { program, instance, event: HostEvent::Exited { status, orphans } })
            }
            ScheduledEvent::Speak { program, instance, .. } if self.runs(program, instance) => {
                if self.world.behaviours[program.index()].is_heard_late {
                    self.unheard.insert((program, instance));
                    return None;
                }
                Some(HostReport { program, instance, event: HostEvent::WatchdogPing })
            }
            ScheduledEvent::End(..) | ScheduledEvent::Speak { .. } => None,
        }
    }

    /// How many processes a run leaves that has ended like this, and are kept.
    pub fn leaves(&self, program: ProgramId, instance: InstanceId, status: ExitStatus) -> u16 {
        let policy = &self.world.graph.programs[program];
        let mut random = Random::new(self.world.seed ^ (u64::from(program.0) << 48) ^ instance.0);
        let leaves = random.percent(self.world.behaviours[program.index()].leaves);
        if policy.leaves == Leaves::Keep && policy.succeeds(status) && leaves { 2 } else { 0 }
    }

    fn runs(&self, program: ProgramId, instance: InstanceId) -> bool {
        self.live.get(&program).is_some_and(|(own, _)| *own == instance)
    }

    fn spawn(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, ScheduledEvent)> {
        let behaviour = self.world.behaviours[program.index()];
        // Each run has luck of its own, whatever else happens before it.
        let mut random = Random::new(self.world.seed ^ (u64::from(program.0) << 40) ^ instance.0);
        let healed = now >= self.world.faults_end_at;
        let up = now + if healed { Millis(0) } else { behaviour.spawn };
        if !healed && random.percent(behaviour.fork_fails) {
            let event = HostEvent::SpawnFailed { stage: SpawnStage::Fork, errno: 11 };
            return vec![(up, ScheduledEvent::Report(HostReport { program, instance, event }))];
        }
        self.next_pid = self.next_pid % 50 + 2;
        if let Some((other, _)) = self.live.insert(program, (instance, self.next_pid)) {
            self.violations.push(format!("I6: {program:?} run {instance} was started beside run {other}"));
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
        if end < self.world.faults_end_at {
            let status =
                random.pick(&[ExitStatus::Code(0), ExitStatus::Code(1), ExitStatus::Signal(9), ExitStatus::Core(11)]);
            scheduled.push((end, ScheduledEvent::End(program, instance, status)));
        }
        scheduled.extend(self.signs_of_life(up, up, program, instance));
        scheduled
    }

    /// How long it takes to be ready; nobody is late when everything is well.
    fn readiness(&self, up: Instant, program: ProgramId) -> Option<Millis> {
        let behaviour = self.world.behaviours[program.index()];
        if up >= self.world.faults_end_at {
            Some(behaviour.ready.unwrap_or_default().min(Millis(100)))
        } else {
            behaviour.ready
        }
    }

    /// When its command leaves a daemon behind, if it is one that does.
    fn daemon(&self, up: Instant, program: ProgramId, instance: InstanceId) -> Option<(Instant, ScheduledEvent)> {
        let daemonizes = self.world.graph.programs[program].health.daemonizes;
        let after = self.readiness(up, program).filter(|_| daemonizes)?;
        let pid = 100 + self.live.get(&program).map_or(0, |(_, pid)| *pid % 100);
        let event = HostEvent::Daemonized { pid, start_time: StartTime(instance.0) };
        Some((up + after, ScheduledEvent::Report(HostReport { program, instance, event })))
    }

    /// When it says that it is ready, if it is one that does.
    fn word(&self, up: Instant, program: ProgramId, instance: InstanceId) -> Option<(Instant, ScheduledEvent)> {
        let told = self.world.graph.programs[program].health.readiness == Some(Readiness::Notified);
        let after = self.readiness(up, program).filter(|_| told)?;
        Some((up + after, ScheduledEvent::Report(HostReport { program, instance, event: HostEvent::Ready })))
    }

    /// When it says that it is alive, from now on.
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

    /// It is asked whether it is ready, or well.
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

    /// What it has said while nobody listened is heard now.
    fn listen(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, ScheduledEvent)> {
        let event = |event| (now, ScheduledEvent::Report(HostReport { program, instance, event }));
        let unheard = self.unheard.remove(&(program, instance)).then(|| event(HostEvent::WatchdogPing));
        if unheard.is_some() {
            self.heard_late.insert((program, instance), now);
        }
        unheard.into_iter().chain([event(HostEvent::ReportsFlushed)]).collect()
    }

    /// The stop command of a program as its process; it always ends, at the latest when it is killed.
    fn undo(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, ScheduledEvent)> {
        if self.live.contains_key(&program) {
            self.violations.push(format!("I6: what run {instance} of {program:?} has done is undone beside a process"));
        }
        self.next_pid = self.next_pid % 50 + 2;
        self.live.insert(program, (instance, self.next_pid));
        let event = HostEvent::Spawned { pid: self.next_pid, start_time: StartTime(instance.0) };
        let after = self.world.behaviours[program.index()].after_term.unwrap_or(Millis(3_600_000));
        let end = ScheduledEvent::End(program, instance, ExitStatus::Code(0));
        vec![(now, ScheduledEvent::Report(HostReport { program, instance, event })), (now + after, end)]
    }

    /// Some have a stop command, and some of those fail.
    fn stop(&mut self, now: Instant, program: ProgramId, instance: InstanceId) -> Vec<(Instant, ScheduledEvent)> {
        let mut random = Random::new(self.world.seed ^ (u64::from(program.0) << 32) ^ instance.0);
        let mut scheduled = self.signal(now, program, instance, Signal::TERM);
        if now < self.world.faults_end_at && random.percent(20) {
            let event = HostEvent::StopCommandFailed { status: ExitStatus::Code(1) };
            scheduled.push((
                now + Millis(random.below(20)),
                ScheduledEvent::Report(HostReport { program, instance, event }),
            ));
        }
        scheduled
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

/// Whether only one that lives can say so.
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
