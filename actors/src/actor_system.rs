//! Builds the actors of a graph and connects them.

use actix::{Addr, AsyncContext, Context, Recipient};
use gaggled_core::{event::Envelope, journal::Journal};

use crate::{
    clock::Clock,
    journal::{JournalActor, JournalOutputs, OpenJournal},
    machine_actor::{ActorContext, ActorTable},
    messages::{Connect, Execute},
};

/// A host, as the actors see it.
#[derive(Clone, Debug)]
pub struct HostAddress {
    /// Takes effects.
    pub perform: Recipient<Execute>,
    /// Gets the addresses of the programs.
    pub connect: Recipient<Connect>,
}

/// The journal and the machines.
#[derive(Clone, Debug)]
pub struct Actors {
    /// The journal.
    pub journal: Addr<JournalActor>,
    /// The machines.
    pub machines: ActorTable,
}

/// Starts all actors; nothing happens before [`open`].
pub fn start(
    (journal, opening): (Journal, Vec<Envelope>),
    clock: Clock,
    host: &HostAddress,
    outputs: JournalOutputs,
) -> Actors {
    let ctx = Context::new();
    let context = ActorContext {
        clock,
        proposals: AsyncContext::<JournalActor>::address(&ctx).recipient(),
        panics: AsyncContext::<JournalActor>::address(&ctx).recipient(),
        host: host.perform.clone(),
    };
    let machines = ActorTable::start(journal.state(), &context);
    host.connect.do_send(Connect(machines.programs().map(|program| program.clone().recipient()).collect()));
    let journal = ctx.run(JournalActor::new((journal, opening), clock, machines.clone(), outputs));
    Actors { journal, machines }
}

/// Opens the journal: programs that are wanted start, and starts and stops that were under way continue.
pub fn open(journal: &Addr<JournalActor>) {
    journal.do_send(OpenJournal);
}
