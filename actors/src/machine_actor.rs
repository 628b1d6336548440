//! The actor around a machine: it hears, takes a step, and does what the machine wants. It decides nothing.
//!
//! A panic costs one actor: it is caught, committed as an event, and the machine is built anew from the fold.

use std::{
    fmt::Debug,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message, Recipient, SpawnHandle};
use gaggled_core::{
    base::{
        ids::{ActorId, Seq},
        time::Instant,
    },
    event::{Envelope, Event},
    host::{HostCommand, HostReport},
    journal::Refusal,
    machine::{
        Input, Machine, Output, Outputs, Timers, dependency::DependencyMachine, group::GroupMachine,
        program::ProgramMachine, shutdown::ShutdownMachine,
    },
};

use crate::{
    clock::Clock,
    journal::{JournalActor, Panicked, Propose},
};

/// The actor of a program.
pub type ProgramActor = MachineActor<ProgramMachine>;
/// The actor of a dependency.
pub type DependencyActor = MachineActor<DependencyMachine>;
/// The actor of a group.
pub type GroupActor = MachineActor<GroupMachine>;
/// The actor of the end.
pub type ShutdownActor = MachineActor<ShutdownMachine>;

/// Rules that panic more often than this are left alone, so that they cannot keep the others from working.
const PANICS_MAX: u32 = 100;

/// An event was committed.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Committed(pub Arc<Envelope>);

/// A proposal was not.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Refused(pub Event, pub Refusal);

/// The host saw something.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct HostReported(pub HostReport);

/// The host is to do something.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Execute(pub HostCommand);

/// The machine may begin to want something, because of this event.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct StartMachine(pub Seq);

/// A machine built anew after a panic, which is this event.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Restore<M>(pub Box<M>, pub Seq);

/// Answered when everything that was sent before has been handled.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Flush;

/// What every shell is connected to.
#[derive(Clone, Debug)]
pub struct ActorContext {
    /// The time.
    pub clock: Clock,
    /// Where events are proposed.
    pub journal: Addr<JournalActor>,
    /// Where effects are asked for.
    pub host: Recipient<Execute>,
}

/// An actor around a machine.
pub struct MachineActor<M> {
    id: ActorId,
    /// None after a panic, until it has been built anew.
    machine: Option<M>,
    /// What the host saw meanwhile: nobody will say it again.
    buffered: Vec<HostReport>,
    panics: u32,
    timers: Timers,
    alarm: Option<(Instant, SpawnHandle)>,
    wiring: ActorContext,
}

impl<M> Debug for MachineActor<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shell").field("id", &self.id).finish_non_exhaustive()
    }
}

impl<M: Machine + Unpin + 'static> MachineActor<M> {
    /// The shell of a machine.
    pub fn new(id: ActorId, machine: M, wiring: ActorContext) -> Self {
        Self {
            id,
            machine: Some(machine),
            buffered: Vec::new(),
            panics: 0,
            timers: Timers::default(),
            alarm: None,
            wiring,
        }
    }

    fn step(&mut self, input: &Input<'_>, ctx: &mut Context<Self>) {
        let Some(machine) = &mut self.machine else { return };
        let now = self.wiring.clock.now();
        let mut out = Outputs::default();
        let stepped = catch_unwind(AssertUnwindSafe(|| machine.step(now, input, &mut out)));
        if let Err(panic) = stepped {
            self.machine = None;
            self.panics += 1;
            self.timers = Timers::default();
            let message = panic_message(panic.as_ref());
            self.wiring.journal.do_send(Panicked { actor: self.id, message });
        } else {
            self.perform(&mut out);
        }
        self.set_alarm(now, ctx);
    }

    fn perform(&mut self, out: &mut Outputs) {
        for output in out.drain() {
            match output {
                Output::Propose(event, cause) => {
                    self.wiring.journal.do_send(Propose { from: Some(self.id), event, cause });
                }
                Output::Execute(command) => self.wiring.host.do_send(Execute(command)),
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
        let now = self.wiring.clock.now();
        for timer in self.timers.take_due(now) {
            self.step(&Input::TimerFired(timer), ctx);
        }
        self.set_alarm(now, ctx);
    }
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

impl<M: Machine + Unpin + 'static> Actor for MachineActor<M> {
    type Context = Context<Self>;
}

impl<M: Machine + Unpin + 'static> Handler<Committed> for MachineActor<M> {
    type Result = ();
    fn handle(&mut self, Committed(envelope): Committed, ctx: &mut Context<Self>) {
        self.step(&Input::Committed(&envelope), ctx);
    }
}

impl<M: Machine + Unpin + 'static> Handler<Refused> for MachineActor<M> {
    type Result = ();
    fn handle(&mut self, Refused(event, refusal): Refused, ctx: &mut Context<Self>) {
        self.step(&Input::Refused(&event, &refusal), ctx);
    }
}

impl<M: Machine + Unpin + 'static> Handler<HostReported> for MachineActor<M> {
    type Result = ();
    fn handle(&mut self, HostReported(report): HostReported, ctx: &mut Context<Self>) {
        if self.machine.is_none() {
            self.buffered.push(report);
        }
        self.step(&Input::HostReported(report), ctx);
    }
}

impl<M: Machine + Unpin + 'static> Handler<StartMachine> for MachineActor<M> {
    type Result = ();
    fn handle(&mut self, StartMachine(since): StartMachine, ctx: &mut Context<Self>) {
        self.step(&Input::Restored(since), ctx);
    }
}

impl<M: Machine + Unpin + 'static> Handler<Flush> for MachineActor<M> {
    type Result = ();
    fn handle(&mut self, _: Flush, _: &mut Context<Self>) {}
}

impl<M: Machine + Unpin + 'static> Handler<Restore<M>> for MachineActor<M> {
    type Result = ();
    fn handle(&mut self, Restore(machine, since): Restore<M>, ctx: &mut Context<Self>) {
        if self.panics > PANICS_MAX {
            return;
        }
        self.machine = Some(*machine);
        self.step(&Input::Restored(since), ctx);
        for report in std::mem::take(&mut self.buffered) {
            self.step(&Input::HostReported(report), ctx);
        }
    }
}
