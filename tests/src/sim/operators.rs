//! Simulated operators: they give commands through `core::control`, and check these invariants of commands.
//!
//! | | |
//! |---|---|
//! | I34 | every event that a command has proposed is committed or refused |
//! | I35 | a command is answered as done only if an independent check of the state agrees |
//! | I36 | no command is forgotten: each is done, refused or has failed when everything has stopped |
//! | I37 | a command proposes its event for every program and group that it selects, and for no other |

use std::{collections::BTreeMap, sync::Arc};

use gaggled_core::{
    base::ids::{GroupId, ProgramId},
    control::{Operator, Progress, Proposal, Wait, Waits},
    event::{Cause, Envelope, Event, GroupEvent, ProgramEvent},
    graph::{Mode, STOP},
    process::Outcome,
    protocol::{Action, ProgramIndex, Selection, WaitState},
    state::{LevelSwitch, Phase, State},
};

use super::mutants::Mutant;

/// A command that waits for its programs.
#[derive(Debug)]
struct Command {
    action: Action,
    /// For each of its programs the last run that does not satisfy the command: only later runs do.
    runs: BTreeMap<ProgramId, u64>,
}

/// The operators of a world, and their commands.
#[derive(Debug, Default)]
pub struct Operators {
    mutant: Option<Mutant>,
    names: ProgramIndex,
    given: u64,
    /// For each command how many of its events are neither committed nor refused yet.
    unanswered: BTreeMap<Arc<str>, usize>,
    commands: BTreeMap<u64, Command>,
    waits: Waits,
    /// The violations found so far.
    pub violations: Vec<String>,
}

/// The programs of a state by name.
pub fn names(state: &State) -> ProgramIndex {
    state.graph.names().into_iter().filter(|(_, id)| !state.graph.programs[*id].unconfigured).collect()
}

/// The events that a command proposes; none if it is refused.
pub fn events(action: &Action, state: &State, names: &ProgramIndex) -> Vec<Event> {
    Operator { state, names }.propose(action).map(|proposal| proposal.events).unwrap_or_default()
}

impl Operators {
    /// Operators with or without a defect.
    pub fn new(mutant: Option<Mutant>) -> Self {
        Self { mutant, ..Self::default() }
    }

    /// Forgets all pending commands, because the daemon has died.
    pub fn forget(&mut self) {
        *self = Self { violations: std::mem::take(&mut self.violations), given: self.given, ..Self::new(self.mutant) };
    }

    /// Gives a command; returns the events that it proposes, and their cause.
    pub fn give(&mut self, action: &Action, state: &State) -> (Vec<Event>, Cause) {
        self.names = names(state);
        self.given += 1;
        let command: Arc<str> = format!("c{}", self.given).into();
        let cause = Cause::Operator { who: "simulated".into(), command: command.clone() };
        let operator = Operator { state, names: &self.names };
        let Ok(proposal) = operator.propose(action) else { return (Vec::new(), cause) };
        let mut proposal = match self.mutant {
            Some(mutant) => mutant.proposal(action, state, proposal),
            None => proposal,
        };
        if let Some(why) = wrong(action, state, &proposal) {
            self.violations.push(format!("I37: {action:?} proposes {:?}: {why}", proposal.events));
        }
        self.unanswered.insert(command, proposal.events.len());
        if let Some(target) = proposal.target.take() {
            let is_restart = matches!(action, Action::Restart(_));
            let run = |id: &ProgramId| {
                let now = &state.programs[*id];
                // The current run counts unless the command restarts it or a stop is pending.
                let counts = !is_restart && now.phase != Phase::Down && now.pending_stop.is_none();
                (*id, now.instance.0 - u64::from(counts))
            };
            let runs = target.programs.keys().map(run).collect();
            let wait = Wait::after_commit(Some(target), cause.clone(), proposal.events.len());
            let (number, progress) = self.waits.add(wait, state);
            self.commands.insert(number, Command { action: action.clone(), runs });
            self.settle(number, progress, state);
        }
        if self.mutant == Some(Mutant::LoseProposedEvent) {
            proposal.events.pop();
        }
        (proposal.events, cause)
    }

    /// An event was committed and applied.
    pub fn committed(&mut self, envelope: &Envelope, state: &State) {
        self.answered(&envelope.cause);
        let mut settled = self.waits.committed(envelope, state);
        if self.mutant == Some(Mutant::DoneWhenCommitted) {
            let accepted = self.waits.iter().filter(|(_, wait)| !wait.is_uncommitted()).map(|(number, _)| number);
            settled = accepted.map(|number| (number, Progress::Done)).collect();
        }
        if self.mutant == Some(Mutant::DoneWhenOneIsThere) {
            let has_one = |wait: &&Wait| {
                let all = wait.target().map_or(0, |target| target.programs.len());
                !wait.is_uncommitted() && wait.programs().len() < all
            };
            let some: Vec<u64> =
                self.waits.iter().filter(|(_, wait)| has_one(wait)).map(|(number, _)| number).collect();
            settled.extend(some.into_iter().map(|number| (number, Progress::Done)));
        }
        for (number, progress) in settled {
            self.settle(number, progress, state);
        }
        for (number, wait) in self.waits.iter().filter(|(_, wait)| !wait.is_uncommitted()) {
            let Some(command) = self.commands.get(&number) else { continue };
            let has_groups = wait.target().is_some_and(|target| !target.groups.is_empty());
            let has_stop = state.programs.values().any(|program| program.pending_stop.is_some());
            if !has_groups && !has_stop && undone(command, wait, state).is_none() {
                self.violations.push(format!(
                    "I36: {command:?} is done at {} and not answered: {wait:?} {:?}",
                    state.seq,
                    wait.target().map(|target| target
                        .programs
                        .keys()
                        .map(|id| &state.programs[*id])
                        .collect::<Vec<_>>())
                ));
                return;
            }
        }
    }

    /// A proposed event was refused.
    pub fn refused(&mut self, cause: &Cause) {
        self.answered(cause);
        if let Some(number) = self.waits.refused(cause) {
            self.waits.remove(number);
            self.commands.remove(&number);
        }
    }

    /// The shutdown is complete; so many programs could not be ended.
    pub fn end(&mut self, unkillable: u32) {
        for (command, left) in &self.unanswered {
            if *left > 0 {
                self.violations.push(format!("I34: {left} events of {command} were neither committed nor refused"));
            }
        }
        // A command that waits for a program to be down stays pending if the program could not be ended.
        for (number, wait) in self.waits.iter().filter(|_| unkillable == 0) {
            let command = self.commands.get(&number);
            self.violations.push(format!("I36: {command:?} was forgotten: {wait:?}"));
        }
    }

    fn answered(&mut self, cause: &Cause) {
        if let Cause::Operator { command, .. } = cause
            && let Some(left) = self.unanswered.get_mut(command)
        {
            *left = left.saturating_sub(1);
        }
    }

    fn settle(&mut self, number: u64, progress: Progress, state: &State) {
        if progress == Progress::Pending || self.mutant == Some(Mutant::ForgetCommand) {
            return;
        }
        let Some((command, wait)) = self.commands.remove(&number).zip(self.waits.remove(number)) else { return };
        let undone = undone(&command, &wait, state);
        let has_groups = wait.target().is_some_and(|target| !target.groups.is_empty());
        match (progress, undone) {
            (Progress::Done, Some(why)) => {
                self.violations.push(format!("I35: {:?} is done, but {why}", command.action));
            }
            // A shutdown fails commands whose programs may still be in the wanted state.
            (Progress::Failed(reason), None) if state.shutdown.is_none() && !has_groups => {
                self.violations.push(format!("I35: {:?} is done, but has failed: {reason}", command.action));
            }
            (Progress::Done | Progress::Failed(_) | Progress::Pending, _) => {}
        }
    }
}

/// Why a command is not done in this state; `None` if it is done.
fn undone(command: &Command, wait: &Wait, state: &State) -> Option<String> {
    let target = wait.target()?;
    let is_restart = matches!(command.action, Action::Restart(_));
    let program = |id: &ProgramId| {
        let (policy, now) = (&state.graph.programs[*id], &state.programs[*id]);
        let is_later = now.instance.0 > command.runs.get(id).copied().unwrap_or(0);
        let ran = matches!(now.outcome, Some(Outcome::Exited(status)) if policy.succeeds(status));
        let is_there = match now.phase {
            // A program that ends by itself, and was named in the command, must have ended.
            Phase::Up => now.ready_since.is_some() && !(target.is_named && policy.ends_by_itself()),
            Phase::ActiveExited => true,
            Phase::Down => policy.mode != Mode::Respawn && ran && is_later && !now.start_pending && !now.operator_down,
            Phase::Starting | Phase::Stopping => false,
        };
        let is_new = !is_restart || is_later;
        match target.goal {
            WaitState::Down => (now.phase != Phase::Down).then(|| format!("{} is not down", policy.name)),
            WaitState::Up => (!(is_there && is_new)).then(|| format!("{} is not up: {now:?}", policy.name)),
        }
    };
    let group = |id: &GroupId| {
        let (name, now) = (&state.graph.groups[*id].name, &state.groups[*id]);
        let is_there = match (target.goal, now.level_switch) {
            (WaitState::Down, _) if state.shutdown.is_some() => true,
            (WaitState::Down, LevelSwitch::Settled) => *now.level == *STOP,
            (WaitState::Up, LevelSwitch::Settled) => now.failed_program.is_none(),
            _ => false,
        };
        (!is_there).then(|| format!("group {name} is not there: {now:?}"))
    };
    target.programs.keys().find_map(program).or_else(|| target.groups.keys().find_map(group))
}

/// Whether a name or pattern of the selection matches this name.
fn names_it(selection: &Selection, name: &str) -> bool {
    let matches = |word: &String| word.strip_suffix('*').map_or(word == name, |start| name.starts_with(start));
    selection.programs.iter().any(matches)
}

/// What is wrong with the events that a command proposes.
fn wrong(action: &Action, state: &State, proposal: &Proposal) -> Option<String> {
    let (selection, wanted) = match action {
        Action::Up(selection) => (selection, ProgramEvent::StartRequested),
        Action::Down(selection) => (selection, ProgramEvent::StopRequested),
        Action::Restart(selection) => (selection, ProgramEvent::RestartRequested),
        _ => return None,
    };
    let everything = selection.programs.is_empty();
    for (id, policy) in state.graph.programs.iter() {
        let now = &state.programs[id];
        let selected = match action {
            _ if policy.unconfigured || !policy.is_here() => false,
            _ if !everything => names_it(selection, &policy.name),
            Action::Up(_) => policy.group.is_none() && policy.autostart,
            Action::Restart(_) => policy.group.is_none() && !now.operator_down,
            _ => policy.group.is_none(),
        };
        let proposed = proposal.events.contains(&Event::Program(id, wanted.clone()));
        // A group that is started also starts its programs that an operator has stopped.
        let with_group =
            policy.group.is_some_and(|group| everything || names_it(selection, &state.graph.groups[group].name));
        let is_manual = !policy.autostart && !now.operator_down && now.phase != Phase::Down;
        let restarts = |group: GroupId| {
            let level = &state.groups[group].level;
            with_group && !state.graph.groups[group].has_restart && **level != *STOP && is_manual
        };
        let selected = selected || wanted == ProgramEvent::RestartRequested && policy.group.is_some_and(restarts);
        if proposed != selected && !(proposed && with_group && wanted == ProgramEvent::StartRequested) {
            return Some(format!("{} is {}selected", policy.name, if selected { "" } else { "not " }));
        }
    }
    for (id, group) in state.graph.groups.iter() {
        let is_stopped = *state.groups[id].level == *STOP;
        let selected = if everything {
            state.groups[id].may_run() && !(matches!(action, Action::Restart(_)) && is_stopped)
        } else {
            names_it(selection, &group.name)
                && !selection.programs.iter().any(|word| word.ends_with('*') && names_it(&only(word), &group.name))
        };
        let of_group = |event: &&Event| matches!(event, Event::Group(of, _) if *of == id);
        let proposed: Vec<&Event> = proposal.events.iter().filter(of_group).collect();
        let down =
            |event: &&Event| matches!(event, Event::Group(_, GroupEvent::LevelRequested { level }) if **level == *STOP);
        if !selected && !proposed.is_empty() {
            return Some(format!("group {} is not selected", group.name));
        }
        if matches!(action, Action::Down(_)) && selected && !proposed.iter().any(down) {
            return Some(format!("group {} is not stopped", group.name));
        }
        if !matches!(action, Action::Down(_)) && proposed.iter().any(down) {
            return Some(format!("group {} is stopped", group.name));
        }
    }
    None
}

fn only(word: &str) -> Selection {
    Selection { programs: vec![word.to_owned()], ..Selection::default() }
}
