//! What a system would do if a program failed: its own rules run in virtual time, with simulated programs.
//!
//! Apart from the given faults the programs behave well: they start at once, are ready within two seconds, run until
//! they are asked to stop, and stop within half a second; those that run to their end do so within five seconds. How
//! long each step takes is drawn from the seed.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::OccupiedEntry},
    sync::Arc,
};

use crate::{
    base::{
        ids::{ActorId, EpochId, IdVec, InstanceId, ProgramId, Seq},
        random::Random,
        time::{Instant, Millis, WallTime},
    },
    cluster::{
        News, PublishedState, RemotePhase, RemoteSource, Sight,
        claims::{ClaimSight, ClaimsSight, Holder},
    },
    event::{Cause, Envelope, Event, GroupEvent, ProgramEvent},
    graph::{Condition, Graph, Mode, Readiness},
    host::{HostCommand, HostEvent, HostReport},
    journal::{Journal, recovery::EpochStart},
    machine::{
        Input, Output, Outputs, Timers,
        any::{AnyMachine, all_actors},
    },
    process::{ExitStatus, StartTime},
    state::State,
};

/// A failure of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The program is killed at this moment.
    Fail(ProgramId, Instant),
    /// Every run of the program that starts between the two moments ends at once.
    Broken(ProgramId, Instant, Instant),
}

impl Fault {
    /// The program and the moment.
    pub fn begins(self) -> (ProgramId, Instant) {
        let (Self::Fail(program, at) | Self::Broken(program, at, _)) = self;
        (program, at)
    }
}

/// The assumptions of a simulation.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// When the simulation ends.
    pub until: Instant,
    /// The seed from which all durations are drawn.
    pub seed: u64,
}

/// The result of a simulation.
#[derive(Clone, Debug)]
pub struct Simulation {
    /// The state before the first event.
    pub start: State,
    /// The events.
    pub envelopes: Vec<Envelope>,
}

/// The impact of faults on a program: how often it is started, and for how long it cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impact {
    /// The program.
    pub program: ProgramId,
    /// How often it was started from the first fault on.
    pub starts: u32,
    /// For how much less time it was ready, or had completed, than without faults.
    pub out: Millis,
    /// Since when it has been ready, or has completed, at the end, if it is.
    pub back: Option<Instant>,
}

impl Simulation {
    /// Runs a system. At most [`Simulation::MOST`] events are recorded.
    pub fn new(graph: &Graph, assumptions: &Scenario) -> Self {
        let mut graph = graph.clone();
        for program in graph.programs.ids().collect::<Vec<_>>() {
            // Simulated programs are always healthy, and need no health checks.
            let health = &mut graph.programs[program].health;
            (health.check, health.watchdog) = (None, None);
            if let Some(external) = &mut graph.programs[program].external {
                external.blind_after = Millis::MAX;
            }
        }
        let epoch = EpochId(assumptions.seed);
        let opening = EpochStart::new(None, &graph, epoch, Instant::default(), WallTime(0));
        let start = opening.state.clone();
        let (journal, envelopes) = opening.commit("simulated", Vec::new(), Vec::new());
        let mut driver = Driver::new(journal, envelopes, assumptions);
        driver.run();
        Self { start, envelopes: driver.envelopes }
    }

    /// How many events are recorded at most: a system that starts something again and again would go on for ever.
    pub const MOST: usize = 100_000;

    /// The impact of the faults on each program that fared differently in a run without faults; in the order of the
    /// configuration.
    pub fn impacts(&self, well: &Self, assumptions: &Scenario) -> Vec<Impact> {
        let Some(first) = assumptions.faults.iter().map(|fault| fault.begins().1).min() else { return Vec::new() };
        // Both runs are compared as far as both are recorded.
        let until = assumptions.until.min(self.reaches(assumptions)).min(well.reaches(assumptions));
        let (here, there) = (self.availability(first, until), well.availability(first, until));
        let impact = |(program, here): (ProgramId, &Availability)| {
            let there = &there[program];
            let out = Millis(there.usable.0.saturating_sub(here.usable.0));
            let touched = here.starts != there.starts || here.usable != there.usable || here.since != there.since;
            touched.then_some(Impact { program, starts: here.starts, out, back: here.since })
        };
        here.iter().filter_map(impact).collect()
    }

    /// Up to when it is recorded.
    fn reaches(&self, assumptions: &Scenario) -> Instant {
        let last = self.envelopes.last().filter(|_| self.envelopes.len() >= Self::MOST);
        last.map_or(assumptions.until, |envelope| envelope.monotonic)
    }

    /// The availability of every program between two moments.
    fn availability(&self, from: Instant, until: Instant) -> IdVec<ProgramId, Availability> {
        let mut state = self.start.clone();
        let mut availability: IdVec<ProgramId, Availability> =
            state.programs.values().map(|_| Availability::default()).collect();
        for envelope in self.envelopes.iter().take_while(|envelope| envelope.monotonic <= until) {
            let subject = state.graph.subject(&envelope.event);
            state.apply(envelope);
            let Some(program) = subject else { continue };
            let starts = matches!(envelope.event, Event::Program(_, ProgramEvent::Starting { .. }));
            let (availability, program) = (&mut availability[program], &state.programs[program]);
            availability.starts += u32::from(starts && envelope.monotonic >= from);
            availability.goes_on(program.is_ready() || program.is_completed(), envelope.monotonic, from);
        }
        for program in state.graph.programs.ids() {
            availability[program].count(until, from);
        }
        availability
    }
}

/// The availability of a program.
#[derive(Clone, Copy, Debug, Default)]
struct Availability {
    starts: u32,
    /// For how long it could be used.
    usable: Millis,
    /// Since when it can be used, if it can.
    since: Option<Instant>,
}

impl Availability {
    /// Records whether it can be used from now on; time before `from` is not counted.
    fn goes_on(&mut self, usable: bool, now: Instant, from: Instant) {
        if usable {
            self.since = self.since.or(Some(now));
        } else {
            self.count(now, from);
            self.since = None;
        }
    }

    /// Counts for how long it has been usable now, if it is.
    fn count(&mut self, now: Instant, from: Instant) {
        let span = self.since.map_or(Millis(0), |since| since.max(from).until(now.max(from)));
        self.usable.0 += span.0;
    }
}

enum Message {
    Propose(ActorId, Event, Cause),
    Committed(ActorId, Arc<Envelope>),
    Refused(ActorId, Event, crate::journal::Refusal),
    HostReport(HostReport),
    Begin(ActorId, Seq),
}

/// What will happen to a simulated process.
#[derive(Clone, Copy)]
enum ScheduledEvent {
    Report(HostReport),
    End(ProgramId, InstanceId, ExitStatus),
    Kill(ProgramId),
}

struct Driver<'a> {
    assumptions: &'a Scenario,
    graph: Arc<Graph>,
    journal: Journal,
    envelopes: Vec<Envelope>,
    rules: BTreeMap<ActorId, (AnyMachine, Timers)>,
    messages: VecDeque<Message>,
    /// The next deadline of each actor.
    alarms: BTreeSet<(Instant, ActorId)>,
    fates: BTreeMap<(Instant, u64), ScheduledEvent>,
    created: u64,
    /// The current run of each program, and when it began.
    living: BTreeMap<ProgramId, (InstanceId, Instant)>,
    now: Instant,
}

impl<'a> Driver<'a> {
    fn new(journal: Journal, envelopes: Vec<Envelope>, assumptions: &'a Scenario) -> Self {
        let graph = journal.state().graph.clone();
        let all_actors = all_actors(&graph);
        let rules =
            all_actors.iter().map(|actor| (*actor, (AnyMachine::new(journal.state(), *actor), Timers::default())));
        let since = Seq(1);
        let mut driver = Self {
            assumptions,
            rules: rules.collect(),
            graph,
            journal,
            envelopes,
            messages: all_actors.iter().map(|actor| Message::Begin(*actor, since)).collect(),
            alarms: BTreeSet::new(),
            fates: BTreeMap::new(),
            created: 0,
            living: BTreeMap::new(),
            now: Instant::default(),
        };
        for fault in &assumptions.faults {
            let (program, at) = fault.begins();
            driver.expect(at, ScheduledEvent::Kill(program));
        }
        driver
    }

    fn run(&mut self) {
        while self.envelopes.len() < Simulation::MOST {
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

    /// Handles everything that is due now.
    fn pass(&mut self) {
        while let Some((_, fate)) =
            self.fates.first_entry().filter(|entry| entry.key().0 <= self.now).map(OccupiedEntry::remove_entry)
        {
            self.handle(fate);
        }
        while let Some((at, actor)) = self.alarms.first().copied().filter(|(at, _)| *at <= self.now) {
            self.alarms.remove(&(at, actor));
            let due = self.rules.get_mut(&actor).map(|(_, timers)| timers.take_due(self.now)).unwrap_or_default();
            for timer in due {
                self.step(actor, &Input::TimerFired(timer));
            }
        }
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Propose(from, event, cause) => self.commit(from, event, cause),
            Message::Committed(to, envelope) => {
                self.step(to, &Input::Committed(&envelope));
                if let (Event::Group(group, GroupEvent::ClaimStarted { attempt, .. }), ActorId::Group(_)) =
                    (&envelope.event, to)
                {
                    let sight = self.only_node(Some((self.graph.groups[*group].name.clone(), attempt.clone())));
                    self.journal.permit(&sight);
                    self.step(to, &Input::Observed(&News::Claims(sight)));
                }
            }
            Message::Refused(to, event, refusal) => self.step(to, &Input::Refused(&event, &refusal)),
            Message::HostReport(report) => self.step(ActorId::Program(report.program), &Input::HostReported(report)),
            Message::Begin(actor, since) => {
                self.step(actor, &Input::Restored(since));
                if let ActorId::Program(program) = actor
                    && !self.graph.programs[program].is_here()
                {
                    self.step(actor, &Input::Observed(&News::Sight(self.well_elsewhere(program))));
                }
                self.step(actor, &Input::Observed(&News::Claims(self.only_node(None))));
            }
        }
    }

    /// How a cluster is seen in a simulation: this node is the only one, and gets what it claims.
    fn only_node(&self, claim: Option<(Arc<str>, Arc<str>)>) -> Arc<ClaimsSight> {
        let claim = claim.map(|(group, attempt)| {
            let holder =
                Holder { node: self.node(), token: 1, attempt, is_present: true, is_own: true, is_fenced: false };
            (group, ClaimSight { revision: 1, ..ClaimSight::held_by(holder) })
        });
        let permit_until = Instant::from_micros(u64::MAX);
        let (present, claims) = ([self.node()].into(), claim.into_iter().collect());
        Arc::new(ClaimsSight { permit_until, present, claims, ..ClaimsSight::default() })
    }

    /// The name of this node.
    fn node(&self) -> Arc<str> {
        let policy = self.graph.groups.values().find_map(|group| group.tenancy.as_ref());
        policy.map_or_else(|| "".into(), |policy| policy.node.clone())
    }

    /// How a program of another node is seen in a simulation: as its dependents need it, for ever.
    fn well_elsewhere(&self, program: ProgramId) -> Sight {
        let conditions =
            self.graph.dependencies_on(program).iter().map(|dependency| self.graph.dependencies[*dependency].condition);
        let is_completed = conditions.into_iter().any(|condition| condition == Condition::Completed);
        Sight::Seen(Some(Arc::new(PublishedState {
            source: RemoteSource::default(),
            node: None,
            instance: InstanceId(1),
            phase: if is_completed { RemotePhase::Completed } else { RemotePhase::Ready },
            outcome: None,
            time: WallTime(0),
            why: Vec::new(),
        })))
    }

    fn commit(&mut self, from: ActorId, event: Event, cause: Cause) {
        let wall = WallTime(i64::try_from(self.now.as_micros()).unwrap_or(i64::MAX));
        match self.journal.commit(self.now, wall, event, cause) {
            Ok(envelope) => {
                let envelope = Arc::new(envelope);
                let messages = &mut self.messages;
                self.graph.recipients(&envelope.event, |actor| {
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
                Output::Execute(command) => commands.push(command),
                Output::SetTimer(timer, at) => timers.set(timer, at),
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

    fn expect(&mut self, at: Instant, fate: ScheduledEvent) {
        self.created += 1;
        self.fates.insert((at, self.created), fate);
    }

    fn report(&mut self, after: Millis, program: ProgramId, instance: InstanceId, event: HostEvent) {
        self.expect(self.now + after, ScheduledEvent::Report(HostReport { program, instance, event }));
    }

    fn handle(&mut self, fate: ScheduledEvent) {
        match fate {
            ScheduledEvent::Report(report) => {
                let alive = self.living.get(&report.program).is_some_and(|(run, _)| *run == report.instance);
                if alive {
                    self.messages.push_back(Message::HostReport(report));
                }
            }
            ScheduledEvent::End(program, instance, status) => {
                if self.living.get(&program).is_some_and(|(run, _)| *run == instance) {
                    self.living.remove(&program);
                    let event = HostEvent::Exited { status, orphans: 0 };
                    self.messages.push_back(Message::HostReport(HostReport { program, instance, event }));
                }
            }
            ScheduledEvent::Kill(program) => {
                let run = self.living.get(&program).copied();
                if run.is_some_and(|(_, since)| since == self.now) {
                    // Its start is not committed yet.
                    self.expect(self.now + Millis(1), ScheduledEvent::Kill(program));
                } else if let Some((instance, _)) = run {
                    self.handle(ScheduledEvent::End(program, instance, ExitStatus::Signal(9)));
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
                self.expect(self.now + Millis(100), ScheduledEvent::End(program, instance, ExitStatus::Code(0)));
            }
            HostCommand::Probe { program, instance, .. } => {
                let since = self.living.get(&program).map_or(self.now, |(_, since)| *since);
                let ready = since + self.draw(program, instance).ready;
                let event = HostEvent::ProbeResult(Ok(()));
                let after = if ready > self.now { self.now.until(ready) } else { Millis(0) };
                self.report(after, program, instance, event);
            }
            HostCommand::Terminate { program, instance } | HostCommand::RunStopCommand { program, instance } => {
                let after = self.draw(program, instance).stop;
                self.expect(self.now + after, ScheduledEvent::End(program, instance, ExitStatus::Signal(15)));
            }
            HostCommand::Kill { program, instance } => {
                self.expect(self.now + Millis(1), ScheduledEvent::End(program, instance, ExitStatus::Signal(9)));
            }
            HostCommand::FlushReports { program, instance } => {
                self.report(Millis(0), program, instance, HostEvent::ReportsFlushed);
            }
            HostCommand::Signal { .. } | HostCommand::SetToken { .. } => {}
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
            return self.expect(self.now + Millis(1), ScheduledEvent::End(program, instance, ExitStatus::Code(1)));
        }
        let (drawn, health) = (self.draw(program, instance), self.graph.programs[program].health);
        if health.daemonizes {
            let HostEvent::Spawned { pid, start_time } = spawned(program, instance) else { return };
            self.report(drawn.ready, program, instance, HostEvent::Daemonized { pid, start_time });
        }
        if health.readiness == Some(Readiness::Notified) {
            self.report(drawn.ready, program, instance, HostEvent::Ready);
        }
        let mode = self.graph.programs[program].mode;
        let awaited = self
            .graph
            .dependencies_on(program)
            .iter()
            .any(|dependency| self.graph.dependencies[*dependency].condition == Condition::Completed);
        if mode.is_gate() || mode == Mode::Once && awaited {
            self.expect(self.now + drawn.lasts, ScheduledEvent::End(program, instance, ExitStatus::Code(0)));
        }
    }

    fn draw(&self, program: ProgramId, instance: InstanceId) -> Durations {
        let mut random = Random::new(self.assumptions.seed ^ (u64::from(program.0) << 40) ^ instance.0);
        Durations {
            ready: Millis(200 + random.below(1800)),
            stop: Millis(20 + random.below(480)),
            lasts: Millis(1000 + random.below(4000)),
        }
    }
}

/// How long the steps of a run take.
struct Durations {
    ready: Millis,
    stop: Millis,
    lasts: Millis,
}

fn spawned(program: ProgramId, instance: InstanceId) -> HostEvent {
    let pid = i32::try_from(1000 + u64::from(program.0)).unwrap_or(i32::MAX);
    HostEvent::Spawned { pid, start_time: StartTime(instance.0) }
}
