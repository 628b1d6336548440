//! What up, down, restart and tell propose for programs and groups, and what they wait for.

use gaggled_core::{
    base::{
        ids::{GroupId, Level, ProgramId},
        time::Millis,
    },
    event::{Event, GroupEvent, ProgramEvent},
    graph::{RESTART, START, STOP},
    protocol::{DEFAULT_TIMEOUT, ErrorCode, ReplyError, Selection, WaitState},
    state::{LevelSwitch, ProgramState},
};

use super::{ControlActor, Proposal, pending_request::Target, targets::Targets};

impl ControlActor {
    pub(super) fn up(&self, selection: &Selection) -> Result<Proposal, ReplyError> {
        let Targets { mut programs, groups } = self.choose(&selection.programs)?;
        if selection.programs.is_empty() {
            // What comes up only when it is asked for has not been asked for by name.
            programs.retain(|id| self.state.graph.programs[*id].autostart);
        }
        let mut events = wishes(programs.iter(), &ProgramEvent::StartRequested);
        for group in &groups {
            events.extend(self.group_up(*group)?);
        }
        let target = Target::new(Targets { programs, groups }, WaitState::Up).named(&selection.programs);
        Ok(proposal(selection, events, target.after(&self.state, ProgramState::is_ready)))
    }

    pub(super) fn down(&self, selection: &Selection) -> Result<Proposal, ReplyError> {
        let Targets { programs, groups } = self.choose(&selection.programs)?;
        let mut events = wishes(programs.iter(), &ProgramEvent::StopRequested);
        events.extend(groups.iter().map(|group| told(*group, STOP.into())));
        let target = Target::new(Targets { programs, groups }, WaitState::Down);
        Ok(proposal(selection, events, target.after(&self.state, |_| true)))
    }

    pub(super) fn restart(&self, selection: &Selection) -> Result<Proposal, ReplyError> {
        let Targets { mut programs, mut groups } = self.choose(&selection.programs)?;
        if selection.programs.is_empty() {
            // What is stopped is not started by a restart of everything.
            groups.retain(|group| *self.state.groups[*group].level != *STOP);
            programs.retain(|id| !self.state.programs[*id].operator_down);
        }
        let mut events = wishes(programs.iter(), &ProgramEvent::RestartRequested);
        for group in &groups {
            if *self.state.groups[*group].level == *STOP {
                events.extend(self.group_up(*group)?);
            } else {
                events.push(Event::Group(*group, GroupEvent::RestartRequested));
            }
        }
        let target = Target::new(Targets { programs, groups }, WaitState::Up).named(&selection.programs);
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
            Event::Group(id, GroupEvent::RestartRequested)
        } else if graph.has_level(id, level) {
            told(id, level.into())
        } else {
            let level: String = level.chars().take(64).collect();
            let known = graph.levels(id).join(", ");
            let message = format!("group {group:?} has no level {level:?}: it has {known}");
            return Err(ReplyError { code: ErrorCode::NoSuchLevel, message });
        };
        let chosen = Targets { groups: [id].into(), ..Targets::default() };
        let target = Target::new(chosen, WaitState::Up).after(&self.state, |_| false);
        let timeout = timeout_ms.unwrap_or(DEFAULT_TIMEOUT);
        Ok(Proposal { events: vec![event], target: wait.then_some(target), timeout, body: None })
    }

    /// Takes out what nothing brings up but an operator who asks for it by name, or who has put it down.
    pub(super) fn leave_out_unwanted(&self, Targets { programs, groups }: &mut Targets) {
        programs.retain(|id| self.state.graph.programs[*id].autostart && !self.state.programs[*id].operator_down);
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
            self.state.programs[**id].operator_down && policy.autostart && policy.runs_at(&level)
        };
        let members = graph.groups[group].members.iter().filter(put_down);
        // A group that is there and well is not told again what it knows.
        let there =
            level == state.level && state.level_switch == LevelSwitch::Settled && state.failed_program.is_none();
        let moved = (!there).then(|| told(group, level.clone()));
        Ok(moved.into_iter().chain(wishes(members, &ProgramEvent::StartRequested)).collect())
    }

    fn level_up(&self, group: GroupId) -> Option<Level> {
        let (graph, level) = (&self.state.graph, &self.state.groups[group].level);
        let home = &graph.groups[group].default_level;
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
    Event::Group(group, GroupEvent::LevelRequested { level })
}

fn proposal(selection: &Selection, events: Vec<Event>, target: Target) -> Proposal {
    let timeout = selection.timeout_ms.unwrap_or(DEFAULT_TIMEOUT);
    Proposal { events, target: selection.wait.then_some(target), timeout, body: None }
}
