//! The state of everything, as a fold of the events and nothing else.
//!
//! [`State::apply`] is the only fold there is: the daemon, the tools that follow it, and the simulator call it. What a
//! program's state is changes only with an event that concerns that program, so a follower that looks at one program
//! needs only that program's events.
//!
//! ```text
//!            Starting             Started             Stopping
//!     Down -----------> Starting ---------> Up --------------------> Stopping
//!      ^                   | SpawnFailed     | Exited                   | Exited
//!      +-------------------+-----------------+--------------------------+
//! ```
//!
//! A program whose end leaves something that stands, a mounted disk for instance, goes from Up to Done instead, and from
//! there by Stopping, while its stop command undoes that, to Down.

use std::{collections::BTreeSet, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    event::{DependencyEvent, Envelope, Event, GroupEvent, Handover, ProgramEvent, StopReason, SystemEvent},
    graph::{Backoff, Dependency, Graph, Group, Level, Policy, RESTART, STOP, Until},
    health::Ailment,
    host::{ExecStage, ExitStatus, StartTime},
    ids::{EdgeId, EpochId, GroupId, InstanceId, ProgramId, Seq, Table},
    time::{Instant, Millis},
};

/// Where an instance is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// There is none.
    #[default]
    Down,
    /// It was asked for and has not yet been reported.
    Starting,
    /// Its command runs.
    Up,
    /// It was asked to end, or what it has done is being undone.
    Stopping,
    /// It has ended well, and what it has done stands.
    Done,
}

/// Whether its group lets a program run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// It has no group.
    #[default]
    Free,
    /// Its group is at another level, or has not come to it yet.
    Out,
    /// It was let in, by this event or because of it.
    In(Seq),
}

/// How the last run ended, or why it never was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ran and ended.
    Exited(ExitStatus),
    /// It could not be started.
    SpawnFailed {
        /// The step that failed.
        stage: ExecStage,
        /// The error number.
        errno: i32,
    },
}

/// That an instance is to be stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leaving {
    /// Why.
    pub reason: StopReason,
    /// Whether what it depends on is still up, so that its own dependents can go first.
    pub planned: bool,
    /// Since when that is known.
    pub since: Instant,
}

/// The state of one program.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramState {
    /// Where its instance is in its life.
    pub phase: Phase,
    /// The last run, or the one that is; 0 before the first.
    pub instance: InstanceId,
    /// The process id while there is a process.
    pub pid: Option<i32>,
    /// When that process began.
    pub birth: StartTime,
    /// When the instance came up.
    pub up_since: Option<Instant>,
    /// When it was ready, if it is.
    #[serde(default)]
    pub ready_since: Option<Instant>,
    /// Whether the process is the daemon that the command has left.
    #[serde(default)]
    pub daemonized: bool,
    /// What is wrong with the instance, or was with the last.
    #[serde(default)]
    pub ailment: Option<Ailment>,
    /// When the phase last changed.
    pub changed_at: Instant,
    /// The event that changed it.
    pub changed_by: Seq,
    /// Whether its group lets it run.
    #[serde(default)]
    pub place: Place,
    /// Whether a start is owed: at boot, after an end that is to be followed by a start, or because somebody asked.
    pub due: bool,
    /// Whether an operator, or the configuration, wants it down. Overrides everything else.
    pub operator_down: bool,
    /// That the instance which runs is to be stopped, from the moment that is known.
    pub leaving: Option<Leaving>,
    /// When a stopping instance will be killed.
    pub deadline: Option<Instant>,
    /// Whether the process, while it is stopping, is that of its stop command.
    #[serde(default)]
    pub undoing: bool,
    /// Whether gaggled signalled the last instance to end.
    pub signalled: bool,
    /// The event that last took it down, or decided to: dependents that propagate restart once for each.
    pub fall: Option<Seq>,
    /// How the last run ended.
    pub outcome: Option<Outcome>,
    /// Whether that was a success.
    #[serde(default)]
    pub succeeded: bool,
    /// The number of starts since the last that lasted.
    pub attempts: u32,
    /// Not to be started before this moment.
    pub not_before: Option<Instant>,
    /// When it was started by itself, as far as its limit looks back.
    #[serde(default)]
    pub recent: Vec<Instant>,
    /// Whether it has ended too often, and is left down until somebody asks it up.
    #[serde(default)]
    pub given_up: bool,
    /// How often it has been started again.
    pub restarts: u64,
    /// The number of its dependencies that are not satisfied.
    pub unmet: u32,
    /// The original's counter: 1, and 1 more for each start, end, and wish of an operator.
    pub state_sequence: u64,
    /// The last event that concerned it.
    pub last_seq: Seq,
}

/// The state of one dependency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeState {
    /// The run of `on` that satisfies it.
    pub satisfied: Option<InstanceId>,
    /// The last fall of `on` that it answered with a restart.
    pub last_fall: Option<Seq>,
}

/// Where a group is on its way to its level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// What does not run at its level goes, and then what does run there comes, one after the other.
    #[default]
    Moving,
    /// It is restarted: everything goes and comes again, or what its programs have for that is run.
    Restarting,
    /// It is there.
    Reached,
    /// It has failed on the way.
    Failed,
}

/// The state of one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// The level it is told to be at.
    pub level: Level,
    /// The event that has told it so; 0 if it was the configuration.
    pub told: Seq,
    /// Where it is on its way there.
    pub standing: Standing,
    /// The program because of which it has failed since somebody last told it anything.
    pub failed: Option<Arc<str>>,
    /// Its programs that have to leave and are still there.
    #[serde(default)]
    pub going: BTreeSet<ProgramId>,
}

/// The state of everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The programs and dependencies this is the state of.
    pub graph: Arc<Graph>,
    /// The life of the daemon.
    pub epoch: EpochId,
    /// The last event that was applied.
    pub seq: Seq,
    /// When that was.
    pub at: Instant,
    /// The state of each program.
    pub programs: Table<ProgramId, ProgramState>,
    /// The state of each dependency.
    pub edges: Table<EdgeId, EdgeState>,
    /// The state of each group.
    #[serde(default)]
    pub groups: Table<GroupId, GroupState>,
    /// When the shutdown began.
    pub shutdown: Option<Instant>,
    /// Programs of which there is something to stop, or is about to be.
    pub running: BTreeSet<ProgramId>,
    /// How many programs outlived the shutdown, once it is complete.
    pub survivors: Option<u32>,
    /// How an essential program has ended, with which everything ends.
    pub verdict: Option<ExitStatus>,
    /// That this life of the daemon gives everything to the next, and the event that says so.
    pub handover: Option<(Handover, Seq)>,
}

impl ProgramState {
    /// The state of a program that was never started.
    pub fn new(policy: &Policy, dependencies: usize) -> Self {
        Self {
            phase: Phase::Down,
            instance: InstanceId(0),
            pid: None,
            birth: StartTime::default(),
            up_since: None,
            ready_since: None,
            daemonized: false,
            ailment: None,
            changed_at: Instant::default(),
            changed_by: Seq(0),
            place: if policy.group.is_some() { Place::Out } else { Place::Free },
            due: policy.enabled && policy.group.is_none(),
            operator_down: !policy.enabled,
            leaving: None,
            deadline: None,
            undoing: false,
            signalled: false,
            fall: None,
            outcome: None,
            succeeded: false,
            attempts: 0,
            not_before: None,
            recent: Vec::new(),
            given_up: false,
            restarts: 0,
            unmet: u32::try_from(dependencies).unwrap_or(u32::MAX),
            state_sequence: 1,
            last_seq: Seq(0),
        }
    }

    /// Whether there is something to stop: a process, one on its way, or what one has done.
    pub fn is_running(&self) -> bool {
        self.phase != Phase::Down
    }

    /// Whether a dependency may count on it: it is up and nobody has decided to stop it.
    pub fn is_steady(&self) -> bool {
        self.phase == Phase::Up && self.leaving.is_none()
    }

    /// Since when a dependency may count on it, if it may.
    pub fn counts_since(&self, until: Until) -> Option<Instant> {
        match until {
            Until::Started => self.up_since.filter(|_| self.is_steady()),
            Until::Ready => self.ready_since.filter(|_| self.is_steady()),
            Until::Completed => self.is_completed().then_some(self.changed_at),
        }
    }

    /// Whether it is up, ready, and nobody has decided to stop it.
    pub fn is_ready(&self) -> bool {
        self.is_steady() && self.ready_since.is_some()
    }

    /// Whether it has run to its end, well, and is not to run again. What was told to end has not run to its end.
    pub fn is_completed(&self) -> bool {
        match self.phase {
            Phase::Done => self.leaving.is_none(),
            Phase::Down => !self.due && self.succeeded && !self.signalled && self.place != Place::Out,
            Phase::Starting | Phase::Up | Phase::Stopping => false,
        }
    }

    /// Whether it has run to its end, not well, and is not to run again.
    pub fn has_failed(&self) -> bool {
        self.phase == Phase::Down && !self.due && self.outcome.is_some() && !self.is_completed()
    }

    /// How it ends with this event, if nobody has wanted that.
    pub fn verdict(&self, event: &ProgramEvent) -> Option<ExitStatus> {
        if let ProgramEvent::Exited { status, stands, .. } = event {
            let unhealthy = self.leaving.is_some_and(|leaving| leaving.reason == StopReason::Unhealthy);
            let wanted = !self.operator_down && !self.due && self.place != Place::Out;
            let by_itself = self.leaving.is_none() || unhealthy && wanted;
            return (by_itself && !stands).then_some(*status);
        }
        let ProgramEvent::SpawnFailed { stage, errno, .. } = event else { return None };
        (!stage.is_transient(*errno)).then_some(ExitStatus::Unknown)
    }

    /// Folds an event of the program itself.
    pub fn apply(&mut self, policy: &Policy, epoch: EpochId, seq: Seq, at: Instant, event: &ProgramEvent) {
        let before = self.phase;
        match event {
            ProgramEvent::Starting { instance } => self.starting(*instance, policy, at),
            ProgramEvent::Started { pid, birth, .. } if self.phase == Phase::Starting => {
                self.started(*pid, *birth, policy, at);
            }
            ProgramEvent::Adopted { pid, birth, .. } if self.phase == Phase::Starting => {
                if self.place == Place::Out && self.leaving.is_none() {
                    // That it was let in was not written.
                    self.place = Place::In(seq);
                }
                self.started(*pid, *birth, policy, at);
            }
            ProgramEvent::Started { pid, birth, .. } | ProgramEvent::Adopted { pid, birth, .. } => {
                self.pid = Some(*pid);
                self.birth = *birth;
            }
            ProgramEvent::Daemonized { pid, birth, .. } => {
                (self.pid, self.birth, self.daemonized) = (Some(*pid), *birth, true);
                if policy.care.readiness.is_none() {
                    self.ready_since = self.ready_since.or(Some(at));
                }
            }
            ProgramEvent::Ready { .. } => self.ready_since = Some(at),
            ProgramEvent::Unhealthy { ailment, .. } => {
                self.ailment = Some(*ailment);
                self.leaving = Some(Leaving { reason: StopReason::Unhealthy, planned: false, since: at });
            }
            ProgramEvent::SpawnFailed { stage, errno, .. } if self.undoing => {
                self.outcome = Some(Outcome::SpawnFailed { stage: *stage, errno: *errno });
                self.down();
                self.state_sequence += 1;
            }
            ProgramEvent::SpawnFailed { stage, errno, .. } => {
                self.outcome = Some(Outcome::SpawnFailed { stage: *stage, errno: *errno });
                self.succeeded = false;
                self.down();
                self.due |= policy.runs_again(false) || stage.is_transient(*errno);
                self.due &= self.place != Place::Out;
                self.state_sequence += 1;
                self.not_before =
                    Some(at + policy.backoff.space(self.attempts.max(1), jitter(epoch, policy, self.instance)));
                self.give_up(policy, at);
            }
            ProgramEvent::Stopping { reason, deadline, .. } => {
                self.undoing = self.phase == Phase::Done;
                self.phase = Phase::Stopping;
                self.leaving = self.leaving.or(Some(Leaving { reason: *reason, planned: false, since: at }));
                self.deadline = Some(*deadline);
                self.signalled = true;
            }
            ProgramEvent::StopEscalated { .. } => self.deadline = None,
            ProgramEvent::Exited { stands: true, status, .. } => {
                self.outcome = Some(Outcome::Exited(*status));
                self.succeeded = true;
                if self.leaving.is_none_or(|leaving| !leaving.planned) {
                    self.fall = Some(seq);
                }
                self.phase = Phase::Done;
                self.pid = None;
                self.ready_since = None;
                self.state_sequence += 1;
            }
            ProgramEvent::Exited { status, .. } => self.exited(*status, policy, epoch, seq, at),
            ProgramEvent::LevelEntered { told } => {
                self.place = Place::In(*told);
                self.new_chance();
                self.due = !self.operator_down;
                self.leave(StopReason::Level, seq, at);
                self.state_sequence += 1;
            }
            ProgramEvent::LevelLeft { .. } => {
                self.place = Place::Out;
                self.due = false;
                self.leave(StopReason::Level, seq, at);
                self.state_sequence += 1;
            }
            ProgramEvent::Signalled { signal, .. } => self.signalled |= signal.asks_to_end(),
            ProgramEvent::OperatorStopped => {
                self.operator_down = true;
                self.due = false;
                self.leave(StopReason::Operator, seq, at);
                self.state_sequence += 1;
            }
            ProgramEvent::OperatorStarted => {
                self.wanted_again(seq);
                self.due |= self.leaving.is_some() || !self.is_running();
                self.state_sequence += 1;
            }
            ProgramEvent::OperatorRestarted => {
                self.wanted_again(seq);
                self.due = true;
                self.leave(StopReason::Operator, seq, at);
                self.state_sequence += 1;
            }
        }
        if self.phase != before {
            self.changed_at = at;
            self.changed_by = seq;
        }
        self.last_seq = seq;
    }

    /// Folds an event of one of the dependencies that the program has.
    pub fn apply_dependency(&mut self, seq: Seq, at: Instant, event: &DependencyEvent) {
        match event {
            DependencyEvent::Satisfied { .. } => self.unmet = self.unmet.saturating_sub(1),
            DependencyEvent::Broken => self.unmet = self.unmet.saturating_add(1),
            DependencyEvent::RestartDue { planned, .. } => {
                self.due = self.place != Place::Out;
                self.not_before = None;
                self.recent.clear();
                if *planned {
                    self.leave(StopReason::Propagated, seq, at);
                } else if self.is_running() && self.leaving.is_none() {
                    self.leaving = Some(Leaving { reason: StopReason::Propagated, planned: false, since: at });
                }
            }
        }
        self.last_seq = seq;
    }

    fn starting(&mut self, instance: InstanceId, policy: &Policy, at: Instant) {
        if self.up_since.is_some_and(|since| self.changed_at.since(since) >= policy.backoff.reset) {
            self.attempts = 0;
        }
        if let Some(limit) = policy.limit {
            self.recent.retain(|start| *start + limit.within > at);
            self.recent.push(at);
        }
        self.phase = Phase::Starting;
        self.restarts += u64::from(instance > InstanceId(1));
        self.instance = instance;
        self.attempts = self.attempts.saturating_add(1);
        self.up_since = None;
        self.ailment = None;
        self.due = false;
        self.leaving = None;
        self.signalled = false;
        self.not_before = None;
    }

    fn started(&mut self, pid: i32, birth: StartTime, policy: &Policy, at: Instant) {
        self.phase = Phase::Up;
        self.pid = Some(pid);
        self.birth = birth;
        self.up_since = Some(at);
        self.ready_since = policy.care.is_ready_at_once().then_some(at);
        self.state_sequence += 1;
    }

    fn exited(&mut self, status: ExitStatus, policy: &Policy, epoch: EpochId, seq: Seq, at: Instant) {
        let began = self.up_since.unwrap_or(at);
        let unhealthy = self.leaving.is_some_and(|leaving| leaving.reason == StopReason::Unhealthy);
        let planned = self.leaving.is_some() && !unhealthy;
        let wanted = !self.operator_down && self.place != Place::Out;
        if self.leaving.is_none_or(|leaving| !leaving.planned) {
            self.fall = Some(seq);
        }
        self.outcome = Some(Outcome::Exited(status));
        self.succeeded = policy.succeeds(status);
        self.down();
        self.due = wanted && (self.due || policy.runs_again(self.succeeded && !unhealthy));
        self.state_sequence += 1;
        if planned {
            self.attempts = 0;
            self.recent.clear();
        } else if at.since(began) < policy.backoff.reset {
            self.not_before = policy.backoff.next_start(began, at, self.attempts, jitter(epoch, policy, self.instance));
        }
        self.give_up(policy, at);
    }

    /// Looks whether it has ended too often.
    fn give_up(&mut self, policy: &Policy, at: Instant) {
        let Some(limit) = policy.limit.filter(|_| self.due) else { return };
        let recent = self.recent.iter().filter(|start| **start + limit.within > at).count();
        if recent < usize::try_from(limit.starts).unwrap_or(usize::MAX) {
            return;
        }
        self.recent.clear();
        match limit.retry {
            Some(span) => self.not_before = self.not_before.max(Some(at + span)),
            None => self.given_up = true,
        }
    }

    fn down(&mut self) {
        self.phase = Phase::Down;
        self.pid = None;
        self.ready_since = None;
        self.daemonized = false;
        self.leaving = None;
        self.deadline = None;
        self.undoing = false;
    }

    fn wanted_again(&mut self, seq: Seq) {
        self.operator_down = false;
        if self.place == Place::Out {
            self.place = Place::In(seq);
        }
        self.new_chance();
    }

    fn new_chance(&mut self) {
        self.attempts = 0;
        self.not_before = None;
        self.recent.clear();
        self.given_up = false;
    }

    /// It is going to be stopped, which is a fall already: whoever follows it is stopped before it.
    fn leave(&mut self, reason: StopReason, seq: Seq, at: Instant) {
        if self.is_running() && self.leaving.is_none() {
            self.leaving = Some(Leaving { reason, planned: true, since: at });
            if self.phase != Phase::Done {
                self.fall = Some(seq);
            }
        }
    }
}

impl GroupState {
    /// The state of a group that nobody has told anything.
    pub fn new(group: &Group) -> Self {
        Self {
            level: group.home.clone(),
            told: Seq(0),
            standing: Standing::Moving,
            failed: None,
            going: BTreeSet::new(),
        }
    }

    /// Folds an event of the group itself.
    pub fn apply(&mut self, seq: Seq, event: &GroupEvent) {
        match event {
            GroupEvent::Told { level } => {
                self.level = level.clone();
                self.move_anew(seq, Standing::Moving);
                self.failed = None;
            }
            GroupEvent::Restarted => {
                self.move_anew(seq, Standing::Restarting);
                self.failed = None;
            }
            GroupEvent::Reached { .. } => self.standing = Standing::Reached,
            GroupEvent::Failed { by, .. } => {
                self.standing = Standing::Failed;
                self.failed = Some(by.clone());
            }
            GroupEvent::FellBack { level } => {
                self.level = level.clone();
                self.move_anew(seq, Standing::Moving);
            }
        }
    }

    fn move_anew(&mut self, told: Seq, standing: Standing) {
        self.told = told;
        self.standing = standing;
    }

    /// Looks whether one of its programs has to leave and is still there.
    pub fn look_at(&mut self, id: ProgramId, program: &ProgramState) {
        if program.place == Place::Out && program.is_running() {
            self.going.insert(id);
        } else {
            self.going.remove(&id);
        }
    }

    /// Whether a program runs at its level. One that comes up at `stop`, and that nobody has told anything, has nothing to
    /// clean up.
    pub fn runs(&self, program: &Policy) -> bool {
        program.runs_at(&self.level) && (self.told > Seq(0) || *self.level != *STOP)
    }

    /// Whether one of its programs has a place in it now: at its level, or for a restart.
    pub fn has(&self, group: &Group, program: &Policy) -> bool {
        self.runs(program) || self.runs_restart(group) && program.names(RESTART)
    }

    /// Whether its programs have something to run for a restart, and that is what they do.
    pub fn runs_restart(&self, group: &Group) -> bool {
        self.standing == Standing::Restarting && group.has_restart
    }

    /// Whether it is on its way.
    pub fn moves(&self) -> bool {
        matches!(self.standing, Standing::Moving | Standing::Restarting)
    }
}

impl Backoff {
    /// The space after so many attempts: none after the first, then doubling, stretched by up to a tenth either way.
    fn space(self, attempts: u32, jitter: i64) -> Millis {
        let doublings = attempts.saturating_sub(1).min(40);
        let plain = self.initial.0.saturating_mul(1 << doublings).min(self.max.0);
        let stretch = i64::try_from(plain / 10).unwrap_or(i64::MAX).saturating_mul(jitter) / 1000;
        Millis(plain.saturating_add_signed(stretch))
    }

    fn next_start(self, began: Instant, now: Instant, attempts: u32, jitter: i64) -> Option<Instant> {
        let spaced = match attempts {
            0 | 1 => began,
            more => began + self.space(more - 1, jitter),
        };
        (spaced > now).then_some(spaced)
    }
}

/// A number from -1000 to 1000 that depends only on the epoch, the program and its run.
fn jitter(epoch: EpochId, policy: &Policy, instance: InstanceId) -> i64 {
    let mut hash = epoch.0 ^ instance.0.rotate_left(32);
    for byte in policy.name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    i64::try_from((hash ^ (hash >> 31)) % 2001).unwrap_or(0) - 1000
}

impl State {
    /// The state before the first event of an epoch.
    pub fn new(graph: Arc<Graph>, epoch: EpochId) -> Self {
        let programs =
            graph.programs.iter().map(|(id, policy)| ProgramState::new(policy, graph.edges_of(id).len())).collect();
        let edges = graph.edges.values().map(|_| EdgeState::default()).collect();
        let groups = graph.groups.values().map(GroupState::new).collect();
        Self {
            graph,
            epoch,
            seq: Seq(0),
            at: Instant::default(),
            programs,
            edges,
            groups,
            shutdown: None,
            running: BTreeSet::new(),
            survivors: None,
            verdict: None,
            handover: None,
        }
    }

    /// Folds the next event.
    pub fn apply(&mut self, envelope: &Envelope) {
        self.seq = envelope.seq;
        self.at = envelope.at;
        match &envelope.event {
            Event::Program(id, event) => {
                let program = &mut self.programs[*id];
                if self.shutdown.is_none() && self.graph.programs[*id].essential && self.verdict.is_none() {
                    self.verdict = program.verdict(event);
                }
                program.apply(&self.graph.programs[*id], self.epoch, envelope.seq, envelope.at, event);
                if let Some(group) = self.graph.programs[*id].group {
                    self.groups[group].look_at(*id, program);
                }
                match event.makes_running() {
                    Some(true) => drop(self.running.insert(*id)),
                    Some(false) => drop(self.running.remove(id)),
                    None => {}
                }
            }
            Event::Dependency(id, event) => self.apply_dependency(*id, event, envelope),
            Event::Group(id, event) => self.groups[*id].apply(envelope.seq, event),
            Event::System(SystemEvent::ShutdownBegun) => self.shutdown = Some(envelope.at),
            Event::System(SystemEvent::ShutdownCompleted { survivors }) => self.survivors = Some(*survivors),
            Event::System(SystemEvent::HandoverBegun { to }) => self.handover = Some((*to, envelope.seq)),
            Event::System(
                SystemEvent::EpochOpened { .. }
                | SystemEvent::JournalDegraded { .. }
                | SystemEvent::JournalRestored { .. }
                | SystemEvent::JournalDamaged { .. }
                | SystemEvent::CommandRefused { .. }
                | SystemEvent::ActorPanicked { .. },
            ) => {}
        }
    }

    fn apply_dependency(&mut self, id: EdgeId, event: &DependencyEvent, envelope: &Envelope) {
        let edge = &mut self.edges[id];
        match event {
            DependencyEvent::Satisfied { instance } => edge.satisfied = Some(*instance),
            DependencyEvent::Broken => edge.satisfied = None,
            DependencyEvent::RestartDue { fall, .. } => edge.last_fall = Some(*fall),
        }
        self.programs[self.graph.edges[id].of].apply_dependency(envelope.seq, envelope.at, event);
    }

    /// A dependency with its state.
    pub fn edge(&self, id: EdgeId) -> (&Dependency, &EdgeState) {
        (&self.graph.edges[id], &self.edges[id])
    }

    /// When a dependency is, or will be, open; `None` while `on` cannot be counted on.
    pub fn opens_at(&self, id: EdgeId) -> Option<Instant> {
        let edge = &self.graph.edges[id];
        Some(self.programs[edge.on].counts_since(edge.until)? + edge.delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts_in_first_minute(backoff: Backoff, lifetime: Millis) -> (u32, Millis) {
        let policy = Policy { backoff, ..Policy::new("a") };
        let mut program = ProgramState::new(&policy, 0);
        let (mut now, mut starts, mut space) = (Instant::default(), 0, Millis(0));
        for run in 1..200 {
            let began = now;
            let instance = InstanceId(run);
            let mut apply = |at, event| program.apply(&policy, EpochId(7), Seq(run), at, &event);
            apply(now, ProgramEvent::Starting { instance });
            apply(now, ProgramEvent::Started { instance, pid: 1, birth: StartTime(1) });
            now = now + lifetime;
            apply(now, ProgramEvent::Exited { instance, status: ExitStatus::Code(1), left_behind: 0, stands: false });
            starts += u32::from(began < Instant::default() + Millis(60_000));
            now = program.not_before.unwrap_or(now);
            space = began.until(now);
        }
        (starts, space)
    }

    #[test]
    fn a_crash_loop_is_bounded_and_a_settled_program_is_not_held_back() {
        let (starts, space) = starts_in_first_minute(Backoff::default(), Millis(0));
        assert!(starts <= 20, "{starts} starts in the first minute");
        assert!((54_000..=66_000).contains(&space.0), "space in the long run: {space}");

        let (_, space) = starts_in_first_minute(Backoff::default(), Millis(60_000));
        assert_eq!(space, Millis(60_000), "an instance that stayed up is followed at once");

        let free = Backoff { max: Millis(0), ..Backoff::default() };
        assert_eq!(starts_in_first_minute(free, Millis(1)).1, Millis(1));
    }

    #[test]
    fn jitter_stays_within_a_tenth_and_differs_between_programs() {
        let backoff = Backoff::default();
        let seen: BTreeSet<u64> =
            (1..100).map(|run| backoff.space(20, jitter(EpochId(1), &Policy::new("web"), InstanceId(run))).0).collect();
        assert!(seen.len() > 50);
        assert!(seen.iter().all(|space| (54_000..=66_000).contains(space)));
    }
}
