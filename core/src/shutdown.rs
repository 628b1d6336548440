//! The rules of the end: when everything has stopped, and when to stop waiting for what cannot be stopped.
//!
//! The order is kept by the programs themselves: each waits for its dependents, but for no longer than half of the
//! killwait, so that the depth of the graph does not matter.

use std::collections::BTreeSet;

use crate::{
    event::{Cause, Event, SystemEvent},
    ids::{ProgramId, Seq},
    machine::{Input, Machine, Outputs, Timer},
    state::State,
    time::{Instant, Millis},
};

/// The machine of the end.
#[derive(Clone, Debug)]
pub struct Shutdown {
    running: BTreeSet<ProgramId>,
    begun: Option<(Seq, Instant)>,
    patience: Millis,
    /// Whether an essential program has ended.
    doomed: bool,
    completed: bool,
}

impl Shutdown {
    /// How long a killed process may take to disappear before it is given up: it waits in the kernel for a device.
    pub const UNKILLABLE: Millis = Millis(2000);

    fn decide(&mut self, now: Instant, cause: Cause, out: &mut Outputs) {
        let Some((_, begun)) = self.begun else { return };
        if self.completed {
            return;
        }
        let give_up = begun + self.patience;
        if self.running.is_empty() || now >= give_up {
            self.completed = true;
            let survivors = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
            out.propose(Event::System(SystemEvent::ShutdownCompleted { survivors }), cause);
        }
    }
}

impl Machine for Shutdown {
    type Id = ();

    fn new(state: &State, (): ()) -> Self {
        let longest = state.graph.programs.values().map(|policy| policy.killwait).max().unwrap_or_default();
        Self {
            running: state.running.clone(),
            begun: state.shutdown.map(|at| (state.seq, at)),
            patience: Millis(longest.max(state.graph.killwait).0 + Self::UNKILLABLE.0),
            doomed: state.verdict.is_some(),
            completed: state.survivors.is_some(),
        }
    }

    fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs) {
        match input {
            Input::Committed(envelope) => {
                match &envelope.event {
                    Event::Program(program, event) => match event.makes_running() {
                        Some(true) => drop(self.running.insert(*program)),
                        Some(false) => drop(self.running.remove(program)),
                        None => {}
                    },
                    Event::System(SystemEvent::ShutdownBegun) => {
                        self.begun = Some((envelope.seq, envelope.at));
                        out.arm(Timer::GiveUp, envelope.at + self.patience);
                    }
                    Event::Dependency(..) | Event::Group(..) | Event::System(_) => {}
                }
                self.decide(now, Cause::Event(envelope.seq), out);
            }
            Input::Due(_) => {
                if let Some((seq, _)) = self.begun {
                    self.decide(now, Cause::Timer(seq), out);
                }
            }
            Input::Rebuilt(since) => {
                if self.doomed && self.begun.is_none() {
                    out.propose(Event::System(SystemEvent::ShutdownBegun), Cause::Event(*since));
                }
                if let Some((seq, begun)) = self.begun {
                    out.arm(Timer::GiveUp, begun + self.patience);
                    self.decide(now, Cause::Event(seq), out);
                }
            }
            Input::Observed(_) | Input::Refused(..) => {}
        }
    }
}
