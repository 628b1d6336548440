//! Requests that are answered later: when their events are committed, and then when programs have reached a state.

mod waiters;

use std::collections::{BTreeMap, BTreeSet};

use actix::SpawnHandle;
use gaggled_core::{
    event::Cause,
    graph::{Mode, STOP, Until},
    ids::{GroupId, InstanceId, ProgramId, Seq},
    state::{Outcome, Phase, Place, ProgramState, Standing, State},
    wire::{Goal, Reply, describe},
};
use serde::Serialize;

pub(super) use self::waiters::Waiters;
use super::{Answer, selection::Chosen};

/// Programs that have to reach a state.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// The programs, each with the last of its runs that does not count.
    pub programs: BTreeMap<ProgramId, u64>,
    /// The groups, each with the last thing told to it that does not count.
    pub groups: BTreeMap<GroupId, Seq>,
    /// The state.
    pub goal: Goal,
    /// Whether they were asked for by name: what runs once is then waited for until it has ended.
    pub is_named: bool,
}

impl Target {
    /// These, as they are.
    pub(super) fn new(Chosen { programs, groups }: Chosen, goal: Goal) -> Self {
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
            *told = state.groups[*group].told;
        }
        self
    }
}

/// A request that has not been answered.
pub(super) struct Waiter {
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
    pub answers: Vec<Answer>,
}

/// What a command has done.
#[derive(Serialize)]
struct Done<'a> {
    epoch: gaggled_core::ids::EpochId,
    seq: Seq,
    programs: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<&'a str>,
}

impl Waiter {
    pub(super) fn new(id: &str, key: String, target: Option<Target>, answer: Answer) -> Self {
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

    fn is_there(&self, program: ProgramId, state: &State) -> Result<bool, String> {
        let Some(target) = &self.target else { return Ok(true) };
        let after = target.programs.get(&program).copied().unwrap_or(0);
        let now = &state.programs[program];
        let policy = &state.graph.programs[program];
        let name = &policy.name;
        match target.goal {
            Goal::Down => Ok(now.phase == Phase::Down),
            Goal::Up if now.phase == Phase::Up => {
                let is_up = now.is_ready() && now.instance > InstanceId(after);
                Ok(is_up && !(target.is_named && policy.ends_by_itself()))
            }
            Goal::Up if now.phase == Phase::Done => Ok(now.leaving.is_none() && now.instance > InstanceId(after)),
            Goal::Up if now.phase != Phase::Down => Ok(false),
            Goal::Up if now.given_up => Err(format!(
                "{name} has ended too often and is given up: {}",
                now.outcome.map(describe).unwrap_or_default()
            )),
            Goal::Up if now.operator_down && policy.enabled => Err(format!("{name} was put down by an operator")),
            Goal::Up if now.operator_down => Err(format!("{name} is manual, and is down until it is asked up")),
            Goal::Up if self.is_command && self.hopeless(program, state).is_some() => {
                Err(self.hopeless(program, state).unwrap_or_default())
            }
            Goal::Up if state.shutdown.is_some() => Err(format!("{name} cannot come up: gaggled is shutting down")),
            Goal::Up => match now.outcome {
                // An operator who starts a program is told what has come of that; one that is tried again may come up yet,
                // and is waited for.
                Some(Outcome::SpawnFailed { stage, errno })
                    if now.instance.0 > after && (!now.due || self.is_command && !stage.is_transient(errno)) =>
                {
                    Err(format!("{name} could not be started: {}", now.outcome.map(describe).unwrap_or_default()))
                }
                Some(outcome @ Outcome::Exited(status))
                    if policy.mode != Mode::Respawn && !now.due && now.instance.0 > after =>
                {
                    if policy.succeeds(status) { Ok(true) } else { Err(format!("{name} {}", describe(outcome))) }
                }
                _ => Ok(false),
            },
        }
    }

    /// That a program waits for what does not come about unless somebody asks for that, too.
    fn hopeless(&self, program: ProgramId, state: &State) -> Option<String> {
        let asked = |on: ProgramId| self.target.as_ref().is_some_and(|target| target.programs.contains_key(&on));
        let of = &state.graph.programs[program].name;
        state.graph.edges_of(program).iter().map(|edge| state.graph.edges[*edge]).find_map(|edge| {
            let (on, name) = (&state.programs[edge.on], &state.graph.programs[edge.on].name);
            if asked(edge.on) {
                return None;
            }
            let failed = edge.until == Until::Completed && on.phase == Phase::Down && !on.due;
            match on.outcome {
                _ if on.given_up => Some(format!("{of} waits for {name}, which is given up: ask that up, too")),
                Some(outcome) if failed && on.counts_since(edge.until).is_none() => {
                    Some(format!("{of} waits for {name}, which has failed ({}): ask that up, too", describe(outcome)))
                }
                _ if on.operator_down && on.counts_since(edge.until).is_none() => {
                    Some(format!("{of} waits for {name}, which is put down: ask that up, too"))
                }
                _ => None,
            }
        })
    }

    /// Whether a group has arrived, and with it what should run.
    fn has_arrived(&self, id: GroupId, state: &State) -> Result<bool, String> {
        let Some(target) = &self.target else { return Ok(true) };
        let (group, name) = (&state.groups[id], &state.graph.groups[id].name);
        let after = target.groups.get(&id).copied().unwrap_or_default();
        if group.told < after {
            return Ok(false);
        }
        let members = || state.graph.groups[id].members.iter().copied();
        if target.goal == Goal::Down {
            let stopped = *group.level == *STOP && group.standing == Standing::Reached;
            return Ok(state.shutdown.is_some() && members().all(|id| !state.programs[id].is_running()) || stopped);
        }
        if state.shutdown.is_some() {
            return Err(format!("group {name} cannot get there: gaggled is shutting down"));
        }
        if let Some(by) = group.failed.as_ref().filter(|_| !group.moves()) {
            let by = members().find(|id| state.graph.programs[*id].name == *by);
            let how = by.map(|id| (&state.graph.programs[id].name, state.programs[id].outcome));
            let how = how.map(|(by, outcome)| format!(": {by} {}", outcome.map(describe).unwrap_or_default()));
            return Err(format!("group {name} has failed{}", how.unwrap_or_default()));
        }
        if group.moves() {
            return Ok(false);
        }
        for id in members().filter(|id| matches!(state.programs[*id].place, Place::In(_))) {
            let (policy, now) = (&state.graph.programs[id], &state.programs[id]);
            match policy.mode {
                _ if now.operator_down => {}
                Mode::Respawn | Mode::Once if now.given_up => {
                    return Err(format!("{} of group {name} has ended too often and is given up", policy.name));
                }
                Mode::Respawn if !now.is_ready() => return Ok(false),
                Mode::Once if now.due || now.phase == Phase::Starting => return Ok(false),
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
        Reply::done(&self.id, &Done { epoch: state.epoch, seq: state.seq, programs, groups })
    }
}
