//! The shells around the rules, in virtual time.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use actix::{Actor, Context, Handler};
use gaggled_actors::{
    actor_system::{self, Connect, HostAddress},
    clock::Clock,
    machine_actor::{ActorContext, Committed, Execute, MachineActor, Restore},
};
use gaggled_core::{
    base::{
        ids::{ActorId, EpochId, ProgramId, Seq},
        time::{Instant, Millis, WallTime},
    },
    event::{Cause, Envelope, Event, SystemEvent},
    graph::{Graph, Policy},
    journal::recovery::EpochStart,
    machine::{Input, Machine, Outputs},
    state::State,
};

/// A host that does nothing.
struct Nobody;

impl Actor for Nobody {
    type Context = Context<Self>;
}
impl Handler<Execute> for Nobody {
    type Result = ();
    fn handle(&mut self, _: Execute, _: &mut Context<Self>) {}
}
impl Handler<Connect> for Nobody {
    type Result = ();
    fn handle(&mut self, _: Connect, _: &mut Context<Self>) {}
}

/// Rules with a bug: they panic at the first event, and count those after.
#[derive(Default)]
struct Faulty {
    heard: Arc<AtomicU32>,
    sound: bool,
}

impl Machine for Faulty {
    type Id = ();
    fn new(_: &State, (): ()) -> Self {
        Self::default()
    }
    fn step(&mut self, _: Instant, _: &Input<'_>, _: &mut Outputs) {
        assert!(self.sound, "a bug on purpose");
        self.heard.fetch_add(1, Ordering::Relaxed);
    }
}

fn start_kind() -> Committed {
    Committed(Arc::new(Envelope {
        seq: Seq(1),
        epoch: EpochId(1),
        monotonic: Instant::default(),
        time: WallTime(0),
        cause: Cause::DaemonStart,
        event: Event::System(SystemEvent::ShutdownStarted),
    }))
}

#[test]
fn a_panic_costs_one_actor_is_an_event_and_the_actor_is_rebuilt() {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    actix::System::with_tokio_rt(runtime).block_on(async {
        let mut graph = Graph::new(Millis(1000));
        graph.add_program(Policy { killwait: Millis(1000), ..Policy::new("a") });
        let envelopes: Rc<RefCell<Vec<Envelope>>> = Rc::default();
        let seen = envelopes.clone();
        let host = Nobody.start();
        let address = HostAddress { perform: host.clone().recipient(), connect: host.clone().recipient() };
        let clock = Clock::simulated();
        let sink = Box::new(move |envelope: &Arc<Envelope>, _: &State| seen.borrow_mut().push((**envelope).clone()));
        let opening = EpochStart::new(None, &graph, EpochId(1), clock.now(), clock.wall());
        let committed = opening.commit("test", Vec::new(), Vec::new());
        let journal = actor_system::start(committed, clock, &address, vec![sink], Box::new(|_, _| {})).journal;

        let wiring = ActorContext { clock, journal: journal.clone(), host: host.recipient() };
        let faulty = MachineActor::new(ActorId::Program(ProgramId(0)), Faulty::default(), wiring).start();
        faulty.send(start_kind()).await.expect("the actor lives on");
        let heard: Arc<AtomicU32> = Arc::default();
        faulty.send(start_kind()).await.expect("it hears nothing until it is rebuilt");
        faulty
            .send(Restore(Box::new(Faulty { heard: heard.clone(), sound: true }), Seq(1)))
            .await
            .expect("the actor lives on");
        faulty.send(start_kind()).await.expect("the actor lives on");
        assert_eq!(heard.load(Ordering::Relaxed), 2, "the rebuilding and one event");

        actor_system::open(&journal);
        journal
            .send(gaggled_actors::journal::Panicked { actor: ActorId::Shutdown, message: "again".into() })
            .await
            .expect("the journal");
        let names: Vec<&str> = envelopes.borrow().iter().map(|envelope| envelope.event.name()).collect();
        assert_eq!(
            names,
            ["ActorPanicked", "ProgramStarting", "DaemonStarted", "ActorPanicked"],
            "what was rebuilt goes on"
        );
        let first = envelopes.borrow()[0].event.clone();
        let Event::System(SystemEvent::ActorPanicked { actor, message }) = first else { panic!("{first:?}") };
        assert_eq!((actor.as_str(), message.as_str()), ("Program(ProgramId(0))", "a bug on purpose"));
    });
}
