//! The invariants of a simulated run: those of the journal ([`gaggled_core::journal::audit`]), and these, which only a
//! simulator can check.
//!
//! | | |
//! |---|---|
//! | I3 | the fold of the envelopes is the state that the journal kept |
//! | I4 | a snapshot and the events after it fold to the same state |
//! | I6 | a program has at most one process (the simulated host watches this) |
//! | I9 | each time that a program goes down, each dependency on it that propagates causes exactly one restart |
//! | I10 | each such restart leads to a new instance, unless something keeps the program down |
//! | I13 | after the shutdown only programs that it counted as unkillable have a process |
//! | I15 | after the end of the faults every program that is wanted and that nothing holds back comes up |
//! | I20 | queues, consecutive refusals and steps without an event are bounded (the scheduler watches this) |
//! | I21 | a program's state changes only with an event that concerns it |

use gaggled_core::{
    base::{
        ids::{DependencyId, ProgramId, Seq},
        time::{Instant, Millis},
    },
    graph::{Condition, Mode},
    journal::audit::JournalAudit,
    state::{LevelSwitch, Membership, Phase, State},
};

use super::{
    crash::SimulatedEpoch,
    scheduler::Run,
    world::{SETTLING, World},
};

/// How late an effect may be in virtual time: a message may be overtaken several times, by up to 20 ms each.
const SLACK: Millis = Millis(150);

/// The checker of one run.
struct Checker {
    audit: JournalAudit,
    found: Vec<String>,
}

/// All violations of a run.
pub fn check(world: &World, run: &Run) -> Vec<String> {
    let mut audit = JournalAudit::new(SLACK);
    for life in &run.lives {
        audit.begin(&life.start, 0);
        life.envelopes.iter().for_each(|envelope| audit.observe(envelope));
    }
    let mut found = run.violations.clone();
    found.append(&mut audit.violations);
    found.append(&mut audit.missing);
    let mut checker = Checker { audit, found };
    checker.ends_well(world, run);
    checker.folds(world, run);
    checker.found
}

impl Checker {
    fn ends_well(&mut self, world: &World, run: &Run) {
        let shutdown_seq =
            run.envelopes.iter().find(|envelope| envelope.event == World::shutdown()).map(|envelope| envelope.seq);
        for ((dependency, down_event), count) in &self.audit.falls {
            let interrupted = *count == 0 && shutdown_seq.is_some();
            let late = interrupted && near_end(run, *down_event, shutdown_seq);
            // If a program went down several times before a daemon started, only the last time causes a restart.
            let answered = |(other, later): (&(DependencyId, Seq), &u32)| {
                other.0 == *dependency && other.1 > *down_event && *later == 1
            };
            let together = *count == 0
                && self.audit.openings.iter().any(|opening| *opening >= at(run, *down_event))
                && self.audit.falls.iter().any(answered);
            if *count != 1 && !late && !together {
                self.found.push(format!("I9: {dependency:?} answered the fall {down_event} with {count} restarts"));
            }
        }
        let settled = before_shutdown(run);
        for (program, due) in &self.audit.restarts {
            let seen = self.audit.program(*program);
            let excused = waits_for_finished(world, &settled, *program)
                || seen.operator_down
                || kept_out(world, &settled, *program)
                || settled.programs[*program].start_limit_hit
                || shutdown_seq.is_some_and(|end| near_end(run, *due, Some(end)));
            if seen.last_start < *due && !excused && world.shutdown_at >= world.faults_end_at + SETTLING {
                self.found.push(format!("I10: {program:?} was due to restart at event {due} and never did"));
            }
        }
        let counted = usize::try_from(run.state.unkillable.unwrap_or(0)).unwrap_or(usize::MAX);
        if run.left_alive.len() > counted {
            self.found.push(format!("I13: {:?} have processes, and {counted} are counted", run.left_alive));
        }
        let stopping = |id: &&ProgramId| run.state.programs[**id].phase == Phase::Stopping;
        let gone = run.state.running.iter().filter(stopping).find(|id| !run.left_alive.contains(id));
        if let Some(id) = gone {
            self.found.push(format!("I13: {id:?} is counted and has no process"));
        }
        self.settles(world, &settled);
    }

    /// I15, in the state just before the shutdown, long after the end of the faults.
    fn settles(&mut self, world: &World, settled: &State) {
        if world.shutdown_at < world.faults_end_at + SETTLING {
            return;
        }
        for (id, policy) in world.graph.programs.iter().filter(|(_, policy)| policy.is_here()) {
            let program = &settled.programs[id];
            // A program with `retry` is not finished before it has ended well.
            let gives_up =
                policy.retry && program.outcome.is_some() && !program.succeeded && program.stop_event.is_none();
            let finished =
                policy.mode != Mode::Respawn && program.phase == Phase::Down && !program.start_pending && !gives_up;
            // A group refuses to start a program that does not run at its level, even for an operator.
            let stopped = program.operator_down && policy.group.is_some();
            let excused = finished
                || stopped
                || program.start_limit_hit
                || kept_out(world, settled, id)
                || waits_for_finished(world, settled, id);
            if !matches!(program.phase, Phase::Up | Phase::ActiveExited) && !excused {
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

    fn fold(&mut self, world: &World, life: &SimulatedEpoch) -> State {
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
    run.envelopes.iter().find(|envelope| envelope.seq == seq).map_or(Instant::default(), |envelope| envelope.monotonic)
}

/// The state just before the shutdown was requested.
fn before_shutdown(run: &Run) -> State {
    let life = run.lives.iter().find(|life| life.envelopes.iter().any(|envelope| envelope.event == World::shutdown()));
    let Some(life) = life.or(run.lives.last()) else { return run.state.clone() };
    let mut state = life.start.clone();
    for envelope in life.envelopes.iter().take_while(|envelope| envelope.event != World::shutdown()) {
        state.apply(envelope);
    }
    state
}

/// Whether the group of a program does not admit it: because of its level, a failure, or a program before it that has
/// not completed.
fn kept_out(world: &World, state: &State, program: ProgramId) -> bool {
    let policy = &world.graph.programs[program];
    let Some(id) = policy.group else { return false };
    let (group, members) = (&state.groups[id], &world.graph.groups[id].members);
    let holds_back = |member: &&ProgramId| {
        let (other, seen) = (&world.graph.programs[**member], &state.programs[**member]);
        let runs = group.runs(other) && seen.membership != Membership::Stopped;
        **member < program && other.mode.is_gate() && runs && !seen.is_completed()
    };
    let out = state.programs[program].membership == Membership::Stopped;
    out && (!group.runs(policy) || group.level_switch == LevelSwitch::Failed || members.iter().any(|m| holds_back(&m)))
}

/// Whether a program waits, directly or indirectly, for a dependency that will not be satisfied by itself: its program
/// is kept down, has run once and ended, or has not completed.
fn waits_for_finished(world: &World, state: &State, program: ProgramId) -> bool {
    let in_vain = |dependency: &DependencyId| {
        let dependency = &world.graph.dependencies[*dependency];
        let on = &state.programs[dependency.dependency];
        let once = world.graph.programs[dependency.dependency].mode != Mode::Respawn;
        let over = once && (on.phase == Phase::ActiveExited || on.phase == Phase::Down && !on.start_pending);
        match dependency.condition {
            // What other nodes do is checked in `cluster`.
            _ if on.remote.is_some() => on.satisfied_since(dependency.condition).is_none(),
            _ if on.start_limit_hit || on.operator_down || kept_out(world, state, dependency.dependency) => true,
            Condition::Started | Condition::Ready => over || waits_for_finished(world, state, dependency.dependency),
            Condition::Completed => on.satisfied_since(Condition::Completed).is_none(),
        }
    };
    world.graph.dependencies_of(program).iter().any(in_vain)
}
