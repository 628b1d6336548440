//! Which events a command proposes, and what it waits for.

use super::{
    operator::{Operator, Proposal},
    target::{Target, Targets},
};
use crate::{
    base::{
        ids::{GroupId, Level, ProgramId},
        time::Millis,
    },
    event::{Event, GroupEvent, ProgramEvent, SystemEvent},
    graph::{Group, RESTART, START, STOP},
    process::Signal,
    protocol::{Action, DEFAULT_TIMEOUT, ErrorCode, ReplyError, Selection, WaitState},
    state::{LevelSwitch, ProgramState},
};

impl Operator<'_> {
    /// What a command proposes, and what it waits for.
    ///
    /// # Errors
    ///
    /// The command selects nothing, cannot be done now, or can never come about; or the request is not a command.
    pub fn propose(&self, action: &Action) -> Result<Proposal, ReplyError> {
        match action {
            Action::Up(selection) => self.up(selection),
            Action::Down(selection) => self.down(selection),
            Action::Restart(selection) => self.restart(selection),
            Action::Tell { group, level, wait, timeout_ms } => self.tell(group, level, *wait, *timeout_ms),
            Action::Signal { programs, signal } => self.signal(programs, signal),
            Action::Shutdown { wait, timeout_ms } => self.shutdown(*wait, *timeout_ms),
            Action::Dump { .. }
            | Action::Why { .. }
            | Action::Events { .. }
            | Action::Snapshot
            | Action::Observe { .. }
            | Action::Status
            | Action::Wait { .. }
            | Action::Plan { .. }
            | Action::Reload { .. }
            | Action::Configure { .. }
            | Action::Upgrade { .. } => {
                let message = "this request is not a command to programs".to_owned();
                Err(ReplyError { code: ErrorCode::BadRequest, message })
            }
        }
    }

    /// What a `wait` request waits for: without names, only the programs and groups that come up without an operator.
    ///
    /// # Errors
    ///
    /// Those of [`Operator::choose`].
    pub fn wait_for(&self, programs: &[String], goal: WaitState) -> Result<Target, ReplyError> {
        let mut chosen = self.choose(programs)?;
        if programs.is_empty() && goal == WaitState::Up {
            chosen
                .programs
                .retain(|id| self.state.graph.programs[*id].autostart && !self.state.programs[*id].operator_down);
            chosen.groups.retain(|group| *self.state.groups[*group].level != *STOP);
        }
        Ok(Target::new(chosen, goal).named(programs))
    }

    /// Refuses a command that is not allowed while gaggled shuts down.
    ///
    /// # Errors
    ///
    /// A shutdown is under way.
    pub fn refuse_in_shutdown(&self) -> Result<(), ReplyError> {
        if self.state.shutdown.is_none() {
            return Ok(());
        }
        let message = "gaggled is shutting down".to_owned();
        Err(ReplyError { code: ErrorCode::ShuttingDown, message })
    }

    fn signal(&self, programs: &[String], signal: &str) -> Result<Proposal, ReplyError> {
        self.refuse_in_shutdown()?;
        let number = Signal::parse(signal).ok_or_else(|| ReplyError {
            code: ErrorCode::BadRequest,
            message: format!("signal {signal:?} is not known: write a name such as HUP, or a number from 1 to 64"),
        })?;
        let selected = self.with_members(&self.choose_here(programs)?);
        let up = selected.iter().filter(|id| self.state.programs[**id].process.is_some());
        let signalled =
            |id: &ProgramId| ProgramEvent::Signalled { instance: self.state.programs[*id].instance, signal: number };
        let events: Vec<Event> = up.map(|id| Event::Program(*id, signalled(id))).collect();
        if events.is_empty() {
            let message = "none of these programs is up".to_owned();
            return Err(ReplyError { code: ErrorCode::Failed, message });
        }
        Ok(Proposal { events, target: None, timeout: DEFAULT_TIMEOUT })
    }

    fn shutdown(&self, wait: bool, timeout_ms: Option<Millis>) -> Result<Proposal, ReplyError> {
        let is_under_way = self.state.shutdown.is_some();
        if !wait {
            self.refuse_in_shutdown()?;
        }
        let programs = self.state.graph.programs.ids().filter(|id| self.is_here(*id)).collect();
        let events = if is_under_way { Vec::new() } else { vec![Event::System(SystemEvent::ShutdownStarted)] };
        let target = wait.then(|| Target::new(Targets { programs, ..Targets::default() }, WaitState::Down));
        Ok(Proposal { events, target, timeout: timeout_ms.unwrap_or(DEFAULT_TIMEOUT) })
    }

    fn up(&self, selection: &Selection) -> Result<Proposal, ReplyError> {
        self.refuse_in_shutdown()?;
        let Targets { mut programs, groups } = self.choose_here(&selection.programs)?;
        if selection.programs.is_empty() {
            // A program with `autostart: false` starts only when it is named.
            programs.retain(|id| self.state.graph.programs[*id].autostart);
        }
        let mut events = events_for(programs.iter(), &ProgramEvent::StartRequested);
        for group in &groups {
            events.extend(self.group_up(*group)?);
        }
        let target = Target::new(Targets { programs, groups }, WaitState::Up).named(&selection.programs);
        Ok(proposal(selection, events, target.after(self.state, goes_on)))
    }

    fn down(&self, selection: &Selection) -> Result<Proposal, ReplyError> {
        let Targets { programs, groups } = self.choose_here(&selection.programs)?;
        let mut events = events_for(programs.iter(), &ProgramEvent::StopRequested);
        events.extend(groups.iter().map(|group| level_requested(*group, STOP.into())));
        let target = Target::new(Targets { programs, groups }, WaitState::Down);
        Ok(proposal(selection, events, target.after(self.state, |_| true)))
    }

    fn restart(&self, selection: &Selection) -> Result<Proposal, ReplyError> {
        self.refuse_in_shutdown()?;
        let Targets { mut programs, mut groups } = self.choose_here(&selection.programs)?;
        if selection.programs.is_empty() {
            // Programs that an operator has stopped, those with `autostart: false` that none has started, and groups at
            // `stop` are left as they are.
            groups.retain(|group| *self.state.groups[*group].level != *STOP);
            programs.retain(|id| !self.state.programs[*id].operator_down);
        }
        let mut events = events_for(programs.iter(), &ProgramEvent::RestartRequested);
        for group in &groups {
            if *self.state.groups[*group].level == *STOP {
                events.extend(self.group_up(*group)?);
            } else {
                events.extend(self.group_restart(*group));
            }
        }
        let target = Target::new(Targets { programs, groups }, WaitState::Up).named(&selection.programs);
        Ok(proposal(selection, events, target.after(self.state, |_| false)))
    }

    fn tell(&self, group: &str, level: &str, wait: bool, timeout_ms: Option<Millis>) -> Result<Proposal, ReplyError> {
        self.refuse_in_shutdown()?;
        let id = self.find_group(group)?;
        self.refuse_not_held(id)?;
        let graph = &self.state.graph;
        let events = if level == RESTART {
            self.group_restart(id)
        } else if graph.has_level(id, level) {
            vec![level_requested(id, level.into())]
        } else {
            let level: String = level.chars().take(64).collect();
            let known = graph.levels(id).join(", ");
            let message = format!("group {group:?} has no level {level:?}: it has {known}");
            return Err(ReplyError { code: ErrorCode::NoSuchLevel, message });
        };
        let chosen = Targets { groups: [id].into(), ..Targets::default() };
        let target = Target::new(chosen, WaitState::Up).after(self.state, |_| false);
        let timeout = timeout_ms.unwrap_or(DEFAULT_TIMEOUT);
        Ok(Proposal { events, target: wait.then_some(target), timeout })
    }

    /// The events that bring a group up: to its default level if it is stopped, else to the level that it is at; and its
    /// programs that an operator has stopped.
    fn group_up(&self, group: GroupId) -> Result<Vec<Event>, ReplyError> {
        let (graph, state) = (&self.state.graph, &self.state.groups[group]);
        let Some(level) = self.level_up(group) else {
            let message = format!(
                "group {:?} has no level \"{START}\": request one of {}",
                graph.groups[group].name,
                graph.levels(group).join(", ")
            );
            return Err(ReplyError { code: ErrorCode::NoSuchLevel, message });
        };
        let is_stopped = |id: &&ProgramId| {
            let policy = &graph.programs[**id];
            self.state.programs[**id].operator_down && policy.autostart && policy.runs_at(&level)
        };
        let members = graph.groups[group].members.iter().filter(is_stopped);
        // A group that has settled at this level gets no request for it.
        let is_settled =
            level == state.level && state.level_switch == LevelSwitch::Settled && state.failed_program.is_none();
        let moved = (!is_settled).then(|| level_requested(group, level.clone()));
        Ok(moved.into_iter().chain(events_for(members, &ProgramEvent::StartRequested)).collect())
    }

    /// The events that restart a group. It starts only members with `autostart`, so those that an operator has started are
    /// restarted one by one; if programs of the group have something to run for its restart, all others go on.
    fn group_restart(&self, group: GroupId) -> Vec<Event> {
        let Group { members, has_restart, .. } = &self.state.graph.groups[group];
        let is_started = |id: &&ProgramId| {
            let (policy, now) = (&self.state.graph.programs[**id], &self.state.programs[**id]);
            !has_restart && !policy.autostart && !now.operator_down && now.is_running()
        };
        let restarted = members.iter().filter(is_started);
        let group = Event::Group(group, GroupEvent::RestartRequested);
        [group].into_iter().chain(events_for(restarted, &ProgramEvent::RestartRequested)).collect()
    }

    fn level_up(&self, group: GroupId) -> Option<Level> {
        let (graph, level) = (&self.state.graph, &self.state.groups[group].level);
        let default = &graph.groups[group].default_level;
        if **level != *STOP {
            Some(level.clone())
        } else if **default != *STOP {
            Some(default.clone())
        } else {
            graph.has_level(group, START).then(|| START.into())
        }
    }
}

fn events_for<'a>(programs: impl Iterator<Item = &'a ProgramId>, event: &ProgramEvent) -> Vec<Event> {
    programs.map(|id| Event::Program(*id, event.clone())).collect()
}

fn level_requested(group: GroupId, level: Level) -> Event {
    Event::Group(group, GroupEvent::LevelRequested { level })
}

fn proposal(selection: &Selection, events: Vec<Event>, target: Target) -> Proposal {
    let timeout = selection.timeout_ms.unwrap_or(DEFAULT_TIMEOUT);
    Proposal { events, target: selection.wait.then_some(target), timeout }
}

/// Whether a start leaves the current run of a program as it is: the command then waits for that run.
fn goes_on(program: &ProgramState) -> bool {
    program.is_running() && program.pending_stop.is_none()
}
