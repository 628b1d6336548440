//! What up, down, restart and tell propose for programs and groups, and what they wait for.

use gaggled_core::{
    command::{DEFAULT_TIMEOUT, Selection},
    event::{Event, GroupEvent, ProgramEvent},
    graph::{Level, RESTART, START, STOP},
    ids::{GroupId, ProgramId},
    state::{ProgramState, Standing},
    time::Millis,
    wire::{ErrorCode, Goal, ReplyError},
};

use super::{ControlActor, Proposal, selection::Chosen, waiter::Target};

impl ControlActor {
    pub(super) fn up(&self, selection: &Selection) -> Result<Proposal, ReplyError> {
        let Chosen { mut programs, groups } = self.choose(&selection.programs)?;
        if selection.programs.is_empty() {
            // What comes up only when it is asked for has not been asked for by name.
            programs.retain(|id| self.state.graph.programs[*id].enabled);
        }
        let mut events = wishes(programs.iter(), &ProgramEvent::OperatorStarted);
        for group in &groups {
            events.extend(self.group_up(*group)?);
        }
        let target = Target::new(Chosen { programs, groups }, Goal::Up).named(&selection.programs);
        Ok(proposal(selection, events, target.after(&self.state, ProgramState::is_ready)))
    }

    pub(super) fn down(&self, selection: &Selection) -> Result<Proposal, ReplyError> {
        let Chosen { programs, groups } = self.choose(&selection.programs)?;
        let mut events = wishes(programs.iter(), &ProgramEvent::OperatorStopped);
        events.extend(groups.iter().map(|group| told(*group, STOP.into())));
        let target = Target::new(Chosen { programs, groups }, Goal::Down);
        Ok(proposal(selection, events, target.after(&self.state, |_| true)))
    }

    pub(super) fn restart(&self, selection: &Selection) -> Result<Proposal, ReplyError> {
        let Chosen { mut programs, mut groups } = self.choose(&selection.programs)?;
        if selection.programs.is_empty() {
            // What is stopped is not started by a restart of everything.
            groups.retain(|group| *self.state.groups[*group].level != *STOP);
            programs.retain(|id| !self.state.programs[*id].operator_down);
        }
        let mut events = wishes(programs.iter(), &ProgramEvent::OperatorRestarted);
        for group in &groups {
            if *self.state.groups[*group].level == *STOP {
                events.extend(self.group_up(*group)?);
            } else {
                events.push(Event::Group(*group, GroupEvent::Restarted));
            }
        }
        let target = Target::new(Chosen { programs, groups }, Goal::Up).named(&selection.programs);
        Ok(proposal(selection, events, target.after(&self.state, |_| false)))
    }

    pub(super) fn tell(
        &self,
        group: &str,
        level: &str,
        wait: bool,
        timeout_ms: Option<Millis>,
    ) -> Result<Proposal, ReplyError> {
        let id = self.find_group(group)?;
        let graph = &self.state.graph;
        let event = if level == RESTART {
            Event::Group(id, GroupEvent::Restarted)
        } else if graph.has_level(id, level) {
            told(id, level.into())
        } else {
            let level: String = level.chars().take(64).collect();
            let known = graph.levels(id).join(", ");
            let message = format!("group {group:?} has no level {level:?}: it has {known}");
            return Err(ReplyError { code: ErrorCode::NoSuchLevel, message });
        };
        let chosen = Chosen { groups: [id].into(), ..Chosen::default() };
        let target = Target::new(chosen, Goal::Up).after(&self.state, |_| false);
        let timeout = timeout_ms.unwrap_or(DEFAULT_TIMEOUT);
        Ok(Proposal { events: vec![event], target: wait.then_some(target), timeout, body: None })
    }

    /// Takes out what nothing brings up but an operator who asks for it by name, or who has put it down.
    pub(super) fn leave_out_unwanted(&self, Chosen { programs, groups }: &mut Chosen) {
        programs.retain(|id| self.state.graph.programs[*id].enabled && !self.state.programs[*id].operator_down);
        groups.retain(|group| *self.state.groups[*group].level != *STOP);
    }

    /// What brings a group up: the level at which it comes up if it is stopped, else again the level that it is at, and
    /// whatever an operator has put down there.
    fn group_up(&self, group: GroupId) -> Result<Vec<Event>, ReplyError> {
        let (graph, state) = (&self.state.graph, &self.state.groups[group]);
        let Some(level) = self.level_up(group) else {
            let message = format!(
                "group {:?} has no level \"{START}\": tell it one of {}",
                graph.groups[group].name,
                graph.levels(group).join(", ")
            );
            return Err(ReplyError { code: ErrorCode::NoSuchLevel, message });
        };
        let put_down = |id: &&ProgramId| {
            let policy = &graph.programs[**id];
            self.state.programs[**id].operator_down && policy.enabled && policy.runs_at(&level)
        };
        let members = graph.groups[group].members.iter().filter(put_down);
        // A group that is there and well is not told again what it knows.
        let there = level == state.level && state.standing == Standing::Reached && state.failed.is_none();
        let moved = (!there).then(|| told(group, level.clone()));
        Ok(moved.into_iter().chain(wishes(members, &ProgramEvent::OperatorStarted)).collect())
    }

    fn level_up(&self, group: GroupId) -> Option<Level> {
        let (graph, level) = (&self.state.graph, &self.state.groups[group].level);
        let home = &graph.groups[group].home;
        if **level != *STOP {
            Some(level.clone())
        } else if **home != *STOP {
            Some(home.clone())
        } else {
            graph.has_level(group, START).then(|| START.into())
        }
    }
}

fn wishes<'a>(programs: impl Iterator<Item = &'a ProgramId>, event: &ProgramEvent) -> Vec<Event> {
    programs.map(|id| Event::Program(*id, event.clone())).collect()
}

fn told(group: GroupId, level: Level) -> Event {
    Event::Group(group, GroupEvent::Told { level })
}

fn proposal(selection: &Selection, events: Vec<Event>, target: Target) -> Proposal {
    let timeout = selection.timeout_ms.unwrap_or(DEFAULT_TIMEOUT);
    Proposal { events, target: selection.wait.then_some(target), timeout, body: None }
}
