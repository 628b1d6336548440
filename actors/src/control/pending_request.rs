//! Requests that are answered later: when their events are committed, and then when programs have reached a state.

mod pending_requests;

use std::collections::{BTreeMap, BTreeSet};

use actix::SpawnHandle;
use gaggled_core::{
    base::ids::{GroupId, InstanceId, ProgramId, Seq},
    event::Cause,
    graph::{Condition, Mode, STOP},
    protocol::{Reply, WaitState, describe},
    state::{LevelSwitch, Membership, Outcome, Phase, ProgramState, State},
};
use serde::Serialize;

pub(super) use self::pending_requests::Waiters;
use super::{ReplyFn, targets::Targets};

/// Programs that have to reach a state.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The programs, each with the last of its runs that does not count.
    pub programs: BTreeMap<ProgramId, u64>,
    /// The groups, each with the last thing told to it that does not count.
    pub groups: BTreeMap<GroupId, Seq>,
    /// The state.
    pub goal: WaitState,
    /// Whether they were asked for by name: what runs once is then waited for until it has ended.
    pub is_named: bool,
}

impl Target {
    /// These, as they are.
    pub(super) fn new(Targets { programs, groups }: Targets, goal: WaitState) -> Self {
        let programs = programs.into_iter().map(|id| (id, 0)).collect();
        Self { programs, groups: groups.into_iter().map(|id| (id, Seq(0))).collect(), goal, is_named: false }
    }

    /// The same, chosen by these words.
    pub(super) fn named(self, words: &[String]) -> Self {
        Self { is_named: !words.is_empty(), ..self }
    }

    /// The same, but only a run that has not begun yet counts, except of programs that are good as they are.
    pub(super) fn after(mut self, state: &State, good: impl Fn(&ProgramState) -> bool) -> Self {
        for (program, run) in &mut self.programs {
            let now = &state.programs[*program];
            *run = if good(now) { 0 } else { now.instance.0 };
        }
        for (group, told) in &mut self.groups {
            *told = state.groups[*group].requested_by;
        }
        self
    }
}

/// A request that has not been answered.
pub(super) struct PendingRequest {
    id: String,
    key: String,
    target: Option<Target>,
    /// Programs and groups that are not there yet.
    missing: BTreeSet<ProgramId>,
    missing_groups: BTreeSet<GroupId>,
    /// The command whose events are not all committed, and how many of them are not.
    uncommitted: Option<(Cause, usize)>,
    alarm: Option<SpawnHandle>,
    /// Whether it wants something, rather than only to know.
    pub is_command: bool,
    /// What is answered, if not which programs it was about.
    pub body: Option<serde_json::Value>,
    /// Where the answer goes: more than one if the request was sent again.
    pub answers: Vec<ReplyFn>,
}

/// What a command has done.
#[derive(Serialize)]
struct CommandBody<'a> {
    epoch: gaggled_core::base::ids::EpochId,
    seq: Seq,
    programs: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<&'a str>,
}

impl PendingRequest {
    pub(super) fn new(id: &str, key: String, target: Option<Target>, answer: ReplyFn) -> Self {
        Self {
            id: id.to_owned(),
            key,
            missing: target.iter().flat_map(|target| target.programs.keys().copied()).collect(),
            missing_groups: target.iter().flat_map(|target| target.groups.keys().copied()).collect(),
            target,
            uncommitted: None,
            alarm: None,
            is_command: false,
            body: None,
            answers: vec![answer],
        }
    }

    /// Waits for so many events of this cause first.
    pub(super) fn expect(&mut self, cause: Cause, events: usize) {
        self.uncommitted = (events > 0).then_some((cause, events));
    }

    fn program_done(&self, program: ProgramId, state: &State) -> Result<bool, String> {
        let Some(target) = &self.target else { return Ok(true) };
        let after = target.programs.get(&program).copied().unwrap_or(0);
        let now = &state.programs[program];
        let policy = &state.graph.programs[program];
        let name = &policy.name;
        match target.goal {
            WaitState::Down => Ok(now.phase == Phase::Down),
            WaitState::Up if now.phase == Phase::Up => {
                let is_up = now.is_ready() && now.instance > InstanceId(after);
                Ok(is_up && !(target.is_named && policy.ends_by_itself()))
            }
            WaitState::Up if now.phase == Phase::ActiveExited => {
                Ok(now.pending_stop.is_none() && now.instance > InstanceId(after))
            }
            WaitState::Up if now.phase != Phase::Down => Ok(false),
            WaitState::Up if now.start_limit_hit => Err(format!(
                "{name} has ended too often and is given up: {}",
                now.outcome.map(describe).unwrap_or_default()
            )),
            WaitState::Up if now.operator_down && policy.autostart => {
                Err(format!("{name} was put down by an operator"))
            }
            WaitState::Up if now.operator_down => {
                Err(format!("{name} has autostart: false, and is down until it is asked up"))
            }
            WaitState::Up if self.is_command && self.blocked_reason(program, state).is_some() => {
                Err(self.blocked_reason(program, state).unwrap_or_default())
            }
            WaitState::Up if state.shutdown.is_some() => {
                Err(format!("{name} cannot come up: gaggled is shutting down"))
            }
            WaitState::Up => match now.outcome {
                // An operator who starts a program is told what has come of that; one that is tried again may come up yet,
                // and is waited for.
                Some(Outcome::SpawnFailed { stage, errno })
                    if now.instance.0 > after
                        && (!now.start_pending || self.is_command && !stage.is_transient(errno)) =>
                {
                    Err(format!("{name} could not be started: {}", now.outcome.map(describe).unwrap_or_default()))
                }
                Some(outcome @ Outcome::Exited(status))
                    if policy.mode != Mode::Respawn && !now.start_pending && now.instance.0 > after =>
                {
                    if policy.succeeds(status) { Ok(true) } else { Err(format!("{name} {}", describe(outcome))) }
                }
                _ => Ok(false),
            },
        }
    }

    /// That a program waits for what does not come about unless somebody asks for that, too.
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
                        Some(format!("{of} waits for {name}, which is given up: ask that up, too"))
                    }
                    Some(outcome) if failed && on.satisfied_since(dependency.condition).is_none() => Some(format!(
                        "{of} waits for {name}, which has failed ({}): ask that up, too",
                        describe(outcome)
                    )),
                    _ if on.operator_down && on.satisfied_since(dependency.condition).is_none() => {
                        Some(format!("{of} waits for {name}, which is put down: ask that up, too"))
                    }
                    _ => None,
                }
            },
        )
    }

    /// Whether a group has arrived, and with it what should run.
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
            return Err(format!("group {name} cannot get there: gaggled is shutting down"));
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
                    return Err(format!("{} of group {name} has ended too often and is given up", policy.name));
                }
                Mode::Respawn if !now.is_ready() => return Ok(false),
                Mode::Once if now.start_pending || now.phase == Phase::Starting => return Ok(false),
                Mode::Respawn | Mode::Once | Mode::Wait | Mode::Test => {}
            }
        }
        Ok(true)
    }

    fn done(&self, state: &State) -> Reply {
        if let Some(body) = &self.body {
            return Reply::done(&self.id, body);
        }
        let programs = self.target.iter().flat_map(|target| target.programs.keys());
        let programs = programs.map(|id| &*state.graph.programs[*id].name).collect();
        let groups = self.target.iter().flat_map(|target| target.groups.keys());
        let groups = groups.map(|id| &*state.graph.groups[*id].name).collect();
        Reply::done(&self.id, &CommandBody { epoch: state.epoch, seq: state.seq, programs, groups })
    }
}
