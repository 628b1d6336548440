//! What must be true of every journal, told from its events alone and not with the rules that are being checked.
//!
//! The simulator checks every run with it, and `gaggled journal verify` a journal from real life. A program is known here
//! by what its events say; the folded state is looked at only where a life of the daemon begins.
//!
//! | | |
//! |---|---|
//! | I1 | the numbers of events rise by one |
//! | I2 | each life of the daemon begins where the one before has ended on the disk |
//! | I7 | a program starts only while each dependency has been up, in one instance, for its delay |
//! | I8 | nothing starts after the shutdown began, nor while an operator wants it down |
//! | I9 | a fall of a program is not followed by more than one restart for each dependency on it that propagates |
//! | I11 | a stopping instance is gone, or being killed, within its killwait |
//! | I12 | a shutdown takes no longer than the longest killwait |
//! | I13 | nothing is left alive by a shutdown that was not killed |
//! | I16 | the starts of a program that keeps ending are spaced |
//! | I17 | instances are numbered 1, 2, 3 and end once |
//! | I18 | the event that a cause names came before |
//! | I22 | in a planned stop dependents go first, unless half of the killwait is over |
//! | I24 | a program that has reached its limit is not started until somebody asks for it |
//! | I23 | when an essential program ends by itself, everything is shut down at once |

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    event::{Cause, DependencyEvent, Envelope, Event, ProgramEvent, StopReason, SystemEvent},
    graph::{Graph, Mode, Until},
    host::ExitStatus,
    ids::{EdgeId, InstanceId, Position, ProgramId, Seq, Table},
    state::{Phase, ProgramState, State},
    time::{Instant, Millis},
};

/// What is known of a program by its events.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Seen {
    running: bool,
    up_since: Option<Instant>,
    /// When its last run has ended, if it has ended well.
    completed: Option<Instant>,
    /// Whether it is to run again.
    owed: bool,
    /// Whether it was told to end.
    told: bool,
    /// Decided to be stopped by an operator, since when and by which event.
    operator_fall: Option<(Seq, Instant)>,
    /// Told to be replaced since its last start.
    replaced: bool,
    /// Whether an operator wants it down.
    pub operator_down: bool,
    instance: u64,
    stopping: Option<(Instant, Instant)>,
    escalated: bool,
    /// The last run that has ended.
    ended: u64,
    /// The event of its last start.
    pub last_start: Seq,
    unplanned_starts: Vec<Instant>,
    /// Its starts since somebody has last asked for anything, or it was stopped.
    own_starts: Vec<Instant>,
    planned: bool,
}

/// A journal as it is passed through.
#[derive(Clone, Debug)]
pub struct Audit {
    graph: Arc<Graph>,
    programs: Table<ProgramId, Seen>,
    /// How many restarts have answered each fall.
    pub falls: BTreeMap<(EdgeId, Seq), u32>,
    /// Which programs were due to restart, by which event.
    pub restarts: Vec<(ProgramId, Seq)>,
    shutdown: Option<Instant>,
    /// When each life of the daemon but the first began.
    pub openings: Vec<Instant>,
    /// The end of an essential program.
    doomed: Option<(Seq, Instant)>,
    last: Option<Position>,
    slack: Millis,
    /// What is wrong.
    pub found: Vec<String>,
    /// What is not there, because it was never written, as the journal itself says.
    pub missing: Vec<String>,
    /// What is not there, and may yet be said to be.
    gap: Option<String>,
}

impl Seen {
    /// What a state tells of a program of which no event was seen.
    fn of(state: &State, id: ProgramId) -> Self {
        let known = &state.programs[id];
        let leaving = known.leaving.filter(|_| known.is_running());
        Self {
            running: known.is_running(),
            up_since: known.up_since.filter(|_| known.is_running()),
            completed: ProgramState { due: false, ..known.clone() }.counts_since(Until::Completed),
            owed: known.due && !known.is_running(),
            told: known.signalled,
            operator_fall: leaving
                .filter(|leaving| leaving.planned)
                .and_then(|leaving| Some((known.fall?, leaving.since))),
            replaced: leaving.is_some(),
            operator_down: known.operator_down,
            instance: known.instance.0,
            stopping: (known.phase == Phase::Stopping).then_some((state.at, known.deadline.unwrap_or(state.at))),
            escalated: known.phase == Phase::Stopping && known.deadline.is_none(),
            ended: known.instance.0 - u64::from(known.is_running()),
            last_start: Seq(0),
            unplanned_starts: Vec::new(),
            own_starts: Vec::new(),
            planned: true,
        }
    }
}

impl Audit {
    /// An audit that lets effects be so late.
    pub fn new(slack: Millis) -> Self {
        Self {
            graph: Arc::default(),
            programs: Table::default(),
            falls: BTreeMap::new(),
            restarts: Vec::new(),
            shutdown: None,
            openings: Vec::new(),
            doomed: None,
            last: None,
            slack,
            found: Vec::new(),
            missing: Vec::new(),
            gap: None,
        }
    }

    /// What is known of a program.
    pub fn program(&self, id: ProgramId) -> &Seen {
        &self.programs[id]
    }

    /// A segment, or a life of the daemon, begins with this state.
    pub fn begin(&mut self, start: &State) {
        let position = Position { epoch: start.epoch, seq: start.seq };
        self.end();
        match self.last {
            Some(last) if position.seq > last.seq => {
                self.gap = Some(format!("events {} to {} are missing", last.seq.0 + 1, position.seq));
            }
            Some(last) if position.epoch < last.epoch || position.seq < last.seq => {
                self.found.push(format!("I2: epoch {} begins at event {}", start.epoch, start.seq));
            }
            Some(_) | None => {}
        }
        let known = self.last.filter(|last| position.seq <= last.seq).map(|_| self.graph.names()).unwrap_or_default();
        let same_life = self.last.is_some_and(|last| last.epoch == start.epoch);
        let before = std::mem::replace(&mut self.graph, start.graph.clone());
        let seen = |(id, policy): (ProgramId, &crate::graph::Policy)| match known.get(&policy.name) {
            None => Seen::of(start, id),
            Some(old) => {
                let mut seen = self.programs[*old].clone();
                if seen.running && !start.programs[id].is_running() {
                    // It has ended with the machine.
                    seen =
                        Seen { operator_down: seen.operator_down, last_start: seen.last_start, ..Seen::of(start, id) };
                }
                if before.programs[*old].enabled != policy.enabled {
                    seen.operator_down = start.programs[id].operator_down;
                }
                seen
            }
        };
        self.programs = start.graph.programs.iter().map(seen).collect();
        if *before != *start.graph {
            // Ids mean something else now, and what was owed is not looked for any more.
            self.falls.clear();
            self.restarts.clear();
        }
        if !same_life {
            for id in start.graph.programs.ids() {
                self.programs[id].owed = start.programs[id].due && !start.programs[id].is_running();
            }
            self.shutdown = start.shutdown;
            self.doomed = self.doomed.filter(|_| start.verdict.is_some());
        }
        self.last = Some(position);
    }

    /// What is missing and was not said to be is wrong.
    pub fn end(&mut self) {
        self.found.extend(self.gap.take());
    }

    /// Takes the next event.
    pub fn observe(&mut self, envelope: &Envelope) {
        let last = self.last.map_or(Seq(0), |last| last.seq);
        if envelope.seq != Seq(last.0 + 1) {
            self.found.push(format!("I1: event {} follows {last}", envelope.seq));
        }
        if envelope.cause.event().is_some_and(|cause| cause >= envelope.seq || cause < Seq(1)) {
            self.found.push(format!("I18: event {} has the cause {}", envelope.seq, envelope.cause));
        }
        self.last = Some(Position { epoch: envelope.epoch, seq: envelope.seq });
        match &envelope.event {
            Event::Program(program, event) => self.happens(*program, event, envelope),
            Event::Dependency(edge, DependencyEvent::RestartDue { fall, planned }) => {
                let of = self.graph.edges[*edge].of;
                if *planned {
                    self.leaves(of, envelope);
                }
                *self.falls.entry((*edge, *fall)).or_default() += 1;
                self.restarts.push((of, envelope.seq));
                self.seen(of).owed = true;
                self.seen(of).own_starts.clear();
                self.seen(of).replaced = true;
                self.seen(of).planned = true;
            }
            Event::System(SystemEvent::EpochOpened { .. }) => self.opens(envelope),
            Event::System(SystemEvent::JournalRestored { .. }) => self.missing.extend(self.gap.take()),
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
            && until > since.max(self.openings.last().copied().unwrap_or_default()) + self.slack
        {
            self.found.push(format!("I23: an essential program ended with event {end}, and everything else went on"));
        }
    }

    /// What was to be done in time while nobody was there is to be done now.
    fn opens(&mut self, envelope: &Envelope) {
        let now = envelope.at;
        self.openings.push(now);
        for id in self.graph.programs.ids() {
            if let Some((_, deadline)) = &mut self.programs[id].stopping {
                *deadline = (*deadline).max(now);
            }
        }
    }

    fn seen(&mut self, program: ProgramId) -> &mut Seen {
        &mut self.programs[program]
    }

    fn happens(&mut self, id: ProgramId, event: &ProgramEvent, envelope: &Envelope) {
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
                self.seen(id).told = true;
            }
            ProgramEvent::StopEscalated { .. } => self.seen(id).escalated = true,
            ProgramEvent::Exited { instance, status, .. } => self.ends(id, *instance, *status, envelope),
            ProgramEvent::OperatorStopped | ProgramEvent::OperatorRestarted => {
                let stays_down = *event == ProgramEvent::OperatorStopped;
                let seen = self.seen(id);
                seen.operator_down = stays_down;
                seen.owed = !stays_down;
                seen.own_starts.clear();
                seen.planned = true;
                self.leaves(id, envelope);
                self.seen(id).replaced |= !stays_down;
            }
            ProgramEvent::OperatorStarted => {
                let seen = self.seen(id);
                seen.owed |= !seen.running;
                seen.own_starts.clear();
                seen.operator_down = false;
                seen.planned = true;
            }
            ProgramEvent::Signalled { signal, .. } => self.seen(id).told |= signal.asks_to_end(),
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
        let found = envelope.cause == Cause::Os;
        if found && instance.0 > self.seen(id).instance && !self.seen(id).running {
            let seen = self.seen(id);
            *seen = Seen { running: true, instance: instance.0, last_start: envelope.seq, ..seen.clone() };
            (seen.up_since, seen.operator_fall, seen.stopping) = (None, None, None);
            (seen.replaced, seen.escalated, seen.planned) = (false, false, true);
            (seen.completed, seen.owed, seen.told) = (None, false, false);
            return;
        }
        for edge in self.graph.edges_of(id) {
            let edge = self.graph.edges[*edge];
            let on = &self.programs[edge.on];
            let steady = on.running && on.stopping.is_none() && on.operator_fall.is_none() && !on.replaced;
            let since = match edge.until {
                Until::Started => on.up_since.filter(|_| steady),
                Until::Completed => on.completed.filter(|_| !on.owed),
            };
            let open = since.is_some_and(|since| since + edge.delay <= envelope.at);
            if !open {
                self.found.push(format!(
                    "I7: event {}: {id:?} starts before {:?} has been up for {}",
                    envelope.seq, edge.on, edge.delay
                ));
            }
        }
        let shutdown = self.shutdown.is_some();
        let (backoff, limit) = (self.graph.programs[id].backoff, self.graph.programs[id].limit);
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
        if let Some(limit) = limit.filter(|limit| limit.retry.is_none()) {
            seen.own_starts.retain(|at| *at + limit.within > envelope.at);
            seen.own_starts.push(envelope.at);
            if seen.own_starts.len() > usize::try_from(limit.starts).unwrap_or(usize::MAX) {
                wrong.push(format!("I24: event {}: {id:?} starts more often than its limit allows", envelope.seq));
            }
        }
        let recent = seen.unplanned_starts.len();
        if backoff.max >= Millis(60_000) && recent > 20 {
            wrong.push(format!("I16: event {}: {id:?} starts for the {recent}th time within a minute", envelope.seq));
        }
        (seen.completed, seen.owed, seen.told) = (None, false, false);
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
        let once = self.graph.programs[id].mode == Mode::Once;
        let (essential, shutdown) = (self.graph.programs[id].essential, self.shutdown.is_some());
        let slack = self.slack;
        let seen = self.seen(id);
        let mut wrong = Vec::new();
        if instance.0 != seen.instance || instance.0 <= seen.ended {
            wrong.push(format!("I17: event {}: run {instance} of {id:?} ends twice or never was", envelope.seq));
        }
        if let Some((_, deadline)) = seen.stopping
            && envelope.at > deadline + slack
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
        if seen.planned {
            seen.own_starts.clear();
        }
        seen.running = false;
        seen.up_since = None;
        seen.operator_fall = None;
        seen.stopping = None;
        seen.ended = instance.0;
        seen.completed = (once && status == ExitStatus::Code(0) && !seen.told).then_some(envelope.at);
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
        let up_since = self.programs[id].up_since.unwrap_or_default();
        let (since, killwait) = match (reason, self.shutdown, self.programs[id].operator_fall) {
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
            if self.programs[edge.of].running && (edge.propagate || reason == StopReason::Shutdown) {
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
        if envelope.at > begun + bound + self.slack + Millis(5000) {
            self.found.push(format!("I12: the shutdown took until {} ms", envelope.at.as_millis()));
        }
        let spared = self
            .programs
            .iter()
            .filter(|(_, seen)| seen.running && seen.up_since.is_some_and(|since| since <= begun) && !seen.escalated);
        let spared: Vec<_> = spared.map(|(id, _)| id).collect();
        if !spared.is_empty() {
            self.found.push(format!("I13: {spared:?} were left alive and never killed"));
        }
    }
}
