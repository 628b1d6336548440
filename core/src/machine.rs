//! What every machine of the rules has in common: inputs, outputs, and one step.
//!
//! A machine changes its folded state only with a committed envelope. It proposes events and asks for effects; it never
//! sends anything to another machine and never waits for an answer.

pub mod any;
pub mod dependency;
pub mod external;
pub mod group;
mod health_monitor;
pub mod program;
pub mod shutdown;
mod tenancy;

use std::collections::BTreeMap;

use crate::{
    base::{
        ids::{InstanceId, Seq},
        time::Instant,
    },
    cluster::News,
    event::{Cause, Envelope, Event},
    host::{HostCommand, HostReport},
    journal::Refusal,
    state::State,
};

/// An input of a machine.
#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// An event was committed.
    Committed(&'a Envelope),
    /// A proposal of this machine was refused.
    Refused(&'a Event, &'a Refusal),
    /// The host reported an observation of this machine's instance.
    HostReported(HostReport),
    /// The cluster gateway reported something about this machine's program of another node, or about its group.
    Observed(&'a News),
    /// A timer that this machine armed has expired.
    TimerFired(Timer),
    /// The machine was built from the folded state, at the start or after a panic, and no timer is armed. This event is
    /// the cause of its proposals, unless the state names one.
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
    /// A readiness probe or a health check is due.
    Probe,
    /// This instance should be ready by now.
    StartTimeout(InstanceId),
    /// This instance, which is meant to end by itself, should have ended by now.
    RunTimeout(InstanceId),
    /// This instance should have sent a watchdog message by now.
    Watchdog(InstanceId),
    /// Nothing may have been heard of the cluster for so long that this node is cut off.
    ClusterBlind,
    /// A group that runs on one node at a time may be claimed, or has to be left.
    Tenancy,
}

/// An output of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Commit this event.
    Propose(Event, Cause),
    /// Have the host execute this; based on committed events only.
    Execute(HostCommand),
    /// Arm a timer that fires at this moment.
    SetTimer(Timer, Instant),
}

/// The outputs of one step, in order.
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

    /// Removes and returns all outputs.
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

    /// Removes and returns the timers that are due, in a fixed order.
    pub fn take_due(&mut self, now: Instant) -> Vec<Timer> {
        let due: Vec<Timer> = self.0.iter().filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).collect();
        for timer in &due {
            self.0.remove(timer);
        }
        due
    }
}

/// The cause of the proposals of a machine that was just built: the last event that concerned it, or else `since`.
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
/// // A new machine proposes the pending start. Its state changes only when the event is committed.
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

    /// Builds the machine from the folded state: at the start, and again after a panic.
    fn new(state: &State, id: Self::Id) -> Self;

    /// Processes an input, and adds the outputs that follow from it.
    fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs);
}
