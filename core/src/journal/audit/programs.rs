//! Invariants of one program.

use std::collections::BTreeSet;

use super::{JournalAudit, ProgramTrace};
use crate::{
    base::{
        ids::{InstanceId, ProgramId, Seq},
        time::{Instant, Millis},
    },
    event::{Cause, Envelope, ProgramEvent, RemoteEvent, StopReason},
    graph::{Condition, Mode},
    process::ExitStatus,
};

impl JournalAudit {
    pub(super) fn happens(&mut self, id: ProgramId, event: &ProgramEvent, envelope: &Envelope) {
        let at = envelope.monotonic;
        match event {
            ProgramEvent::Starting { instance } => self.starts(id, *instance, envelope),
            ProgramEvent::Started { .. } if self.seen(id).stopping.is_some() => {}
            ProgramEvent::Started { .. } => {
                let ready = self.graph.programs[id].health.ready_on_start();
                let seen = self.seen(id);
                seen.up_since = Some(at);
                seen.ready_since = ready.then_some(at);
            }
            ProgramEvent::Daemonized { .. } => {
                let ready = self.graph.programs[id].health.readiness.is_none();
                let seen = self.seen(id);
                seen.ready_since = seen.ready_since.or(ready.then_some(at));
            }
            ProgramEvent::Ready { .. } | ProgramEvent::Unhealthy { .. } => self.is_looked_at(id, event, envelope),
            ProgramEvent::Adopted { .. } => {
                let ready = self.graph.programs[id].health.ready_on_start();
                let seen = self.seen(id);
                if seen.up_since.is_none() {
                    seen.ready_since = ready.then_some(at);
                }
                seen.is_in |= seen.up_since.is_none() && !seen.replaced && seen.operator_fall.is_none();
                seen.up_since = seen.up_since.or(Some(at));
            }
            ProgramEvent::SpawnFailed { .. } => {
                let seen = self.seen(id);
                seen.running = false;
                seen.operator_fall = None;
                seen.planned = false;
                seen.in_stop_command = false;
                seen.stopping = None;
            }
            ProgramEvent::Stopping { reason, kill_at, .. } => {
                self.goes_last(id, *reason, at);
                let seen = self.seen(id);
                seen.stopping = Some((at, *kill_at));
                seen.told = true;
                seen.in_stop_command = !seen.running;
            }
            ProgramEvent::StopCommandFailed { .. } if self.seen(id).stopping.is_none() => {
                self.violations
                    .push(format!("I32: event {}: a stop command of {id:?} failed that was not run", envelope.seq));
            }
            ProgramEvent::StopCommandFailed { .. } => {}
            ProgramEvent::KillRequested { .. } => self.seen(id).escalated = true,
            ProgramEvent::Exited { instance, status, orphans, .. } => {
                self.ends(id, *instance, (*status, *orphans), envelope);
            }
            ProgramEvent::StopRequested | ProgramEvent::RestartRequested => {
                let stays_down = *event == ProgramEvent::StopRequested;
                let seen = self.seen(id);
                seen.operator_down = stays_down;
                seen.owed = !stays_down;
                seen.own_starts.clear();
                seen.planned = true;
                self.leaves(id, envelope);
                self.seen(id).replaced |= !stays_down;
            }
            ProgramEvent::StartRequested => {
                let seen = self.seen(id);
                seen.owed |= !seen.exists;
                seen.own_starts.clear();
                seen.operator_down = false;
                seen.planned = true;
            }
            ProgramEvent::LevelStartRequested { .. } | ProgramEvent::LevelStopRequested { .. } => {
                let enters = matches!(event, ProgramEvent::LevelStartRequested { .. });
                let seen = self.seen(id);
                seen.owed = enters && !seen.operator_down;
                seen.own_starts.clear();
                seen.planned = true;
                self.leaves(id, envelope);
                self.seen(id).replaced |= enters && self.seen(id).exists;
            }
            ProgramEvent::Signalled { signal, .. } => self.seen(id).told |= signal.asks_to_end(),
        }
    }

    pub(super) fn happens_elsewhere(&mut self, id: ProgramId, event: &RemoteEvent, envelope: &Envelope) {
        let at = envelope.monotonic;
        let was_up = self.seen(id).running;
        let seen = self.seen(id);
        match event {
            RemoteEvent::Up { .. } => {
                (seen.running, seen.up_since, seen.ready_since, seen.completed) = (true, Some(at), None, None);
            }
            RemoteEvent::Ready { .. } => seen.ready_since = Some(at),
            RemoteEvent::Down { .. }
            | RemoteEvent::Completed { .. }
            | RemoteEvent::Unseen { assumed_down: true, .. } => {
                (seen.running, seen.up_since, seen.ready_since) = (false, None, None);
                seen.completed = matches!(event, RemoteEvent::Completed { .. }).then_some(at);
                if was_up {
                    self.falls(id, envelope.seq);
                }
            }
            RemoteEvent::Unseen { assumed_down: false, .. } | RemoteEvent::Seen => {}
        }
    }

    /// I31.
    fn is_looked_at(&mut self, id: ProgramId, event: &ProgramEvent, envelope: &Envelope) {
        let seen = self.seen(id);
        let stays = seen.operator_fall.is_none() && !seen.replaced && !seen.unhealthy && seen.stopping.is_none();
        let ready = matches!(event, ProgramEvent::Ready { .. });
        let again = ready && seen.ready_since.is_some();
        let untimely = !seen.running || seen.up_since.is_none() || !stays || again;
        if ready {
            seen.ready_since = Some(envelope.monotonic);
        } else {
            seen.unhealthy = true;
        }
        if untimely {
            self.violations
                .push(format!("I31: event {}: {id:?} is reported ready or unhealthy at a wrong time", envelope.seq));
        }
    }

    /// A stop of the program is pending: it counts as going down, and its dependents are notified first.
    pub(super) fn leaves(&mut self, id: ProgramId, envelope: &Envelope) {
        let seen = self.seen(id);
        let stays = seen.operator_fall.is_none() && !seen.replaced && !seen.unhealthy && seen.stopping.is_none();
        if seen.exists && stays {
            seen.operator_fall = Some((envelope.seq, envelope.monotonic));
            if seen.running {
                self.falls(id, envelope.seq);
            }
        }
    }

    fn starts(&mut self, id: ProgramId, instance: InstanceId, envelope: &Envelope) {
        // The previous daemon started it and died before it could record the start.
        let found = envelope.cause == Cause::Kernel;
        if found && instance.0 > self.seen(id).instance && !self.seen(id).running {
            let seen = self.seen(id);
            *seen = ProgramTrace { running: true, instance: instance.0, last_start: envelope.seq, ..seen.clone() };
            (seen.up_since, seen.operator_fall, seen.stopping) = (None, None, None);
            (seen.ready_since, seen.unhealthy) = (None, false);
            (seen.replaced, seen.escalated, seen.planned) = (false, false, true);
            (seen.completed, seen.owed, seen.told) = (None, false, false);
            return;
        }
        self.needs(id, envelope);
        let shutdown = self.shutdown.is_some();
        let (backoff, limit) = (self.graph.programs[id].backoff, self.graph.programs[id].start_limit);
        let seen = self.seen(id);
        let mut wrong = Vec::new();
        if shutdown || seen.operator_down {
            wrong.push(format!("I8: event {}: {id:?} starts although it must not", envelope.seq));
        }
        if instance.0 != seen.instance + 1 || seen.running {
            wrong
                .push(format!("I17: event {}: {id:?} starts run {instance} after run {}", envelope.seq, seen.instance));
        }
        if seen.planned {
            seen.unplanned_starts.clear();
        }
        let minute = envelope.monotonic - Millis(60_000);
        seen.unplanned_starts.retain(|at| *at > minute);
        seen.unplanned_starts.push(envelope.monotonic);
        if let Some(limit) = limit.filter(|limit| limit.retry_after.is_none()) {
            seen.own_starts.retain(|at| *at + limit.interval > envelope.monotonic);
            seen.own_starts.push(envelope.monotonic);
            if seen.own_starts.len() > usize::try_from(limit.burst).unwrap_or(usize::MAX) {
                wrong.push(format!("I24: event {}: {id:?} starts more often than its limit allows", envelope.seq));
            }
        }
        let recent = seen.unplanned_starts.len();
        if backoff.max >= Millis(60_000) && recent > 20 {
            wrong.push(format!("I16: event {}: {id:?} starts for the {recent}th time within a minute", envelope.seq));
        }
        (seen.completed, seen.owed, seen.told) = (None, false, false);
        seen.running = true;
        seen.instance = instance.0;
        (seen.up_since, seen.ready_since, seen.unhealthy) = (None, None, false);
        seen.operator_fall = None;
        seen.replaced = false;
        seen.stopping = None;
        seen.escalated = false;
        seen.last_start = envelope.seq;
        seen.planned = false;
        self.violations.append(&mut wrong);
    }

    /// I7.
    fn needs(&mut self, id: ProgramId, envelope: &Envelope) {
        for dependency in self.graph.dependencies_of(id) {
            let dependency = self.graph.dependencies[*dependency];
            let on = &self.programs[dependency.dependency];
            let leaves = on.stopping.is_some() || on.operator_fall.is_some() || on.replaced || on.unhealthy;
            let steady = on.running && !leaves;
            let since = match dependency.condition {
                Condition::Started => on.up_since.filter(|_| steady),
                Condition::Ready => on.ready_since.filter(|_| steady),
                Condition::Completed => on.completed.filter(|_| {
                    let goes = on.exists && (on.replaced || on.operator_fall.is_some());
                    !on.owed && on.is_in && !goes
                }),
            };
            let open = since.is_some_and(|since| since + dependency.delay <= envelope.monotonic);
            if !open {
                self.violations.push(format!(
                    "I7: event {}: {id:?} starts before {:?} has been up for {}",
                    envelope.seq, dependency.dependency, dependency.delay
                ));
            }
        }
    }

    fn ends(&mut self, id: ProgramId, instance: InstanceId, (status, orphans): (ExitStatus, u16), envelope: &Envelope) {
        let policy = self.graph.programs[id].clone();
        let (once, well) = (policy.mode != Mode::Respawn, policy.succeeds(status));
        let (essential, shutdown) = (policy.essential, self.shutdown.is_some());
        let slack = self.slack;
        let seen = self.seen(id);
        let (mut wrong, mut late) = (Vec::new(), None);
        if !seen.in_stop_command && (instance.0 != seen.instance || instance.0 <= seen.ended) {
            wrong.push(format!("I17: event {}: run {instance} of {id:?} ends twice or never was", envelope.seq));
        }
        if let Some((_, deadline)) = seen.stopping
            && envelope.monotonic > deadline + slack
        {
            wrong.push(format!(
                "I11: event {}: {id:?} should have been gone at {} ms",
                envelope.seq,
                deadline.as_millis()
            ));
        }
        if std::mem::take(&mut seen.in_stop_command) {
            (seen.operator_fall, seen.stopping, seen.completed) = (None, None, None);
            return;
        }
        // It may have ended by itself just before it was stopped.
        let by_itself = !seen.told || envelope.cause == Cause::Kernel;
        let may_stand = policy.remains(status, orphans);
        let wrongly = if seen.exists { !(may_stand && by_itself) } else { may_stand && !seen.told };
        if wrongly {
            wrong.push(format!("I30: event {}: the effects of {id:?} remain, or not, without reason", envelope.seq));
        }
        let fell_before = seen.operator_fall.is_some();
        let unwanted = seen.stopping.is_some() || seen.replaced || fell_before;
        let failed = seen.unhealthy && !seen.operator_down && !seen.owed && seen.is_in;
        let ends_everything = essential && !seen.exists && !shutdown && (!unwanted || failed);
        seen.planned |= unwanted && !seen.unhealthy;
        let lasting = policy.start_limit.and_then(|limit| limit.reset).zip(seen.up_since);
        if seen.planned || lasting.is_some_and(|(reset, since)| envelope.monotonic.since(since) >= reset) {
            seen.own_starts.clear();
        }
        if !unwanted && seen.ready_since.is_none() && !seen.unhealthy {
            late = seen.up_since;
        }
        seen.running = false;
        (seen.up_since, seen.ready_since, seen.unhealthy) = (None, None, false);
        seen.operator_fall = None;
        seen.stopping = None;
        seen.ended = instance.0;
        seen.completed = (once && well && !seen.told).then_some(envelope.monotonic);
        if !fell_before {
            self.falls(id, envelope.seq);
        }
        let interrupted = self.openings.iter().any(|opening| late.is_some_and(|since| *opening >= since));
        if late.is_some_and(|since| since + policy.health.start_timeout + slack < envelope.monotonic) && !interrupted {
            wrong.push(format!("I31: event {}: {id:?} was not ready, and no event says so", envelope.seq));
        }
        if ends_everything && self.doomed.is_none() {
            self.doomed = Some((envelope.seq, envelope.monotonic));
        }
        self.violations.append(&mut wrong);
    }

    fn falls(&mut self, on: ProgramId, down_event: Seq) {
        if self.shutdown.is_none() {
            for dependency in self.graph.dependencies_on(on) {
                if self.graph.dependencies[*dependency].propagate {
                    self.falls.entry((*dependency, down_event)).or_default();
                }
            }
        }
    }

    fn goes_last(&mut self, id: ProgramId, reason: StopReason, at: Instant) {
        let up_since = self.programs[id].up_since.unwrap_or_default();
        let (since, killwait) = match (reason, self.shutdown, self.programs[id].operator_fall) {
            (StopReason::Shutdown, Some(begun), _) => (begun, self.graph.killwait),
            (StopReason::Operator | StopReason::DependencyDown | StopReason::Level, _, Some((_, since))) => {
                (since, self.graph.programs[id].killwait)
            }
            _ => return,
        };
        if at >= since.max(up_since) + killwait.half() {
            return;
        }
        let dependencies = self.graph.dependencies_on(id).iter().map(|dependency| self.graph.dependencies[*dependency]);
        let followers: BTreeSet<ProgramId> =
            dependencies.filter(|dependency| dependency.propagate).map(|dependency| dependency.dependent).collect();
        let group = |id: ProgramId| self.graph.programs[id].group;
        for dependent in self.graph.dependents(id) {
            let seen = &self.programs[dependent];
            let goes_first = match reason {
                StopReason::Shutdown => true,
                StopReason::Level if !seen.is_in && group(dependent) == group(id) => true,
                StopReason::Unhealthy => false,
                StopReason::Level | StopReason::Operator | StopReason::DependencyDown => followers.contains(&dependent),
            };
            if seen.exists && goes_first {
                let at = at.as_millis();
                self.violations.push(format!("I22: {id:?} is stopped at {at} ms before its dependent {dependent:?}"));
            }
        }
    }
}
