//! The rules of one dependency `of -> on`: when it is open, and what a fall of `on` means for `of`.
//!
//! It is open while `on` has been up, or ready, for the delay, in one instance, and nobody has decided to stop it; or, if it waits
//! for that, while `on` has run to its end and is not to run again. If it
//! propagates, each fall of `on` is followed by exactly one restart of `of`.

use crate::{
    event::{Cause, DependencyEvent, Envelope, Event, ProgramEvent},
    graph::{self, Policy},
    ids::{EdgeId, EpochId, Seq},
    machine::{Input, Machine, Outputs, Timer, follows_from},
    rules::Refusal,
    state::{EdgeState, ProgramState, State},
    time::Instant,
};

/// The machine of one dependency.
#[derive(Clone, Debug)]
pub struct Dependency {
    id: EdgeId,
    epoch: EpochId,
    edge: graph::Dependency,
    policy: Policy,
    on: ProgramState,
    state: EdgeState,
    /// The last fall for which a restart was proposed.
    answered: Option<Seq>,
    /// Whether opening or closing was proposed and has not been answered.
    asked: bool,
    /// The event after which the delay was begun.
    armed_by: Seq,
}

impl Dependency {
    fn committed(&mut self, envelope: &Envelope) {
        match &envelope.event {
            Event::Program(program, event) if *program == self.edge.on => {
                self.on.apply(&self.policy, self.epoch, envelope.seq, envelope.at, event);
                if matches!(
                    event,
                    ProgramEvent::Started { .. }
                        | ProgramEvent::Daemonized { .. }
                        | ProgramEvent::Ready { .. }
                        | ProgramEvent::Exited { .. }
                ) {
                    self.armed_by = envelope.seq;
                }
            }
            Event::Dependency(edge, event) if *edge == self.id => self.own(event),
            Event::Dependency(_, event) => self.on.apply_dependency(envelope.seq, envelope.at, event),
            Event::Program(..) | Event::Group(..) | Event::System(_) => {}
        }
    }

    fn own(&mut self, event: &DependencyEvent) {
        match event {
            DependencyEvent::Satisfied { instance } => {
                self.state.satisfied = Some(*instance);
                self.asked = false;
            }
            DependencyEvent::Broken => {
                self.state.satisfied = None;
                self.asked = false;
            }
            DependencyEvent::RestartDue { fall, .. } => self.state.last_fall = Some(*fall),
        }
    }

    fn decide(&mut self, now: Instant, cause: Cause, out: &mut Outputs) {
        self.answer_fall(&cause, out);
        if self.asked {
            return;
        }
        match (self.state.satisfied, self.opens_at()) {
            (None, Some(at)) if at > now => out.arm(Timer::Gate, at),
            (None, Some(_)) => {
                let instance = self.on.instance;
                self.ask(DependencyEvent::Satisfied { instance }, cause, out);
            }
            (Some(_), None) => self.ask(DependencyEvent::Broken, cause, out),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    /// A fall is answered at once, and each by an event of its own, however quickly they follow each other.
    fn answer_fall(&mut self, cause: &Cause, out: &mut Outputs) {
        if self.edge.propagate && self.on.fall > self.answered {
            self.answered = self.on.fall;
            if let Some(fall) = self.on.fall {
                let planned = self.on.leaving.is_some_and(|leaving| leaving.planned);
                let due = DependencyEvent::RestartDue { fall, planned };
                out.propose(Event::Dependency(self.id, due), cause.clone());
            }
        }
    }

    fn opens_at(&self) -> Option<Instant> {
        Some(self.on.counts_since(self.edge.until)? + self.edge.delay)
    }

    fn ask(&mut self, event: DependencyEvent, cause: Cause, out: &mut Outputs) {
        self.asked = true;
        out.propose(Event::Dependency(self.id, event), cause);
    }

    fn refused(&mut self, event: &Event, refusal: &Refusal, out: &mut Outputs) {
        if let Event::Dependency(_, DependencyEvent::Satisfied { .. } | DependencyEvent::Broken) = event {
            self.asked = false;
            if let Refusal::TooEarly { ready_at } = refusal {
                out.arm(Timer::Gate, *ready_at);
            }
        }
    }
}

impl Machine for Dependency {
    type Id = EdgeId;

    fn new(state: &State, id: EdgeId) -> Self {
        let (edge, edge_state) = state.edge(id);
        Self {
            id,
            epoch: state.epoch,
            edge: *edge,
            policy: state.graph.programs[edge.on].clone(),
            on: state.programs[edge.on].clone(),
            state: *edge_state,
            answered: edge_state.last_fall,
            asked: false,
            armed_by: state.programs[edge.on].last_seq,
        }
    }

    fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs) {
        match input {
            Input::Committed(envelope) => {
                self.committed(envelope);
                self.decide(now, Cause::Event(envelope.seq), out);
            }
            Input::Due(_) => self.decide(now, Cause::Timer(self.armed_by), out),
            Input::Refused(event, refusal) => self.refused(event, refusal, out),
            Input::Rebuilt(since) => self.decide(now, follows_from(self.on.last_seq, *since), out),
            Input::Observed(_) => {}
        }
    }
}
