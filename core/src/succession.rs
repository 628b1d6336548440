//! How one life of the daemon follows another: what it takes over, and what it finds.
//!
//! There is one way to begin, whatever went before: a crash, a reboot, a changed configuration, another version. The
//! state that the journal tells is carried over to the programs of the configuration; then the host looks what has
//! become of every instance that had a process, and that is committed before anything else can happen. (Candea and Fox,
//! *Crash-only software*, 2003: a program that must be able to recover needs no other way to start.)

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{
    event::{Beginning, Cause, Envelope, Event, ProgramEvent, StopReason, SystemEvent},
    graph::{Graph, Policy},
    host::{ExecStage, ExitStatus, Found, StartTime},
    ids::{EdgeId, EpochId, ProgramId, Seq},
    journal::Journal,
    state::{EdgeState, GroupState, Leaving, Outcome, Phase, Place, ProgramState, Standing, State},
    time::{Instant, WallTime},
};

/// The end of the life before.
#[derive(Clone, Copy, Debug)]
pub struct Last<'a> {
    /// Its last state.
    pub state: &'a State,
    /// Whether the machine has not been booted since.
    pub same_boot: bool,
    /// Whether it is the life of another gaggled, whose journal has been copied.
    pub is_copy: bool,
    /// Whether a shutdown that was under way goes on: it does when nobody has started gaggled anew.
    pub resumes: bool,
}

/// A life of the daemon that is about to begin.
#[derive(Clone, Debug)]
pub struct Opening {
    /// What went before.
    pub beginning: Beginning,
    /// The state before the first event. The programs in `running` have a process, or had one.
    pub state: State,
    /// The event with which the life before gave everything to this one.
    pub handover: Option<Seq>,
    now: Instant,
    wall: WallTime,
}

impl Opening {
    /// Carries the state of the life before over to the programs of a configuration.
    ///
    /// A program that has a process and is no longer configured is kept, as retired, until it has stopped.
    pub fn new(last: Option<Last<'_>>, graph: &Graph, epoch: EpochId, now: Instant, wall: WallTime) -> Self {
        let (beginning, state) = match last {
            None => (Beginning::First, State { at: now, ..State::new(Arc::new(graph.clone()), epoch) }),
            Some(last) => {
                let beginning = last.ended();
                (beginning, succeed(last, graph, beginning, epoch, now))
            }
        };
        let handed_over = matches!(beginning, Beginning::Handover(_));
        let handover = last.filter(|_| handed_over).and_then(|last| Some(last.state.handover?.1));
        Self { beginning, state, handover, now, wall }
    }

    /// Commits the first events: that this life began, what was found of the instances of the life before, and what a
    /// changed configuration wants of programs that are there already.
    pub fn commit(
        self,
        version: &str,
        found: Vec<(ProgramId, Found)>,
        wishes: Vec<(Event, Cause)>,
    ) -> (Journal, Vec<Envelope>) {
        let Self { beginning, state, handover, now, wall } = self;
        let count = |alive: bool| {
            // What stands without a process has not ended.
            let has_process = |program: &ProgramId| state.programs[*program].phase != Phase::Done;
            let counts = |(program, found): &&(ProgramId, Found)| match found {
                Found::Alive { .. } => alive,
                Found::Ended { .. } | Found::NeverRan { .. } => !alive && has_process(program),
            };
            let found = found.iter().filter(counts).count();
            u32::try_from(found).unwrap_or(u32::MAX)
        };
        let configured = state.graph.programs.values().filter(|policy| !policy.retired).count();
        let opened = SystemEvent::EpochOpened {
            version: version.to_owned(),
            programs: u32::try_from(configured).unwrap_or(u32::MAX),
            beginning,
            adopted: count(true),
            ended: count(false),
        };
        let since = Seq(state.seq.0 + 1);
        let mut journal = Journal::resume(state);
        let begun = handover.map_or(Cause::Boot, Cause::Event);
        let mut envelopes = vec![journal.commit_unchecked(now, wall, Event::System(opened), begun)];
        // What is there is there: nothing of it is up to the rules.
        for (program, found) in found {
            let known = &journal.state().programs[program];
            for event in findings(known, &journal.state().graph.programs[program], found, now) {
                let adopted = matches!(
                    event,
                    ProgramEvent::Adopted { .. }
                        | ProgramEvent::Stopping { .. }
                        | ProgramEvent::OperatorStarted
                        | ProgramEvent::OperatorStopped
                );
                let cause = if adopted { Cause::Event(since) } else { Cause::Os };
                envelopes.push(journal.commit_unchecked(now, wall, Event::Program(program, event), cause));
            }
        }
        for (event, cause) in wishes {
            envelopes.extend(journal.commit(now, wall, event, cause));
        }
        (journal, envelopes)
    }
}

impl Last<'_> {
    fn ended(self) -> Beginning {
        match (self.state.handover, self.state.survivors) {
            _ if self.is_copy => Beginning::Copy,
            (_, Some(_)) => Beginning::Orderly,
            _ if !self.same_boot => Beginning::Reboot,
            (Some((to, _)), None) => Beginning::Handover(to),
            (None, None) => Beginning::Crash,
        }
    }
}

fn succeed(last: Last<'_>, graph: &Graph, beginning: Beginning, epoch: EpochId, now: Instant) -> State {
    let Last { state: last, resumes, .. } = last;
    let graph = Arc::new(with_retired(graph, last, beginning));
    let mut next = State::new(graph.clone(), epoch);
    next.seq = last.seq;
    next.at = if beginning.is_elsewhere() { now } else { now.max(last.at) };
    let before = last.graph.names();
    for (id, policy) in graph.programs.iter() {
        if let Some(old) = before.get(&policy.name) {
            let before = &last.graph.programs[*old];
            let group = |graph: &Graph, policy: &Policy| policy.group.map(|group| graph.groups[group].name.clone());
            let moved = group(&last.graph, before) != group(&graph, policy);
            let carried = carried(&last.programs[*old], before.enabled, policy, beginning);
            next.programs[id] = if moved { regrouped(carried, policy) } else { carried };
            let carried = &mut next.programs[id];
            if policy.care.is_ready_at_once() && carried.phase == Phase::Up {
                // An earlier version did not know of readiness, or another configuration asked for more.
                carried.ready_since = carried.ready_since.or(carried.up_since);
            }
            // Whoever has had no time while nobody was there has it now.
            let since = next.at;
            next.programs[id].leaving = next.programs[id].leaving.map(|leaving| Leaving { since, ..leaving });
        }
        if next.programs[id].is_running() {
            next.running.insert(id);
        }
    }
    let edges = edges_by_name(&last.graph);
    let name = |id: ProgramId| graph.programs[id].name.clone();
    for (id, edge) in graph.edges.iter() {
        let old = edges.get(&(name(edge.of), name(edge.on)));
        let on = &next.programs[edge.on];
        let satisfied =
            old.and_then(|old| last.edges[*old].satisfied).filter(|_| on.counts_since(edge.until).is_some());
        // Whoever has not followed `on` so far does not follow it down for what is past.
        let follows = old.filter(|old| last.graph.edges[**old].propagate && !begins_anew(beginning));
        let last_fall = follows.map_or(on.fall, |old| last.edges[*old].last_fall);
        next.edges[id] = EdgeState { satisfied, last_fall };
    }
    for id in graph.programs.ids() {
        let unmet = graph.edges_of(id).iter().filter(|edge| next.edges[**edge].satisfied.is_none()).count();
        next.programs[id].unmet = u32::try_from(unmet).unwrap_or(u32::MAX);
    }
    for (id, group) in graph.groups.iter() {
        let old = last.graph.group(&group.name);
        if let Some(old) = old.filter(|old| last.graph.groups[*old].home == group.home) {
            let failed = last.groups[old].failed.clone().filter(|_| !begins_anew(beginning));
            // It looks again whether everything is as it should be at its level.
            let standing = match last.groups[old].standing {
                Standing::Failed if failed.is_some() => Standing::Failed,
                Standing::Restarting if !begins_anew(beginning) => Standing::Restarting,
                Standing::Moving | Standing::Restarting | Standing::Reached | Standing::Failed => Standing::Moving,
            };
            let level = Some(last.groups[old].level.clone()).filter(|level| graph.has_level(id, level));
            let level = level.unwrap_or_else(|| group.home.clone());
            // What it was told lasts; that anything is to be cleaned up for it does not.
            let told = if begins_anew(beginning) { Seq(0) } else { last.groups[old].told };
            next.groups[id] = GroupState { level, told, standing, failed, going: BTreeSet::new() };
        }
        for member in &group.members {
            next.groups[id].look_at(*member, &next.programs[*member]);
        }
    }
    next.verdict = last.verdict.filter(|_| resumes && !begins_anew(beginning));
    // This begins again for the same reason.
    next.shutdown = last.shutdown.filter(|_| resumes && !begins_anew(beginning)).map(|_| next.at);
    next
}

/// The graph with the programs that have a process and are no longer configured.
fn with_retired(graph: &Graph, last: &State, beginning: Beginning) -> Graph {
    let mut graph = graph.clone();
    let known = graph.names();
    for (id, policy) in last.graph.programs.iter() {
        let lives_on = last.programs[id].is_running() && !beginning.is_elsewhere();
        if lives_on && !known.contains_key(&policy.name) {
            graph.add_program(Policy { enabled: false, retired: true, group: None, ..policy.clone() });
        }
    }
    graph
}

/// Whether everything begins anew, but for what operators want and what is counted.
fn begins_anew(beginning: Beginning) -> bool {
    match beginning {
        Beginning::First | Beginning::Orderly | Beginning::Reboot | Beginning::Copy => true,
        Beginning::Crash | Beginning::Handover(_) => false,
    }
}

/// A program that belongs to another group now, or to none.
fn regrouped(program: ProgramState, policy: &Policy) -> ProgramState {
    let place = match policy.group {
        None => Place::Free,
        Some(_) if program.is_running() => Place::In(Seq(0)),
        Some(_) => Place::Out,
    };
    let due = match place {
        Place::Free => program.due || program.place == Place::Out && policy.enabled,
        Place::Out => false,
        Place::In(_) => program.due,
    };
    ProgramState { place, due, ..program }
}

fn carried(old: &ProgramState, was_enabled: bool, policy: &Policy, beginning: Beginning) -> ProgramState {
    let lives_on = old.is_running() && !beginning.is_elsewhere();
    if lives_on || !begins_anew(beginning) {
        return old.clone();
    }
    // What an operator wants lasts; what only the configuration wanted is for the configuration to say again.
    let wished = old.operator_down == was_enabled;
    let operator_down = if wished { old.operator_down } else { !policy.enabled };
    let had_process = old.is_running() && old.phase != Phase::Done;
    let lost = had_process.then_some(Outcome::Exited(ExitStatus::Unknown));
    ProgramState {
        phase: Phase::Down,
        pid: None,
        birth: StartTime::default(),
        up_since: None,
        ready_since: None,
        daemonized: false,
        changed_at: Instant::default(),
        changed_by: Seq(0),
        place: if policy.group.is_some() { Place::Out } else { Place::Free },
        due: !operator_down && policy.group.is_none(),
        operator_down,
        leaving: None,
        deadline: None,
        undoing: false,
        fall: None,
        outcome: lost.or(old.outcome),
        succeeded: old.succeeded && !had_process,
        attempts: 0,
        not_before: None,
        recent: Vec::new(),
        given_up: false,
        // Who has put it down is known for as long as it is.
        last_seq: if operator_down && old.operator_down { old.last_seq } else { Seq(0) },
        ..old.clone()
    }
}

fn edges_by_name(graph: &Graph) -> BTreeMap<(Arc<str>, Arc<str>), EdgeId> {
    let name = |id: ProgramId| graph.programs[id].name.clone();
    graph.edges.iter().map(|(id, edge)| ((name(edge.of), name(edge.on)), id)).collect()
}

/// The events that tell what was found of an instance, given what is known of its program.
fn findings(known: &ProgramState, policy: &Policy, found: Found, now: Instant) -> Vec<ProgramEvent> {
    let mut events = Vec::new();
    let unwritten = found.instance() > known.instance;
    if let Found::Alive { instance, pid, birth } = found
        && known.phase == Phase::Done
        && !unwritten
    {
        // What it has done is being undone already. If the reason was not written, it is wanted as it was.
        let reason = known.leaving.map_or(StopReason::Operator, |leaving| leaving.reason);
        let deadline = now + policy.killwait;
        events.extend([
            ProgramEvent::Stopping { instance, reason, deadline },
            ProgramEvent::Adopted { instance, pid, birth },
        ]);
        events.extend(known.leaving.is_none().then_some(ProgramEvent::OperatorStarted));
        return events;
    }
    // What it has done stands without a process, and is undone anew if nobody knows that it was.
    let stands = known.phase == Phase::Done || known.undoing && known.pid.is_none() && !found.is_alive();
    if !unwritten && (stands || !known.is_running()) {
        return events;
    }
    if unwritten && known.is_running() {
        // Of the run before nothing is known but that there is none any more.
        let (instance, status) = (known.instance, ExitStatus::Unknown);
        events.push(ProgramEvent::Exited { instance, status, left_behind: 0, stands: false });
    }
    if unwritten {
        events.push(ProgramEvent::Starting { instance: found.instance() });
    }
    match found {
        Found::Alive { instance, pid, birth } => {
            events.push(ProgramEvent::Adopted { instance, pid, birth });
            if unwritten && known.operator_down {
                // The wish that it was started for was not written either, and the one that was holds.
                events.push(ProgramEvent::OperatorStopped);
            }
        }
        Found::Ended { instance, status, left_behind } => {
            let by_itself = unwritten || known.urged_by.is_none() && known.phase != Phase::Stopping;
            let stands = by_itself && policy.stands(status, left_behind);
            events.push(ProgramEvent::Exited { instance, status, left_behind, stands });
        }
        Found::NeverRan { instance } => {
            let (stage, errno) = (ExecStage::Fork, ExecStage::CANCELLED);
            events.push(ProgramEvent::SpawnFailed { instance, stage, errno });
        }
    }
    events
}
