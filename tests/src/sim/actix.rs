//! The real actors in virtual time: the actors of the daemon, with a paused clock and the simulated host.
//!
//! A run must give the same journal as [`super::scheduler`] under [`super::scheduler::Policy::Fifo`].

use std::{
    cell::RefCell,
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    rc::Rc,
    time::Duration,
};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Recipient, SpawnHandle};
use gaggled_actors::{
    actor_system::{self, HostAddress},
    clock::Clock,
    journal::{JournalActor, JournalOutputs},
    messages::{Connect, Execute, HostReported, Propose},
};
use gaggled_core::{
    base::{
        ids::{IdVec, ProgramId},
        time::Instant,
    },
    event::{Cause, Envelope, Event, SystemEvent},
    protocol::Action,
    state::State,
};
use tokio::sync::oneshot;

use super::{
    crash::SimulatedEpoch,
    host::{ScheduledEvent, SimHost},
    operators,
    scheduler::epoch_of,
    world::World,
};

/// Runs a world with the real actors; returns every event.
pub fn run(world: &World) -> Vec<Envelope> {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let world = world.clone();
    actix::System::with_tokio_rt(runtime).block_on(async move { live(&world).await })
}

async fn live(world: &World) -> Vec<Envelope> {
    let clock = Clock::simulated();
    let envelopes: Rc<RefCell<Vec<Envelope>>> = Rc::default();
    let (ended, end) = oneshot::channel();
    let mut ended = Some(ended);
    let seen = envelopes.clone();
    let (_, journal, opening) = SimulatedEpoch::first(world, epoch_of(world));
    let folded = Rc::new(RefCell::new(journal.state().clone()));
    let after = folded.clone();
    let sink = move |envelope: &std::sync::Arc<Envelope>, state: &State| {
        after.replace(state.clone());
        // Events that are committed in the same moment after the shutdown is complete are left out.
        if ended.is_some() {
            seen.borrow_mut().push((**envelope).clone());
        }
        if let Event::System(SystemEvent::ShutdownCompleted { .. }) = envelope.event {
            ended.take().map(|ended| ended.send(()));
        }
    };
    let host = Host {
        processes: SimHost::new(world),
        scheduled: BinaryHeap::new(),
        created: 0,
        alarm: None,
        clock,
        programs: IdVec::default(),
    };
    let host = host.start();
    let address = HostAddress { perform: host.clone().recipient(), connect: host.recipient() };
    let actors = actor_system::start((journal, opening), clock, &address, JournalOutputs::only(Box::new(sink)));
    let journal = actors.journal;
    actor_system::open(&journal);
    Operators { commands: world.commands(), given: 0, state: folded, clock, journal }.start();
    end.await.expect("the end");
    envelopes.take()
}

/// The simulated host as an actor with one alarm.
struct Host {
    processes: SimHost,
    scheduled: BinaryHeap<Reverse<(Instant, u64, ScheduledEventAt)>>,
    created: u64,
    alarm: Option<(Instant, SpawnHandle)>,
    clock: Clock,
    programs: IdVec<ProgramId, Recipient<HostReported>>,
}

/// A scheduled event without an order of its own: all compare as equal.
struct ScheduledEventAt(ScheduledEvent);

impl PartialEq for ScheduledEventAt {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for ScheduledEventAt {}
impl PartialOrd for ScheduledEventAt {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for ScheduledEventAt {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Host {
    fn rearm(&mut self, ctx: &mut Context<Self>) {
        let next = self.scheduled.peek().map(|Reverse((at, _, _))| *at);
        if let Some((at, handle)) = self.alarm {
            if next == Some(at) {
                return;
            }
            ctx.cancel_future(handle);
            self.alarm = None;
        }
        if let Some(at) = next {
            self.alarm = Some((at, ctx.run_later(span(&self.clock, at), Self::ring)));
        }
    }

    fn ring(&mut self, ctx: &mut Context<Self>) {
        self.alarm = None;
        let now = self.clock.now();
        while let Some(Reverse((at, _, _))) = self.scheduled.peek() {
            if *at > now {
                break;
            }
            let Some(Reverse((_, _, ScheduledEventAt(scheduled_event)))) = self.scheduled.pop() else { break };
            if let Some((at, scheduled_event)) = self.processes.again(now, scheduled_event) {
                self.created += 1;
                self.scheduled.push(Reverse((at, self.created, ScheduledEventAt(scheduled_event))));
            }
            if let Some(report) = self.processes.deliver_event(scheduled_event) {
                self.programs[report.program].do_send(HostReported(report));
            }
        }
        self.rearm(ctx);
    }
}

impl Actor for Host {
    type Context = Context<Self>;
}

impl Handler<Connect> for Host {
    type Result = ();
    fn handle(&mut self, Connect(programs): Connect, _: &mut Context<Self>) {
        self.programs = programs;
    }
}

impl Handler<Execute> for Host {
    type Result = ();
    fn handle(&mut self, Execute(command): Execute, ctx: &mut Context<Self>) {
        for (at, scheduled_event) in self.processes.perform(self.clock.now(), command) {
            self.created += 1;
            self.scheduled.push(Reverse((at, self.created, ScheduledEventAt(scheduled_event))));
        }
        self.rearm(ctx);
    }
}

/// The operators: they give the commands of the world.
struct Operators {
    commands: VecDeque<(Instant, Action)>,
    given: u64,
    /// The state after the last event.
    state: Rc<RefCell<State>>,
    clock: Clock,
    journal: Addr<JournalActor>,
}

impl Operators {
    fn give(&mut self, ctx: &mut Context<Self>) {
        let now = self.clock.now();
        while self.commands.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, action)) = self.commands.pop_front() else { break };
            self.given += 1;
            let cause = Cause::Operator { who: "simulated".into(), command: format!("c{}", self.given).into() };
            let state = self.state.borrow();
            for event in operators::events(&action, &state, &operators::names(&state)) {
                self.journal.do_send(Propose { from: None, event, cause: cause.clone() });
            }
        }
        self.rearm(ctx);
    }

    fn rearm(&self, ctx: &mut Context<Self>) {
        if let Some((at, _)) = self.commands.front() {
            ctx.run_later(span(&self.clock, *at), Self::give);
        }
    }
}

impl Actor for Operators {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        self.rearm(ctx);
    }
}

fn span(clock: &Clock, at: Instant) -> Duration {
    Duration::from_micros(at.as_micros().saturating_sub(clock.now().as_micros()))
}
