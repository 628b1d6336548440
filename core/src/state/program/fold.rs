//! What events make of the state of a program.

use super::{Leaving, Outcome, Phase, Place, ProgramState};
use crate::{
    event::{DependencyEvent, ProgramEvent, StopReason},
    graph::Policy,
    host::{ExecStage, ExitStatus, StartTime},
    ids::{EpochId, InstanceId, Seq},
    state::spacing::jitter,
    time::Instant,
};

impl ProgramState {
    /// Folds an event of the program itself.
    pub fn apply(&mut self, policy: &Policy, epoch: EpochId, seq: Seq, at: Instant, event: &ProgramEvent) {
        let before = self.phase;
        match event {
            ProgramEvent::Starting { instance } => self.starting(*instance, policy, at),
            ProgramEvent::Started { pid, birth, .. } if self.phase == Phase::Starting => {
                self.started(*pid, *birth, policy, at);
            }
            ProgramEvent::Adopted { pid, birth, .. } if self.phase == Phase::Starting => {
                if self.place == Place::Out && self.leaving.is_none() {
                    // That it was let in was not written.
                    self.place = Place::In(seq);
                }
                self.started(*pid, *birth, policy, at);
            }
            ProgramEvent::Started { pid, birth, .. } | ProgramEvent::Adopted { pid, birth, .. } => {
                self.pid = Some(*pid);
                self.birth = *birth;
            }
            ProgramEvent::Daemonized { pid, birth, .. } => {
                (self.pid, self.birth, self.daemonized) = (Some(*pid), *birth, true);
                if policy.care.readiness.is_none() {
                    self.ready_since = self.ready_since.or(Some(at));
                }
            }
            ProgramEvent::Ready { .. } => self.ready_since = Some(at),
            ProgramEvent::Unhealthy { ailment, .. } => {
                self.ailment = Some(*ailment);
                self.leaving = Some(Leaving { reason: StopReason::Unhealthy, planned: false, since: at });
            }
            ProgramEvent::SpawnFailed { stage, errno, .. } if self.undoing => {
                self.outcome = Some(Outcome::SpawnFailed { stage: *stage, errno: *errno });
                self.down();
                self.state_sequence += 1;
            }
            ProgramEvent::SpawnFailed { stage, errno, .. } => self.not_started(*stage, *errno, policy, epoch, at),
            ProgramEvent::Stopping { reason, deadline, .. } => {
                self.undoing = self.phase == Phase::Done;
                self.phase = Phase::Stopping;
                self.leaving = self.leaving.or(Some(Leaving { reason: *reason, planned: false, since: at }));
                self.deadline = Some(*deadline);
                self.urged_by = Some(seq);
            }
            ProgramEvent::StopCommandFailed { .. } => self.urged_by = Some(seq),
            ProgramEvent::StopEscalated { .. } => {
                self.deadline = None;
                self.urged_by = Some(seq);
            }
            ProgramEvent::Exited { stands: true, status, left_behind, .. } => self.done(*status, *left_behind, seq),
            ProgramEvent::Exited { status, .. } => self.exited(*status, policy, epoch, seq, at),
            ProgramEvent::LevelEntered { told } => {
                self.place = Place::In(*told);
                self.new_chance();
                self.due = !self.operator_down;
                self.leave(StopReason::Level, seq, at);
                self.state_sequence += 1;
            }
            ProgramEvent::LevelLeft { .. } => {
                self.place = Place::Out;
                self.due = false;
                self.leave(StopReason::Level, seq, at);
                self.state_sequence += 1;
            }
            ProgramEvent::Signalled { signal, .. } if signal.asks_to_end() => self.urged_by = Some(seq),
            ProgramEvent::Signalled { .. } => {}
            ProgramEvent::OperatorStopped => {
                self.operator_down = true;
                self.due = false;
                self.leave(StopReason::Operator, seq, at);
                self.state_sequence += 1;
            }
            ProgramEvent::OperatorStarted => {
                self.wanted_again(seq);
                self.due |= self.leaving.is_some() || !self.is_running();
                self.state_sequence += 1;
            }
            ProgramEvent::OperatorRestarted => {
                self.wanted_again(seq);
                self.due = true;
                self.leave(StopReason::Operator, seq, at);
                self.state_sequence += 1;
            }
        }
        if self.phase != before {
            self.changed_at = at;
            self.changed_by = seq;
        }
        self.last_seq = seq;
    }

    /// Folds an event of one of the dependencies that the program has.
    pub fn apply_dependency(&mut self, seq: Seq, at: Instant, event: &DependencyEvent) {
        match event {
            DependencyEvent::Satisfied { .. } => self.unmet = self.unmet.saturating_sub(1),
            DependencyEvent::Broken => self.unmet = self.unmet.saturating_add(1),
            DependencyEvent::RestartDue { planned, .. } => {
                self.due = self.place != Place::Out;
                self.not_before = None;
                self.recent.clear();
                if *planned {
                    self.leave(StopReason::Propagated, seq, at);
                } else if self.is_running() && self.leaving.is_none() {
                    self.leaving = Some(Leaving { reason: StopReason::Propagated, planned: false, since: at });
                }
            }
        }
        self.last_seq = seq;
    }

    fn starting(&mut self, instance: InstanceId, policy: &Policy, at: Instant) {
        if self.up_since.is_some_and(|since| self.changed_at.since(since) >= policy.backoff.reset) {
            self.attempts = 0;
        }
        if let Some(limit) = policy.limit {
            self.recent.retain(|start| *start + limit.within > at);
            self.recent.push(at);
        }
        self.phase = Phase::Starting;
        self.restarts += u64::from(instance > InstanceId(1));
        self.instance = instance;
        self.attempts = self.attempts.saturating_add(1);
        self.up_since = None;
        self.ailment = None;
        self.due = false;
        self.leaving = None;
        self.urged_by = None;
        self.not_before = None;
    }

    fn started(&mut self, pid: i32, birth: StartTime, policy: &Policy, at: Instant) {
        self.phase = Phase::Up;
        self.pid = Some(pid);
        self.birth = birth;
        self.up_since = Some(at);
        self.ready_since = policy.care.is_ready_at_once().then_some(at);
        self.state_sequence += 1;
    }

    fn not_started(&mut self, stage: ExecStage, errno: i32, policy: &Policy, epoch: EpochId, at: Instant) {
        self.outcome = Some(Outcome::SpawnFailed { stage, errno });
        self.succeeded = false;
        self.down();
        self.due |= policy.runs_again(false) || stage.is_transient(errno);
        self.due &= self.place != Place::Out;
        self.state_sequence += 1;
        self.not_before = Some(at + policy.backoff.space(self.attempts.max(1), jitter(epoch, policy, self.instance)));
        self.give_up(policy, at);
    }

    fn done(&mut self, status: ExitStatus, kept: u16, seq: Seq) {
        self.kept = kept;
        self.outcome = Some(Outcome::Exited(status));
        self.succeeded = true;
        if self.leaving.is_none_or(|leaving| !leaving.planned) {
            self.fall = Some(seq);
        }
        self.phase = Phase::Done;
        self.pid = None;
        self.ready_since = None;
        self.state_sequence += 1;
    }

    fn exited(&mut self, status: ExitStatus, policy: &Policy, epoch: EpochId, seq: Seq, at: Instant) {
        let began = self.up_since.unwrap_or(at);
        let unhealthy = self.leaving.is_some_and(|leaving| leaving.reason == StopReason::Unhealthy);
        let planned = self.leaving.is_some() && !unhealthy;
        let wanted = !self.operator_down && self.place != Place::Out;
        if self.leaving.is_none_or(|leaving| !leaving.planned) {
            self.fall = Some(seq);
        }
        self.outcome = Some(Outcome::Exited(status));
        self.succeeded = policy.succeeds(status);
        self.down();
        self.due = wanted && (self.due || policy.runs_again(self.succeeded && !unhealthy));
        self.state_sequence += 1;
        let lasted = policy.limit.and_then(|limit| limit.reset).is_some_and(|reset| at.since(began) >= reset);
        if planned || lasted {
            self.recent.clear();
        }
        if planned {
            self.attempts = 0;
        } else if at.since(began) < policy.backoff.reset {
            self.not_before = policy.backoff.next_start(began, at, self.attempts, jitter(epoch, policy, self.instance));
        }
        self.give_up(policy, at);
    }

    /// Looks whether it has ended too often.
    fn give_up(&mut self, policy: &Policy, at: Instant) {
        let Some(limit) = policy.limit.filter(|_| self.due) else { return };
        let recent = self.recent.iter().filter(|start| **start + limit.within > at).count();
        if recent < usize::try_from(limit.starts).unwrap_or(usize::MAX) {
            return;
        }
        self.recent.clear();
        match limit.retry {
            Some(span) => self.not_before = self.not_before.max(Some(at + span)),
            None => self.given_up = true,
        }
    }

    fn down(&mut self) {
        self.phase = Phase::Down;
        self.kept = 0;
        self.pid = None;
        self.ready_since = None;
        self.daemonized = false;
        self.leaving = None;
        self.deadline = None;
        self.undoing = false;
    }

    fn wanted_again(&mut self, seq: Seq) {
        self.operator_down = false;
        if self.place == Place::Out {
            self.place = Place::In(seq);
        }
        self.new_chance();
    }

    fn new_chance(&mut self) {
        self.attempts = 0;
        self.not_before = None;
        self.recent.clear();
        self.given_up = false;
    }

    /// It is going to be stopped, which is a fall already: whoever follows it is stopped before it.
    fn leave(&mut self, reason: StopReason, seq: Seq, at: Instant) {
        if self.is_running() && self.leaving.is_none() {
            self.leaving = Some(Leaving { reason, planned: true, since: at });
            if self.phase != Phase::Done {
                self.fall = Some(seq);
            }
        }
    }
}
