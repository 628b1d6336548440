//! How events change the state of a program.

use super::{Membership, PendingStop, Phase, ProcessInfo, ProgramState, Stop, StopMethod};
use crate::{
    base::{
        ids::{EpochId, InstanceId, Seq},
        time::Instant,
    },
    event::{DependencyEvent, ProgramEvent, StopReason},
    graph::Policy,
    process::{ExitStatus, Outcome, SpawnStage, StartTime},
    state::backoff::jitter,
};

impl ProgramState {
    /// Folds an event of the program itself.
    pub fn apply(&mut self, policy: &Policy, epoch: EpochId, seq: Seq, at: Instant, event: &ProgramEvent) {
        let before = self.phase;
        match event {
            ProgramEvent::Starting { instance } => self.starting(*instance, policy, at),
            ProgramEvent::Started { pid, start_time, .. } if self.phase == Phase::Starting => {
                self.started(*pid, *start_time, policy, at);
            }
            ProgramEvent::Adopted { pid, start_time, .. } if self.phase == Phase::Starting => {
                if self.membership == Membership::Stopped && self.pending_stop.is_none() {
                    // The event that admitted it was never written.
                    self.membership = Membership::Admitted(seq);
                }
                self.started(*pid, *start_time, policy, at);
            }
            ProgramEvent::Started { pid, start_time, .. } | ProgramEvent::Adopted { pid, start_time, .. } => {
                let daemonized = self.is_daemonized();
                self.process = Some(ProcessInfo { pid: *pid, start_time: *start_time, daemonized });
            }
            ProgramEvent::Daemonized { pid, start_time, .. } => {
                self.process = Some(ProcessInfo { pid: *pid, start_time: *start_time, daemonized: true });
                if policy.health.readiness.is_none() {
                    self.ready_since = self.ready_since.or(Some(at));
                }
            }
            ProgramEvent::Ready { .. } => self.ready_since = Some(at),
            ProgramEvent::Unhealthy { reason, .. } => {
                self.unhealthy_reason = Some(*reason);
                self.pending_stop =
                    Some(PendingStop { reason: StopReason::Unhealthy, dependents_first: false, since: at });
            }
            ProgramEvent::SpawnFailed { stage, errno, .. } if self.is_undoing() => {
                self.outcome = Some(Outcome::SpawnFailed { stage: *stage, errno: *errno });
                self.down();
                self.revision += 1;
            }
            ProgramEvent::SpawnFailed { stage, errno, .. } => self.not_started(*stage, *errno, policy, epoch, at),
            ProgramEvent::Stopping { reason, kill_at, .. } => {
                self.stop = Some(Stop { method: StopMethod::first(policy, self.phase), kill_at: Some(*kill_at) });
                self.phase = Phase::Stopping;
                self.pending_stop =
                    self.pending_stop.or(Some(PendingStop { reason: *reason, dependents_first: false, since: at }));
                self.stop_event = Some(seq);
            }
            ProgramEvent::StopCommandFailed { .. } => {
                self.stop = self.stop.map(|stop| Stop { method: StopMethod::Signal, ..stop });
                self.stop_event = Some(seq);
            }
            ProgramEvent::KillRequested { .. } => {
                self.stop = self.stop.map(|stop| Stop { kill_at: None, ..stop });
                self.stop_event = Some(seq);
            }
            ProgramEvent::Exited { remains: true, status, orphans, .. } => {
                self.exited_and_remains(*status, *orphans, seq);
            }
            ProgramEvent::Exited { status, .. } => self.exited(*status, policy, epoch, seq, at),
            ProgramEvent::LevelStartRequested { requested_by } => {
                self.membership = Membership::Admitted(*requested_by);
                self.reset_limits();
                self.start_pending = !self.operator_down;
                self.request_stop(StopReason::Level, seq, at);
                self.revision += 1;
            }
            ProgramEvent::LevelStopRequested { .. } => {
                self.membership = Membership::Stopped;
                self.start_pending = false;
                self.request_stop(StopReason::Level, seq, at);
                self.revision += 1;
            }
            ProgramEvent::Signalled { signal, .. } if signal.asks_to_end() => self.stop_event = Some(seq),
            ProgramEvent::Signalled { .. } => {}
            ProgramEvent::StopRequested => {
                self.operator_down = true;
                self.start_pending = false;
                self.request_stop(StopReason::Operator, seq, at);
                self.revision += 1;
            }
            ProgramEvent::StartRequested => {
                self.wanted_again(seq);
                self.start_pending |= self.pending_stop.is_some() || !self.is_running();
                self.revision += 1;
            }
            ProgramEvent::RestartRequested => {
                self.wanted_again(seq);
                self.start_pending = true;
                self.request_stop(StopReason::Operator, seq, at);
                self.revision += 1;
            }
        }
        if self.phase != before {
            self.phase_since = at;
            self.phase_event = seq;
        }
        self.last_seq = seq;
    }

    /// Folds an event of one of the dependencies that the program has.
    pub fn apply_dependency(&mut self, seq: Seq, at: Instant, event: &DependencyEvent) {
        match event {
            DependencyEvent::Satisfied { .. } => self.unsatisfied = self.unsatisfied.saturating_sub(1),
            DependencyEvent::Broken => self.unsatisfied = self.unsatisfied.saturating_add(1),
            DependencyEvent::RestartTriggered { before_stop, .. } => {
                self.start_pending = self.membership != Membership::Stopped;
                self.not_before = None;
                self.recent_starts.clear();
                if *before_stop {
                    self.request_stop(StopReason::DependencyDown, seq, at);
                } else if self.is_running() && self.pending_stop.is_none() {
                    self.pending_stop =
                        Some(PendingStop { reason: StopReason::DependencyDown, dependents_first: false, since: at });
                }
            }
        }
        self.last_seq = seq;
    }

    fn starting(&mut self, instance: InstanceId, policy: &Policy, at: Instant) {
        if self.up_since.is_some_and(|since| self.phase_since.since(since) >= policy.backoff.reset) {
            self.attempts = 0;
        }
        if let Some(limit) = policy.start_limit {
            self.recent_starts.retain(|start| *start + limit.interval > at);
            self.recent_starts.push(at);
        }
        self.phase = Phase::Starting;
        self.restarts += u64::from(instance > InstanceId(1));
        self.instance = instance;
        self.attempts = self.attempts.saturating_add(1);
        self.up_since = None;
        self.unhealthy_reason = None;
        self.start_pending = false;
        self.pending_stop = None;
        self.stop_event = None;
        self.not_before = None;
    }

    fn started(&mut self, pid: i32, start_time: StartTime, policy: &Policy, at: Instant) {
        self.phase = Phase::Up;
        self.process = Some(ProcessInfo { pid, start_time, daemonized: false });
        self.up_since = Some(at);
        self.ready_since = policy.health.ready_on_start().then_some(at);
        self.revision += 1;
    }

    fn not_started(&mut self, stage: SpawnStage, errno: i32, policy: &Policy, epoch: EpochId, at: Instant) {
        self.outcome = Some(Outcome::SpawnFailed { stage, errno });
        self.succeeded = false;
        self.down();
        self.start_pending |= policy.runs_again(false) || stage.is_transient(errno);
        self.start_pending &= self.membership != Membership::Stopped;
        self.revision += 1;
        self.not_before = Some(at + policy.backoff.delay(self.attempts.max(1), jitter(epoch, policy, self.instance)));
        self.give_up(policy, at);
    }

    fn exited_and_remains(&mut self, status: ExitStatus, kept: u16, seq: Seq) {
        self.kept = kept;
        self.outcome = Some(Outcome::Exited(status));
        self.succeeded = true;
        if self.pending_stop.is_none_or(|stop| !stop.dependents_first) {
            self.goes_down(seq);
        }
        self.phase = Phase::ActiveExited;
        self.process = None;
        self.ready_since = None;
        self.revision += 1;
    }

    fn exited(&mut self, status: ExitStatus, policy: &Policy, epoch: EpochId, seq: Seq, at: Instant) {
        let began = self.up_since.unwrap_or(at);
        let unhealthy = self.pending_stop.is_some_and(|stop| stop.reason == StopReason::Unhealthy);
        let planned = self.pending_stop.is_some() && !unhealthy;
        let wanted = !self.operator_down && self.membership != Membership::Stopped;
        if self.pending_stop.is_none_or(|stop| !stop.dependents_first) {
            self.goes_down(seq);
        }
        self.outcome = Some(Outcome::Exited(status));
        self.succeeded = policy.succeeds(status);
        self.down();
        self.start_pending = wanted && (self.start_pending || policy.runs_again(self.succeeded && !unhealthy));
        self.revision += 1;
        let lasted = policy.start_limit.and_then(|limit| limit.reset).is_some_and(|reset| at.since(began) >= reset);
        if planned || lasted {
            self.recent_starts.clear();
        }
        if planned {
            self.attempts = 0;
        } else if at.since(began) < policy.backoff.reset {
            self.not_before = policy.backoff.next_start(began, at, self.attempts, jitter(epoch, policy, self.instance));
        }
        self.give_up(policy, at);
    }

    /// Applies the start limit: delays the next start, or leaves the program down.
    fn give_up(&mut self, policy: &Policy, at: Instant) {
        let Some(limit) = policy.start_limit.filter(|_| self.start_pending) else { return };
        let recent = self.recent_starts.iter().filter(|start| **start + limit.interval > at).count();
        if recent < usize::try_from(limit.burst).unwrap_or(usize::MAX) {
            return;
        }
        self.recent_starts.clear();
        match limit.retry_after {
            Some(span) => self.not_before = self.not_before.max(Some(at + span)),
            None => self.start_limit_hit = true,
        }
    }

    /// Records the event with which it goes down: propagating dependents restart once for each.
    pub(super) fn goes_down(&mut self, seq: Seq) {
        self.down_event = Some(seq);
        self.falls += 1;
    }

    fn down(&mut self) {
        self.phase = Phase::Down;
        self.kept = 0;
        self.process = None;
        self.ready_since = None;
        self.pending_stop = None;
        self.stop = None;
    }

    fn wanted_again(&mut self, seq: Seq) {
        self.operator_down = false;
        if self.membership == Membership::Stopped {
            self.membership = Membership::Admitted(seq);
        }
        self.reset_limits();
    }

    fn reset_limits(&mut self) {
        self.attempts = 0;
        self.not_before = None;
        self.recent_starts.clear();
        self.start_limit_hit = false;
    }

    /// Records a pending stop, which counts as going down: propagating dependents are stopped first.
    fn request_stop(&mut self, reason: StopReason, seq: Seq, at: Instant) {
        if self.is_running() && self.pending_stop.is_none() {
            self.pending_stop = Some(PendingStop { reason, dependents_first: true, since: at });
            if self.phase != Phase::ActiveExited {
                self.goes_down(seq);
            }
        }
    }
}
