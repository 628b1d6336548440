//! The machines under a seeded scheduler: no runtime, no threads, virtual time.
//!
//! Messages from one sender to one receiver keep their order, and no others, as the real actors guarantee. Under
//! [`Policy::Fifo`] the order is the one that actix takes, so the journal must come out equal to that of the real
//! actors. Under the other policies time may also overtake messages a little.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    rc::Rc,
};

use gaggled_core::{
    base::{
        ids::{ActorId, EpochId, ProgramId, Seq},
        time::{Instant, WallTime},
    },
    cluster::News,
    event::{Cause, Envelope, Event},
    graph::Graph,
    host::{HostCommand, HostReport},
    journal::{Journal, Refusal},
    machine::{
        Input, Output, Outputs, Timers,
        any::{AnyMachine, all_actors},
    },
    process::ExitStatus,
    protocol::{Action, Permits},
    state::State,
};

use serde::{Deserialize, Serialize};

use super::{
    crash::{self, CrashPlan, SimulatedEpoch},
    host::{ScheduledEvent, SimHost},
    mutants::Mutant,
    operators::Operators,
    random::{Pick, Random},
    timer_wheel::TimerWheel,
    world::World,
};

/// In which order messages are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// As actix does: an actor that has messages runs until it has none.
    Fifo,
    /// Any order.
    Uniform,
    /// Receivers have priorities, which change now and then (Burckhardt and others, 2010).
    Priority,
    /// One receiver gets no message while any other has one.
    Starve,
}

impl Policy {
    /// The order that a seed is run in.
    pub fn of(seed: u64) -> Self {
        match seed % 4 {
            0 => Self::Fifo,
            1 => Self::Uniform,
            2 => Self::Priority,
            _ => Self::Starve,
        }
    }
}

/// A receiver of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Endpoint {
    Journal,
    Actor(ActorId),
    Host,
    World,
}

/// A request of an operator.
#[derive(Clone, Debug)]
enum Wanted {
    Command(Action),
    Event(Event),
}

#[derive(Clone, Debug)]
enum Message {
    Propose(Event, Cause),
    Committed(Rc<Envelope>),
    Refused(Event, Refusal),
    Execute(HostCommand),
    HostReport(HostReport),
    Observed(News),
    Begin(Seq),
}

/// The result of a run.
#[derive(Debug)]
pub struct Run {
    /// Every event on the disk.
    pub envelopes: Vec<Envelope>,
    /// The same events, by runs of the daemon.
    pub lives: Vec<SimulatedEpoch>,
    /// The fold that the journal kept.
    pub state: State,
    /// The violations that the host, the operators and the scheduler have found.
    pub violations: Vec<String>,
    /// How many messages and timers there were.
    pub steps: u64,
    /// Programs that had a process at the end.
    pub left_alive: BTreeSet<ProgramId>,
}

/// One run of a world.
pub struct Simulation {
    world: World,
    graph: Rc<Graph>,
    policy: Policy,
    mutant: Option<Mutant>,
    random: Random,
    now: Instant,
    journal: Journal,
    rules: BTreeMap<ActorId, (AnyMachine, Timers)>,
    host: SimHost,
    scheduled: BinaryHeap<Reverse<(Instant, u64, usize)>>,
    schedule_store: Vec<ScheduledEvent>,
    mailboxes: BTreeMap<Endpoint, VecDeque<(Endpoint, Message)>>,
    ready: VecDeque<Endpoint>,
    queued: BTreeSet<Endpoint>,
    /// Receivers whose alarm has fired and that have not run since.
    due: BTreeSet<Endpoint>,
    /// One alarm for each receiver.
    alarms: TimerWheel<Endpoint>,
    created: u64,
    /// Commands that operators will give, and events of operators that were lost with a daemon and are proposed again.
    commands: VecDeque<(Instant, Wanted)>,
    operators: Operators,
    favourites: BTreeMap<Endpoint, u64>,
    refused_in_a_row: BTreeMap<Endpoint, (Event, u32)>,
    steps_since_commit: u64,
    crashes: VecDeque<CrashPlan>,
    /// How many steps the first of them has been waiting.
    steps_to_crash: u64,
    run: Run,
}

/// The epoch of the first daemon in a world; there is room for others after it.
pub fn epoch_of(world: &World) -> EpochId {
    EpochId((world.seed + 1) << 8)
}

impl Simulation {
    /// A run of this world in this order, with or without a defect.
    pub fn new(world: &World, policy: Policy, mutant: Option<Mutant>) -> Self {
        let (life, journal, opening) = SimulatedEpoch::first(world, epoch_of(world));
        let state = journal.state();
        let commands = world.commands().into_iter().map(|(at, action)| (at, Wanted::Command(action))).collect();
        let run = Run {
            envelopes: opening,
            lives: vec![life],
            state: state.clone(),
            violations: Vec::new(),
            steps: 0,
            left_alive: BTreeSet::new(),
        };
        Self {
            world: world.clone(),
            graph: Rc::new(world.graph.clone()),
            policy,
            mutant,
            random: Random::new(world.seed ^ 0x5c4e_d01e),
            now: Instant::default(),
            rules: BTreeMap::new(),
            host: SimHost::new(world),
            journal,
            scheduled: BinaryHeap::new(),
            schedule_store: Vec::new(),
            mailboxes: BTreeMap::new(),
            ready: VecDeque::new(),
            queued: BTreeSet::new(),
            due: BTreeSet::new(),
            alarms: TimerWheel::new(),
            created: 0,
            commands,
            operators: Operators::new(mutant),
            favourites: BTreeMap::new(),
            refused_in_a_row: BTreeMap::new(),
            steps_since_commit: 0,
            crashes: world.crashes.clone().into(),
            steps_to_crash: 0,
            run,
        }
    }

    /// Runs until the shutdown is complete.
    pub fn run(mut self) -> Run {
        self.start();
        while !self.is_over() {
            self.advance();
        }
        self.finish()
    }

    /// Lets the machines of the first daemon begin.
    pub fn start(&mut self) {
        self.begin(Seq(1));
        let first = self.commands.front().map(|(at, _)| *at);
        self.set_alarm(Endpoint::World, first);
    }

    /// Whether the shutdown is complete, or an invariant is violated.
    pub fn is_over(&self) -> bool {
        self.run.state.unkillable.is_some() || !self.run.violations.is_empty()
    }

    /// Delivers a message or lets time pass; the daemon may die before that.
    pub fn advance(&mut self) {
        if let Some(plan) = self.crashes.front().copied()
            && self.life().envelopes.len() > plan.after
            && self.now < self.world.faults_end_at
        {
            self.steps_to_crash += 1;
            if self.steps_to_crash > plan.steps {
                self.steps_to_crash = 0;
                self.crashes.pop_front();
                self.crash(plan);
            }
        }
        if !self.turn() {
            self.run.violations.push("everything stands still before the shutdown is complete".into());
        }
    }

    /// When the next message is delivered or the next timer fires, if nothing comes from outside.
    pub fn next_moment(&self) -> Option<Instant> {
        let waits = match self.policy {
            Policy::Fifo => !self.ready.is_empty(),
            Policy::Uniform | Policy::Priority | Policy::Starve => {
                self.mailboxes.values().any(|mailbox| !mailbox.is_empty())
            }
        };
        if waits { Some(self.now) } else { self.alarms.next().map(|at| at.max(self.now)) }
    }

    /// The time on this machine.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The state of the journal.
    pub fn state(&self) -> &State {
        self.journal.state()
    }

    /// The events of the present daemon.
    pub fn envelopes(&self) -> &[Envelope] {
        self.run.lives.last().map_or(&[], |life| &life.envelopes)
    }

    /// Whether a program has a process, or something that its run has left.
    pub fn lives(&self, program: ProgramId) -> bool {
        self.host.lives(program)
    }

    /// Until when this node may run what it has claimed.
    pub fn permits(&self) -> Permits {
        self.journal.permits()
    }

    /// The daemon has stood still until this moment.
    pub fn wake(&mut self, at: Instant) {
        self.now = self.now.max(at);
    }

    /// Something else than the daemon kills a program.
    pub fn kill_from_outside(&mut self, program: ProgramId) {
        let Some((instance, _)) = self.host.alive(program) else { return };
        let killed = ScheduledEvent::End(program, instance, ExitStatus::Signal(9));
        if let Some(report) = self.host.deliver_event(killed) {
            self.expect(vec![(self.now, ScheduledEvent::Report(report))]);
        }
    }

    /// The cluster gateway reports something to a machine.
    pub fn observe(&mut self, at: Instant, actor: ActorId, news: News) {
        self.now = self.now.max(at);
        if let News::Claims(sight) = &news {
            self.journal.permit(sight);
        }
        // A report that nothing has changed is not a step without an event.
        self.steps_since_commit = self.steps_since_commit.saturating_sub(1);
        self.post(Endpoint::World, Endpoint::Actor(actor), Message::Observed(news));
    }

    /// The result.
    pub fn finish(mut self) -> Run {
        if let Some(unkillable) = self.run.state.unkillable {
            // Proposals that the journal has not read when the shutdown is complete count as refused.
            for (from, message) in self.mailboxes.remove(&Endpoint::Journal).unwrap_or_default() {
                if let (Endpoint::World, Message::Propose(_, cause)) = (from, message) {
                    self.operators.refused(&cause);
                }
            }
            self.operators.end(unkillable);
        }
        self.run.violations.append(&mut self.host.violations);
        self.run.violations.append(&mut self.operators.violations);
        self.run.state = self.journal.state().clone();
        self.run.left_alive = self.host.living();
        self.run.envelopes = self.run.lives.iter().flat_map(|life| life.envelopes.clone()).collect();
        self.run
    }

    fn life(&mut self) -> &mut SimulatedEpoch {
        self.run.lives.last_mut().expect("there is always one")
    }

    /// Builds the machines from the state of the journal, and lets them begin.
    fn begin(&mut self, since: Seq) {
        let actors = all_actors(&self.graph);
        let state = self.journal.state();
        self.rules = actors.iter().map(|actor| (*actor, (AnyMachine::new(state, *actor), Timers::default()))).collect();
        for actor in actors {
            self.post(Endpoint::Journal, Endpoint::Actor(actor), Message::Begin(since));
        }
    }

    /// The daemon dies, and another begins after a while.
    fn crash(&mut self, plan: CrashPlan) {
        let envelopes = &mut self.life().envelopes;
        let lost = envelopes.split_off(envelopes.len().saturating_sub(plan.lost));
        // Events of operators that were lost or not yet committed are proposed again.
        let proposed = self.mailboxes.remove(&Endpoint::Journal).unwrap_or_default();
        let proposed = proposed.into_iter().filter_map(|(from, message)| match message {
            Message::Propose(event, _) if from == Endpoint::World => Some(event),
            _ => None,
        });
        let forgotten = lost.into_iter().filter(|envelope| matches!(envelope.cause, Cause::Operator { .. }));
        let again = forgotten.map(|envelope| envelope.event).chain(proposed).collect::<Vec<_>>();
        again.into_iter().rev().for_each(|event| self.commands.push_front((self.now, Wanted::Event(event))));
        self.operators.forget();
        self.set_alarm(Endpoint::World, self.commands.front().map(|(at, _)| *at));
        if !plan.subreaper {
            self.host.forget();
        }
        self.mailboxes.clear();
        self.ready.clear();
        self.queued.clear();
        self.due.clear();
        self.refused_in_a_row.clear();
        let parties: Vec<Endpoint> = self.rules.keys().copied().map(Endpoint::Actor).collect();
        for party in parties {
            self.alarms.cancel(party);
        }
        // Reports of the host during the outage are lost; processes end all the same.
        let scheduled: Vec<_> = std::mem::take(&mut self.scheduled).into_vec();
        let ends = scheduled.into_iter().filter(|Reverse((_, _, scheduled_event))| {
            matches!(self.schedule_store[*scheduled_event], ScheduledEvent::End(..))
        });
        self.scheduled = ends.collect();
        self.now = self.now + plan.outage;
        self.deliver_due();
        self.mailboxes.clear();
        self.ready.clear();
        self.queued.clear();
        if !plan.subreaper {
            self.host.forget();
        }
        let before = self.run.lives.last().expect("there is always one");
        let (life, journal, opening) = crash::next(before, &self.world, &self.host, self.now, self.mutant);
        let scheduled = self.host.begin(self.now);
        self.expect(scheduled);
        let since = opening.first().expect("it begins").seq;
        self.journal = journal;
        self.run.lives.push(life);
        self.run.state.unkillable = None;
        self.begin(since);
    }

    /// Delivers a message or lets time pass; false if there is nothing to do.
    fn turn(&mut self) -> bool {
        self.run.steps += 1;
        self.steps_since_commit += 1;
        // Health checks and watchdog pings of healthy programs are steps without events.
        let health = self.graph.programs.values().map(|policy| policy.health);
        let looked_at = health.filter(|health| health.check.is_some() || health.watchdog.is_some()).count() as u64;
        if self.steps_since_commit > 2000 + 20 * self.rules.len() as u64 + 1500 * looked_at {
            self.run.violations.push("I20: a great many steps without an event".into());
        }
        if self.life().envelopes.len() > 200_000 {
            self.run.violations.push("I20: no end of events".into());
        }
        let overtakes = self.policy != Policy::Fifo && self.random.below(64) == 0 && self.next_alarm_is_near();
        if !overtakes && let Some(party) = self.choose() {
            self.deliver(party);
            return true;
        }
        self.pass_time()
    }

    fn next_alarm_is_near(&self) -> bool {
        self.alarms.next().is_some_and(|at| self.now.until(at).0 <= 20)
    }

    fn choose(&mut self) -> Option<Endpoint> {
        if self.policy == Policy::Fifo {
            return self.ready.front().copied();
        }
        let waiting: Vec<Endpoint> =
            self.mailboxes.iter().filter(|(_, box_)| !box_.is_empty()).map(|(party, _)| *party).collect();
        let first = *waiting.first()?;
        if self.policy == Policy::Uniform {
            return Some(self.random.pick(&waiting));
        }
        if self.policy == Policy::Priority && self.random.below(200) == 0 {
            self.favourites.clear();
        }
        let mut best = (first, 0);
        for party in waiting {
            let random = &mut self.random;
            let favour = *self.favourites.entry(party).or_insert_with(|| random.number() | 1);
            if favour > best.1 {
                best = (party, favour);
            }
        }
        Some(best.0)
    }

    fn deliver(&mut self, party: Endpoint) {
        if self.policy == Policy::Fifo {
            while let Some((from, message)) = self.mailboxes.get_mut(&party).and_then(VecDeque::pop_front) {
                self.receive(party, from, message);
            }
            // A timer that is already due fires at once, not in the order of the wheel.
            let at_once = self.alarms.armed(party).is_some_and(|at| at <= self.now);
            if at_once {
                self.alarms.cancel(party);
            }
            if self.due.remove(&party) || at_once {
                self.fire(party);
            }
            self.ready.pop_front();
            self.queued.remove(&party);
            self.ring(party);
            return;
        }
        let mailbox = self.mailboxes.entry(party).or_default();
        let senders: BTreeSet<Endpoint> = mailbox.iter().map(|(from, _)| *from).collect();
        let senders: Vec<Endpoint> = senders.into_iter().collect();
        let from = self.random.pick(&senders);
        let mailbox = self.mailboxes.entry(party).or_default();
        let at = mailbox.iter().position(|(sender, _)| *sender == from).expect("a sender has a message");
        let (from, message) = mailbox.remove(at).expect("the message is there");
        if mailbox.len() > 64 + 8 * self.rules.len() {
            self.run.violations.push(format!("I20: {} messages wait for {party:?}", self.mailboxes[&party].len()));
        }
        self.receive(party, from, message);
    }

    fn receive(&mut self, party: Endpoint, from: Endpoint, message: Message) {
        match (party, message) {
            (Endpoint::Journal, Message::Propose(event, cause)) => self.commit(from, event, &cause),
            (Endpoint::Actor(actor), Message::Committed(envelope)) => self.step(actor, &Input::Committed(&envelope)),
            (Endpoint::Actor(actor), Message::Refused(event, why)) => self.step(actor, &Input::Refused(&event, &why)),
            (Endpoint::Actor(actor), Message::HostReport(report)) => self.step(actor, &Input::HostReported(report)),
            (Endpoint::Actor(actor), Message::Observed(news)) => self.step(actor, &Input::Observed(&news)),
            (Endpoint::Actor(actor), Message::Begin(since)) => self.step(actor, &Input::Restored(since)),
            (Endpoint::Host, Message::Execute(command)) => {
                let scheduled = self.host.perform(self.now, command);
                self.expect(scheduled);
            }
            (party, message) => unreachable!("{party:?} got {message:?}"),
        }
    }

    fn expect(&mut self, scheduled: Vec<(Instant, ScheduledEvent)>) {
        for (at, scheduled_event) in scheduled {
            self.created += 1;
            self.scheduled.push(Reverse((at, self.created, self.schedule_store.len())));
            self.schedule_store.push(scheduled_event);
        }
        self.rearm_host();
    }

    fn commit(&mut self, from: Endpoint, event: Event, cause: &Cause) {
        let wall = WallTime(i64::try_from(self.now.as_micros()).unwrap_or(i64::MAX));
        let admitted = match self.mutant {
            Some(mutant) => mutant.commit(&mut self.journal, self.now, wall, event, cause.clone()),
            None => self.journal.commit(self.now, wall, event, cause.clone()),
        };
        match admitted {
            Ok(envelope) => {
                self.steps_since_commit = 0;
                self.run.state.unkillable = self.journal.state().unkillable;
                self.host.committed(&envelope);
                self.operators.committed(&envelope, self.journal.state());
                let envelope = Rc::new(envelope);
                let graph = self.graph.clone();
                graph.recipients(&envelope.event, |actor| {
                    self.refused_in_a_row.remove(&Endpoint::Actor(actor));
                    self.post(Endpoint::Journal, Endpoint::Actor(actor), Message::Committed(envelope.clone()));
                });
                self.life().envelopes.push((*envelope).clone());
            }
            Err((event, refusal)) => {
                if from == Endpoint::World {
                    self.operators.refused(cause);
                }
                let row = self.refused_in_a_row.entry(from).or_insert_with(|| (event.clone(), 0));
                row.1 = if row.0 == event { row.1 + 1 } else { 1 };
                row.0 = event.clone();
                if matches!(from, Endpoint::Actor(_)) && row.1 > 2 {
                    let found = format!("I20: {from:?} was refused {} times in a row for {event:?}: {refusal}", row.1);
                    self.run.violations.push(found);
                }
                if matches!(from, Endpoint::Actor(_)) {
                    self.post(Endpoint::Journal, from, Message::Refused(event, refusal));
                }
            }
        }
    }

    fn step(&mut self, actor: ActorId, input: &Input<'_>) {
        let mut out = Outputs::default();
        if self.mutant.is_some_and(|mutant| !mutant.hears(actor, input)) {
            return;
        }
        let Some((rules, timers)) = self.rules.get_mut(&actor) else { return };
        rules.step(self.now, input, &mut out);
        let outputs: Vec<Output> = match self.mutant {
            Some(mutant) => mutant.outputs(self.now, input, out.drain().collect()),
            None => out.drain().collect(),
        };
        for output in &outputs {
            if let Output::SetTimer(timer, at) = output {
                timers.set(*timer, *at);
            }
        }
        for output in outputs {
            match output {
                Output::Propose(event, cause) => {
                    self.post(Endpoint::Actor(actor), Endpoint::Journal, Message::Propose(event, cause));
                }
                Output::Execute(command) => {
                    self.post(Endpoint::Actor(actor), Endpoint::Host, Message::Execute(command));
                }
                Output::SetTimer(..) => {}
            }
        }
        self.rearm(actor);
    }

    fn rearm(&mut self, actor: ActorId) {
        let next = self.rules.get(&actor).and_then(|(_, timers)| timers.next());
        self.set_alarm(Endpoint::Actor(actor), next);
    }

    fn rearm_host(&mut self) {
        let next = self.scheduled.peek().map(|Reverse((at, _, _))| *at);
        self.set_alarm(Endpoint::Host, next);
    }

    /// Sets the one alarm of a receiver; an alarm for the same moment is not armed again.
    fn set_alarm(&mut self, party: Endpoint, at: Option<Instant>) {
        match at {
            Some(at) if self.alarms.armed(party) == Some(at) => {}
            Some(at) => self.alarms.arm(party, at),
            None => self.alarms.cancel(party),
        }
    }

    fn pass_time(&mut self) -> bool {
        let Some(moment) = self.alarms.next() else { return false };
        self.now = self.now.max(moment);
        // The runtime first wakes all receivers whose alarms are due, and then runs them.
        for party in self.alarms.expire() {
            if self.policy != Policy::Fifo {
                self.fire(party);
                continue;
            }
            self.due.insert(party);
            if self.queued.insert(party) {
                self.ready.push_back(party);
            }
        }
        true
    }

    fn fire(&mut self, party: Endpoint) {
        match party {
            Endpoint::Actor(actor) => {
                let due = self.rules.get_mut(&actor).map(|(_, timers)| timers.take_due(self.now));
                for timer in due.unwrap_or_default() {
                    self.step(actor, &Input::TimerFired(timer));
                }
                self.rearm(actor);
            }
            Endpoint::Host => self.deliver_due(),
            Endpoint::World => self.give_commands(),
            Endpoint::Journal => {}
        }
    }

    fn deliver_due(&mut self) {
        while let Some(Reverse((at, _, scheduled_event))) = self.scheduled.peek().copied() {
            if at > self.now {
                break;
            }
            self.scheduled.pop();
            if let Some((at, scheduled_event)) = self.host.again(self.now, self.schedule_store[scheduled_event]) {
                self.created += 1;
                self.scheduled.push(Reverse((at, self.created, self.schedule_store.len())));
                self.schedule_store.push(scheduled_event);
            }
            if let Some(report) = self.host.deliver_event(self.schedule_store[scheduled_event]) {
                let actor = Endpoint::Actor(ActorId::Program(report.program));
                self.post(Endpoint::Host, actor, Message::HostReport(report));
            }
        }
        self.rearm_host();
    }

    fn give_commands(&mut self) {
        while let Some((at, _)) = self.commands.front() {
            if *at > self.now {
                break;
            }
            let (_, wanted) = self.commands.pop_front().expect("there is one");
            let (events, cause) = match wanted {
                Wanted::Command(action) => self.operators.give(&action, self.journal.state()),
                Wanted::Event(event) => {
                    (vec![event], Cause::Operator { who: "simulated".into(), command: "again".into() })
                }
            };
            for event in events {
                self.post(Endpoint::World, Endpoint::Journal, Message::Propose(event, cause.clone()));
            }
        }
        let next = self.commands.front().map(|(at, _)| *at);
        self.set_alarm(Endpoint::World, next);
    }

    fn post(&mut self, from: Endpoint, to: Endpoint, message: Message) {
        self.mailboxes.entry(to).or_default().push_back((from, message));
        self.ring(to);
    }

    fn ring(&mut self, party: Endpoint) {
        let waits = self.mailboxes.get(&party).is_some_and(|mailbox| !mailbox.is_empty());
        if waits && self.queued.insert(party) {
            self.ready.push_back(party);
        }
    }
}
