//! The rules of one program: when to start it, when to stop it, when to kill it.
//!
//! There are two rules, and both look only at the folded state:
//!
//! - **start** when a start is owed, nobody wants it down, every dependency is satisfied, and the space between starts
//!   is over;
//! - **stop** when it is leaving or everything is; an operator's stop, a change of level and a shutdown let the
//!   dependents go first, but for no longer than half of the killwait. What a program has done that has ended is stopped
//!   by undoing it.

use std::collections::BTreeSet;

use crate::{
    event::{Cause, Envelope, Event, ProgramEvent, StopReason, SystemEvent},
    graph::{Leaves, Policy},
    health::Vigil,
    host::{ExitStatus, Fact, HostCommand, Observed, Signal},
    ids::{EpochId, InstanceId, ProgramId, Seq},
    machine::{Input, Machine, Outputs, Timer, follows_from},
    rules::Refusal,
    state::{Phase, Place, ProgramState, State},
    time::{Instant, Millis},
};

/// The machine of one program.
#[derive(Clone, Debug)]
pub struct Program {
    id: ProgramId,
    epoch: EpochId,
    policy: Policy,
    state: ProgramState,
    /// Programs that depend on this one, or build on what it has done, and of which there is something to stop.
    dependents: BTreeSet<ProgramId>,
    /// Those of them that leave their level.
    leavers: BTreeSet<ProgramId>,
    /// Those that follow it down, by a dependency that propagates.
    followers: BTreeSet<ProgramId>,
    shutdown: Option<Instant>,
    shutdown_killwait: Millis,
    /// What an operator has last sent to a run to end it, and when.
    signalled: Option<(InstanceId, Signal, Instant)>,
    /// Whether a proposal of `decide` has not been answered.
    asked: bool,
    /// The event after which the timer of `decide` was armed.
    armed_by: Seq,
    vigil: Vigil,
}

impl Program {
    fn committed(&mut self, envelope: &Envelope, out: &mut Outputs) {
        match &envelope.event {
            Event::Program(program, event) if *program == self.id => self.own(envelope, event, out),
            Event::Program(dependent, event) => self.dependent(*dependent, event),
            Event::Dependency(_, event) => self.state.apply_dependency(envelope.seq, envelope.at, event),
            Event::System(SystemEvent::ShutdownBegun) => self.shutdown = Some(envelope.at),
            Event::Group(..) | Event::System(_) => {}
        }
    }

    fn dependent(&mut self, dependent: ProgramId, event: &ProgramEvent) {
        match event.makes_running() {
            Some(true) => drop(self.dependents.insert(dependent)),
            Some(false) => drop(self.dependents.remove(&dependent)),
            None if matches!(event, ProgramEvent::LevelLeft { .. }) => drop(self.leavers.insert(dependent)),
            None => drop(self.leavers.remove(&dependent)),
        }
    }

    fn own(&mut self, envelope: &Envelope, event: &ProgramEvent, out: &mut Outputs) {
        if self.policy.essential && self.shutdown.is_none() && self.state.verdict(event).is_some() {
            out.propose(Event::System(SystemEvent::ShutdownBegun), Cause::Event(envelope.seq));
        }
        self.state.apply(&self.policy, self.epoch, envelope.seq, envelope.at, event);
        let program = self.id;
        match event {
            ProgramEvent::Starting { instance } => {
                self.asked = false;
                self.vigil.forget();
                out.perform(HostCommand::Spawn { program, instance: *instance });
            }
            ProgramEvent::Stopping { instance, deadline, .. } => {
                self.asked = false;
                let instance = *instance;
                out.perform(if self.state.undoing {
                    HostCommand::Undo { program, instance }
                } else {
                    HostCommand::Stop { program, instance }
                });
                out.arm(Timer::Kill(instance), *deadline);
            }
            ProgramEvent::StopEscalated { instance } => {
                out.perform(HostCommand::Kill { program, instance: *instance });
            }
            ProgramEvent::Signalled { instance, signal } => {
                if signal.asks_to_end() {
                    self.signalled = Some((*instance, *signal, envelope.at));
                }
                out.perform(HostCommand::Signal { program, instance: *instance, signal: *signal });
            }
            ProgramEvent::Exited { instance, left_behind, stands, .. } => {
                self.asked = false;
                // It was asked to end when it had just ended by itself: nothing of it is wanted.
                if self.policy.leaves == Leaves::Keep && *left_behind > 0 && !stands {
                    out.perform(HostCommand::Kill { program, instance: *instance });
                }
            }
            ProgramEvent::Started { .. } | ProgramEvent::Daemonized { .. } | ProgramEvent::Ready { .. } => {
                let since = self.state.up_since.unwrap_or(envelope.at);
                self.vigil.begin(envelope.at, since, &self.state, out);
            }
            ProgramEvent::Adopted { .. }
            | ProgramEvent::Unhealthy { .. }
            | ProgramEvent::SpawnFailed { .. }
            | ProgramEvent::StopCommandFailed { .. }
            | ProgramEvent::LevelEntered { .. }
            | ProgramEvent::LevelLeft { .. }
            | ProgramEvent::OperatorStopped
            | ProgramEvent::OperatorStarted
            | ProgramEvent::OperatorRestarted => {}
        }
    }

    /// Applies the two rules.
    fn decide(&mut self, now: Instant, cause: Cause, out: &mut Outputs) {
        if self.asked {
            return;
        }
        match self.state.phase {
            Phase::Down if self.may_start() => match self.state.not_before {
                Some(at) if at > now => self.arm(Timer::Start, at, &cause, out),
                _ => {
                    let instance = InstanceId(self.state.instance.0 + 1);
                    self.ask(ProgramEvent::Starting { instance }, cause, out);
                }
            },
            Phase::Up | Phase::Done => {
                if let Some(reason) = self.stop_reason() {
                    match self.hold(reason).filter(|until| *until > now) {
                        Some(until) => self.arm(Timer::Stop, until, &cause, out),
                        None => self.stop(now, reason, cause, out),
                    }
                }
            }
            Phase::Down | Phase::Starting | Phase::Stopping => {}
        }
    }

    fn may_start(&self) -> bool {
        self.state.due
            && !self.state.operator_down
            && !self.state.given_up
            && self.state.place != Place::Out
            && self.state.unmet == 0
            && self.shutdown.is_none()
    }

    fn stop_reason(&self) -> Option<StopReason> {
        match self.shutdown {
            Some(_) => Some(StopReason::Shutdown),
            None => self.state.leaving.map(|leaving| leaving.reason),
        }
    }

    /// Until when the dependents that go first are waited for.
    fn hold(&self, reason: StopReason) -> Option<Instant> {
        match reason {
            StopReason::Unhealthy => None,
            StopReason::Propagated if !self.is_planned() => None,
            StopReason::Propagated | StopReason::Operator => {
                (self.dependents.intersection(&self.followers).next().is_some())
                    .then(|| self.leaving_since() + self.policy.killwait.half())
            }
            StopReason::Level => {
                let goes_first = |dependent| self.followers.contains(dependent) || self.leavers.contains(dependent);
                let waits = self.dependents.iter().any(goes_first);
                waits.then(|| self.leaving_since() + self.policy.killwait.half())
            }
            StopReason::Shutdown => {
                (!self.dependents.is_empty()).then(|| self.counted(self.shutdown) + self.shutdown_killwait.half())
            }
        }
    }

    fn stop(&mut self, now: Instant, reason: StopReason, cause: Cause, out: &mut Outputs) {
        let killwait = self.policy.killwait;
        let bound = match reason {
            StopReason::Shutdown => self.counted(self.shutdown) + self.shutdown_killwait.max(killwait),
            _ if self.is_planned() => self.leaving_since() + killwait,
            StopReason::Operator | StopReason::Propagated | StopReason::Level | StopReason::Unhealthy => now + killwait,
        };
        let deadline = bound.min(now + killwait);
        let instance = self.state.instance;
        self.ask(ProgramEvent::Stopping { instance, reason, deadline }, cause, out);
    }

    /// Whether it is stopped because an operator wants it, or something it follows, down: nothing has failed yet.
    fn is_planned(&self) -> bool {
        self.state.leaving.is_some_and(|leaving| leaving.planned)
    }

    /// From when on the killwait counts: what was decided while it was starting counts from when it was up.
    fn leaving_since(&self) -> Instant {
        self.counted(self.state.leaving.map(|leaving| leaving.since))
    }

    fn counted(&self, decided: Option<Instant>) -> Instant {
        decided.max(self.state.up_since).unwrap_or_default()
    }

    fn ask(&mut self, event: ProgramEvent, cause: Cause, out: &mut Outputs) {
        self.asked = true;
        out.propose(Event::Program(self.id, event), cause);
    }

    fn arm(&mut self, timer: Timer, at: Instant, cause: &Cause, out: &mut Outputs) {
        self.armed_by = cause.event().unwrap_or(self.armed_by);
        out.arm(timer, at);
    }

    fn observed(&mut self, now: Instant, observed: Observed, out: &mut Outputs) {
        let instance = observed.instance;
        let event = match observed.fact {
            Fact::Spawned { pid, birth } => ProgramEvent::Started { instance, pid, birth },
            Fact::Daemonized { pid, birth } => {
                let again = self.state.daemonized && self.state.pid == Some(pid) && self.state.birth == birth;
                if again {
                    return;
                }
                ProgramEvent::Daemonized { instance, pid, birth }
            }
            Fact::Ready | Fact::Checked(_) | Fact::Complained(_) | Fact::Alive | Fact::Heard => {
                if self.state.instance == instance {
                    self.vigil.observed(now, &self.state, observed.fact, out);
                }
                return;
            }
            Fact::SpawnFailed { stage, errno } => ProgramEvent::SpawnFailed { instance, stage, errno },
            Fact::StopCommandFailed { status } => ProgramEvent::StopCommandFailed { instance, status },
            Fact::Exited { status, left_behind } => {
                let stands = self.stands(status, left_behind);
                ProgramEvent::Exited { instance, status, left_behind, stands }
            }
        };
        let stopping = self.state.phase == Phase::Stopping && self.state.instance == instance;
        let signalled = self.signalled.is_some_and(|(run, signal, at)| {
            let by_it =
                matches!(observed.fact, Fact::Exited { status: ExitStatus::Signal(number), .. } if number == signal.0);
            // A program may take its time, but what happens long after was not that.
            run == instance && (by_it || now <= at + self.policy.killwait)
        });
        let cause = match observed.fact {
            Fact::Exited { .. } if !stopping && !signalled => Cause::Os,
            // The journal knows what was done for it last.
            Fact::Exited { .. }
            | Fact::Spawned { .. }
            | Fact::SpawnFailed { .. }
            | Fact::StopCommandFailed { .. }
            | Fact::Daemonized { .. }
            | Fact::Ready
            | Fact::Checked(_)
            | Fact::Complained(_)
            | Fact::Alive
            | Fact::Heard => Cause::Event(self.state.changed_by),
        };
        out.propose(Event::Program(self.id, event), cause);
    }

    /// Whether what it has done stands when it ends like that.
    fn stands(&self, status: ExitStatus, left_behind: u16) -> bool {
        // That it was started may have been seen just before, and not be committed yet.
        let by_itself = matches!(self.state.phase, Phase::Starting | Phase::Up) && self.state.urged_by.is_none();
        by_itself && self.policy.stands(status, left_behind)
    }

    fn kill(&self, instance: InstanceId, out: &mut Outputs) {
        if self.state.phase == Phase::Stopping && self.state.instance == instance {
            let cause = Cause::Timer(self.state.changed_by);
            out.propose(Event::Program(self.id, ProgramEvent::StopEscalated { instance }), cause);
        }
    }

    fn refused(&mut self, event: &Event, refusal: &Refusal, out: &mut Outputs) {
        let timer = match event {
            Event::Program(_, ProgramEvent::StopEscalated { instance }) => Timer::Kill(*instance),
            Event::Program(_, ProgramEvent::Starting { .. } | ProgramEvent::Stopping { .. }) => {
                self.asked = false;
                Timer::Start
            }
            Event::Program(..) | Event::Dependency(..) | Event::Group(..) | Event::System(_) => return,
        };
        if let Refusal::TooEarly { ready_at } = refusal {
            out.arm(timer, *ready_at);
        }
    }

    /// An effect may have been lost with the life before, and it does no harm to ask for it twice: a stop.
    fn rebuilt(&mut self, now: Instant, since: Seq, out: &mut Outputs) {
        let (program, instance) = (self.id, self.state.instance);
        if self.state.phase == Phase::Stopping {
            match self.state.deadline {
                Some(deadline) => {
                    match (self.state.undoing, self.state.pid) {
                        (false, _) => out.perform(HostCommand::Stop { program, instance }),
                        (true, None) => out.perform(HostCommand::Undo { program, instance }),
                        (true, Some(_)) => {}
                    }
                    out.arm(Timer::Kill(instance), deadline);
                }
                None => out.perform(HostCommand::Kill { program, instance }),
            }
        }
        self.vigil.begin(now, now, &self.state, out);
        self.decide(now, follows_from(self.state.last_seq, since), out);
    }
}

impl Machine for Program {
    type Id = ProgramId;

    fn new(state: &State, id: ProgramId) -> Self {
        let edges = || state.graph.edges_on(id).iter().map(|edge| &state.graph.edges[*edge]);
        let dependents = state.graph.dependents(id);
        let leaves = |of: &ProgramId| state.programs[*of].place == Place::Out;
        Self {
            id,
            epoch: state.epoch,
            policy: state.graph.programs[id].clone(),
            state: state.programs[id].clone(),
            leavers: dependents.iter().copied().filter(leaves).collect(),
            dependents: dependents.into_iter().filter(|of| state.programs[*of].is_running()).collect(),
            followers: edges().filter(|edge| edge.propagate).map(|edge| edge.of).collect(),
            shutdown: state.shutdown,
            shutdown_killwait: state.graph.killwait,
            signalled: None,
            asked: false,
            armed_by: state.programs[id].last_seq,
            vigil: Vigil::new(id, &state.graph.programs[id]),
        }
    }

    fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs) {
        match input {
            Input::Committed(envelope) => {
                self.committed(envelope, out);
                self.decide(now, Cause::Event(envelope.seq), out);
            }
            Input::Observed(observed) => self.observed(now, *observed, out),
            Input::Due(Timer::Kill(instance)) => self.kill(*instance, out),
            Input::Due(timer @ (Timer::Check | Timer::NotReady(_) | Timer::Silent(_))) => {
                self.vigil.due(&self.state, *timer, out);
            }
            Input::Due(_) => self.decide(now, Cause::Timer(self.armed_by), out),
            Input::Refused(event, refusal) => self.refused(event, refusal, out),
            Input::Rebuilt(since) => self.rebuilt(now, *since, out),
        }
    }
}
