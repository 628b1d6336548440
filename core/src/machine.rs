//! What every machine of the rules has in common: inputs, outputs, and one step.
//!
//! A machine changes its mind only when it sees a committed envelope. It proposes events and asks for effects; it
//! never sends anything to another machine and never waits for an answer.

pub mod any;
pub mod dependency;
pub mod group;
mod health_monitor;
pub mod program;
pub mod shutdown;

use std::collections::BTreeMap;

use crate::{
    base::{
        ids::{InstanceId, Seq},
        time::Instant,
    },
    event::{Cause, Envelope, Event},
    host::{HostCommand, HostReport},
    journal::Refusal,
    state::State,
};

/// What a machine hears.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// An event was committed.
    Committed(&'a Envelope),
    /// A proposal of this machine was not.
    Refused(&'a Event, &'a Refusal),
    /// The host saw something of this machine's instance.
    HostReported(HostReport),
    /// A timer that this machine armed has come.
    TimerFired(Timer),
    /// The machine was built from the fold, at the beginning or after a panic, and nothing is armed. What follows from
    /// that follows from this event, unless the fold knows better.
    Restored(Seq),
}

/// A timer of a machine. Arming one of the same name again replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// The space between two starts is over.
    Backoff,
    /// Dependents have had their time; stop now.
    DependentsGrace,
    /// Kill this instance if it still stops.
    KillTimeout(InstanceId),
    /// The delay of a dependency is over.
    DependencyDelay,
    /// The shutdown has taken too long.
    ShutdownTimeout,
    /// A program is to be asked whether it is ready, or well.
    Probe,
    /// This instance should be ready by now.
    StartTimeout(InstanceId),
    /// This instance, which is meant to end by itself, should have ended by now.
    RunTimeout(InstanceId),
    /// This instance should have said something by now.
    Watchdog(InstanceId),
}

/// What a machine wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// That this be committed.
    Propose(Event, Cause),
    /// That the host do this; only ever for what has been committed.
    Execute(HostCommand),
    /// A timer that fires at this moment.
    SetTimer(Timer, Instant),
}

/// The wants of one step, in order.
#[derive(Debug, Default)]
pub struct Outputs(Vec<Output>);

impl Outputs {
    /// Proposes an event.
    pub fn propose(&mut self, event: Event, cause: Cause) {
        self.0.push(Output::Propose(event, cause));
    }

    /// Asks the host for an effect.
    pub fn execute(&mut self, command: HostCommand) {
        self.0.push(Output::Execute(command));
    }

    /// Arms a timer.
    pub fn set_timer(&mut self, timer: Timer, at: Instant) {
        self.0.push(Output::SetTimer(timer, at));
    }

    /// Takes what was wanted and leaves nothing.
    pub fn drain(&mut self) -> std::vec::Drain<'_, Output> {
        self.0.drain(..)
    }
}

/// The timers of one machine. There is one deadline to wait for, however many are armed.
#[derive(Clone, Debug, Default)]
pub struct Timers(BTreeMap<Timer, Instant>);

impl Timers {
    /// Arms a timer, in place of one of the same name.
    pub fn set(&mut self, timer: Timer, at: Instant) {
        self.0.insert(timer, at);
    }

    /// The next deadline.
    pub fn next(&self) -> Option<Instant> {
        self.0.values().min().copied()
    }

    /// Takes the timers that have come, in order.
    pub fn take_due(&mut self, now: Instant) -> Vec<Timer> {
        let due: Vec<Timer> = self.0.iter().filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).collect();
        for timer in &due {
            self.0.remove(timer);
        }
        due
    }
}

/// The cause of what a machine wants when it has just been built: the last event that concerned it, if there was one.
pub(crate) fn restored_cause(last: Seq, since: Seq) -> Cause {
    Cause::Event(if last > Seq(0) { last } else { since })
}

/// The rules of one program, one dependency, one group, or the shutdown.
///
/// ```
/// use std::sync::Arc;
///
/// use gaggled_core::{
///     base::{ids::{ActorId, EpochId, Seq}, time::Instant},
///     config::Config,
///     event::{Event, ProgramEvent},
///     machine::{Input, Output, Outputs, any::AnyMachine},
///     state::State,
/// };
///
/// let graph = Config::parse(r#"(programs: {"a": (command: "true")})"#).expect("it is correct").config.graph();
/// let a = graph.names()["a"];
/// let state = State::new(Arc::new(graph), EpochId(1));
/// let mut machine = AnyMachine::new(&state, ActorId::Program(a));
///
/// // A machine that begins proposes the start that is pending. It changes its mind only when that is committed.
/// let mut out = Outputs::default();
/// machine.step(Instant::default(), &Input::Restored(Seq(1)), &mut out);
/// let outputs: Vec<Output> = out.drain().collect();
/// assert!(matches!(
///     outputs.as_slice(),
///     [Output::Propose(Event::Program(id, ProgramEvent::Starting { .. }), _)] if *id == a
/// ));
/// ```
pub trait Machine {
    /// What identifies a machine of this kind.
    type Id: Copy;

    /// The machine as the fold has it: at the beginning, and again after a panic.
    fn new(state: &State, id: Self::Id) -> Self;

    /// Takes an input and says what follows from it.
    fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs);
}
