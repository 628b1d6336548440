//! The rules of one group: which programs stop and start on the way to a level, in which order, and what they wait for.
//!
//! Programs that do not run at the new level are stopped first, dependents before what they depend on, else in reverse
//! order of the configuration. Only when all of them are down is the first program of the new level started. A program
//! that runs at both levels is not touched. A program of mode `Wait` or `Test` holds back those after it in the
//! configuration until it has ended well; if it does not, the group has failed and they are not started. (The levels
//! are those of System V `init`, the order is that of `Cluster::Init` 0.215, which started the rest even when a test
//! had failed.)

use std::sync::Arc;

use crate::{
    base::{
        ids::{EpochId, GroupId, ProgramId, Seq},
        time::Instant,
    },
    cluster::News,
    event::{Cause, DependencyEvent, Envelope, Event, GroupEvent, ProgramEvent, SystemEvent},
    graph::{Graph, Policy, RESTART, STOP},
    host::HostCommand,
    journal::Refusal,
    machine::{
        Input, Machine, Outputs, Timer, restored_cause,
        tenancy::{Facts, Next, TenancyRules},
    },
    state::{GroupState, LevelSwitch, Membership, ProgramState, State, Tenancy},
};

/// The machine of one group.
#[derive(Clone, Debug)]
pub struct GroupMachine {
    id: GroupId,
    epoch: EpochId,
    graph: Arc<Graph>,
    state: GroupState,
    /// The programs of the group, in the order of the configuration.
    members: Vec<Member>,
    /// Positions in `members`, in the order in which the programs are stopped.
    leave_order: Vec<usize>,
    /// Where to go on in `leave_order`, and in `members`.
    next_to_leave: usize,
    next_to_enter: usize,
    shutdown: bool,
    /// The last event that it has received.
    last_event: Seq,
    /// The proposal that is neither committed nor refused yet.
    pending_proposal: Option<Event>,
    /// The rules about which node runs it, if it runs on one at a time.
    tenancy: Option<TenancyRules>,
}

#[derive(Clone, Debug)]
struct Member {
    id: ProgramId,
    state: ProgramState,
}

impl GroupMachine {
    fn policy(&self, member: &Member) -> &Policy {
        &self.graph.programs[member.id]
    }

    fn committed(&mut self, envelope: &Envelope) {
        if self.pending_proposal.as_ref() == Some(&envelope.event) {
            self.pending_proposal = None;
        }
        match &envelope.event {
            Event::Program(program, event) => self.member(*program, envelope, event),
            Event::Dependency(dependency, DependencyEvent::RestartTriggered { .. }) => {
                let of = self.graph.dependencies[*dependency].dependent;
                if let (Some(at), Event::Dependency(_, event)) = (self.position(of), &envelope.event) {
                    self.members[at].state.apply_dependency(envelope.seq, envelope.monotonic, event);
                    self.next_to_enter = self.next_to_enter.min(at);
                }
            }
            Event::Group(_, event) => {
                self.state.apply(envelope.seq, event);
                (self.next_to_leave, self.next_to_enter) = (0, 0);
                if let (GroupEvent::LevelReached { .. }, Some(tenancy)) = (event, &mut self.tenancy)
                    && *self.state.level != *STOP
                {
                    tenancy.is_fit();
                }
            }
            Event::System(SystemEvent::ShutdownStarted) => self.shutdown = true,
            Event::Remote(..) | Event::Dependency(..) | Event::System(_) => {}
        }
    }

    fn position(&self, program: ProgramId) -> Option<usize> {
        self.members.binary_search_by_key(&program, |member| member.id).ok()
    }

    fn member(&mut self, program: ProgramId, envelope: &Envelope, event: &ProgramEvent) {
        let (epoch, graph) = (self.epoch, self.graph.clone());
        let Some(at) = self.position(program) else { return };
        let member = &mut self.members[at];
        member.state.apply(&graph.programs[program], epoch, envelope.seq, envelope.monotonic, event);
        self.state.update_member(program, &member.state);
        // It may hold back the programs after it again.
        self.next_to_enter = self.next_to_enter.min(at);
    }

    fn decide(&mut self, now: Instant, cause: Cause, out: &mut Outputs) {
        if self.pending_proposal.is_some() || self.changes_tenancy(now, out) || self.shutdown {
            return;
        }
        if self.state.level_switch == LevelSwitch::Failed {
            // A group that runs on one node at a time is left to another one instead.
            if self.tenancy.is_some() {
                return;
            }
            if let Some(level) = self.graph.groups[self.id].fallback.clone().filter(|level| *level != self.state.level)
            {
                self.propose(Event::Group(self.id, GroupEvent::FallbackStarted { level }), cause, out);
            }
            return;
        }
        if !self.state.is_switching()
            || self.leave(&cause, out)
            || !self.state.stopping.is_empty()
            || self.enter(&cause, out)
        {
            return;
        }
        self.propose(
            Event::Group(self.id, GroupEvent::LevelReached { requested_by: self.state.requested_by }),
            cause,
            out,
        );
    }

    /// Proposes what follows from which node is to run it; whether there is something.
    fn changes_tenancy(&mut self, now: Instant, out: &mut Outputs) -> bool {
        let Some(mut tenancy) = self.tenancy.take() else { return false };
        let has_failed = |member: &&Member| member.state.start_limit_hit && self.belongs(member);
        let given_up = self.members.iter().find(has_failed).map(|member| self.policy(member).name.clone());
        let facts = Facts {
            is_running: self.members.iter().any(|member| member.state.is_running()),
            failed_program: self.state.failed_program.clone().or(given_up),
            shutdown: self.shutdown,
            attempt: format!("{}-{}", self.epoch, self.last_event).into(),
            cleans_up: self.members.iter().any(|member| self.policy(member).names(STOP)),
        };
        let next = tenancy.next(now, &self.state, facts);
        self.tenancy = Some(tenancy);
        match next {
            Next::Propose(event, cause) => {
                self.propose(Event::Group(self.id, event), cause, out);
                return true;
            }
            Next::Wait(at) => out.set_timer(Timer::Tenancy, at),
            Next::Nothing => {}
        }
        false
    }

    /// Proposes the stop of the next program that has to leave; whether there was one.
    fn leave(&mut self, cause: &Cause, out: &mut Outputs) -> bool {
        let requested_by = self.state.requested_by;
        while let Some(member) = self.leave_order.get(self.next_to_leave).map(|at| &self.members[*at]) {
            if self.must_leave(member) {
                let event = Event::Program(member.id, ProgramEvent::LevelStopRequested { requested_by });
                self.propose(event, cause.clone(), out);
                return true;
            }
            self.next_to_leave += 1;
        }
        false
    }

    /// Proposes the start of the next program of the level; whether there is one, or one that holds back the others.
    fn enter(&mut self, cause: &Cause, out: &mut Outputs) -> bool {
        let requested_by = self.state.requested_by;
        while let Some(member) = self.members.get(self.next_to_enter) {
            if self.must_enter(member) {
                let event = Event::Program(member.id, ProgramEvent::LevelStartRequested { requested_by });
                self.propose(event, cause.clone(), out);
                return true;
            }
            if self.holds_back(member) {
                if member.state.has_failed() {
                    let failed_program = self.policy(member).name.clone();
                    self.propose(
                        Event::Group(self.id, GroupEvent::Failed { requested_by, failed_program }),
                        cause.clone(),
                        out,
                    );
                }
                return true;
            }
            self.next_to_enter += 1;
        }
        false
    }

    fn propose(&mut self, event: Event, cause: Cause, out: &mut Outputs) {
        self.pending_proposal = Some(event.clone());
        out.propose(event, cause);
    }

    fn belongs(&self, member: &Member) -> bool {
        self.state.has(&self.graph.groups[self.id], self.policy(member))
    }

    /// Whether its programs of the level `restart` are run now.
    fn runs_restart(&self) -> bool {
        self.state.runs_restart(&self.graph.groups[self.id])
    }

    fn must_leave(&self, member: &Member) -> bool {
        let Membership::Admitted(since) = member.state.membership else { return false };
        // What the group does not start is restarted by the command itself.
        let is_restarted =
            self.state.level_switch == LevelSwitch::Restarting && !self.runs_restart() && self.policy(member).autostart;
        !self.belongs(member) || is_restarted && since < self.state.requested_by
    }

    fn must_enter(&self, member: &Member) -> bool {
        if !self.policy(member).autostart || member.state.operator_down || !self.belongs(member) {
            return false;
        }
        match member.state.membership {
            Membership::Ungrouped => false,
            Membership::Stopped => true,
            Membership::Admitted(since) if since >= self.state.requested_by => false,
            Membership::Admitted(_) => {
                let again = self.policy(member).mode.is_gate() && member.state.has_failed();
                again || self.runs_restart() && self.policy(member).names(RESTART)
            }
        }
    }

    /// Whether the programs after this one have to wait for it.
    fn holds_back(&self, member: &Member) -> bool {
        let is_in = matches!(member.state.membership, Membership::Admitted(_));
        is_in && self.belongs(member) && self.policy(member).mode.is_gate() && !member.state.is_completed()
    }
}

impl Machine for GroupMachine {
    type Id = GroupId;

    fn new(state: &State, id: GroupId) -> Self {
        let graph = state.graph.clone();
        let ids = &graph.groups[id].members;
        let members: Vec<Member> =
            ids.iter().map(|id| Member { id: *id, state: state.programs[*id].clone() }).collect();
        let place = |program: ProgramId| ids.binary_search(&program).ok();
        Self {
            id,
            epoch: state.epoch,
            state: state.groups[id].clone(),
            leave_order: graph.leave_order(id).into_iter().filter_map(place).collect(),
            next_to_leave: 0,
            next_to_enter: 0,
            shutdown: state.shutdown.is_some(),
            last_event: state.seq,
            pending_proposal: None,
            tenancy: TenancyRules::of(&graph, id),
            members,
            graph,
        }
    }

    fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs) {
        match input {
            Input::Committed(envelope) => {
                self.last_event = envelope.seq;
                self.committed(envelope);
                if let Event::Group(_, GroupEvent::Held { token, .. }) = &envelope.event {
                    out.execute(HostCommand::SetToken { group: self.id, token: *token });
                }
                self.decide(now, Cause::Event(envelope.seq), out);
            }
            Input::Restored(since) => {
                if let Some(tenancy) = &mut self.tenancy {
                    tenancy.restored(now);
                }
                if let Some(token) = self.state.tenancy.as_ref().and_then(Tenancy::token) {
                    out.execute(HostCommand::SetToken { group: self.id, token });
                }
                self.decide(now, restored_cause(self.state.requested_by, *since), out);
            }
            // It is looked at again with the next report of the cluster, or the next event.
            Input::Refused(Event::Group(_, event), _) if event.is_of_tenancy() => self.pending_proposal = None,
            // The event that made the proposal stale has been received meanwhile, and so has the shutdown.
            Input::Refused(_, Refusal::Stale | Refusal::ShuttingDown) => {
                self.pending_proposal = None;
                self.decide(now, Cause::Event(self.last_event), out);
            }
            Input::Observed(News::Claims(sight)) => {
                if let Some(tenancy) = &mut self.tenancy {
                    tenancy.observed(now, sight);
                    self.decide(now, Cause::Event(self.last_event), out);
                }
            }
            Input::TimerFired(Timer::Tenancy) => self.decide(now, Cause::Event(self.last_event), out),
            Input::Refused(..) if self.tenancy.is_some() => self.pending_proposal = None,
            Input::Refused(..) | Input::HostReported(_) | Input::Observed(_) | Input::TimerFired(_) => {}
        }
    }
}
