//! Readiness, health checks and watchdog of a program that runs: when it is probed, and what follows from the answer.
//!
//! A program that is not ready in time, fails as many checks as its threshold, or sends no watchdog message in time, is
//! stopped as if it had failed.

use crate::{
    base::{
        ids::ProgramId,
        time::{Instant, Millis},
    },
    event::{Cause, Event, ProgramEvent},
    graph::{HealthPolicy, Policy, Readiness},
    host::{
        HostCommand, HostEvent,
        probe::{ProbeError, ProbeKind, UnhealthyReason},
    },
    machine::{Outputs, Timer},
    state::{Phase, ProgramState},
};

/// The delay between two readiness probes: the first, and the longest.
const PROBE_RETRY_DELAY: (Millis, Millis) = (Millis(50), Millis(1000));

/// The rules of a program for readiness, health checks and the watchdog.
#[derive(Clone, Debug)]
pub(crate) struct HealthMonitor {
    program: ProgramId,
    policy: HealthPolicy,
    /// The error of the last readiness probe.
    last: Option<ProbeError>,
    /// How many checks have failed in a row.
    failures: u32,
    /// The delay before the next readiness probe.
    retry_after: Millis,
    /// Whether it notified its readiness before its daemon was known.
    ready_before_daemon: bool,
    /// The timer that has expired, while the host flushes its reports: a message may have arrived in time.
    overdue: Option<Timer>,
}

impl HealthMonitor {
    pub(crate) fn new(program: ProgramId, policy: &Policy) -> Self {
        Self {
            program,
            policy: policy.health,
            last: None,
            failures: 0,
            retry_after: PROBE_RETRY_DELAY.0,
            ready_before_daemon: false,
            overdue: None,
        }
    }

    /// Resets everything for a new run.
    pub(crate) fn reset(&mut self) {
        (self.last, self.failures, self.retry_after, self.ready_before_daemon, self.overdue) =
            (None, 0, PROBE_RETRY_DELAY.0, false, None);
    }

    /// The program is up, or ready: arms the timers for what is watched from now on.
    ///
    /// The start timeout counts from `since`: the start of the run, or of this daemon, so that the program gets its
    /// full time.
    pub(crate) fn begin(&self, now: Instant, since: Instant, state: &ProgramState, out: &mut Outputs) {
        if !is_watched(state) {
            return;
        }
        if state.ready_since.is_none() {
            out.set_timer(Timer::StartTimeout(state.instance), since + self.policy.start_timeout);
            if self.ready_before_daemon && state.is_daemonized() {
                let instance = state.instance;
                self.propose(ProgramEvent::Ready { instance }, Cause::Kernel, out);
            }
            if self.policy.readiness == Some(Readiness::Probed) && (state.is_daemonized() || !self.policy.daemonizes) {
                self.probe(state, out);
            }
            return;
        }
        if let Some(check) = self.policy.check {
            out.set_timer(Timer::Probe, now + check.every);
        }
        if let Some(limit) = self.policy.run_timeout {
            out.set_timer(Timer::RunTimeout(state.instance), since + limit);
        }
        self.on_watchdog_ping(now, state, out);
    }

    /// The program has sent a watchdog message.
    pub(crate) fn on_watchdog_ping(&self, now: Instant, state: &ProgramState, out: &mut Outputs) {
        if let Some(span) = self.policy.watchdog.filter(|_| state.ready_since.is_some()) {
            out.set_timer(Timer::Watchdog(state.instance), now + span);
        }
    }

    fn probe(&self, state: &ProgramState, out: &mut Outputs) {
        let check = if state.ready_since.is_some() { ProbeKind::Health } else { ProbeKind::Ready };
        out.execute(HostCommand::Probe { program: self.program, instance: state.instance, kind: check });
    }

    /// The host has reported an observation of the current run.
    pub(crate) fn host_reported(&mut self, now: Instant, state: &ProgramState, event: HostEvent, out: &mut Outputs) {
        let instance = state.instance;
        let ready = ProgramEvent::Ready { instance };
        match event {
            HostEvent::ProbeResult(_) if !is_watched(state) => {}
            HostEvent::Ready if self.policy.daemonizes && !state.is_daemonized() => self.ready_before_daemon = true,
            // Its `Started` may have been proposed just before, and not be committed yet.
            HostEvent::Ready | HostEvent::ProbeResult(Ok(())) if state.ready_since.is_none() => {
                self.overdue.take_if(|timer| *timer == Timer::StartTimeout(instance));
                self.propose(ready, Cause::Kernel, out);
            }
            HostEvent::ProbeResult(Ok(())) => {
                self.failures = 0;
                self.set_check_timer(now, out);
            }
            HostEvent::ProbeResult(Err(error)) if state.ready_since.is_none() => {
                self.last = Some(error);
                out.set_timer(Timer::Probe, now + self.retry_after);
                self.retry_after = Millis(self.retry_after.0 * 2).min(PROBE_RETRY_DELAY.1);
            }
            HostEvent::ProbeResult(Err(error)) => {
                self.failures += 1;
                if self.policy.check.is_some_and(|check| self.failures >= check.failures) {
                    let reason = UnhealthyReason::HealthCheckFailed(error);
                    self.propose(ProgramEvent::Unhealthy { instance, reason }, Cause::Kernel, out);
                } else {
                    self.set_check_timer(now, out);
                }
            }
            HostEvent::NotReadyYet(error) => self.last = Some(error),
            HostEvent::WatchdogPing => {
                self.overdue.take_if(|timer| *timer == Timer::Watchdog(instance));
                self.on_watchdog_ping(now, state, out);
            }
            HostEvent::ReportsFlushed => {
                if let Some(reason) = self.overdue.take().and_then(|timer| self.missed(state, timer)) {
                    let unhealthy = ProgramEvent::Unhealthy { instance, reason };
                    self.propose(unhealthy, Cause::Timer(state.phase_event), out);
                }
            }
            HostEvent::Ready
            | HostEvent::Daemonized { .. }
            | HostEvent::Spawned { .. }
            | HostEvent::SpawnFailed { .. }
            | HostEvent::StopCommandFailed { .. }
            | HostEvent::Exited { .. } => {}
        }
    }

    /// A timer of this monitor has expired. If gaggled, or the machine, was suspended, a message of the program may
    /// have arrived in time and not have been read yet: such messages are reported before the program is found
    /// unhealthy.
    pub(crate) fn timer_fired(&mut self, state: &ProgramState, timer: Timer, out: &mut Outputs) {
        if !is_watched(state) {
            return;
        }
        if timer == Timer::Probe {
            self.probe(state, out);
        } else if self.missed(state, timer).is_some() {
            self.overdue = Some(timer);
            out.execute(HostCommand::FlushReports { program: self.program, instance: state.instance });
        }
    }

    /// Why a run is unhealthy that has exceeded the limit of this timer, if it still does.
    fn missed(&self, state: &ProgramState, timer: Timer) -> Option<UnhealthyReason> {
        match timer {
            _ if !is_watched(state) => None,
            Timer::StartTimeout(instance) if instance == state.instance && state.ready_since.is_none() => {
                Some(UnhealthyReason::ReadinessTimeout(self.last))
            }
            Timer::RunTimeout(instance) if instance == state.instance => {
                self.policy.run_timeout.map(|_| UnhealthyReason::RunTimeout)
            }
            Timer::Watchdog(instance) if instance == state.instance => Some(UnhealthyReason::WatchdogTimeout),
            Timer::StartTimeout(_)
            | Timer::RunTimeout(_)
            | Timer::Watchdog(_)
            | Timer::Probe
            | Timer::Backoff
            | Timer::DependentsGrace
            | Timer::KillTimeout(_)
            | Timer::DependencyDelay
            | Timer::ShutdownTimeout
            | Timer::ClusterBlind
            | Timer::Tenancy => None,
        }
    }

    fn set_check_timer(&self, now: Instant, out: &mut Outputs) {
        if let Some(check) = self.policy.check {
            out.set_timer(Timer::Probe, now + check.every);
        }
    }

    fn propose(&self, event: ProgramEvent, cause: Cause, out: &mut Outputs) {
        out.propose(Event::Program(self.program, event), cause);
    }
}

/// Whether the program is up, and no stop of it is pending.
fn is_watched(state: &ProgramState) -> bool {
    state.phase == Phase::Up && state.pending_stop.is_none()
}
