//! What may be committed: every precondition, checked against the folded state at the moment of numbering.
//!
//! A proposal races with other events: a program may end after a dependency on it was satisfied and before its
//! dependent starts. Checked here, at the one point where events are numbered, the rules hold exactly in the order of
//! the journal. A refusal is not an error; it says why not and, if that helps, when to try again.

use super::Refusal;

use crate::{
    base::{
        ids::{DependencyId, GroupId, InstanceId, ProgramId},
        time::Instant,
    },
    cluster::RemoteSource,
    event::{DependencyEvent, Event, GroupEvent, ProgramEvent, RemoteEvent, StopReason, SystemEvent},
    graph::STOP,
    state::{GroupState, LevelSwitch, Membership, Phase, ProgramState, State, StopMethod, Tenancy},
};

impl State {
    /// Whether an event may be committed now.
    pub fn admit(&self, now: Instant, event: &Event) -> Result<(), Refusal> {
        if self.handover.is_some() && !is_observation(event) {
            return Err(Refusal::HandingOver);
        }
        match event {
            Event::Program(id, event) => match &self.graph.programs[*id].external {
                Some(external) => Err(Refusal::RunsElsewhere { place: external.place() }),
                None => self.admit_program(now, *id, event),
            },
            Event::Remote(id, event) => self.admit_remote(*id, event),
            Event::Dependency(id, event) => self.admit_dependency(now, *id, event),
            Event::Group(id, event) => self.admit_group(*id, event),
            Event::System(event) => self.admit_system(event),
        }
    }

    fn admit_program(&self, now: Instant, id: ProgramId, event: &ProgramEvent) -> Result<(), Refusal> {
        let program = &self.programs[id];
        match event {
            ProgramEvent::Starting { instance } => self.admit_start(now, id, *instance),
            ProgramEvent::Started { instance, .. } | ProgramEvent::SpawnFailed { instance, .. } => {
                let in_stop_command = program.is_undoing() && program.process.is_none();
                is_in(program, *instance, if in_stop_command { &[Phase::Stopping] } else { &[Phase::Starting] })
            }
            ProgramEvent::Stopping { instance, reason, .. } => {
                is_in(program, *instance, &[Phase::Up, Phase::ActiveExited])?;
                let wanted =
                    program.pending_stop.is_some() || self.shutdown.is_some() && *reason == StopReason::Shutdown;
                if wanted { Ok(()) } else { Err(Refusal::Stale) }
            }
            ProgramEvent::KillRequested { instance } => {
                is_in(program, *instance, &[Phase::Stopping])?;
                match program.kill_at() {
                    Some(ready_at) if ready_at > now => Err(Refusal::TooEarly { ready_at }),
                    Some(_) => Ok(()),
                    None => Err(Refusal::Stale),
                }
            }
            ProgramEvent::StopCommandFailed { instance, .. }
                if program.stop.is_some_and(|stop| stop.method == StopMethod::Command) =>
            {
                is_in(program, *instance, &[Phase::Stopping])
            }
            ProgramEvent::Daemonized { instance, .. } if !program.is_undoing() => {
                is_in(program, *instance, &[Phase::Up, Phase::Stopping])
            }
            ProgramEvent::Ready { instance } if program.ready_since.is_none() && program.pending_stop.is_none() => {
                is_in(program, *instance, &[Phase::Up])
            }
            ProgramEvent::Unhealthy { instance, .. } if program.pending_stop.is_none() => {
                is_in(program, *instance, &[Phase::Up])
            }
            // `Adopted` is committed only when a daemon starts, without admission.
            ProgramEvent::StopCommandFailed { .. }
            | ProgramEvent::Daemonized { .. }
            | ProgramEvent::Ready { .. }
            | ProgramEvent::Unhealthy { .. }
            | ProgramEvent::Adopted { .. } => Err(Refusal::Stale),
            ProgramEvent::Exited { instance, .. } | ProgramEvent::Signalled { instance, .. } => {
                is_in(program, *instance, &[Phase::Up, Phase::Stopping])
            }
            ProgramEvent::StopRequested => Ok(()),
            ProgramEvent::StartRequested | ProgramEvent::RestartRequested if self.graph.programs[id].unconfigured => {
                Err(Refusal::Unconfigured)
            }
            ProgramEvent::StartRequested | ProgramEvent::RestartRequested => {
                self.refuse_in_shutdown()?;
                self.refuse_at_level(id)
            }
            ProgramEvent::LevelStartRequested { requested_by } => {
                let group =
                    self.group_of(id).filter(|group| group.is_switching() && group.requested_by == *requested_by);
                let free = group.is_some_and(|group| group.stopping.is_empty()) && !self.waits_for_gate(id);
                if self.shutdown.is_none() && free { Ok(()) } else { Err(Refusal::Stale) }
            }
            ProgramEvent::LevelStopRequested { requested_by } => {
                let moves =
                    self.group_of(id).is_some_and(|group| group.is_switching() && group.requested_by == *requested_by);
                if moves && matches!(program.membership, Membership::Admitted(_)) {
                    Ok(())
                } else {
                    Err(Refusal::Stale)
                }
            }
        }
    }

    fn group_of(&self, id: ProgramId) -> Option<&GroupState> {
        self.graph.programs[id].group.map(|group| &self.groups[group])
    }

    /// Whether an earlier program of mode `Wait` or `Test` in its group has to end well first.
    fn waits_for_gate(&self, id: ProgramId) -> bool {
        let Some(group) = self.graph.programs[id].group else { return false };
        let earlier = self.graph.groups[group].gates.iter().take_while(|holder| **holder < id);
        let mut waits = earlier.filter(|holder| {
            let program = &self.programs[**holder];
            let belongs = self.groups[group].has(&self.graph.groups[group], &self.graph.programs[**holder]);
            program.membership != Membership::Stopped && !program.is_completed() && belongs
        });
        waits.next().is_some()
    }

    /// Refuses to start a program that does not run at the current level of its group.
    fn refuse_at_level(&self, id: ProgramId) -> Result<(), Refusal> {
        let policy = &self.graph.programs[id];
        let Some(group) = policy.group else { return Ok(()) };
        if self.groups[group].runs(policy) {
            return Ok(());
        }
        let level = &self.groups[group].level;
        Err(Refusal::NotAtLevel { group: self.graph.groups[group].name.to_string(), level: level.clone() })
    }

    fn admit_group(&self, id: GroupId, event: &GroupEvent) -> Result<(), Refusal> {
        let group = &self.groups[id];
        // Which node runs it is settled in a shutdown as well.
        if !event.is_of_tenancy() {
            self.refuse_in_shutdown()?;
        }
        let is_stop = matches!(event, GroupEvent::LevelRequested { level } if **level == *STOP);
        let is_requested = matches!(event, GroupEvent::LevelRequested { .. } | GroupEvent::RestartRequested);
        if is_requested && !is_stop && !group.may_run() {
            let holder = if let Some(Tenancy::Away { holder, .. }) = &group.tenancy { holder.clone() } else { None };
            return Err(Refusal::NotHeld { group: self.graph.groups[id].name.clone(), holder });
        }
        let timely = match event {
            GroupEvent::LevelRequested { level } if !self.graph.has_level(id, level) => {
                return Err(Refusal::NoSuchLevel);
            }
            GroupEvent::LevelRequested { .. } | GroupEvent::RestartRequested => true,
            GroupEvent::LevelReached { requested_by } | GroupEvent::Failed { requested_by, .. } => {
                group.is_switching() && group.requested_by == *requested_by
            }
            GroupEvent::FallbackStarted { .. } => group.level_switch == LevelSwitch::Failed && group.tenancy.is_none(),
            GroupEvent::ClaimStarted { .. }
            | GroupEvent::ClaimFailed { .. }
            | GroupEvent::Held { .. }
            | GroupEvent::Leaving { .. }
            | GroupEvent::Released { .. }
            | GroupEvent::HolderSeen { .. } => self.admits_tenancy(id, event),
        };
        if timely { Ok(()) } else { Err(Refusal::Stale) }
    }

    /// Whether this may happen now to a group that runs on one node at a time.
    fn admits_tenancy(&self, id: GroupId, event: &GroupEvent) -> bool {
        let Some(tenancy) = &self.groups[id].tenancy else { return false };
        let is_running = || self.runs_shared(id);
        let shutdown = self.shutdown.is_some();
        match (event, tenancy) {
            (GroupEvent::ClaimStarted { .. }, Tenancy::Away { .. }) => !shutdown && !is_running(),
            (GroupEvent::Held { attempt, .. }, Tenancy::Claiming { attempt: known, .. }) => {
                !shutdown && attempt == known && !is_running()
            }
            (GroupEvent::ClaimFailed { attempt }, Tenancy::Claiming { attempt: known, .. }) => attempt == known,
            (GroupEvent::Leaving { .. }, Tenancy::Held { .. }) => true,
            (GroupEvent::Released { .. }, Tenancy::Leaving { .. }) => !is_running(),
            (GroupEvent::Released { .. }, Tenancy::Held { .. }) => shutdown && !is_running(),
            (GroupEvent::HolderSeen { node }, Tenancy::Away { holder, .. }) => node != holder,
            _ => false,
        }
    }

    fn admit_start(&self, now: Instant, id: ProgramId, instance: InstanceId) -> Result<(), Refusal> {
        let program = &self.programs[id];
        self.refuse_in_shutdown()?;
        let may_run = match self.group_of(id).and_then(|group| group.tenancy.as_ref()) {
            None | Some(Tenancy::Held { .. }) => true,
            // Only what cleans up: what was killed from outside may want to start again before it hears of this.
            Some(Tenancy::Leaving { .. }) => self.graph.programs[id].names(STOP),
            Some(Tenancy::Away { .. } | Tenancy::Claiming { .. }) => false,
        };
        if !may_run {
            return Err(Refusal::NoStartPending);
        }
        if program.phase != Phase::Down || instance.0 != program.instance.0 + 1 {
            return Err(Refusal::Stale);
        }
        if !program.start_pending
            || program.operator_down
            || program.start_limit_hit
            || program.membership == Membership::Stopped
        {
            return Err(Refusal::NoStartPending);
        }
        for dependency in self.graph.dependencies_of(id) {
            let open = self.dependencies[*dependency].satisfied.is_some()
                && self.satisfied_at(*dependency).is_some_and(|at| at <= now);
            if !open {
                return Err(Refusal::DependencyUnsatisfied { dependency: *dependency });
            }
        }
        match program.not_before {
            Some(ready_at) if ready_at > now => Err(Refusal::TooEarly { ready_at }),
            _ => Ok(()),
        }
    }

    fn admit_dependency(&self, now: Instant, id: DependencyId, event: &DependencyEvent) -> Result<(), Refusal> {
        let dependency = &self.dependencies[id];
        let on = &self.programs[self.graph.dependencies[id].dependency];
        match event {
            DependencyEvent::Satisfied { instance } => {
                if dependency.satisfied.is_some() || on.instance != *instance {
                    return Err(Refusal::Stale);
                }
                match self.satisfied_at(id) {
                    Some(at) if at <= now => Ok(()),
                    Some(ready_at) => Err(Refusal::TooEarly { ready_at }),
                    None => Err(Refusal::Stale),
                }
            }
            DependencyEvent::Broken => {
                if dependency.satisfied.is_some() {
                    Ok(())
                } else {
                    Err(Refusal::Stale)
                }
            }
            DependencyEvent::RestartTriggered { down_event, .. } => {
                self.refuse_in_shutdown()?;
                let news = on.down_event.is_some_and(|last| *down_event <= last)
                    && dependency.last_down_event < Some(*down_event);
                if self.graph.dependencies[id].propagate && news { Ok(()) } else { Err(Refusal::Stale) }
            }
        }
    }

    /// What is seen of another node is admitted in a shutdown as well.
    fn admit_remote(&self, id: ProgramId, event: &RemoteEvent) -> Result<(), Refusal> {
        let program = &self.programs[id];
        let Some(remote) = program.remote.as_deref() else { return Err(Refusal::Stale) };
        let is_up = program.phase == Phase::Up;
        let is_news = |source: &RemoteSource| !source.is_before(&remote.source);
        let timely = match event {
            RemoteEvent::Up { source, .. } => !is_up && is_news(source),
            RemoteEvent::Ready { source } => is_up && program.ready_since.is_none() && is_news(source),
            RemoteEvent::Down { source, .. } => (is_up || program.is_completed()) && is_news(source),
            RemoteEvent::Completed { source, remote_instance, .. } => {
                let is_known = program.is_completed() && remote.instance == *remote_instance;
                !is_known && is_news(source)
            }
            RemoteEvent::Unseen { reason, assumed_down: false } => remote.unseen != Some(*reason),
            RemoteEvent::Unseen { assumed_down: true, .. } => is_up,
            RemoteEvent::Seen => remote.unseen.is_some(),
        };
        if timely { Ok(()) } else { Err(Refusal::Stale) }
    }

    fn admit_system(&self, event: &SystemEvent) -> Result<(), Refusal> {
        match event {
            SystemEvent::ShutdownStarted | SystemEvent::HandoverStarted { .. } => self.refuse_in_shutdown(),
            SystemEvent::ShutdownCompleted { .. } if self.shutdown.is_none() || self.unkillable.is_some() => {
                Err(Refusal::Stale)
            }
            SystemEvent::DaemonStarted { .. }
            | SystemEvent::ShutdownCompleted { .. }
            | SystemEvent::JournalDegraded { .. }
            | SystemEvent::JournalRestored { .. }
            | SystemEvent::JournalDamaged { .. }
            | SystemEvent::CommandRefused { .. }
            | SystemEvent::ActorPanicked { .. } => Ok(()),
        }
    }

    fn refuse_in_shutdown(&self) -> Result<(), Refusal> {
        if self.shutdown.is_some() { Err(Refusal::ShuttingDown) } else { Ok(()) }
    }
}

/// Whether an event only records an observation of the host: only those may be committed during a handover.
fn is_observation(event: &Event) -> bool {
    match event {
        Event::Program(_, event) => matches!(
            event,
            ProgramEvent::Started { .. }
                | ProgramEvent::Daemonized { .. }
                | ProgramEvent::Ready { .. }
                | ProgramEvent::SpawnFailed { .. }
                | ProgramEvent::StopCommandFailed { .. }
                | ProgramEvent::Exited { .. }
        ),
        Event::Remote(..) => true,
        Event::Dependency(..) | Event::Group(..) | Event::System(_) => false,
    }
}

fn is_in(program: &ProgramState, instance: InstanceId, phases: &[Phase]) -> Result<(), Refusal> {
    if program.instance == instance && phases.contains(&program.phase) { Ok(()) } else { Err(Refusal::Stale) }
}
