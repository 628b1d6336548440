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
//! | I23 | when an essential program ends by itself, everything is shut down at once |
//! | I24 | a program that has reached its limit is not started until somebody asks for it |
//! | I25 | a program of a group starts only where its group has let it in, and it is let in only where the level has it |
//! | I26 | nothing is let in before everything is gone that has to leave |
//! | I27 | nothing is let in before those that hold it back have ended well |
//! | I28 | a group is there only when everything is in that runs at its level |
//! | I29 | a group is told by nobody but by events: a new life of the daemon begins with the level of the last |
//! | I30 | what a program has done that ended well stands, if there is a command to undo it, and else does not |
//! | I31 | an instance is ready once, and one that is not ready in time is found unhealthy |

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    event::{Cause, DependencyEvent, Envelope, Event, GroupEvent, ProgramEvent, StopReason, SystemEvent},
    graph::{Graph, Mode, Policy, RESTART, Until},
    host::ExitStatus,
    ids::{EdgeId, GroupId, InstanceId, Position, ProgramId, Seq, Table},
    state::{GroupState, Phase, Place, ProgramState, Standing, State},
    time::{Instant, Millis},
};

/// What is known of a program by its events.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct Seen {
    running: bool,
    up_since: Option<Instant>,
    /// When it was ready.
    ready_since: Option<Instant>,
    /// Whether it was found unhealthy.
    unhealthy: bool,
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
    /// Whether its group has let it in, if it has one.
    pub is_in: bool,
    /// Whether there is something of it to stop: a process, or what one has done.
    exists: bool,
    /// Whether what it has done is being undone.
    undoing: bool,
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
    groups: Table<GroupId, GroupState>,
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
            running: known.is_running() && known.phase != Phase::Done && !known.undoing,
            up_since: known.up_since.filter(|_| known.is_running()),
            ready_since: known.ready_since.filter(|_| known.is_running()),
            unhealthy: leaving.is_some_and(|leaving| leaving.reason == StopReason::Unhealthy),
            completed: ProgramState { due: false, ..known.clone() }.counts_since(Until::Completed),
            owed: known.due && !known.is_running(),
            told: known.signalled,
            operator_fall: leaving
                .filter(|leaving| leaving.planned)
                .and_then(|leaving| Some((known.fall?, leaving.since))),
            replaced: leaving.is_some(),
            operator_down: known.operator_down,
            is_in: known.place != Place::Out,
            exists: known.is_running(),
            undoing: known.undoing,
            instance: known.instance.0,
            stopping: (known.phase == Phase::Stopping).then_some((state.at, known.deadline.unwrap_or(state.at))),
            escalated: known.phase == Phase::Stopping && known.deadline.is_none(),
            ended: known.instance.0 - u64::from(known.is_running() && known.phase != Phase::Done && !known.undoing),
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
            groups: Table::default(),
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
        let seen = |(id, policy): (ProgramId, &Policy)| match known.get(&policy.name) {
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
        if known.is_empty() || *before != *start.graph {
            self.groups = start.groups.clone();
        }
        for (id, group) in start.groups.iter() {
            if self.groups[id].level != group.level {
                self.found.push(format!("I29: epoch {} has forgotten what {id:?} was told", start.epoch));
            }
        }
        self.groups = start.groups.clone();
        for (id, program) in start.programs.iter() {
            self.programs[id].is_in = program.place != Place::Out;
        }
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
            Event::Program(program, event) => {
                self.moves(*program, event, envelope);
                self.happens(*program, event, envelope);
            }
            Event::Group(id, event) => {
                if matches!(event, GroupEvent::Reached { .. }) {
                    self.arrives(*id, envelope.seq);
                }
                self.groups[*id].apply(envelope.seq, event);
            }
            Event::Dependency(edge, DependencyEvent::RestartDue { fall, planned }) => {
                let of = self.graph.edges[*edge].of;
                if *planned {
                    self.leaves(of, envelope);
                }
                *self.falls.entry((*edge, *fall)).or_default() += 1;
                if self.programs[of].is_in {
                    self.restarts.push((of, envelope.seq));
                    self.seen(of).owed = true;
                }
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
            ProgramEvent::Started { .. } if self.seen(id).stopping.is_some() => {}
            ProgramEvent::Started { .. } => {
                let ready = self.graph.programs[id].care.is_ready_at_once();
                let seen = self.seen(id);
                seen.up_since = Some(at);
                seen.ready_since = ready.then_some(at);
            }
            ProgramEvent::Daemonized { .. } => {
                let ready = self.graph.programs[id].care.readiness.is_none();
                let seen = self.seen(id);
                seen.ready_since = seen.ready_since.or(ready.then_some(at));
            }
            ProgramEvent::Ready { .. } | ProgramEvent::Unhealthy { .. } => self.is_looked_at(id, event, envelope),
            ProgramEvent::Adopted { .. } => {
                let ready = self.graph.programs[id].care.is_ready_at_once();
                let seen = self.seen(id);
                if seen.up_since.is_none() {
                    seen.ready_since = ready.then_some(at);
                }
                seen.is_in |= seen.up_since.is_none() && !seen.replaced && seen.operator_fall.is_none();
                seen.up_since = seen.up_since.or(Some(at));
            }
            ProgramEvent::SpawnFailed { .. } => {
                let seen = self.seen(id);
                seen.running = false;
                seen.operator_fall = None;
                seen.planned = false;
                seen.undoing = false;
                seen.stopping = None;
            }
            ProgramEvent::Stopping { reason, deadline, .. } => {
                self.goes_last(id, *reason, at);
                let seen = self.seen(id);
                seen.stopping = Some((at, *deadline));
                seen.told = true;
                seen.undoing = !seen.running;
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
                seen.owed |= !seen.exists;
                seen.own_starts.clear();
                seen.operator_down = false;
                seen.planned = true;
            }
            ProgramEvent::LevelEntered { .. } | ProgramEvent::LevelLeft { .. } => {
                let enters = matches!(event, ProgramEvent::LevelEntered { .. });
                let seen = self.seen(id);
                seen.owed = enters && !seen.operator_down;
                seen.own_starts.clear();
                seen.planned = true;
                self.leaves(id, envelope);
                self.seen(id).replaced |= enters && self.seen(id).exists;
            }
            ProgramEvent::Signalled { signal, .. } => self.seen(id).told |= signal.asks_to_end(),
        }
    }

    /// I31.
    fn is_looked_at(&mut self, id: ProgramId, event: &ProgramEvent, envelope: &Envelope) {
        let seen = self.seen(id);
        let stays = seen.operator_fall.is_none() && !seen.replaced && !seen.unhealthy && seen.stopping.is_none();
        let ready = matches!(event, ProgramEvent::Ready { .. });
        let again = ready && seen.ready_since.is_some();
        let untimely = !seen.running || seen.up_since.is_none() || !stays || again;
        if ready {
            seen.ready_since = Some(envelope.at);
        } else {
            seen.unhealthy = true;
        }
        if untimely {
            self.found
                .push(format!("I31: event {}: {id:?} is said to be ready or unhealthy out of time", envelope.seq));
        }
    }

    /// I25, I26 and I27.
    fn moves(&mut self, id: ProgramId, event: &ProgramEvent, envelope: &Envelope) {
        if let Some(exists) = event.makes_running() {
            self.seen(id).exists = exists;
        }
        match event {
            ProgramEvent::LevelEntered { .. } => self.enters(id, envelope),
            ProgramEvent::LevelLeft { .. } => self.seen(id).is_in = false,
            ProgramEvent::OperatorStarted | ProgramEvent::OperatorRestarted => self.seen(id).is_in = true,
            ProgramEvent::Starting { .. } => {
                if !self.seen(id).is_in && envelope.cause != Cause::Os {
                    let found = format!("I25: event {}: {id:?} starts, which its group has not let in", envelope.seq);
                    self.found.push(found);
                }
            }
            ProgramEvent::Started { .. }
            | ProgramEvent::Adopted { .. }
            | ProgramEvent::Daemonized { .. }
            | ProgramEvent::Ready { .. }
            | ProgramEvent::Unhealthy { .. }
            | ProgramEvent::SpawnFailed { .. }
            | ProgramEvent::Stopping { .. }
            | ProgramEvent::StopEscalated { .. }
            | ProgramEvent::Exited { .. }
            | ProgramEvent::Signalled { .. }
            | ProgramEvent::OperatorStopped => {}
        }
    }

    /// I28.
    fn arrives(&mut self, group: GroupId, seq: Seq) {
        let missing = |id: &&ProgramId| {
            let (policy, seen) = (&self.graph.programs[**id], &self.programs[**id]);
            policy.enabled && self.groups[group].runs(policy) && !seen.operator_down && !seen.is_in
        };
        if let Some(id) = self.graph.groups[group].members.iter().find(missing) {
            self.found.push(format!("I28: event {seq}: {group:?} is there without {id:?}"));
        }
    }

    fn enters(&mut self, id: ProgramId, envelope: &Envelope) {
        let graph = self.graph.clone();
        let policy = &graph.programs[id];
        self.seen(id).is_in = true;
        let Some(group) = policy.group else { return };
        let members = &graph.groups[group].members;
        let restarts = self.groups[group].standing == Standing::Restarting;
        let told = self.groups[group].clone();
        let level = told.level.clone();
        let runs = |policy: &Policy| told.runs(policy) || restarts && policy.names(RESTART);
        let mut wrong = Vec::new();
        if !runs(policy) {
            wrong.push(format!("I25: event {}: {id:?} is let in at level {level}", envelope.seq));
        }
        for member in members {
            let seen = &self.programs[*member];
            if !seen.is_in && seen.exists {
                wrong.push(format!("I26: event {}: {id:?} is let in while {member:?} has yet to go", envelope.seq));
            }
            let other = &graph.programs[*member];
            let holds_back = *member < id && other.mode.holds_back() && runs(other) && seen.is_in;
            if holds_back && seen.completed.is_none() {
                wrong.push(format!("I27: event {}: {id:?} is let in before {member:?} has ended well", envelope.seq));
            }
        }
        self.found.append(&mut wrong);
    }

    /// It is about to be stopped although what it depends on is up: a fall, of which its dependents hear first.
    fn leaves(&mut self, id: ProgramId, envelope: &Envelope) {
        let seen = self.seen(id);
        let stays = seen.operator_fall.is_none() && !seen.replaced && !seen.unhealthy && seen.stopping.is_none();
        if seen.exists && stays {
            seen.operator_fall = Some((envelope.seq, envelope.at));
            if seen.running {
                self.falls(id, envelope.seq);
            }
        }
    }

    fn starts(&mut self, id: ProgramId, instance: InstanceId, envelope: &Envelope) {
        // What was found running was started in a life that did not live to write it down.
        let found = envelope.cause == Cause::Os;
        if found && instance.0 > self.seen(id).instance && !self.seen(id).running {
            let seen = self.seen(id);
            *seen = Seen { running: true, instance: instance.0, last_start: envelope.seq, ..seen.clone() };
            (seen.up_since, seen.operator_fall, seen.stopping) = (None, None, None);
            (seen.ready_since, seen.unhealthy) = (None, false);
            (seen.replaced, seen.escalated, seen.planned) = (false, false, true);
            (seen.completed, seen.owed, seen.told) = (None, false, false);
            return;
        }
        for edge in self.graph.edges_of(id) {
            let edge = self.graph.edges[*edge];
            let on = &self.programs[edge.on];
            let leaves = on.stopping.is_some() || on.operator_fall.is_some() || on.replaced || on.unhealthy;
            let steady = on.running && !leaves;
            let since = match edge.until {
                Until::Started => on.up_since.filter(|_| steady),
                Until::Ready => on.ready_since.filter(|_| steady),
                Until::Completed => on.completed.filter(|_| {
                    let goes = on.exists && (on.replaced || on.operator_fall.is_some());
                    !on.owed && on.is_in && !goes
                }),
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
        (seen.up_since, seen.ready_since, seen.unhealthy) = (None, None, false);
        seen.operator_fall = None;
        seen.replaced = false;
        seen.stopping = None;
        seen.escalated = false;
        seen.last_start = envelope.seq;
        seen.planned = false;
        self.found.append(&mut wrong);
    }

    fn ends(&mut self, id: ProgramId, instance: InstanceId, status: ExitStatus, envelope: &Envelope) {
        let policy = self.graph.programs[id].clone();
        let (once, well) = (policy.mode != Mode::Respawn, policy.succeeds(status));
        let (essential, shutdown) = (self.graph.programs[id].essential, self.shutdown.is_some());
        let slack = self.slack;
        let seen = self.seen(id);
        let (mut wrong, mut late) = (Vec::new(), None);
        if !seen.undoing && (instance.0 != seen.instance || instance.0 <= seen.ended) {
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
        if std::mem::take(&mut seen.undoing) {
            (seen.operator_fall, seen.stopping, seen.completed) = (None, None, None);
            return;
        }
        // It may have ended by itself while it was about to be told to.
        let by_itself = !seen.told || envelope.cause == Cause::Os;
        let wrongly = if seen.exists { !(well && by_itself) } else { well && !seen.told };
        if policy.undone && wrongly {
            wrong.push(format!("I30: event {}: what {id:?} has done stands, or not, without reason", envelope.seq));
        }
        let fell_before = seen.operator_fall.is_some();
        let unwanted = seen.stopping.is_some() || seen.replaced || fell_before;
        let failed = seen.unhealthy && !seen.operator_down && !seen.owed && seen.is_in;
        let ends_everything = essential && !seen.exists && !shutdown && (!unwanted || failed);
        seen.planned |= unwanted && !seen.unhealthy;
        if seen.planned {
            seen.own_starts.clear();
        }
        if !unwanted && seen.ready_since.is_none() && !seen.unhealthy {
            late = seen.up_since;
        }
        seen.running = false;
        (seen.up_since, seen.ready_since, seen.unhealthy) = (None, None, false);
        seen.operator_fall = None;
        seen.stopping = None;
        seen.ended = instance.0;
        seen.completed = (once && well && !seen.told).then_some(envelope.at);
        if !fell_before {
            self.falls(id, envelope.seq);
        }
        let interrupted = self.openings.iter().any(|opening| late.is_some_and(|since| *opening >= since));
        if late.is_some_and(|since| since + policy.care.within + slack < envelope.at) && !interrupted {
            wrong.push(format!("I31: event {}: {id:?} was not ready, and nobody has noticed", envelope.seq));
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
            (StopReason::Operator | StopReason::Propagated | StopReason::Level, _, Some((_, since))) => {
                (since, self.graph.programs[id].killwait)
            }
            _ => return,
        };
        if at >= since.max(up_since) + killwait.half() {
            return;
        }
        let edges = self.graph.edges_on(id).iter().map(|edge| self.graph.edges[*edge]);
        let followers: BTreeSet<ProgramId> = edges.filter(|edge| edge.propagate).map(|edge| edge.of).collect();
        let group = |id: ProgramId| self.graph.programs[id].group;
        for dependent in self.graph.dependents(id) {
            let seen = &self.programs[dependent];
            let goes_first = match reason {
                StopReason::Shutdown => true,
                StopReason::Level if !seen.is_in && group(dependent) == group(id) => true,
                StopReason::Unhealthy => false,
                StopReason::Level | StopReason::Operator | StopReason::Propagated => followers.contains(&dependent),
            };
            if seen.exists && goes_first {
                let at = at.as_millis();
                self.found.push(format!("I22: {id:?} is stopped at {at} ms before its dependent {dependent:?}"));
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
        let stands = self.programs.iter().filter(|(_, seen)| seen.exists && !seen.running && seen.stopping.is_none());
        let stands: Vec<_> = stands.map(|(id, _)| id).collect();
        if !stands.is_empty() {
            self.found.push(format!("I13: what {stands:?} have done was not undone"));
        }
    }
}
