//! The rules of one dependency: when it is satisfied, and when the dependent restarts because the dependency went down.
//!
//! It is satisfied while one instance of the program depended on has been up, or ready, for the delay, and no stop of
//! the instance is pending; or, with `condition: Completed`, while that program has run to its end and is not to run
//! again. If it propagates, the dependent restarts exactly once each time that program goes down.

use crate::{
    base::{
        ids::{DependencyId, EpochId, Seq},
        time::Instant,
    },
    event::{Cause, DependencyEvent, Envelope, Event, ProgramEvent},
    graph::{self, Policy},
    journal::Refusal,
    machine::{Input, Machine, Outputs, Timer, restored_cause},
    state::{DependencyState, ProgramState, State},
};

/// The machine of one dependency.
#[derive(Clone, Debug)]
pub struct DependencyMachine {
    id: DependencyId,
    epoch: EpochId,
    definition: graph::Dependency,
    policy: Policy,
    dependency: ProgramState,
    state: DependencyState,
    /// The last `down_event` for which a restart was proposed.
    answered: Option<Seq>,
    /// Whether a proposed `Satisfied` or `Broken` is neither committed nor refused yet.
    pending_proposal: bool,
    /// The event from which the delay counts.
    timer_cause: Seq,
}

impl DependencyMachine {
    fn committed(&mut self, envelope: &Envelope) {
        match &envelope.event {
            Event::Program(program, event) if *program == self.definition.dependency => {
                self.dependency.apply(&self.policy, self.epoch, envelope.seq, envelope.monotonic, event);
                if matches!(
                    event,
                    ProgramEvent::Started { .. }
                        | ProgramEvent::Daemonized { .. }
                        | ProgramEvent::Ready { .. }
                        | ProgramEvent::Exited { .. }
                ) {
                    self.timer_cause = envelope.seq;
                }
            }
            Event::Remote(program, event) if *program == self.definition.dependency => {
                self.dependency.apply_remote(envelope.seq, envelope.monotonic, event);
                self.timer_cause = envelope.seq;
            }
            Event::Dependency(dependency, event) if *dependency == self.id => self.own_event(event),
            Event::Dependency(_, event) => self.dependency.apply_dependency(envelope.seq, envelope.monotonic, event),
            Event::Program(..) | Event::Remote(..) | Event::Group(..) | Event::System(_) => {}
        }
    }

    fn own_event(&mut self, event: &DependencyEvent) {
        self.state.apply(event);
        if matches!(event, DependencyEvent::Satisfied { .. } | DependencyEvent::Broken) {
            self.pending_proposal = false;
        }
    }

    fn decide(&mut self, now: Instant, cause: Cause, out: &mut Outputs) {
        self.propagate_down(&cause, out);
        if self.pending_proposal {
            return;
        }
        match (self.state.satisfied, self.dependency.satisfies_at(&self.definition)) {
            (None, Some(at)) if at > now => out.set_timer(Timer::DependencyDelay, at),
            (None, Some(_)) => {
                let instance = self.dependency.instance;
                self.propose(DependencyEvent::Satisfied { instance }, cause, out);
            }
            (Some(_), None) => self.propose(DependencyEvent::Broken, cause, out),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// Proposes one `RestartTriggered` at once for each time that the dependency goes down, however quickly one follows
    /// another. [`ProgramState::apply_dependency`](crate::state::ProgramState) applies it to the dependent, whose
    /// [`ProgramMachine`](crate::machine::program) then acts on it.
    fn propagate_down(&mut self, cause: &Cause, out: &mut Outputs) {
        if self.definition.propagate && self.dependency.down_event > self.answered {
            self.answered = self.dependency.down_event;
            if let Some(down_event) = self.dependency.down_event {
                let before_stop = self.dependency.pending_stop.is_some_and(|stop| stop.dependents_first);
                let restart = DependencyEvent::RestartTriggered { down_event, before_stop };
                out.propose(Event::Dependency(self.id, restart), cause.clone());
            }
        }
    }

    fn propose(&mut self, event: DependencyEvent, cause: Cause, out: &mut Outputs) {
        self.pending_proposal = true;
        out.propose(Event::Dependency(self.id, event), cause);
    }

    fn refused(&mut self, event: &Event, refusal: &Refusal, out: &mut Outputs) {
        if let Event::Dependency(_, DependencyEvent::Satisfied { .. } | DependencyEvent::Broken) = event {
            self.pending_proposal = false;
            if let Refusal::TooEarly { ready_at } = refusal {
                out.set_timer(Timer::DependencyDelay, *ready_at);
            }
        }
    }
}

impl Machine for DependencyMachine {
    type Id = DependencyId;

    fn new(state: &State, id: DependencyId) -> Self {
        let (dependency, edge_state) = state.dependency(id);
        Self {
            id,
            epoch: state.epoch,
            definition: *dependency,
            policy: state.graph.programs[dependency.dependency].clone(),
            dependency: state.programs[dependency.dependency].clone(),
            state: *edge_state,
            answered: edge_state.last_down_event,
            pending_proposal: false,
            timer_cause: state.programs[dependency.dependency].last_seq,
        }
    }

    fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs) {
        match input {
            Input::Committed(envelope) => {
                self.committed(envelope);
                self.decide(now, Cause::Event(envelope.seq), out);
            }
            Input::TimerFired(_) => self.decide(now, Cause::Timer(self.timer_cause), out),
            Input::Refused(event, refusal) => {
                self.refused(event, refusal, out);
                // What made the proposal stale has been received meanwhile, and may satisfy the dependency by another run.
                if **refusal == Refusal::Stale {
                    self.decide(now, Cause::Event(self.timer_cause), out);
                }
            }
            Input::Restored(since) => self.decide(now, restored_cause(self.dependency.last_seq, *since), out),
            Input::HostReported(_) | Input::Observed(_) => {}
        }
    }
}
