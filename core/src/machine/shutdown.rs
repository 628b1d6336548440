//! The rules of the shutdown: when all programs have stopped, and when to give up on those that cannot be killed.
//!
//! The program machines keep the order: each waits for its dependents, but for no longer than half of the killwait, so
//! that a deep graph does not prolong the shutdown.

use std::collections::BTreeSet;

use crate::{
    base::{
        ids::{ProgramId, Seq},
        time::{Instant, Millis},
    },
    event::{Cause, Event, SystemEvent},
    machine::{Input, Machine, Outputs, Timer},
    state::State,
};

/// The machine of the shutdown.
#[derive(Clone, Debug)]
pub struct ShutdownMachine {
    running: BTreeSet<ProgramId>,
    started: Option<(Seq, Instant)>,
    timeout: Millis,
    /// Whether an essential program has ended.
    essential_exited: bool,
    completed: bool,
}

impl ShutdownMachine {
    /// How long to wait for a killed process to end before giving up: it may be blocked in the kernel by a device.
    pub const UNKILLABLE: Millis = Millis(2000);

    fn decide(&mut self, now: Instant, cause: Cause, out: &mut Outputs) {
        let Some((_, begun)) = self.started else { return };
        if self.completed {
            return;
        }
        let give_up = begun + self.timeout;
        if self.running.is_empty() || now >= give_up {
            self.completed = true;
            let unkillable = u32::try_from(self.running.len()).unwrap_or(u32::MAX);
            out.propose(Event::System(SystemEvent::ShutdownCompleted { unkillable }), cause);
        }
    }
}

impl Machine for ShutdownMachine {
    type Id = ();

    fn new(state: &State, (): ()) -> Self {
        let longest = state.graph.programs.values().map(|policy| policy.killwait).max().unwrap_or_default();
        Self {
            running: state.running.clone(),
            started: state.shutdown.map(|at| (state.seq, at)),
            timeout: Millis(longest.max(state.graph.killwait).0 + Self::UNKILLABLE.0),
            essential_exited: state.essential_exit.is_some(),
            completed: state.unkillable.is_some(),
        }
    }

    fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs) {
        match input {
            Input::Committed(envelope) => {
                match &envelope.event {
                    Event::Program(program, event) => match event.sets_running() {
                        Some(true) => drop(self.running.insert(*program)),
                        Some(false) => drop(self.running.remove(program)),
                        None => {}
                    },
                    Event::System(SystemEvent::ShutdownStarted) => {
                        self.started = Some((envelope.seq, envelope.monotonic));
                        out.set_timer(Timer::ShutdownTimeout, envelope.monotonic + self.timeout);
                    }
                    Event::Remote(..) | Event::Dependency(..) | Event::Group(..) | Event::System(_) => {}
                }
                self.decide(now, Cause::Event(envelope.seq), out);
            }
            Input::TimerFired(_) => {
                if let Some((seq, _)) = self.started {
                    self.decide(now, Cause::Timer(seq), out);
                }
            }
            Input::Restored(since) => {
                if self.essential_exited && self.started.is_none() {
                    out.propose(Event::System(SystemEvent::ShutdownStarted), Cause::Event(*since));
                }
                if let Some((seq, begun)) = self.started {
                    out.set_timer(Timer::ShutdownTimeout, begun + self.timeout);
                    self.decide(now, Cause::Event(seq), out);
                }
            }
            Input::HostReported(_) | Input::Observed(_) | Input::Refused(..) => {}
        }
    }
}
