//! What must be true of every run, told from the envelopes alone and not with the code that is being checked.
//!
//! | | |
//! |---|---|
//! | I1 | the numbers of events rise by one |
//! | I2 | each life of the daemon begins where the one before has ended on the disk |
//! | I3 | the fold of the envelopes is the state that the journal kept |
//! | I4 | a snapshot and the events after it fold to the same |
//! | I6 | a program has at most one process (the simulated host watches this) |
//! | I7 | a program starts only while each dependency has been up, in one instance, for its delay |
//! | I8 | nothing starts after the shutdown began, nor while an operator wants it down |
//! | I9 | each fall of a program is followed by exactly one restart for each dependency on it that propagates |
//! | I10 | each such restart leads to a new instance, or there is a reason why not |
//! | I11 | a stopping instance is gone, or being killed, within its killwait |
//! | I12 | a shutdown takes no longer than the longest killwait |
//! | I13 | nothing is alive after the shutdown but what it counted |
//! | I15 | when nothing bad happens any more, everything that is wanted is up or held back by the spacing of starts |
//! | I16 | the starts of a program that keeps ending are spaced |
//! | I17 | instances are numbered 1, 2, 3 and end once |
//! | I18 | the event that a cause names came before |
//! | I20 | no queue, no row of refusals and no stretch without an event is long (the scheduler watches this) |
//! | I21 | a program's state changes only with an event that concerns it |
//! | I23 | when an essential program ends by itself, everything is shut down at once |
//! | I22 | in a planned stop dependents go first, unless half of the killwait is over |

use std::collections::{BTreeMap, BTreeSet};

use gaggled_core::{
    event::{Beginning, DependencyEvent, Envelope, Event, ProgramEvent, StopReason, SystemEvent},
    graph::{Graph, Mode},
    host::ExitStatus,
    ids::{EdgeId, InstanceId, ProgramId, Seq},
    state::{Phase, State},
    time::{Instant, Millis},
};

use super::{
    crash::Life,
    scheduler::Run,
    world::{SETTLING, World},
};

/// How late an effect may be in virtual time: a message may be overtaken several times, by up to 20 ms each.
const SLACK: Millis = Millis(150);

/// What the checker itself remembers of a program.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Seen {
    running: bool,
    up_since: Option<Instant>,
    /// Decided to be stopped by an operator, since when and by which event.
    operator_fall: Option<(Seq, Instant)>,
    /// Told to be replaced since its last start.
    replaced: bool,
    operator_down: bool,
    instance: u64,
    stopping: Option<(Instant, Instant)>,
    escalated: bool,
    exits: BTreeSet<u64>,
    last_start: Seq,
    finished: Option<ExitStatus>,
    unplanned_starts: Vec<Instant>,
    planned: bool,
}

/// The checker of one run.
struct Checker<'a> {
    graph: &'a Graph,
    programs: BTreeMap<ProgramId, Seen>,
    falls: BTreeMap<(EdgeId, Seq), u32>,
    restarts: Vec<(ProgramId, Seq)>,
    shutdown: Option<Instant>,
    /// The event with which this life of the daemon began, if it is not the first.
    opened: Option<Seq>,
    openings: Vec<Instant>,
    /// The end of an essential program.
    doomed: Option<(Seq, Instant)>,
    last: Seq,
    found: Vec<String>,
}

/// Everything that is wrong with a run.
pub fn check(world: &World, run: &Run) -> Vec<String> {
    let programs = world
        .graph
        .programs
        .iter()
        .map(|(id, policy)| (id, Seen { operator_down: !policy.enabled, planned: true, ..Seen::default() }));
    let mut checker = Checker {
        graph: &world.graph,
        programs: programs.collect(),
        falls: BTreeMap::new(),
        restarts: Vec::new(),
        shutdown: None,
        opened: None,
        openings: Vec::new(),
        doomed: None,
        last: Seq(0),
        found: run.violations.clone(),
    };
    for envelope in &run.envelopes {
        checker.observe(envelope);
    }
    checker.ends_well(world, run);
    checker.folds(world, run);
    checker.found
}

impl Checker<'_> {
    fn observe(&mut self, envelope: &Envelope) {
        if envelope.seq != Seq(self.last.0 + 1) {
            self.found.push(format!("I1: event {} follows {}", envelope.seq, self.last));
        }
        if envelope.cause.event().is_some_and(|cause| cause >= envelope.seq || cause < Seq(1)) {
            self.found.push(format!("I18: event {} has the cause {}", envelope.seq, envelope.cause));
        }
        self.last = envelope.seq;
        match &envelope.event {
            Event::Program(program, event) => self.program(*program, event, envelope),
            Event::Dependency(edge, DependencyEvent::RestartDue { fall, planned }) => {
                let of = self.graph.edges[*edge].of;
                if *planned {
                    self.leaves(of, envelope);
                }
                *self.falls.entry((*edge, *fall)).or_default() += 1;
                self.restarts.push((of, envelope.seq));
                self.seen(of).replaced = true;
                self.seen(of).planned = true;
            }
            Event::System(SystemEvent::EpochOpened { beginning, .. }) if *beginning != Beginning::First => {
                self.begins(envelope);
            }
            Event::System(SystemEvent::ShutdownBegun) => {
                self.shutdown = Some(envelope.at);
                self.spared(envelope.at);
            }
            Event::System(SystemEvent::ShutdownCompleted { .. }) => self.shutdown_ends(envelope),
            Event::Dependency(..) | Event::System(_) => {}
        }
    }

    /// I23: how long everything has gone on without an essential program.
    fn spared(&mut self, until: Instant) {
        if let Some((end, since)) = self.doomed
            && until > since.max(self.openings.last().copied().unwrap_or_default()) + SLACK
        {
            self.found.push(format!("I23: an essential program ended with event {end}, and everything else went on"));
        }
    }

    /// What was to be done in time while nobody was there is to be done now.
    fn begins(&mut self, envelope: &Envelope) {
        let now = envelope.at;
        self.opened = Some(envelope.seq);
        self.openings.push(now);
        for seen in self.programs.values_mut() {
            if let Some((_, deadline)) = &mut seen.stopping {
                *deadline = (*deadline).max(now);
            }
        }
        self.shutdown = self.shutdown.map(|_| now);
    }

    fn seen(&mut self, program: ProgramId) -> &mut Seen {
        self.programs.entry(program).or_default()
    }

    fn program(&mut self, id: ProgramId, event: &ProgramEvent, envelope: &Envelope) {
        let at = envelope.at;
        match event {
            ProgramEvent::Starting { instance } => self.starts(id, *instance, envelope),
            ProgramEvent::Started { .. } => self.seen(id).up_since = Some(at),
            ProgramEvent::Adopted { .. } => self.seen(id).up_since = self.seen(id).up_since.or(Some(at)),
            ProgramEvent::SpawnFailed { .. } => {
                let seen = self.seen(id);
                seen.running = false;
                seen.operator_fall = None;
                seen.planned = false;
            }
            ProgramEvent::Stopping { reason, deadline, .. } => {
                self.goes_last(id, *reason, at);
                self.seen(id).stopping = Some((at, *deadline));
            }
            ProgramEvent::StopEscalated { .. } => self.seen(id).escalated = true,
            ProgramEvent::Exited { instance, status, .. } => self.ends(id, *instance, *status, envelope),
            ProgramEvent::OperatorStopped | ProgramEvent::OperatorRestarted => {
                let stays_down = *event == ProgramEvent::OperatorStopped;
                let seen = self.seen(id);
                seen.operator_down = stays_down;
                seen.planned = true;
                self.leaves(id, envelope);
                self.seen(id).replaced |= !stays_down;
            }
            ProgramEvent::OperatorStarted => {
                let seen = self.seen(id);
                seen.operator_down = false;
                seen.planned = true;
            }
            ProgramEvent::Signalled { .. } => {}
        }
    }

    /// It is about to be stopped although what it depends on is up: a fall, of which its dependents hear first.
    fn leaves(&mut self, id: ProgramId, envelope: &Envelope) {
        let seen = self.seen(id);
        if seen.running && seen.operator_fall.is_none() && !seen.replaced && seen.stopping.is_none() {
            seen.operator_fall = Some((envelope.seq, envelope.at));
            self.falls(id, envelope.seq);
        }
    }

    fn starts(&mut self, id: ProgramId, instance: InstanceId, envelope: &Envelope) {
        // What was found running was started in a life that did not live to write it down.
        let found = self.opened.is_some() && envelope.cause.event() == self.opened;
        if found && instance.0 > self.seen(id).instance && !self.seen(id).running {
            let seen = self.seen(id);
            *seen = Seen { running: true, instance: instance.0, last_start: envelope.seq, ..seen.clone() };
            (seen.up_since, seen.operator_fall, seen.stopping) = (None, None, None);
            (seen.replaced, seen.escalated, seen.planned) = (false, false, true);
            return;
        }
        for edge in self.graph.edges_of(id) {
            let edge = self.graph.edges[*edge];
            let on = &self.programs[&edge.on];
            let steady = on.running && on.stopping.is_none() && on.operator_fall.is_none() && !on.replaced;
            let open = steady && on.up_since.is_some_and(|since| since + edge.delay <= envelope.at);
            if !open {
                self.found.push(format!(
                    "I7: event {}: {id:?} starts before {:?} has been up for {}",
                    envelope.seq, edge.on, edge.delay
                ));
            }
        }
        let shutdown = self.shutdown.is_some();
        let backoff = self.graph.programs[id].backoff;
        let seen = self.seen(id);
        let mut wrong = Vec::new();
        if shutdown || seen.operator_down {
            wrong.push(format!("I8: event {}: {id:?} starts although it must not", envelope.seq));
        }
        if instance.0 != seen.instance + 1 || seen.running {
            wrong
                .push(format!("I17: event {}: {id:?} starts run {instance} after run {}", envelope.seq, seen.instance));
        }
        if seen.planned {
            seen.unplanned_starts.clear();
        }
        let minute = envelope.at - Millis(60_000);
        seen.unplanned_starts.retain(|at| *at > minute);
        seen.unplanned_starts.push(envelope.at);
        let recent = seen.unplanned_starts.len();
        if backoff.max >= Millis(60_000) && recent > 20 {
            wrong.push(format!("I16: event {}: {id:?} starts for the {recent}th time within a minute", envelope.seq));
        }
        seen.running = true;
        seen.instance = instance.0;
        seen.up_since = None;
        seen.operator_fall = None;
        seen.replaced = false;
        seen.stopping = None;
        seen.escalated = false;
        seen.last_start = envelope.seq;
        seen.planned = false;
        self.found.append(&mut wrong);
    }

    fn ends(&mut self, id: ProgramId, instance: InstanceId, status: ExitStatus, envelope: &Envelope) {
        let (essential, shutdown) = (self.graph.programs[id].essential, self.shutdown.is_some());
        let seen = self.seen(id);
        let mut wrong = Vec::new();
        if instance.0 != seen.instance || !seen.exits.insert(instance.0) {
            wrong.push(format!("I17: event {}: run {instance} of {id:?} ends twice or never was", envelope.seq));
        }
        if let Some((_, deadline)) = seen.stopping
            && envelope.at > deadline + SLACK
        {
            wrong.push(format!(
                "I11: event {}: {id:?} should have been gone at {} ms",
                envelope.seq,
                deadline.as_millis()
            ));
        }
        let fell_before = seen.operator_fall.is_some();
        let ends_everything = essential && !shutdown && seen.stopping.is_none() && !seen.replaced && !fell_before;
        seen.planned |= seen.stopping.is_some() || seen.replaced || fell_before;
        seen.running = false;
        seen.up_since = None;
        seen.operator_fall = None;
        seen.stopping = None;
        seen.finished = Some(status);
        if !fell_before {
            self.falls(id, envelope.seq);
        }
        if ends_everything && self.doomed.is_none() {
            self.doomed = Some((envelope.seq, envelope.at));
        }
        self.found.append(&mut wrong);
    }

    fn falls(&mut self, on: ProgramId, fall: Seq) {
        if self.shutdown.is_none() {
            for edge in self.graph.edges_on(on) {
                if self.graph.edges[*edge].propagate {
                    self.falls.entry((*edge, fall)).or_default();
                }
            }
        }
    }

    fn goes_last(&mut self, id: ProgramId, reason: StopReason, at: Instant) {
        let up_since = self.programs[&id].up_since.unwrap_or_default();
        let (since, killwait) = match (reason, self.shutdown, self.programs[&id].operator_fall) {
            (StopReason::Shutdown, Some(begun), _) => (begun, self.graph.killwait),
            (StopReason::Operator | StopReason::Propagated, _, Some((_, since))) => {
                (since, self.graph.programs[id].killwait)
            }
            _ => return,
        };
        if at >= since.max(up_since) + killwait.half() {
            return;
        }
        for edge in self.graph.edges_on(id) {
            let edge = self.graph.edges[*edge];
            if self.programs[&edge.of].running && (edge.propagate || reason == StopReason::Shutdown) {
                self.found.push(format!(
                    "I22: {id:?} is stopped at {} ms before its dependent {:?}",
                    at.as_millis(),
                    edge.of
                ));
            }
        }
    }

    fn shutdown_ends(&mut self, envelope: &Envelope) {
        let longest = self.graph.programs.values().map(|policy| policy.killwait).max().unwrap_or_default();
        let bound = longest.max(self.graph.killwait);
        let begun = self.shutdown.unwrap_or_default();
        if envelope.at > begun + bound + SLACK + Millis(5000) {
            self.found.push(format!("I12: the shutdown took until {} ms", envelope.at.as_millis()));
        }
        let spared = self
            .programs
            .iter()
            .filter(|(_, seen)| seen.running && seen.up_since.is_some_and(|since| since <= begun) && !seen.escalated);
        let spared: Vec<_> = spared.map(|(id, _)| *id).collect();
        if !spared.is_empty() {
            self.found.push(format!("I13: {spared:?} were left alive and never killed"));
        }
    }

    fn ends_well(&mut self, world: &World, run: &Run) {
        let shutdown_seq =
            run.envelopes.iter().find(|envelope| envelope.event == World::shutdown()).map(|envelope| envelope.seq);
        for ((edge, fall), count) in &self.falls {
            let interrupted = *count == 0 && shutdown_seq.is_some();
            let late = interrupted && near_end(run, *fall, shutdown_seq);
            // Of falls that nobody was there to answer the last is answered.
            let answered = |(other, later): (&(EdgeId, Seq), &u32)| other.0 == *edge && other.1 > *fall && *later == 1;
            let together = *count == 0
                && self.openings.iter().any(|opening| *opening >= at(run, *fall))
                && self.falls.iter().any(answered);
            if *count != 1 && !late && !together {
                self.found.push(format!("I9: {edge:?} answered the fall {fall} with {count} restarts"));
            }
        }
        let settled = before_shutdown(run);
        for (program, due) in &self.restarts {
            let seen = &self.programs[program];
            let excused = waits_for_finished(world, &settled, *program)
                || seen.operator_down
                || shutdown_seq.is_some_and(|end| near_end(run, *due, Some(end)));
            if seen.last_start < *due && !excused && world.shutdown_at >= world.healed_at + SETTLING {
                self.found.push(format!("I10: {program:?} was due to restart at event {due} and never did"));
            }
        }
        if run.left_alive > usize::try_from(run.state.survivors.unwrap_or(0)).unwrap_or(usize::MAX) {
            self.found.push(format!("I13: {} processes are left", run.left_alive));
        }
        self.settles(world, &settled);
    }

    /// I15, told at the moment before the shutdown, when the world has long been well.
    fn settles(&mut self, world: &World, settled: &State) {
        if world.shutdown_at < world.healed_at + SETTLING {
            return;
        }
        for (id, policy) in world.graph.programs.iter() {
            let program = &settled.programs[id];
            let finished = policy.mode == Mode::Once && program.phase == Phase::Down && !program.due;
            if program.phase != Phase::Up && !finished && !waits_for_finished(world, settled, id) {
                self.found.push(format!("I15: {id:?} is {:?} although nothing keeps it down", program.phase));
            }
        }
    }

    /// I2, I3, I4 and I21.
    fn folds(&mut self, world: &World, run: &Run) {
        let mut last: Option<State> = None;
        for life in &run.lives {
            if last.as_ref().is_some_and(|last| last.epoch >= life.start.epoch || last.seq != life.start.seq) {
                self.found.push(format!("I2: epoch {} does not follow", life.start.epoch));
            }
            let state = self.fold(world, life);
            last = Some(state);
        }
        if last.as_ref() != Some(&run.state) {
            self.found.push("I3: the fold of the envelopes is not the state of the journal".into());
        }
    }

    fn fold(&mut self, world: &World, life: &Life) -> State {
        let mut state = life.start.clone();
        let middle = life.envelopes.len() / 2;
        let mut copy = None;
        for (at, envelope) in life.envelopes.iter().enumerate() {
            let before = world.seed.is_multiple_of(16).then(|| state.programs.clone());
            state.apply(envelope);
            if let Some(before) = before {
                let subject = world.graph.subject(&envelope.event);
                let strangers =
                    state.programs.iter().filter(|(id, program)| Some(*id) != subject && before[*id] != **program);
                self.found.extend(strangers.map(|(id, _)| format!("I21: event {} changed {id:?}", envelope.seq)));
            }
            if at == middle && world.seed.is_multiple_of(64) {
                let text = serde_json::to_string(&state).expect("a snapshot can be written");
                copy = Some(serde_json::from_str::<State>(&text).expect("a snapshot can be read"));
            } else if let Some(copy) = &mut copy {
                copy.apply(envelope);
            }
        }
        if copy.is_some_and(|copy| copy != state) {
            self.found.push(format!("I4: a snapshot in epoch {} does not fold to the same state", state.epoch));
        }
        state
    }
}

/// Whether an event is so close to the shutdown that its consequences may have been cut off by it.
fn near_end(run: &Run, event: Seq, end: Option<Seq>) -> bool {
    end.is_some_and(|end| event > end || at(run, event) + Millis(30_000) + SLACK > at(run, end))
}

fn at(run: &Run, seq: Seq) -> Instant {
    run.envelopes.iter().find(|envelope| envelope.seq == seq).map_or(Instant::default(), |envelope| envelope.at)
}

/// The state just before the shutdown was asked for.
fn before_shutdown(run: &Run) -> State {
    let life = run.lives.iter().find(|life| life.envelopes.iter().any(|envelope| envelope.event == World::shutdown()));
    let Some(life) = life.or(run.lives.last()) else { return run.state.clone() };
    let mut state = life.start.clone();
    for envelope in life.envelopes.iter().take_while(|envelope| envelope.event != World::shutdown()) {
        state.apply(envelope);
    }
    state
}

/// Whether a program depends, directly or not, on one that has run once and is not to run again.
fn waits_for_finished(world: &World, state: &State, program: ProgramId) -> bool {
    let on = |edge: &EdgeId| world.graph.edges[*edge].on;
    world.graph.edges_of(program).iter().map(on).any(|on| {
        let once = world.graph.programs[on].mode == Mode::Once && state.programs[on].phase == Phase::Down;
        once && !state.programs[on].due || waits_for_finished(world, state, on)
    })
}
