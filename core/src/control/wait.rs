//! When a command is done, and when it cannot be done any more.

use std::collections::BTreeSet;

use super::target::Target;
use crate::{
    base::{
        ids::{GroupId, InstanceId, ProgramId},
        time::Instant,
    },
    event::{Cause, Envelope},
    graph::{Condition, Mode, STOP},
    process::Outcome,
    protocol::{View, WaitState, describe},
    state::{LevelSwitch, Membership, Phase, State},
};

/// How far a command has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// It is not done yet.
    Pending,
    /// It is done.
    Done,
    /// It cannot be done without another command; the reason, in words.
    Failed(String),
}

impl Progress {
    fn failure(self) -> Option<String> {
        match self {
            Self::Failed(why) => Some(why),
            Self::Pending | Self::Done => None,
        }
    }
}

/// Records whether a program or group is in the state: it may have left the state again while others were waited for.
fn note<T: Ord>(open: &mut BTreeSet<T>, id: T, done: Result<bool, String>) -> Result<(), String> {
    if done? {
        open.remove(&id);
    } else {
        open.insert(id);
    }
    Ok(())
}

/// What a command, or a `wait` request, waits for: first that its events are committed, then for its target.
#[derive(Clone, Debug, Default)]
pub struct Wait {
    target: Option<Target>,
    /// Programs and groups of the target that have not reached the state.
    programs: BTreeSet<ProgramId>,
    groups: BTreeSet<GroupId>,
    /// The cause of the proposed events that are not committed, and how many of them there are.
    uncommitted: Option<(Cause, usize)>,
    is_command: bool,
}

impl Wait {
    /// Waits for a target.
    pub fn new(target: Option<Target>) -> Self {
        Self {
            programs: target.iter().flat_map(|target| target.programs.keys().copied()).collect(),
            groups: target.iter().flat_map(|target| target.groups.keys().copied()).collect(),
            target,
            ..Self::default()
        }
    }

    /// Waits until the `events` that a command has proposed with this cause are committed, and then for a target.
    pub fn after_commit(target: Option<Target>, cause: Cause, events: usize) -> Self {
        Self { uncommitted: (events > 0).then_some((cause, events)), is_command: true, ..Self::new(target) }
    }

    /// What is waited for.
    pub fn target(&self) -> Option<&Target> {
        self.target.as_ref()
    }

    /// Whether events that it has proposed are not committed yet.
    pub fn is_uncommitted(&self) -> bool {
        self.uncommitted.is_some()
    }

    /// Whether it has proposed events with this cause that are not committed yet.
    pub fn has_proposed(&self, cause: &Cause) -> bool {
        self.uncommitted.as_ref().is_some_and(|(own, _)| own == cause)
    }

    /// The programs that have not reached the state.
    pub fn programs(&self) -> &BTreeSet<ProgramId> {
        &self.programs
    }

    /// The groups that have not reached the state.
    pub fn groups(&self) -> &BTreeSet<GroupId> {
        &self.groups
    }

    /// An event was committed; whether it was the last of those that were proposed.
    pub fn committed(&mut self, envelope: &Envelope) -> bool {
        match &mut self.uncommitted {
            Some((cause, left)) if *cause == envelope.cause => {
                *left -= 1;
                let is_last = *left == 0;
                if is_last {
                    self.uncommitted = None;
                }
                is_last
            }
            Some(_) | None => false,
        }
    }

    /// How far it has come, after a look at all its programs and groups.
    pub fn look(&mut self, state: &State) -> Progress {
        let Some(target) = self.target.as_ref().filter(|_| !self.is_uncommitted()) else { return self.progress() };
        let (programs, groups): (Vec<_>, Vec<_>) =
            (target.programs.keys().copied().collect(), target.groups.keys().copied().collect());
        let mut failed = None;
        for program in programs {
            failed = failed.or(self.look_at_program(program, state).failure());
        }
        for group in groups {
            failed = failed.or(self.look_at_group(group, state).failure());
        }
        failed.map_or_else(|| self.progress(), Progress::Failed)
    }

    /// How far it has come, after an event of one of its programs.
    pub fn look_at_program(&mut self, program: ProgramId, state: &State) -> Progress {
        if self.is_uncommitted() {
            return Progress::Pending;
        }
        let done = self.program_done(program, state);
        note(&mut self.programs, program, done).map_or_else(Progress::Failed, |()| self.progress())
    }

    /// How far it has come, after an event of one of its groups.
    pub fn look_at_group(&mut self, group: GroupId, state: &State) -> Progress {
        if self.is_uncommitted() {
            return Progress::Pending;
        }
        let done = self.group_done(group, state);
        note(&mut self.groups, group, done).map_or_else(Progress::Failed, |()| self.progress())
    }

    fn progress(&self) -> Progress {
        let is_done = !self.is_uncommitted() && self.programs.is_empty() && self.groups.is_empty();
        if is_done { Progress::Done } else { Progress::Pending }
    }

    /// Why it is not done, in words, when its time is over.
    pub fn late(&self, state: &State, now: Instant) -> String {
        const SHOWN_MAX: usize = 5;
        let view = View::at(state, now);
        let with_reason =
            |name: &str, reason: &str| if reason.is_empty() { name.to_owned() } else { format!("{name} ({reason})") };
        let mut late: Vec<String> = (self.programs.iter().take(SHOWN_MAX))
            .map(|id| view.program(*id))
            .map(|program| with_reason(program.program, &program.reason))
            .collect();
        late.extend(self.groups.iter().take(SHOWN_MAX).map(|group| {
            let group = view.group(*group);
            with_reason(&format!("group {}", group.group), &group.reason)
        }));
        if self.programs.len() > late.len() {
            late.push(format!("and {} more", self.programs.len() - late.len()));
        }
        let is_down = self.target.as_ref().is_some_and(|target| target.goal == WaitState::Down);
        format!("not {} in time: {}", if is_down { "down" } else { "up" }, late.join(", "))
    }

    fn program_done(&self, program: ProgramId, state: &State) -> Result<bool, String> {
        let Some(target) = &self.target else { return Ok(true) };
        let after = InstanceId(target.programs.get(&program).copied().unwrap_or(0));
        let (now, policy) = (&state.programs[program], &state.graph.programs[program]);
        match (target.goal, now.phase) {
            (WaitState::Down, phase) => Ok(phase == Phase::Down),
            (WaitState::Up, Phase::Up) => {
                let is_up = now.is_ready() && now.instance > after;
                Ok(is_up && !(target.is_named && policy.ends_by_itself()))
            }
            (WaitState::Up, Phase::ActiveExited) => Ok(now.pending_stop.is_none() && now.instance > after),
            (WaitState::Up, Phase::Starting | Phase::Stopping) => Ok(false),
            (WaitState::Up, Phase::Down) => self.has_run(program, after, state),
        }
    }

    /// Whether a program that is down was to run once and has ended well; an error if it will not come up by itself.
    fn has_run(&self, program: ProgramId, after: InstanceId, state: &State) -> Result<bool, String> {
        let (now, policy) = (&state.programs[program], &state.graph.programs[program]);
        let name = &policy.name;
        if now.start_limit_hit {
            let how = now.outcome.map(describe).unwrap_or_default();
            return Err(format!("{name} has reached its start limit: {how}"));
        }
        if now.operator_down && policy.autostart {
            return Err(format!("{name} was stopped by an operator"));
        }
        if now.operator_down {
            return Err(format!("{name} has autostart: false, and waits for an operator to start it"));
        }
        if state.shutdown.is_some() {
            return Err(format!("{name} cannot come up: gaggled is shutting down"));
        }
        // A program that does not run again waits for no dependency.
        if self.is_command
            && now.start_pending
            && let Some(why) = self.blocked_reason(program, state)
        {
            return Err(why);
        }
        match now.outcome.filter(|_| now.instance > after) {
            // A command fails with its start, unless the error is transient; a `wait` request waits as long as starts
            // are retried.
            Some(outcome @ Outcome::SpawnFailed { stage, errno })
                if !now.start_pending || self.is_command && !stage.is_transient(errno) =>
            {
                Err(format!("{name} could not be started: {}", describe(outcome)))
            }
            Some(outcome @ Outcome::Exited(status)) if policy.mode != Mode::Respawn && !now.start_pending => {
                if policy.succeeds(status) { Ok(true) } else { Err(format!("{name} {}", describe(outcome))) }
            }
            Some(Outcome::SpawnFailed { .. } | Outcome::Exited(_)) | None => Ok(false),
        }
    }

    /// Why a program waits for a dependency that only another command can satisfy, if it does.
    fn blocked_reason(&self, program: ProgramId, state: &State) -> Option<String> {
        let asked = |on: ProgramId| self.target.as_ref().is_some_and(|target| target.programs.contains_key(&on));
        let of = &state.graph.programs[program].name;
        state.graph.dependencies_of(program).iter().map(|dependency| state.graph.dependencies[*dependency]).find_map(
            |dependency| {
                let (on, name) =
                    (&state.programs[dependency.dependency], &state.graph.programs[dependency.dependency].name);
                if asked(dependency.dependency) {
                    return None;
                }
                let failed =
                    dependency.condition == Condition::Completed && on.phase == Phase::Down && !on.start_pending;
                match on.outcome {
                    _ if on.start_limit_hit => {
                        Some(format!("{of} waits for {name}, which has reached its start limit: start that, too"))
                    }
                    Some(outcome) if failed && on.satisfied_since(dependency.condition).is_none() => Some(format!(
                        "{of} waits for {name}, which has failed ({}): start that, too",
                        describe(outcome)
                    )),
                    _ if on.operator_down && on.satisfied_since(dependency.condition).is_none() => {
                        Some(format!("{of} waits for {name}, which an operator has stopped: start that, too"))
                    }
                    _ => None,
                }
            },
        )
    }

    /// Whether a group has reached its goal, and its programs that should run are ready.
    fn group_done(&self, id: GroupId, state: &State) -> Result<bool, String> {
        let Some(target) = &self.target else { return Ok(true) };
        let (group, name) = (&state.groups[id], &state.graph.groups[id].name);
        let after = target.groups.get(&id).copied().unwrap_or_default();
        if group.requested_by < after {
            return Ok(false);
        }
        let members = || state.graph.groups[id].members.iter().copied();
        if target.goal == WaitState::Down {
            let stopped = *group.level == *STOP && group.level_switch == LevelSwitch::Settled;
            return Ok(state.shutdown.is_some() && members().all(|id| !state.programs[id].is_running()) || stopped);
        }
        if state.shutdown.is_some() {
            return Err(format!("group {name} cannot reach its level: gaggled is shutting down"));
        }
        if let Some(by) = group.failed_program.as_ref().filter(|_| !group.is_switching()) {
            let by = members().find(|id| state.graph.programs[*id].name == *by);
            let how = by.map(|id| (&state.graph.programs[id].name, state.programs[id].outcome));
            let how = how.map(|(by, outcome)| format!(": {by} {}", outcome.map(describe).unwrap_or_default()));
            return Err(format!("group {name} has failed{}", how.unwrap_or_default()));
        }
        if group.is_switching() {
            return Ok(false);
        }
        for id in members().filter(|id| matches!(state.programs[*id].membership, Membership::Admitted(_))) {
            let (policy, now) = (&state.graph.programs[id], &state.programs[id]);
            match policy.mode {
                _ if now.operator_down => {}
                Mode::Respawn | Mode::Once if now.start_limit_hit => {
                    return Err(format!("{} of group {name} has reached its start limit", policy.name));
                }
                Mode::Respawn if !now.is_ready() => return Ok(false),
                Mode::Once if now.start_pending || now.phase == Phase::Starting => return Ok(false),
                Mode::Respawn | Mode::Once | Mode::Wait | Mode::Test => {}
            }
        }
        Ok(true)
    }
}
