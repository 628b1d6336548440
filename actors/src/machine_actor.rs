//! The actor around a machine: it passes inputs to the machine and carries out its outputs. It decides nothing.
//!
//! A panic costs one actor: it is caught, committed as an event, and the machine is restored from the state.

use std::{
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Recipient, SpawnHandle};
use gaggled_core::{
    base::{
        ids::{ActorId, DenseId},
        time::Instant,
    },
    host::HostReport,
    machine::{
        Input, Output, Outputs, Timers,
        any::{AnyMachine, all_actors},
    },
    state::State,
};

use crate::{
    clock::Clock,
    messages::{Committed, Execute, Flush, HostReported, Observed, Panicked, Propose, Refused, Restore, StartMachine},
};

/// A machine that panics more often than this is not restored again, so that it cannot keep the others from working.
const PANICS_MAX: u32 = 100;

/// What every machine actor is connected to.
#[derive(Clone, Debug)]
pub struct ActorContext {
    /// The time.
    pub clock: Clock,
    /// Where events are proposed.
    pub proposals: Recipient<Propose>,
    /// Where panics are reported.
    pub panics: Recipient<Panicked>,
    /// Where effects are asked for.
    pub host: Recipient<Execute>,
}

/// The actors of all machines, in the order of [`all_actors`].
#[derive(Clone, Debug)]
pub struct ActorTable {
    actors: Vec<Addr<MachineActor>>,
    programs: usize,
    dependencies: usize,
}

impl ActorTable {
    /// Starts the actors of all machines of a state.
    pub fn start(state: &State, context: &ActorContext) -> Self {
        let actor = |id| MachineActor::new(id, AnyMachine::new(state, id), context.clone()).start();
        Self {
            actors: all_actors(&state.graph).into_iter().map(actor).collect(),
            programs: state.graph.programs.len(),
            dependencies: state.graph.dependencies.len(),
        }
    }

    /// The actor of a machine.
    pub fn get(&self, id: ActorId) -> Option<&Addr<MachineActor>> {
        self.actors.get(match id {
            ActorId::Program(id) => id.index(),
            ActorId::Dependency(id) => self.programs + id.index(),
            ActorId::Group(id) => self.programs + self.dependencies + id.index(),
            ActorId::Shutdown => self.actors.len() - 1,
        })
    }

    /// All actors, in the order in which they start.
    pub fn iter(&self) -> impl Iterator<Item = &Addr<MachineActor>> {
        self.actors.iter()
    }

    /// The actors of the programs.
    pub fn programs(&self) -> impl Iterator<Item = &Addr<MachineActor>> {
        self.actors.iter().take(self.programs)
    }

    /// Waits until every actor has handled what was sent to it so far.
    pub async fn flush(&self) {
        for actor in &self.actors {
            let _ = actor.send(Flush).await;
        }
    }
}

/// An actor around a machine.
pub struct MachineActor {
    id: ActorId,
    /// None after a panic, until it is restored.
    machine: Option<AnyMachine>,
    /// Reports of the host while the machine is missing: the host does not repeat them.
    buffered: Vec<HostReport>,
    panics: u32,
    timers: Timers,
    alarm: Option<(Instant, SpawnHandle)>,
    context: ActorContext,
}

impl Debug for MachineActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MachineActor").field("id", &self.id).finish_non_exhaustive()
    }
}

impl MachineActor {
    /// The actor around a machine.
    pub fn new(id: ActorId, machine: AnyMachine, context: ActorContext) -> Self {
        Self {
            id,
            machine: Some(machine),
            buffered: Vec::new(),
            panics: 0,
            timers: Timers::default(),
            alarm: None,
            context,
        }
    }

    fn step(&mut self, input: &Input<'_>, ctx: &mut Context<Self>) {
        let Some(machine) = &mut self.machine else { return };
        let now = self.context.clock.now();
        let mut out = Outputs::default();
        let stepped = catch_unwind(AssertUnwindSafe(|| machine.step(now, input, &mut out)));
        if let Err(panic) = stepped {
            self.machine = None;
            self.panics += 1;
            self.timers = Timers::default();
            let message = panic_message(panic.as_ref());
            self.context.panics.do_send(Panicked { actor: self.id, message });
        } else {
            self.perform(&mut out);
        }
        self.set_alarm(now, ctx);
    }

    fn perform(&mut self, out: &mut Outputs) {
        for output in out.drain() {
            match output {
                Output::Propose(event, cause) => {
                    self.context.proposals.do_send(Propose { from: Some(self.id), event, cause });
                }
                Output::Execute(command) => self.context.host.do_send(Execute(command)),
                Output::SetTimer(timer, at) => self.timers.set(timer, at),
            }
        }
    }

    /// Keeps one alarm for the next of the timers.
    fn set_alarm(&mut self, now: Instant, ctx: &mut Context<Self>) {
        let next = self.timers.next();
        if let Some((at, handle)) = self.alarm {
            if next == Some(at) {
                return;
            }
            ctx.cancel_future(handle);
            self.alarm = None;
        }
        if let Some(at) = next {
            let span = std::time::Duration::from_micros(at.as_micros().saturating_sub(now.as_micros()));
            self.alarm = Some((at, ctx.run_later(span, Self::ring)));
        }
    }

    fn ring(&mut self, ctx: &mut Context<Self>) {
        self.alarm = None;
        let now = self.context.clock.now();
        for timer in self.timers.take_due(now) {
            self.step(&Input::TimerFired(timer), ctx);
        }
        self.set_alarm(now, ctx);
    }
}

/// The message of a panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

impl Actor for MachineActor {
    type Context = Context<Self>;
}

impl Handler<Committed> for MachineActor {
    type Result = ();
    fn handle(&mut self, Committed(envelope): Committed, ctx: &mut Context<Self>) {
        self.step(&Input::Committed(&envelope), ctx);
    }
}

impl Handler<Refused> for MachineActor {
    type Result = ();
    fn handle(&mut self, Refused(event, refusal): Refused, ctx: &mut Context<Self>) {
        self.step(&Input::Refused(&event, &refusal), ctx);
    }
}

impl Handler<HostReported> for MachineActor {
    type Result = ();
    fn handle(&mut self, HostReported(report): HostReported, ctx: &mut Context<Self>) {
        if self.machine.is_none() {
            self.buffered.push(report);
        }
        self.step(&Input::HostReported(report), ctx);
    }
}

impl Handler<Observed> for MachineActor {
    type Result = ();
    fn handle(&mut self, Observed(news): Observed, ctx: &mut Context<Self>) {
        self.step(&Input::Observed(&news), ctx);
    }
}

impl Handler<StartMachine> for MachineActor {
    type Result = ();
    fn handle(&mut self, StartMachine(since): StartMachine, ctx: &mut Context<Self>) {
        self.step(&Input::Restored(since), ctx);
    }
}

impl Handler<Flush> for MachineActor {
    type Result = ();
    fn handle(&mut self, _: Flush, _: &mut Context<Self>) {}
}

impl Handler<Restore> for MachineActor {
    type Result = ();
    fn handle(&mut self, Restore(machine, since): Restore, ctx: &mut Context<Self>) {
        if self.panics > PANICS_MAX {
            return;
        }
        self.machine = Some(machine);
        self.step(&Input::Restored(since), ctx);
        for report in std::mem::take(&mut self.buffered) {
            self.step(&Input::HostReported(report), ctx);
        }
    }
}
