//! What a system would do if something failed: its own rules, in virtual time, on programs that are made up.
//!
//! The programs behave well, but for what is asked: they start at once, are ready within two seconds, run until they are
//! told to stop, and stop within half a second; what is to run to its end does so within five. How long each takes is
//! drawn from the seed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::OccupiedEntry},
    sync::Arc,
};

use crate::{
    ensemble::{Rules, everybody},
    event::{Cause, Envelope, Event, ProgramEvent},
    graph::{ActorId, Graph, Mode, Until},
    health::Readiness,
    host::{ExitStatus, Fact, HostCommand, Observed, StartTime},
    ids::{EpochId, InstanceId, ProgramId, Seq},
    journal::Journal,
    machine::{Input, Output, Outputs, Timers},
    random::Random,
    state::State,
    succession::Opening,
    time::{Instant, Millis, WallTime},
};

/// Something that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The program is killed at this moment.
    Fail(ProgramId, Instant),
    /// From the one moment to the other every run of the program ends at once.
    Broken(ProgramId, Instant, Instant),
}

impl Fault {
    /// The program and the moment.
    pub fn begins(self) -> (ProgramId, Instant) {
        let (Self::Fail(program, at) | Self::Broken(program, at, _)) = self;
        (program, at)
    }
}

/// What is assumed.
#[derive(Clone, Debug)]
pub struct Assumptions {
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// When to stop looking.
    pub until: Instant,
    /// What everything that is not said is drawn from.
    pub seed: u64,
}

/// What would happen.
#[derive(Clone, Debug)]
pub struct Forecast {
    /// The state before the first event.
    pub start: State,
    /// The events.
    pub envelopes: Vec<Envelope>,
}

/// What a fault means for a program: how often it is started again, and for how long it cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impact {
    /// The program.
    pub program: ProgramId,
    /// How often it was started after the first fault.
    pub starts: u32,
    /// For how long it was not ready after the first fault.
    pub out: Millis,
    /// Since when it has been ready at the end, if it is.
    pub back: Option<Instant>,
}

impl Forecast {
    /// Runs a system. The most that is told is [`Forecast::MOST`] events.
    pub fn new(graph: &Graph, assumptions: &Assumptions) -> Self {
        let mut graph = graph.clone();
        for program in graph.programs.ids().collect::<Vec<_>>() {
            // Who is always well need not be looked at.
            let care = &mut graph.programs[program].care;
            (care.checkup, care.watchdog) = (None, None);
        }
        let epoch = EpochId(assumptions.seed);
        let opening = Opening::new(None, &graph, epoch, Instant::default(), WallTime(0));
        let start = opening.state.clone();
        let (journal, envelopes) = opening.commit("a forecast", Vec::new(), Vec::new());
        let mut driver = Driver::new(journal, envelopes, assumptions);
        driver.run();
        Self { start, envelopes: driver.envelopes }
    }

    /// How many events are told at most: a system that starts something again and again would go on for ever.
    pub const MOST: usize = 100_000;

    /// What the faults have meant, for each program that was concerned; in the order of the configuration.
    pub fn impacts(&self, assumptions: &Assumptions) -> Vec<Impact> {
        let Some(first) = assumptions.faults.iter().map(|fault| fault.begins().1).min() else { return Vec::new() };
        let mut state = self.start.clone();
        // Whether it is ready, and since when it is not, if it was.
        let mut seen: BTreeMap<ProgramId, (bool, Option<Instant>, Impact)> = BTreeMap::new();
        for envelope in &self.envelopes {
            let subject = state.graph.subject(&envelope.event);
            let before = subject.is_some_and(|program| state.programs[program].is_ready());
            state.apply(envelope);
            let Some(program) = subject.filter(|_| envelope.at >= first) else { continue };
            let entry = seen.entry(program).or_insert_with(|| {
                let impact = Impact { program, starts: 0, out: Millis(0), back: None };
                (before, None, impact)
            });
            entry.2.starts += u32::from(matches!(envelope.event, Event::Program(_, ProgramEvent::Starting { .. })));
            let ready = state.programs[program].is_ready();
            if entry.0 && !ready {
                (entry.1, entry.2.back) = (Some(envelope.at), None);
            } else if !entry.0 && ready {
                let out = entry.1.take().map_or(Millis(0), |since| since.until(envelope.at));
                entry.2.out = Millis(entry.2.out.0 + out.0);
                entry.2.back = Some(envelope.at);
            }
            entry.0 = ready;
        }
        let closed = |(_, since, impact): (bool, Option<Instant>, Impact)| {
            let rest = since.map_or(Millis(0), |since| since.until(assumptions.until));
            Impact { out: Millis(impact.out.0 + rest.0), ..impact }
        };
        let impacts = seen.into_values().map(closed);
        impacts.filter(|impact| impact.starts > 0 || impact.out > Millis(0)).collect()
    }
}

enum Message {
    Propose(ActorId, Event, Cause),
    Committed(ActorId, Arc<Envelope>),
    Refused(ActorId, Event, crate::rules::Refusal),
    Observed(Observed),
    Begin(ActorId, Seq),
}

/// What will happen to a made-up process.
#[derive(Clone, Copy)]
enum Fate {
    Report(Observed),
    End(ProgramId, InstanceId, ExitStatus),
    Kill(ProgramId),
}

struct Driver<'a> {
    assumptions: &'a Assumptions,
    graph: Arc<Graph>,
    journal: Journal,
    envelopes: Vec<Envelope>,
    rules: BTreeMap<ActorId, (Rules, Timers)>,
    messages: VecDeque<Message>,
    /// Whose timers come when.
    alarms: BTreeSet<(Instant, ActorId)>,
    fates: BTreeMap<(Instant, u64), Fate>,
    created: u64,
    /// The runs that there are, and when they began.
    living: BTreeMap<ProgramId, (InstanceId, Instant)>,
    now: Instant,
}

impl<'a> Driver<'a> {
    fn new(journal: Journal, envelopes: Vec<Envelope>, assumptions: &'a Assumptions) -> Self {
        let graph = journal.state().graph.clone();
        let everybody = everybody(&graph);
        let rules = everybody.iter().map(|actor| (*actor, (Rules::new(journal.state(), *actor), Timers::default())));
        let since = Seq(1);
        let mut driver = Self {
            assumptions,
            rules: rules.collect(),
            graph,
            journal,
            envelopes,
            messages: everybody.iter().map(|actor| Message::Begin(*actor, since)).collect(),
            alarms: BTreeSet::new(),
            fates: BTreeMap::new(),
            created: 0,
            living: BTreeMap::new(),
            now: Instant::default(),
        };
        for fault in &assumptions.faults {
            let (program, at) = fault.begins();
            driver.expect(at, Fate::Kill(program));
        }
        driver
    }

    fn run(&mut self) {
        while self.envelopes.len() < Forecast::MOST {
            if let Some(message) = self.messages.pop_front() {
                self.deliver(message);
                continue;
            }
            let next = [self.alarms.first().map(|(at, _)| *at), self.fates.keys().next().map(|(at, _)| *at)];
            let Some(next) = next.into_iter().flatten().min().filter(|at| *at <= self.assumptions.until) else {
                return;
            };
            self.now = self.now.max(next);
            self.pass();
        }
    }

    /// Whatever is due now.
    fn pass(&mut self) {
        while let Some((_, fate)) =
            self.fates.first_entry().filter(|entry| entry.key().0 <= self.now).map(OccupiedEntry::remove_entry)
        {
            self.meet(fate);
        }
        while let Some((at, actor)) = self.alarms.first().copied().filter(|(at, _)| *at <= self.now) {
            self.alarms.remove(&(at, actor));
            let due = self.rules.get_mut(&actor).map(|(_, timers)| timers.take_due(self.now)).unwrap_or_default();
            for timer in due {
                self.step(actor, &Input::Due(timer));
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Propose(from, event, cause) => self.commit(from, event, cause),
            Message::Committed(to, envelope) => self.step(to, &Input::Committed(&envelope)),
            Message::Refused(to, event, refusal) => self.step(to, &Input::Refused(&event, &refusal)),
            Message::Observed(observed) => self.step(ActorId::Program(observed.program), &Input::Observed(observed)),
            Message::Begin(actor, since) => self.step(actor, &Input::Rebuilt(since)),
        }
    }

    fn commit(&mut self, from: ActorId, event: Event, cause: Cause) {
        let wall = WallTime(i64::try_from(self.now.as_micros()).unwrap_or(i64::MAX));
        match self.journal.commit(self.now, wall, event, cause) {
            Ok(envelope) => {
                let envelope = Arc::new(envelope);
                let messages = &mut self.messages;
                self.graph.interested(&envelope.event, |actor| {
                    messages.push_back(Message::Committed(actor, envelope.clone()));
                });
                self.envelopes.push((*envelope).clone());
            }
            Err((event, refusal)) => self.messages.push_back(Message::Refused(from, event, refusal)),
        }
    }

    fn step(&mut self, actor: ActorId, input: &Input<'_>) {
        let Some((rules, timers)) = self.rules.get_mut(&actor) else { return };
        let before = timers.next();
        let mut out = Outputs::default();
        rules.step(self.now, input, &mut out);
        let mut commands = Vec::new();
        for output in out.drain() {
            match output {
                Output::Propose(event, cause) => self.messages.push_back(Message::Propose(actor, event, cause)),
                Output::Perform(command) => commands.push(command),
                Output::Arm(timer, at) => timers.arm(timer, at),
            }
        }
        if let Some(at) = before {
            self.alarms.remove(&(at, actor));
        }
        if let Some(at) = timers.next() {
            self.alarms.insert((at, actor));
        }
        for command in commands {
            self.perform(command);
        }
    }

    fn expect(&mut self, at: Instant, fate: Fate) {
        self.created += 1;
        self.fates.insert((at, self.created), fate);
    }

    fn report(&mut self, after: Millis, program: ProgramId, instance: InstanceId, fact: Fact) {
        self.expect(self.now + after, Fate::Report(Observed { program, instance, fact }));
    }

    fn meet(&mut self, fate: Fate) {
        match fate {
            Fate::Report(observed) => {
                let alive = self.living.get(&observed.program).is_some_and(|(run, _)| *run == observed.instance);
                if alive {
                    self.messages.push_back(Message::Observed(observed));
                }
            }
            Fate::End(program, instance, status) => {
                if self.living.get(&program).is_some_and(|(run, _)| *run == instance) {
                    self.living.remove(&program);
                    let fact = Fact::Exited { status, left_behind: 0 };
                    self.messages.push_back(Message::Observed(Observed { program, instance, fact }));
                }
            }
            Fate::Kill(program) => {
                if let Some((instance, _)) = self.living.get(&program).copied() {
                    self.meet(Fate::End(program, instance, ExitStatus::Signal(9)));
                }
            }
        }
    }

    fn perform(&mut self, command: HostCommand) {
        match command {
            HostCommand::Spawn { program, instance } => self.spawn(program, instance),
            HostCommand::Undo { program, instance } => {
                self.living.insert(program, (instance, self.now));
                self.report(Millis(0), program, instance, spawned(program, instance));
                self.expect(self.now + Millis(100), Fate::End(program, instance, ExitStatus::Code(0)));
            }
            HostCommand::Check { program, instance, .. } => {
                let since = self.living.get(&program).map_or(self.now, |(_, since)| *since);
                let ready = since + self.draw(program, instance).ready;
                let fact = Fact::Checked(Ok(()));
                let after = if ready > self.now { self.now.until(ready) } else { Millis(0) };
                self.report(after, program, instance, fact);
            }
            HostCommand::Stop { program, instance } => {
                let after = self.draw(program, instance).stop;
                self.expect(self.now + after, Fate::End(program, instance, ExitStatus::Signal(15)));
            }
            HostCommand::Kill { program, instance } => {
                self.expect(self.now + Millis(1), Fate::End(program, instance, ExitStatus::Signal(9)));
            }
            HostCommand::Signal { .. } => {}
        }
    }

    fn spawn(&mut self, program: ProgramId, instance: InstanceId) {
        self.living.insert(program, (instance, self.now));
        self.report(Millis(0), program, instance, spawned(program, instance));
        let broken = self.assumptions.faults.iter().any(|fault| match fault {
            Fault::Broken(of, from, to) => *of == program && (*from..*to).contains(&self.now),
            Fault::Fail(..) => false,
        });
        if broken {
            return self.expect(self.now + Millis(1), Fate::End(program, instance, ExitStatus::Code(1)));
        }
        let (drawn, care) = (self.draw(program, instance), self.graph.programs[program].care);
        if care.daemonizes {
            let Fact::Spawned { pid, birth } = spawned(program, instance) else { return };
            self.report(drawn.ready, program, instance, Fact::Daemonized { pid, birth });
        }
        if care.readiness == Some(Readiness::Told) {
            self.report(drawn.ready, program, instance, Fact::Ready);
        }
        let mode = self.graph.programs[program].mode;
        let awaited = self.graph.edges_on(program).iter().any(|edge| self.graph.edges[*edge].until == Until::Completed);
        if mode.holds_back() || mode == Mode::Once && awaited {
            self.expect(self.now + drawn.lasts, Fate::End(program, instance, ExitStatus::Code(0)));
        }
    }

    fn draw(&self, program: ProgramId, instance: InstanceId) -> Drawn {
        let mut random = Random::new(self.assumptions.seed ^ (u64::from(program.0) << 40) ^ instance.0);
        Drawn {
            ready: Millis(200 + random.below(1800)),
            stop: Millis(20 + random.below(480)),
            lasts: Millis(1000 + random.below(4000)),
        }
    }
}

/// How long what a run does takes.
struct Drawn {
    ready: Millis,
    stop: Millis,
    lasts: Millis,
}

fn spawned(program: ProgramId, instance: InstanceId) -> Fact {
    let pid = i32::try_from(1000 + u64::from(program.0)).unwrap_or(i32::MAX);
    Fact::Spawned { pid, birth: StartTime(instance.0) }
}
