//! Requests that are answered later: when their events are committed, and then when programs have reached a state.

use std::collections::{BTreeMap, BTreeSet};

use actix::SpawnHandle;
use gaggled_core::{
    event::{Cause, Envelope, Event},
    graph::{Mode, STOP, Until},
    ids::{GroupId, InstanceId, ProgramId, Seq},
    rules::Refusal,
    state::{Outcome, Phase, Place, ProgramState, Standing, State},
    time::Instant,
    wire::{ErrorCode, Goal, Reply, View, describe},
};
use serde::Serialize;

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
}

impl Target {
    /// These, as they are.
    pub(super) fn new(Chosen { programs, groups }: Chosen, goal: Goal) -> Self {
        let programs = programs.into_iter().map(|id| (id, 0)).collect();
        Self { programs, groups: groups.into_iter().map(|id| (id, Seq(0))).collect(), goal }
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
            Goal::Up if now.phase == Phase::Up => Ok(now.is_ready() && now.instance > InstanceId(after)),
            Goal::Up if now.phase == Phase::Done => Ok(now.leaving.is_none() && now.instance > InstanceId(after)),
            Goal::Up if now.phase != Phase::Down => Ok(false),
            Goal::Up if now.given_up => Err(format!(
                "{name} has ended too often and is given up: {}",
                now.outcome.map(describe).unwrap_or_default()
            )),
            Goal::Up if now.operator_down => Err(format!("{name} was put down by an operator")),
            Goal::Up if self.is_command && self.hopeless(program, state).is_some() => {
                Err(self.hopeless(program, state).unwrap_or_default())
            }
            Goal::Up if state.shutdown.is_some() => Err(format!("{name} cannot come up: gaggled is shutting down")),
            Goal::Up => match now.outcome {
                Some(Outcome::SpawnFailed { stage, errno }) if now.instance.0 > after && !stage.is_transient(errno) => {
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

/// All requests that wait.
#[derive(Default)]
pub(super) struct Waiters {
    next: u64,
    waiting: BTreeMap<u64, Waiter>,
    /// Who waits for a program.
    by_program: BTreeMap<ProgramId, BTreeSet<u64>>,
    /// Who waits for a group.
    by_group: BTreeMap<GroupId, BTreeSet<u64>>,
    /// Who waits for events to be committed.
    uncommitted: BTreeSet<u64>,
    answered: Vec<(String, Reply)>,
    alarms: Vec<SpawnHandle>,
}

impl Waiters {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_waiting(&self, number: u64) -> bool {
        self.waiting.contains_key(&number)
    }

    pub(super) fn by_key(&mut self, key: &str) -> Option<&mut Waiter> {
        self.waiting.values_mut().find(|waiter| waiter.key == key)
    }

    /// Takes a request in; it may be answered at once.
    pub(super) fn add(&mut self, waiter: Waiter, state: &State) -> u64 {
        self.next += 1;
        let number = self.next;
        if waiter.uncommitted.is_some() {
            self.uncommitted.insert(number);
        }
        for program in &waiter.missing {
            self.by_program.entry(*program).or_default().insert(number);
        }
        for group in &waiter.missing_groups {
            self.by_group.entry(*group).or_default().insert(number);
        }
        self.waiting.insert(number, waiter);
        self.look(number, None, state);
        number
    }

    pub(super) fn set_alarm(&mut self, number: u64, handle: SpawnHandle) {
        if let Some(waiter) = self.waiting.get_mut(&number) {
            waiter.alarm = Some(handle);
        }
    }

    /// An event was committed and applied.
    pub(super) fn hear(&mut self, envelope: &Envelope, state: &State) {
        let mut concerned: BTreeSet<u64> = BTreeSet::new();
        if matches!(envelope.cause, Cause::Operator { .. }) {
            for number in &self.uncommitted {
                let Some(waiter) = self.waiting.get_mut(number) else { continue };
                if let Some((cause, left)) = &mut waiter.uncommitted
                    && *cause == envelope.cause
                {
                    *left -= 1;
                    if *left == 0 {
                        waiter.uncommitted = None;
                        concerned.insert(*number);
                    }
                }
            }
            self.uncommitted.retain(|number| !concerned.contains(number));
        }
        for number in concerned {
            self.look(number, None, state);
        }
        let group = match &envelope.event {
            Event::Group(group, _) => Some(*group),
            Event::Program(program, _) => state.graph.programs[*program].group,
            Event::Dependency(..) | Event::System(_) => None,
        };
        let waiting = group.and_then(|group| self.by_group.get(&group)).cloned();
        for number in waiting.into_iter().flatten() {
            self.look_at_groups(number, state);
        }
        let subject = state.graph.subject(&envelope.event);
        let waiting = subject.and_then(|program| self.by_program.get(&program)).cloned();
        for number in waiting.into_iter().flatten() {
            self.look(number, subject, state);
        }
    }

    /// Looks whether a request can be answered: all its programs, or the one that has changed.
    fn look(&mut self, number: u64, changed: Option<ProgramId>, state: &State) {
        let Some(waiter) = self.waiting.get_mut(&number) else { return };
        if waiter.uncommitted.is_some() {
            return;
        }
        let candidates: Vec<ProgramId> = match changed {
            Some(program) => vec![program],
            None => waiter.missing.iter().copied().collect(),
        };
        for program in candidates {
            match waiter.is_there(program, state) {
                Ok(false) => {
                    waiter.missing.insert(program);
                }
                Ok(true) => {
                    waiter.missing.remove(&program);
                }
                Err(why) => {
                    let reply = Reply::refused(&waiter.id, ErrorCode::Failed, why);
                    return self.answer(number, &reply);
                }
            }
        }
        if changed.is_none() || waiter.missing.is_empty() {
            self.look_at_groups(number, state);
        }
    }

    /// Looks whether the groups that a request waits for are there, and with them everything.
    fn look_at_groups(&mut self, number: u64, state: &State) {
        let Some(waiter) = self.waiting.get_mut(&number).filter(|waiter| waiter.uncommitted.is_none()) else { return };
        for group in waiter.missing_groups.clone() {
            match waiter.has_arrived(group, state) {
                Ok(true) => drop(waiter.missing_groups.remove(&group)),
                Ok(false) => {}
                Err(why) => {
                    let reply = Reply::refused(&waiter.id, ErrorCode::Failed, why);
                    return self.answer(number, &reply);
                }
            }
        }
        if waiter.missing.is_empty() && waiter.missing_groups.is_empty() {
            let reply = waiter.done(state);
            self.answer(number, &reply);
        }
    }

    /// What a command proposed was refused: it will not come about.
    pub(super) fn decline(&mut self, cause: &Cause, refusal: &Refusal) {
        let meant = |waiter: &Waiter| waiter.uncommitted.as_ref().is_some_and(|(own, _)| own == cause);
        let number = self.uncommitted.iter().copied().find(|number| self.waiting.get(number).is_some_and(meant));
        let Some((number, waiter)) = number.and_then(|number| Some((number, self.waiting.get(&number)?))) else {
            return;
        };
        let code = if *refusal == Refusal::ShuttingDown { ErrorCode::ShuttingDown } else { ErrorCode::Failed };
        let reply = Reply::refused(&waiter.id, code, refusal.to_string());
        self.answer(number, &reply);
    }

    /// The time of a request is over.
    pub(super) fn time_out(&mut self, number: u64, state: &State, now: Instant) {
        let Some(waiter) = self.waiting.get_mut(&number) else { return };
        waiter.alarm = None;
        let view = View::at(state, now);
        let mut late: Vec<String> = waiter
            .missing
            .iter()
            .take(5)
            .map(|program| {
                let program = view.program(*program);
                if program.reason.is_empty() {
                    program.program.to_owned()
                } else {
                    format!("{} ({})", program.program, program.reason)
                }
            })
            .collect();
        late.extend(waiter.missing_groups.iter().take(5).map(|group| {
            let group = view.group(*group);
            let reason = if group.reason.is_empty() { String::new() } else { format!(" ({})", group.reason) };
            format!("group {}{reason}", group.group)
        }));
        if waiter.missing.len() > late.len() {
            late.push(format!("and {} more", waiter.missing.len() - late.len()));
        }
        let goal = if waiter.target.as_ref().is_some_and(|target| target.goal == Goal::Down) { "down" } else { "up" };
        let reply = Reply::refused(&waiter.id, ErrorCode::TimedOut, format!("not {goal} in time: {}", late.join(", ")));
        self.answer(number, &reply);
    }

    /// Nothing more will happen.
    pub(super) fn dismiss(&mut self) {
        while let Some((number, waiter)) = self.waiting.first_key_value() {
            let reply = Reply::refused(&waiter.id, ErrorCode::ShuttingDown, "gaggled has ended");
            self.answer(*number, &reply);
        }
    }

    fn answer(&mut self, number: u64, reply: &Reply) {
        let Some(waiter) = self.waiting.remove(&number) else { return };
        self.uncommitted.remove(&number);
        for program in waiter.target.iter().flat_map(|target| target.programs.keys()) {
            if let Some(waiting) = self.by_program.get_mut(program) {
                waiting.remove(&number);
                if waiting.is_empty() {
                    self.by_program.remove(program);
                }
            }
        }
        for group in waiter.target.iter().flat_map(|target| target.groups.keys()) {
            if let Some(waiting) = self.by_group.get_mut(group) {
                waiting.remove(&number);
                if waiting.is_empty() {
                    self.by_group.remove(group);
                }
            }
        }
        self.alarms.extend(waiter.alarm);
        for answer in waiter.answers {
            answer(reply.clone());
        }
        self.answered.push((waiter.key, reply.clone()));
    }

    /// The answers that were sent since the last time.
    pub(super) fn take_answered(&mut self) -> Vec<(String, Reply)> {
        std::mem::take(&mut self.answered)
    }

    /// Alarms that are no longer needed.
    pub(super) fn take_alarms(&mut self) -> Vec<SpawnHandle> {
        std::mem::take(&mut self.alarms)
    }
}
