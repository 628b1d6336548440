//! The invariants of every journal, checked with its events alone and independently of the rules that produced it.
//!
//! The simulator checks every run with it, and `gaggled journal verify` checks the journal of a daemon. The audit
//! derives what it knows of a program from its events; it uses the folded state only where a segment or an epoch
//! begins.
//!
//! | | |
//! |---|---|
//! | I1 | the numbers of events rise by one |
//! | I2 | each run of the daemon begins where the one before has ended on the disk |
//! | I7 | a program starts only while each dependency has been up, in one instance, for its delay |
//! | I8 | nothing starts after the shutdown began, nor while an operator wants it down |
//! | I9 | when a program goes down, each dependency on it that propagates causes at most one restart |
//! | I11 | a stopping instance is gone, or being killed, within its killwait |
//! | I12 | a shutdown takes no longer than the longest killwait |
//! | I13 | a shutdown leaves no program running that was not killed |
//! | I16 | the starts of a program that keeps ending are spaced |
//! | I17 | instances are numbered 1, 2, 3 and end once |
//! | I18 | the event that a cause names came before |
//! | I22 | in a planned stop dependents go first, unless half of the killwait is over |
//! | I23 | when an essential program ends by itself, everything is shut down at once |
//! | I24 | a program that has reached its start limit is not started until an operator starts it |
//! | I25 | a program of a group starts only if its group has admitted it, and that only at a level where it runs |
//! | I26 | no program is admitted before all programs that have to leave are down |
//! | I27 | no program is admitted before the programs that hold it back have ended well |
//! | I28 | a group has reached its level only when all programs that run at the level are admitted |
//! | I29 | only events change the level of a group: a new daemon begins with the level of the last |
//! | I30 | after a run has ended well, its effects remain if the configuration says so, and else do not |
//! | I31 | an instance is ready once, and one that is not ready in time is found unhealthy |
//! | I32 | a stop command fails only while its program is being stopped |

mod groups;
mod programs;

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    base::{
        ids::{DependencyId, GroupId, IdVec, Position, ProgramId, Seq},
        time::{Instant, Millis},
    },
    event::{DependencyEvent, Envelope, Event, GroupEvent, StopReason, SystemEvent},
    graph::{Condition, Graph, Policy},
    state::{GroupState, Membership, Phase, ProgramState, State},
};

/// What is known of a program from its events.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct ProgramTrace {
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
    /// Whether it was asked to end since its last start: by a stop, or by a signal.
    told: bool,
    /// The event since which a stop is pending that lets dependents go first, and its time.
    operator_fall: Option<(Seq, Instant)>,
    /// Whether a restart of it has been requested since its last start.
    replaced: bool,
    /// Whether an operator wants it down.
    pub operator_down: bool,
    /// Whether its group has admitted it, if it has one.
    pub is_in: bool,
    /// Whether there is something to stop: a process, or effects to undo.
    exists: bool,
    /// Whether its effects are being undone.
    in_stop_command: bool,
    instance: u64,
    stopping: Option<(Instant, Instant)>,
    escalated: bool,
    /// The last run that has ended.
    ended: u64,
    /// The event of its last start.
    pub last_start: Seq,
    unplanned_starts: Vec<Instant>,
    /// Its starts since the last command for it, or since it was stopped.
    own_starts: Vec<Instant>,
    planned: bool,
}

/// The audit of a journal, event by event.
#[derive(Clone, Debug)]
pub struct JournalAudit {
    graph: Arc<Graph>,
    programs: IdVec<ProgramId, ProgramTrace>,
    groups: IdVec<GroupId, GroupState>,
    /// How many restarts each `down_event` has caused for each dependency.
    pub falls: BTreeMap<(DependencyId, Seq), u32>,
    /// Which programs were due to restart, by which event.
    pub restarts: Vec<(ProgramId, Seq)>,
    shutdown: Option<Instant>,
    /// When each daemon started.
    pub openings: Vec<Instant>,
    /// The event with which an essential program ended, and its time.
    doomed: Option<(Seq, Instant)>,
    last: Option<Position>,
    slack: Millis,
    /// The violated invariants, in words.
    pub violations: Vec<String>,
    /// Gaps that the journal itself announces: their events were never written.
    pub missing: Vec<String>,
}

impl ProgramTrace {
    /// The trace of a program before its first event, from a state.
    fn of(state: &State, id: ProgramId) -> Self {
        let known = &state.programs[id];
        let leaving = known.pending_stop.filter(|_| known.is_running());
        let exists = known.is_running() || known.is_up_elsewhere();
        Self {
            running: known.is_up_elsewhere()
                || known.is_running() && known.phase != Phase::ActiveExited && !known.is_undoing(),
            up_since: known.up_since.filter(|_| exists),
            ready_since: known.ready_since.filter(|_| exists),
            unhealthy: leaving.is_some_and(|stop| stop.reason == StopReason::Unhealthy),
            completed: ProgramState { start_pending: false, ..known.clone() }.satisfied_since(Condition::Completed),
            owed: known.start_pending && !known.is_running(),
            told: known.stop_event.is_some(),
            operator_fall: leaving
                .filter(|stop| stop.dependents_first)
                .and_then(|stop| Some((known.down_event?, stop.since))),
            replaced: leaving.is_some(),
            operator_down: known.operator_down,
            is_in: known.membership != Membership::Stopped,
            exists: known.is_running(),
            in_stop_command: known.is_undoing(),
            instance: known.instance.0,
            stopping: (known.phase == Phase::Stopping).then_some((state.at, known.kill_at().unwrap_or(state.at))),
            escalated: known.phase == Phase::Stopping && known.kill_at().is_none(),
            ended: known.instance.0
                - u64::from(known.is_running() && known.phase != Phase::ActiveExited && !known.is_undoing()),
            last_start: Seq(0),
            unplanned_starts: Vec::new(),
            own_starts: Vec::new(),
            planned: true,
        }
    }
}

impl JournalAudit {
    /// An audit that permits delays of up to `slack`.
    pub fn new(slack: Millis) -> Self {
        Self {
            graph: Arc::default(),
            programs: IdVec::default(),
            groups: IdVec::default(),
            falls: BTreeMap::new(),
            restarts: Vec::new(),
            shutdown: None,
            openings: Vec::new(),
            doomed: None,
            last: None,
            slack,
            violations: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// What is known of a program.
    pub fn program(&self, id: ProgramId) -> &ProgramTrace {
        &self.programs[id]
    }

    /// Begins a segment, or an epoch, with this state; it announces that `missed` events before it were never written.
    pub fn begin(&mut self, start: &State, missed: u64) {
        let position = Position { epoch: start.epoch, seq: start.seq };
        let goes_on = self.last.is_some_and(|last| last.epoch == start.epoch && position.seq <= last.seq);
        match self.last {
            Some(last) if position.seq > last.seq => {
                let gap = format!("events {} to {} are missing", last.seq.0 + 1, position.seq);
                let announced = position.seq.0 - last.seq.0 <= missed;
                if announced { &mut self.missing } else { &mut self.violations }.push(gap);
            }
            Some(last) if position.epoch < last.epoch || position.seq < last.seq => {
                self.violations.push(format!("I2: epoch {} begins at event {}", start.epoch, start.seq));
            }
            Some(_) | None => {}
        }
        let known = self.last.filter(|last| position.seq <= last.seq).map(|_| self.graph.names()).unwrap_or_default();
        let before = std::mem::replace(&mut self.graph, start.graph.clone());
        let seen = |(id, policy): (ProgramId, &Policy)| match known.get(&policy.name) {
            None => ProgramTrace::of(start, id),
            Some(old) => {
                let mut seen = self.programs[*old].clone();
                let started = &start.programs[id];
                if seen.running && !started.is_running() && !started.is_up_elsewhere() {
                    // It has ended with a reboot of the machine.
                    seen = ProgramTrace {
                        operator_down: seen.operator_down,
                        last_start: seen.last_start,
                        ..ProgramTrace::of(start, id)
                    };
                }
                if before.programs[*old].autostart != policy.autostart {
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
                self.violations.push(format!("I29: epoch {} has changed the level of {id:?}", start.epoch));
            }
        }
        self.groups = start.groups.clone();
        for (id, program) in start.programs.iter() {
            self.programs[id].is_in = program.membership != Membership::Stopped;
        }
        if *before != *start.graph {
            // The ids of another graph mean something else, so restarts that are still due are not checked.
            self.falls.clear();
            self.restarts.clear();
        }
        if !goes_on {
            for id in start.graph.programs.ids() {
                self.programs[id].owed = start.programs[id].start_pending && !start.programs[id].is_running();
            }
            self.shutdown = start.shutdown;
            self.doomed = self.doomed.filter(|_| start.essential_exit.is_some());
        }
        self.last = Some(position);
    }

    /// Takes the next event.
    pub fn observe(&mut self, envelope: &Envelope) {
        let last = self.last.map_or(Seq(0), |last| last.seq);
        if envelope.seq != Seq(last.0 + 1) {
            self.violations.push(format!("I1: event {} follows {last}", envelope.seq));
        }
        if envelope.cause.event().is_some_and(|cause| cause >= envelope.seq || cause < Seq(1)) {
            self.violations.push(format!("I18: event {} has the cause {}", envelope.seq, envelope.cause));
        }
        self.last = Some(Position { epoch: envelope.epoch, seq: envelope.seq });
        match &envelope.event {
            Event::Program(program, event) => {
                self.moves(*program, event, envelope);
                self.happens(*program, event, envelope);
            }
            Event::Remote(program, event) => self.happens_elsewhere(*program, event, envelope),
            Event::Group(id, event) => {
                if matches!(event, GroupEvent::LevelReached { .. }) {
                    self.arrives(*id, envelope.seq);
                }
                self.groups[*id].apply(envelope.seq, event);
            }
            Event::Dependency(dependency, DependencyEvent::RestartTriggered { down_event, before_stop }) => {
                let of = self.graph.dependencies[*dependency].dependent;
                if *before_stop {
                    self.leaves(of, envelope);
                }
                *self.falls.entry((*dependency, *down_event)).or_default() += 1;
                if self.programs[of].is_in {
                    self.restarts.push((of, envelope.seq));
                    self.seen(of).owed = true;
                }
                self.seen(of).own_starts.clear();
                self.seen(of).replaced = true;
                self.seen(of).planned = true;
            }
            Event::System(SystemEvent::DaemonStarted { .. }) => self.opens(envelope),
            Event::System(SystemEvent::ShutdownStarted) => {
                self.shutdown = Some(envelope.monotonic);
                self.check_essential(envelope.monotonic);
            }
            Event::System(SystemEvent::ShutdownCompleted { .. }) => self.shutdown_ends(envelope),
            Event::Dependency(..) | Event::System(_) => {}
        }
    }

    /// I23: how long the other programs have gone on after the end of an essential program.
    fn check_essential(&mut self, until: Instant) {
        if let Some((end, since)) = self.doomed
            && until > since.max(self.openings.last().copied().unwrap_or_default()) + self.slack
        {
            self.violations
                .push(format!("I23: an essential program ended with event {end}, and everything else went on"));
        }
    }

    /// Deadlines that passed while no daemon ran are moved to now.
    fn opens(&mut self, envelope: &Envelope) {
        let now = envelope.monotonic;
        self.openings.push(now);
        for id in self.graph.programs.ids() {
            if let Some((_, deadline)) = &mut self.programs[id].stopping {
                *deadline = (*deadline).max(now);
            }
        }
    }

    fn seen(&mut self, program: ProgramId) -> &mut ProgramTrace {
        &mut self.programs[program]
    }

    fn shutdown_ends(&mut self, envelope: &Envelope) {
        let longest = self.graph.programs.values().map(|policy| policy.killwait).max().unwrap_or_default();
        let bound = longest.max(self.graph.killwait);
        let begun = self.shutdown.unwrap_or_default();
        if envelope.monotonic > begun + bound + self.slack + Millis(5000) {
            self.violations.push(format!("I12: the shutdown took until {} ms", envelope.monotonic.as_millis()));
        }
        let spared = self
            .programs
            .iter()
            .filter(|(_, seen)| seen.running && seen.up_since.is_some_and(|since| since <= begun) && !seen.escalated)
            .filter(|(id, _)| self.graph.programs[*id].is_here());
        let spared: Vec<_> = spared.map(|(id, _)| id).collect();
        if !spared.is_empty() {
            self.violations.push(format!("I13: {spared:?} were left alive and never killed"));
        }
        let remains = self.programs.iter().filter(|(_, seen)| seen.exists && !seen.running && seen.stopping.is_none());
        let remains: Vec<_> = remains.map(|(id, _)| id).collect();
        if !remains.is_empty() {
            self.violations.push(format!("I13: the effects of {remains:?} were not undone"));
        }
    }
}
