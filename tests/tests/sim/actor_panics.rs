//! Panics of machines inside their actors, in virtual time.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use actix::{Actor, Context, Handler};
use gaggled_actors::{
    actor_system::{self, HostAddress},
    clock::Clock,
    journal::JournalOutputs,
    messages::{Committed, Connect, Execute, Flush, Panicked},
};
use gaggled_core::{
    base::{
        ids::{ActorId, DependencyId, EpochId, Seq},
        time::{Instant, Millis, WallTime},
    },
    event::{Cause, DependencyEvent, Envelope, Event, SystemEvent},
    graph::{Graph, Group, Policy, START},
    journal::recovery::EpochStart,
    state::State,
};

/// A host that does nothing.
struct IdleHost;

impl Actor for IdleHost {
    type Context = Context<Self>;
}
impl Handler<Execute> for IdleHost {
    type Result = ();
    fn handle(&mut self, _: Execute, _: &mut Context<Self>) {}
}
impl Handler<Connect> for IdleHost {
    type Result = ();
    fn handle(&mut self, _: Connect, _: &mut Context<Self>) {}
}

/// An event of a dependency that does not exist: the machine of a group panics when it gets it.
fn impossible() -> Committed {
    Committed(Arc::new(Envelope {
        seq: Seq(1),
        epoch: EpochId(1),
        monotonic: Instant::default(),
        time: WallTime(0),
        cause: Cause::DaemonStart,
        event: Event::Dependency(
            DependencyId(99),
            DependencyEvent::RestartTriggered { down_event: Seq(1), before_stop: false },
        ),
    }))
}

#[test]
fn a_panic_costs_one_actor_is_an_event_and_the_machine_is_restored() {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    actix::System::with_tokio_rt(runtime).block_on(async {
        let mut graph = Graph::new(Millis(1000));
        let group = graph.add_group(Group::new("g", START, None));
        graph.add_program(Policy { killwait: Millis(1000), group: Some(group), ..Policy::new("a") });
        let envelopes: Rc<RefCell<Vec<Envelope>>> = Rc::default();
        let seen = envelopes.clone();
        let host = IdleHost.start();
        let address = HostAddress { perform: host.clone().recipient(), connect: host.clone().recipient() };
        let clock = Clock::simulated();
        let sink = Box::new(move |envelope: &Arc<Envelope>, _: &State| seen.borrow_mut().push((**envelope).clone()));
        let opening = EpochStart::new(None, &graph, EpochId(1), clock.now(), clock.wall());
        let committed = opening.commit("test", Vec::new(), Vec::new());
        let actors = actor_system::start(committed, clock, &address, JournalOutputs::only(sink));

        let actor = actors.machines.get(ActorId::Group(group)).expect("the actor of the group");
        actor.send(impossible()).await.expect("the actor lives on");
        // When the journal answers, it has restored the machine; when the actor answers, the machine has proposed its
        // next event.
        actors.journal.send(Flush).await.expect("the journal");
        actor.send(Flush).await.expect("the actor lives on");
        actors.journal.send(Flush).await.expect("the journal");
        let names = || envelopes.borrow().iter().map(|envelope| envelope.event.name()).collect::<Vec<_>>();
        assert!(names().starts_with(&["ActorPanicked", "LevelStartRequested"]), "{:?}", names());

        actor_system::open(&actors.journal);
        actors.journal.send(Panicked { actor: ActorId::Shutdown, message: "again".into() }).await.expect("the journal");
        assert!(names().contains(&"DaemonStarted"), "{:?}", names());
        assert_eq!(names().iter().filter(|name| **name == "ActorPanicked").count(), 2);
        let first = envelopes.borrow()[0].event.clone();
        let Event::System(SystemEvent::ActorPanicked { actor, message }) = first else { panic!("{first:?}") };
        assert_eq!(actor, "Group(GroupId(0))");
        assert!(message.contains("out of bounds"), "{message}");
    });
}
