//! How a daemon continues after the previous one: the state that it takes over, and the processes that it finds.
//!
//! There is one way to start, after a crash, a reboot, a change of the configuration or of the version. The state at
//! the end of the journal is carried over to the programs of the configuration; then the host looks for every instance
//! that had a process, and what it finds is committed before any other event. (Candea and Fox, *Crash-only software*,
//! 2003: a program that must be able to recover needs no other way to start.)

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    base::{
        ids::{DependencyId, EpochId, GroupId, ProgramId, Seq},
        time::{Instant, WallTime},
    },
    event::{Cause, Envelope, Event, ProgramEvent, StartKind, StopReason, SystemEvent},
    graph::{Graph, Policy, STOP},
    host::Recovered,
    journal::Journal,
    process::{ExitStatus, Outcome, SpawnStage},
    state::{DependencyState, GroupState, LevelSwitch, Membership, PendingStop, Phase, ProgramState, State, Tenancy},
};

/// The previous daemon, as it ended.
#[derive(Clone, Copy, Debug)]
pub struct PreviousEpoch<'a> {
    /// Its last state.
    pub state: &'a State,
    /// Whether the machine has not been booted since.
    pub same_boot: bool,
    /// Whether the state directory was copied from another gaggled.
    pub is_copy: bool,
    /// Whether a shutdown that was under way goes on: it does when the daemon was not started by an operator.
    pub resumes: bool,
}

/// A daemon that is about to start.
#[derive(Clone, Debug)]
pub struct EpochStart {
    /// How the previous daemon ended.
    pub start_kind: StartKind,
    /// The state before the first event. The programs in `running` have a process, or had one.
    pub state: State,
    /// The event with which the previous daemon handed over to this one.
    pub handover: Option<Seq>,
    now: Instant,
    wall: WallTime,
}

impl EpochStart {
    /// Carries the state of the previous daemon over to the programs of a configuration.
    ///
    /// A program that has a process and is no longer configured is kept, as unconfigured, until it has stopped.
    pub fn new(last: Option<PreviousEpoch<'_>>, graph: &Graph, epoch: EpochId, now: Instant, wall: WallTime) -> Self {
        let (start_kind, state) = match last {
            None => (StartKind::First, State { at: now, ..State::new(Arc::new(graph.clone()), epoch) }),
            Some(last) => {
                let start_kind = last.ended();
                (start_kind, carry_over(last, graph, start_kind, epoch, now))
            }
        };
        let handed_over = matches!(start_kind, StartKind::Handover(_));
        let handover = last.filter(|_| handed_over).and_then(|last| Some(last.state.handover?.1));
        Self { start_kind, state, handover, now, wall }
    }

    /// Commits the first events: the start of this daemon, the instances found of the previous daemon, and the starts,
    /// stops and restarts that a changed configuration requires.
    pub fn commit(
        self,
        version: &str,
        found: Vec<(ProgramId, Recovered)>,
        wishes: Vec<(Event, Cause)>,
    ) -> (Journal, Vec<Envelope>) {
        let Self { start_kind, state, handover, now, wall } = self;
        let count = |alive: bool| {
            // A program that was active without a process has not ended.
            let has_process = |program: &ProgramId| state.programs[*program].phase != Phase::ActiveExited;
            let counts = |(program, found): &&(ProgramId, Recovered)| match found {
                Recovered::Running { .. } => alive,
                Recovered::Exited { .. } | Recovered::NeverStarted { .. } => !alive && has_process(program),
            };
            let found = found.iter().filter(counts).count();
            u32::try_from(found).unwrap_or(u32::MAX)
        };
        let is_own = |policy: &&Policy| !policy.unconfigured && policy.is_here();
        let configured = state.graph.programs.values().filter(is_own).count();
        let opened = SystemEvent::DaemonStarted {
            version: version.to_owned(),
            programs: u32::try_from(configured).unwrap_or(u32::MAX),
            start_kind,
            adopted: count(true),
            exited_meanwhile: count(false),
        };
        let since = Seq(state.seq.0 + 1);
        let mut journal = Journal::resume(state);
        let begun = handover.map_or(Cause::DaemonStart, Cause::Event);
        let mut envelopes = vec![journal.commit_unchecked(now, wall, Event::System(opened), begun)];
        // What was found is a fact, and needs no admission.
        for (program, found) in found {
            let known = &journal.state().programs[program];
            for event in recovery_events(known, &journal.state().graph.programs[program], found, now) {
                let adopted = matches!(
                    event,
                    ProgramEvent::Adopted { .. }
                        | ProgramEvent::Stopping { .. }
                        | ProgramEvent::StartRequested
                        | ProgramEvent::StopRequested
                );
                let cause = if adopted { Cause::Event(since) } else { Cause::Kernel };
                envelopes.push(journal.commit_unchecked(now, wall, Event::Program(program, event), cause));
            }
        }
        for (event, cause) in wishes {
            envelopes.extend(journal.commit(now, wall, event, cause));
        }
        (journal, envelopes)
    }
}

impl PreviousEpoch<'_> {
    fn ended(self) -> StartKind {
        match (self.state.handover, self.state.unkillable) {
            _ if self.is_copy => StartKind::CopiedState,
            (_, Some(_)) => StartKind::CleanShutdown,
            _ if !self.same_boot => StartKind::Reboot,
            (Some((to, _)), None) => StartKind::Handover(to),
            (None, None) => StartKind::Crash,
        }
    }
}

fn carry_over(last: PreviousEpoch<'_>, graph: &Graph, start_kind: StartKind, epoch: EpochId, now: Instant) -> State {
    let PreviousEpoch { state: last, resumes, .. } = last;
    let graph = Arc::new(with_unconfigured(graph, last, start_kind));
    let mut next = State::new(graph.clone(), epoch);
    next.seq = last.seq;
    next.at = if start_kind.is_elsewhere() { now } else { now.max(last.at) };
    let before = last.graph.names();
    for (id, policy) in graph.programs.iter() {
        if let Some(old) = before.get(&policy.name) {
            let before = &last.graph.programs[*old];
            let group = |graph: &Graph, policy: &Policy| policy.group.map(|group| graph.groups[group].name.clone());
            let moved = group(&last.graph, before) != group(&graph, policy);
            let carried = carry_program(&last.programs[*old], before.autostart, policy, start_kind);
            next.programs[id] = if moved { regrouped(carried, policy) } else { carried };
            let carried = &mut next.programs[id];
            if policy.health.ready_on_start() && carried.phase == Phase::Up && policy.is_here() {
                // An earlier version did not record readiness, or the previous configuration had a readiness probe.
                carried.ready_since = carried.ready_since.or(carried.up_since);
            }
            // A pending stop gets its full timeout again, counted from this start.
            let since = next.at;
            next.programs[id].pending_stop = next.programs[id].pending_stop.map(|stop| PendingStop { since, ..stop });
        }
        if next.programs[id].is_running() {
            next.running.insert(id);
        }
    }
    let dependencies = dependencies_by_name(&last.graph);
    let name = |id: ProgramId| graph.programs[id].name.clone();
    for (id, dependency) in graph.dependencies.iter() {
        let old = dependencies.get(&(name(dependency.dependent), name(dependency.dependency)));
        let on = &next.programs[dependency.dependency];
        let satisfied = old
            .and_then(|old| last.dependencies[*old].satisfied)
            .filter(|_| on.satisfied_since(dependency.condition).is_some());
        // A dependency that did not propagate before does not propagate earlier events.
        let follows = old.filter(|old| last.graph.dependencies[**old].propagate && !resets_runtime_state(start_kind));
        let last_down_event = follows.map_or(on.down_event, |old| last.dependencies[*old].last_down_event);
        next.dependencies[id] = DependencyState { satisfied, last_down_event };
    }
    for id in graph.programs.ids() {
        let unsatisfied = graph
            .dependencies_of(id)
            .iter()
            .filter(|dependency| next.dependencies[**dependency].satisfied.is_none())
            .count();
        next.programs[id].unsatisfied = u32::try_from(unsatisfied).unwrap_or(u32::MAX);
    }
    for (id, group) in graph.groups.iter() {
        let old = last.graph.group(&group.name);
        // A group that ran here only, or on one node at a time, and does not any more begins anew.
        let is_same = |old: &GroupId| {
            let before = &last.graph.groups[*old];
            before.default_level == group.default_level && before.tenancy.is_some() == group.tenancy.is_some()
        };
        if let Some(old) = old.filter(is_same) {
            let failed = last.groups[old].failed_program.clone().filter(|_| !resets_runtime_state(start_kind));
            // The group checks again that its programs are as its level needs them.
            let standing = match last.groups[old].level_switch {
                LevelSwitch::Failed if failed.is_some() => LevelSwitch::Failed,
                LevelSwitch::Restarting if !resets_runtime_state(start_kind) => LevelSwitch::Restarting,
                LevelSwitch::Switching | LevelSwitch::Restarting | LevelSwitch::Settled | LevelSwitch::Failed => {
                    LevelSwitch::Switching
                }
            };
            let level = Some(last.groups[old].level.clone()).filter(|level| graph.has_level(id, level));
            let level = level.unwrap_or_else(|| group.default_level.clone());
            // After a reset only the level is kept: a group at `stop` does not run its clean-up programs again.
            let requested_by = if resets_runtime_state(start_kind) { Seq(0) } else { last.groups[old].requested_by };
            next.groups[id] = GroupState {
                level,
                requested_by,
                level_switch: standing,
                failed_program: failed,
                stopping: BTreeSet::new(),
                // What was held before the machine or gaggled was switched off may be another's by now.
                tenancy: if resets_runtime_state(start_kind) {
                    group.tenancy.as_ref().map(|_| Tenancy::AWAY)
                } else {
                    last.groups[old].tenancy.clone()
                },
            };
            if matches!(next.groups[id].tenancy, Some(Tenancy::Away { .. } | Tenancy::Claiming { .. })) {
                next.groups[id].level = STOP.into();
            }
        }
        for member in &group.members {
            next.groups[id].update_member(*member, &next.programs[*member]);
        }
    }
    next.essential_exit = last.essential_exit.filter(|_| resumes && !resets_runtime_state(start_kind));
    // A shutdown that goes on gets its full time again, counted from this start.
    next.shutdown = last.shutdown.filter(|_| resumes && !resets_runtime_state(start_kind)).map(|_| next.at);
    next
}

/// The graph with the programs that have a process and are no longer configured.
fn with_unconfigured(graph: &Graph, last: &State, start_kind: StartKind) -> Graph {
    let mut graph = graph.clone();
    let known = graph.names();
    for (id, policy) in last.graph.programs.iter() {
        let lives_on = last.programs[id].is_running() && !start_kind.is_elsewhere();
        if lives_on && !known.contains_key(&policy.name) {
            graph.add_program(Policy { autostart: false, unconfigured: true, group: None, ..policy.clone() });
        }
    }
    graph
}

/// Whether everything is reset except the requests of operators and the counters.
fn resets_runtime_state(start_kind: StartKind) -> bool {
    match start_kind {
        StartKind::First | StartKind::CleanShutdown | StartKind::Reboot | StartKind::CopiedState => true,
        StartKind::Crash | StartKind::Handover(_) => false,
    }
}

/// A program that belongs to another group now, or to none.
fn regrouped(program: ProgramState, policy: &Policy) -> ProgramState {
    let place = match policy.group {
        None => Membership::Ungrouped,
        Some(_) if program.is_running() => Membership::Admitted(Seq(0)),
        Some(_) => Membership::Stopped,
    };
    let due = match place {
        Membership::Ungrouped => program.start_pending || program.membership == Membership::Stopped && policy.autostart,
        Membership::Stopped => false,
        Membership::Admitted(_) => program.start_pending,
    };
    ProgramState { membership: place, start_pending: due, ..program }
}

fn carry_program(old: &ProgramState, was_enabled: bool, policy: &Policy, start_kind: StartKind) -> ProgramState {
    let lives_on = old.is_running() && !start_kind.is_elsewhere();
    if lives_on || !resets_runtime_state(start_kind) {
        return old.clone();
    }
    // A request of an operator is kept; otherwise `autostart` of the new configuration decides.
    let wished = old.operator_down == was_enabled;
    let operator_down = if wished || !policy.is_here() { old.operator_down } else { !policy.autostart };
    let had_process = old.is_running() && old.phase != Phase::ActiveExited;
    let lost = had_process.then_some(Outcome::Exited(ExitStatus::Unknown));
    ProgramState {
        phase: Phase::Down,
        process: None,
        up_since: None,
        ready_since: None,
        phase_since: Instant::default(),
        phase_event: Seq(0),
        membership: if policy.group.is_some() { Membership::Stopped } else { Membership::Ungrouped },
        start_pending: !operator_down && policy.group.is_none() && policy.is_here(),
        operator_down,
        pending_stop: None,
        stop: None,
        down_event: None,
        outcome: lost.or(old.outcome),
        succeeded: old.succeeded && !had_process,
        attempts: 0,
        not_before: None,
        recent_starts: Vec::new(),
        start_limit_hit: false,
        // The event with which an operator stopped it is kept while it is down.
        last_seq: if operator_down && old.operator_down { old.last_seq } else { Seq(0) },
        ..old.clone()
    }
}

fn dependencies_by_name(graph: &Graph) -> BTreeMap<(Arc<str>, Arc<str>), DependencyId> {
    let name = |id: ProgramId| graph.programs[id].name.clone();
    graph
        .dependencies
        .iter()
        .map(|(id, dependency)| ((name(dependency.dependent), name(dependency.dependency)), id))
        .collect()
}

/// The events that record what was found of an instance, given the state of its program.
fn recovery_events(known: &ProgramState, policy: &Policy, found: Recovered, now: Instant) -> Vec<ProgramEvent> {
    let mut events = Vec::new();
    let unwritten = found.instance() > known.instance;
    if let Recovered::Running { instance, pid, start_time } = found
        && known.phase == Phase::ActiveExited
        && !unwritten
    {
        // Its stop command runs already. If the request for that was never written, the program is started again.
        let reason = known.pending_stop.map_or(StopReason::Operator, |stop| stop.reason);
        let kill_at = now + policy.killwait;
        events.extend([
            ProgramEvent::Stopping { instance, reason, kill_at },
            ProgramEvent::Adopted { instance, pid, start_time },
        ]);
        events.extend(known.pending_stop.is_none().then_some(ProgramEvent::StartRequested));
        return events;
    }
    // An active program without a process; its stop command is run again if it is not known to have ended.
    let remains =
        known.phase == Phase::ActiveExited || known.is_undoing() && known.process.is_none() && !found.is_running();
    if !unwritten && (remains || !known.is_running()) {
        return events;
    }
    if unwritten && known.is_running() {
        // All that is known of the run before is that it has ended.
        let (instance, status) = (known.instance, ExitStatus::Unknown);
        events.push(ProgramEvent::Exited { instance, status, orphans: 0, remains: false });
    }
    if unwritten {
        events.push(ProgramEvent::Starting { instance: found.instance() });
    }
    match found {
        Recovered::Running { instance, pid, start_time } => {
            events.push(ProgramEvent::Adopted { instance, pid, start_time });
            if unwritten && known.operator_down {
                // The request that started it was not written either, so the last written one applies.
                events.push(ProgramEvent::StopRequested);
            }
        }
        Recovered::Exited { instance, status, orphans } => {
            let by_itself = unwritten || known.stop_event.is_none() && known.phase != Phase::Stopping;
            let remains = by_itself && policy.remains(status, orphans);
            events.push(ProgramEvent::Exited { instance, status, orphans, remains });
        }
        Recovered::NeverStarted { instance } => {
            let (stage, errno) = (SpawnStage::Fork, SpawnStage::CANCELLED);
            events.push(ProgramEvent::SpawnFailed { instance, stage, errno });
        }
    }
    events
}
