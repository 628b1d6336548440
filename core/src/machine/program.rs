//! The rules of one program: when to start it, when to stop it, when to kill it.
//!
//! There are two rules, and both look only at the folded state:
//!
//! - **start** when a start is pending, no operator has stopped it, every dependency is satisfied, and the space between starts
//!   is over;
//! - **stop** when a stop is pending or gaggled shuts down; an operator's stop, a change of level and a shutdown wait
//!   for the dependents to stop first, but for no longer than half of the killwait. If the program has ended and its
//!   effects remain, its stop command undoes them.

use std::collections::BTreeSet;

use crate::{
    base::{
        ids::{EpochId, InstanceId, ProgramId, Seq},
        time::{Instant, Millis},
    },
    event::{Cause, Envelope, Event, ProgramEvent, StopReason, SystemEvent},
    graph::{Leaves, Policy},
    host::{HostCommand, HostEvent, HostReport},
    journal::Refusal,
    machine::{Input, Machine, Outputs, Timer, health_monitor::HealthMonitor, restored_cause},
    process::{ExitStatus, Signal},
    state::{Membership, Phase, ProcessInfo, ProgramState, State, StopMethod},
};

/// The machine of one program.
#[derive(Clone, Debug)]
pub struct ProgramMachine {
    id: ProgramId,
    epoch: EpochId,
    policy: Policy,
    state: ProgramState,
    /// Programs that depend on this one, or rely on its effects, and have something to stop.
    dependents: BTreeSet<ProgramId>,
    /// Those of them that their group stops on a change of level.
    leaving_level: BTreeSet<ProgramId>,
    /// The programs that stop with it, by a dependency that propagates.
    propagating_dependents: BTreeSet<ProgramId>,
    shutdown: Option<Instant>,
    shutdown_killwait: Millis,
    /// The last signal that an operator sent to end a run, and when.
    signalled: Option<(InstanceId, Signal, Instant)>,
    /// Whether a proposal of `decide` is neither committed nor refused yet.
    pending_proposal: bool,
    /// The event after which the timer of `decide` was armed.
    timer_cause: Seq,
    health: HealthMonitor,
}

impl ProgramMachine {
    fn committed(&mut self, envelope: &Envelope, out: &mut Outputs) {
        match &envelope.event {
            Event::Program(program, event) if *program == self.id => self.own_event(envelope, event, out),
            Event::Program(dependent, event) => self.dependent_event(*dependent, event),
            Event::Dependency(_, event) => self.state.apply_dependency(envelope.seq, envelope.monotonic, event),
            Event::System(SystemEvent::ShutdownStarted) => self.shutdown = Some(envelope.monotonic),
            Event::Remote(..) | Event::Group(..) | Event::System(_) => {}
        }
    }

    fn dependent_event(&mut self, dependent: ProgramId, event: &ProgramEvent) {
        match event.sets_running() {
            Some(true) => drop(self.dependents.insert(dependent)),
            Some(false) => drop(self.dependents.remove(&dependent)),
            None if matches!(event, ProgramEvent::LevelStopRequested { .. }) => {
                self.leaving_level.insert(dependent);
            }
            None => drop(self.leaving_level.remove(&dependent)),
        }
    }

    fn own_event(&mut self, envelope: &Envelope, event: &ProgramEvent, out: &mut Outputs) {
        if self.policy.essential && self.shutdown.is_none() && self.state.essential_exit(event).is_some() {
            out.propose(Event::System(SystemEvent::ShutdownStarted), Cause::Event(envelope.seq));
        }
        self.state.apply(&self.policy, self.epoch, envelope.seq, envelope.monotonic, event);
        let program = self.id;
        match event {
            ProgramEvent::Starting { instance } => {
                self.pending_proposal = false;
                self.health.reset();
                out.execute(HostCommand::Spawn { program, instance: *instance });
            }
            ProgramEvent::Stopping { instance, kill_at, .. } => {
                self.pending_proposal = false;
                let instance = *instance;
                self.execute_stop(out);
                out.set_timer(Timer::KillTimeout(instance), *kill_at);
            }
            // A failed stop command is followed by a signal, while there is time.
            ProgramEvent::StopCommandFailed { .. } if self.state.kill_at().is_some() => {
                self.execute_stop(out);
            }
            ProgramEvent::KillRequested { instance } => {
                out.execute(HostCommand::Kill { program, instance: *instance });
            }
            ProgramEvent::Signalled { instance, signal } => {
                if signal.asks_to_end() {
                    self.signalled = Some((*instance, *signal, envelope.monotonic));
                }
                out.execute(HostCommand::Signal { program, instance: *instance, signal: *signal });
            }
            ProgramEvent::Exited { instance, orphans, remains, .. } => {
                self.pending_proposal = false;
                // A stop was requested just after it had ended by itself: the processes that it has left are not kept.
                if self.policy.leaves == Leaves::Keep && *orphans > 0 && !remains {
                    out.execute(HostCommand::Kill { program, instance: *instance });
                }
            }
            ProgramEvent::Started { .. } | ProgramEvent::Daemonized { .. } | ProgramEvent::Ready { .. } => {
                let since = self.state.up_since.unwrap_or(envelope.monotonic);
                self.health.begin(envelope.monotonic, since, &self.state, out);
            }
            ProgramEvent::Adopted { .. }
            | ProgramEvent::Unhealthy { .. }
            | ProgramEvent::SpawnFailed { .. }
            | ProgramEvent::StopCommandFailed { .. }
            | ProgramEvent::LevelStartRequested { .. }
            | ProgramEvent::LevelStopRequested { .. }
            | ProgramEvent::StopRequested
            | ProgramEvent::StartRequested
            | ProgramEvent::RestartRequested => {}
        }
    }

    /// Applies the two rules.
    fn decide(&mut self, now: Instant, cause: Cause, out: &mut Outputs) {
        if self.pending_proposal {
            return;
        }
        match self.state.phase {
            Phase::Down if self.may_start() => match self.state.not_before {
                Some(at) if at > now => self.set_timer(Timer::Backoff, at, &cause, out),
                _ => {
                    let instance = InstanceId(self.state.instance.0 + 1);
                    // It may be too early, so that it is proposed again.
                    self.timer_cause = cause.event().unwrap_or(self.timer_cause);
                    self.propose(ProgramEvent::Starting { instance }, cause, out);
                }
            },
            Phase::Up | Phase::ActiveExited => {
                if let Some(reason) = self.stop_reason() {
                    match self.stop_after(reason).filter(|until| *until > now) {
                        Some(until) => self.set_timer(Timer::DependentsGrace, until, &cause, out),
                        None => self.stop(now, reason, cause, out),
                    }
                }
            }
            Phase::Down | Phase::Starting | Phase::Stopping => {}
        }
    }

    fn may_start(&self) -> bool {
        self.state.start_pending
            && !self.state.operator_down
            && !self.state.start_limit_hit
            && self.state.membership != Membership::Stopped
            && self.state.unsatisfied == 0
            && self.shutdown.is_none()
    }

    fn stop_reason(&self) -> Option<StopReason> {
        match self.shutdown {
            Some(_) => Some(StopReason::Shutdown),
            None => self.state.pending_stop.map(|stop| stop.reason),
        }
    }

    /// Until when to wait for the dependents that stop first.
    fn stop_after(&self, reason: StopReason) -> Option<Instant> {
        match reason {
            StopReason::Unhealthy => None,
            StopReason::DependencyDown if !self.dependents_first() => None,
            StopReason::DependencyDown | StopReason::Operator => {
                (self.dependents.intersection(&self.propagating_dependents).next().is_some())
                    .then(|| self.stop_pending_since() + self.policy.killwait.half())
            }
            StopReason::Level => {
                let goes_first = |dependent| {
                    self.propagating_dependents.contains(dependent) || self.leaving_level.contains(dependent)
                };
                let waits = self.dependents.iter().any(goes_first);
                waits.then(|| self.stop_pending_since() + self.policy.killwait.half())
            }
            StopReason::Shutdown => {
                (!self.dependents.is_empty()).then(|| self.counted_from(self.shutdown) + self.shutdown_killwait.half())
            }
        }
    }

    fn stop(&mut self, now: Instant, reason: StopReason, cause: Cause, out: &mut Outputs) {
        let killwait = self.policy.killwait;
        let bound = match reason {
            StopReason::Shutdown => self.counted_from(self.shutdown) + self.shutdown_killwait.max(killwait),
            _ if self.dependents_first() => self.stop_pending_since() + killwait,
            StopReason::Operator | StopReason::DependencyDown | StopReason::Level | StopReason::Unhealthy => {
                now + killwait
            }
        };
        let kill_at = bound.min(now + killwait);
        let instance = self.state.instance;
        self.propose(ProgramEvent::Stopping { instance, reason, kill_at }, cause, out);
    }

    /// Asks the host to stop the run by its current stop method.
    fn execute_stop(&self, out: &mut Outputs) {
        let (program, instance) = (self.id, self.state.instance);
        if let Some(stop) = self.state.stop {
            out.execute(match stop.method {
                StopMethod::Signal => HostCommand::Terminate { program, instance },
                StopMethod::Command => HostCommand::RunStopCommand { program, instance },
                StopMethod::Undo => HostCommand::Undo { program, instance },
            });
        }
    }

    /// Whether the pending stop lets its dependents stop first, because nothing has failed.
    fn dependents_first(&self) -> bool {
        self.state.pending_stop.is_some_and(|stop| stop.dependents_first)
    }

    /// From when on the killwait counts: since the stop was decided, but not before the program was up.
    fn stop_pending_since(&self) -> Instant {
        self.counted_from(self.state.pending_stop.map(|stop| stop.since))
    }

    fn counted_from(&self, decided: Option<Instant>) -> Instant {
        decided.max(self.state.up_since).unwrap_or_default()
    }

    fn propose(&mut self, event: ProgramEvent, cause: Cause, out: &mut Outputs) {
        self.pending_proposal = true;
        out.propose(Event::Program(self.id, event), cause);
    }

    fn set_timer(&mut self, timer: Timer, at: Instant, cause: &Cause, out: &mut Outputs) {
        self.timer_cause = cause.event().unwrap_or(self.timer_cause);
        out.set_timer(timer, at);
    }

    fn host_reported(&mut self, now: Instant, report: HostReport, out: &mut Outputs) {
        let instance = report.instance;
        let event = match report.event {
            HostEvent::Spawned { pid, start_time } => ProgramEvent::Started { instance, pid, start_time },
            HostEvent::Daemonized { pid, start_time } => {
                if self.state.process == Some(ProcessInfo { pid, start_time, daemonized: true }) {
                    return;
                }
                ProgramEvent::Daemonized { instance, pid, start_time }
            }
            HostEvent::Ready
            | HostEvent::ProbeResult(_)
            | HostEvent::NotReadyYet(_)
            | HostEvent::WatchdogPing
            | HostEvent::ReportsFlushed => {
                if self.state.instance == instance {
                    self.health.host_reported(now, &self.state, report.event, out);
                }
                return;
            }
            HostEvent::SpawnFailed { stage, errno } => ProgramEvent::SpawnFailed { instance, stage, errno },
            HostEvent::StopCommandFailed { status } => ProgramEvent::StopCommandFailed { instance, status },
            HostEvent::Exited { status, orphans } => {
                let remains = self.remains(status, orphans);
                ProgramEvent::Exited { instance, status, orphans, remains }
            }
        };
        let stopping = self.state.phase == Phase::Stopping && self.state.instance == instance;
        let signalled = self.signalled.is_some_and(|(run, signal, at)| {
            let by_it =
                matches!(report.event, HostEvent::Exited { status: ExitStatus::Signal(number), .. } if number == signal.0);
            // An end long after the signal is not attributed to it.
            run == instance && (by_it || now <= at + self.policy.killwait)
        });
        let cause = match report.event {
            HostEvent::Exited { .. } if !stopping && !signalled => Cause::Kernel,
            // For an end, the journal replaces this with the last event that stopped the run.
            HostEvent::Exited { .. }
            | HostEvent::Spawned { .. }
            | HostEvent::SpawnFailed { .. }
            | HostEvent::StopCommandFailed { .. }
            | HostEvent::Daemonized { .. }
            | HostEvent::Ready
            | HostEvent::ProbeResult(_)
            | HostEvent::NotReadyYet(_)
            | HostEvent::WatchdogPing
            | HostEvent::ReportsFlushed => Cause::Event(self.state.phase_event),
        };
        out.propose(Event::Program(self.id, event), cause);
    }

    /// Whether its effects remain when it ends like this.
    fn remains(&self, status: ExitStatus, orphans: u16) -> bool {
        // Its `Started` may have been proposed just before, and not be committed yet.
        let by_itself = matches!(self.state.phase, Phase::Starting | Phase::Up) && self.state.stop_event.is_none();
        by_itself && self.policy.remains(status, orphans)
    }

    fn kill(&self, instance: InstanceId, out: &mut Outputs) {
        if self.state.phase == Phase::Stopping && self.state.instance == instance {
            let cause = Cause::Timer(self.state.phase_event);
            out.propose(Event::Program(self.id, ProgramEvent::KillRequested { instance }), cause);
        }
    }

    fn refused(&mut self, event: &Event, refusal: &Refusal, out: &mut Outputs) {
        let timer = match event {
            Event::Program(_, ProgramEvent::KillRequested { instance }) => Timer::KillTimeout(*instance),
            Event::Program(_, ProgramEvent::Starting { .. } | ProgramEvent::Stopping { .. }) => {
                self.pending_proposal = false;
                Timer::Backoff
            }
            Event::Program(..) | Event::Remote(..) | Event::Dependency(..) | Event::Group(..) | Event::System(_) => {
                return;
            }
        };
        if let Refusal::TooEarly { ready_at } = refusal {
            out.set_timer(timer, *ready_at);
        }
    }

    /// The previous daemon may have died before it executed a stop. It is asked for again, which does no harm.
    fn restored(&mut self, now: Instant, since: Seq, out: &mut Outputs) {
        let (program, instance) = (self.id, self.state.instance);
        if self.state.phase == Phase::Stopping {
            match self.state.kill_at() {
                Some(deadline) => {
                    if !self.state.is_undoing() || self.state.process.is_none() {
                        self.execute_stop(out);
                    }
                    out.set_timer(Timer::KillTimeout(instance), deadline);
                }
                None => out.execute(HostCommand::Kill { program, instance }),
            }
        }
        self.health.begin(now, now, &self.state, out);
        self.decide(now, restored_cause(self.state.last_seq, since), out);
    }
}

impl Machine for ProgramMachine {
    type Id = ProgramId;

    fn new(state: &State, id: ProgramId) -> Self {
        let dependencies =
            || state.graph.dependencies_on(id).iter().map(|dependency| &state.graph.dependencies[*dependency]);
        let dependents = state.graph.dependents(id);
        let leaves = |of: &ProgramId| state.programs[*of].membership == Membership::Stopped;
        Self {
            id,
            epoch: state.epoch,
            policy: state.graph.programs[id].clone(),
            state: state.programs[id].clone(),
            leaving_level: dependents.iter().copied().filter(leaves).collect(),
            dependents: dependents.into_iter().filter(|of| state.programs[*of].is_running()).collect(),
            propagating_dependents: dependencies()
                .filter(|dependency| dependency.propagate)
                .map(|dependency| dependency.dependent)
                .collect(),
            shutdown: state.shutdown,
            shutdown_killwait: state.graph.killwait,
            signalled: None,
            pending_proposal: false,
            timer_cause: state.programs[id].last_seq,
            health: HealthMonitor::new(id, &state.graph.programs[id]),
        }
    }

    fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs) {
        match input {
            Input::Committed(envelope) => {
                self.committed(envelope, out);
                self.decide(now, Cause::Event(envelope.seq), out);
            }
            Input::HostReported(report) => self.host_reported(now, *report, out),
            Input::TimerFired(Timer::KillTimeout(instance)) => self.kill(*instance, out),
            Input::TimerFired(
                timer @ (Timer::Probe | Timer::StartTimeout(_) | Timer::RunTimeout(_) | Timer::Watchdog(_)),
            ) => {
                self.health.timer_fired(&self.state, *timer, out);
            }
            Input::TimerFired(_) => self.decide(now, Cause::Timer(self.timer_cause), out),
            Input::Refused(event, refusal) => self.refused(event, refusal, out),
            Input::Restored(since) => self.restored(now, *since, out),
            Input::Observed(_) => {}
        }
    }
}
