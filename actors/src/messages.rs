//! What the journal, the machines and the host send each other.

use std::sync::Arc;

use actix::{Message, Recipient};
use gaggled_core::{
    base::ids::{ActorId, IdVec, ProgramId, Seq},
    cluster::News,
    event::{Cause, Envelope, Event},
    host::{HostCommand, HostReport},
    journal::Refusal,
    machine::any::AnyMachine,
};

/// To the journal: asks for an event to be committed; the admission rules may refuse it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Propose {
    /// The machine that gets the refusal, if a machine proposes it.
    pub from: Option<ActorId>,
    /// The event.
    pub event: Event,
    /// Why.
    pub cause: Cause,
}

/// To the journal: a machine panicked and has to be restored.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Panicked {
    /// Which machine.
    pub actor: ActorId,
    /// The message of the panic.
    pub message: String,
}

/// To a machine: an event was committed.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Committed(pub Arc<Envelope>);

/// To a machine: its proposal was refused.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Refused(pub Event, pub Refusal);

/// To a machine: a report of the host.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct HostReported(pub HostReport);

/// To the host: a command of a machine.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Execute(pub HostCommand);

/// To the journal, for machines: what the cluster gateway has reported.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Observe(pub Vec<(ActorId, News)>);

/// To a machine: what the cluster gateway has reported.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub struct Observed(pub News);

/// To a machine: it may begin to propose events, because of this event.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct StartMachine(pub Seq);

/// To a machine that panicked: the machine as the state has it, and the event that records the panic.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Restore(pub AnyMachine, pub Seq);

/// Answered when everything that was sent before has been handled.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub struct Flush;

/// To the host: where reports about each program go.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Connect(pub IdVec<ProgramId, Recipient<HostReported>>);
