//! Whether a program that runs does what it is there for: that it is ready, that it stays well, that it still speaks.
//!
//! What is asked and how is the host's affair; here is when, and what follows from the answer. A program that is not ready
//! in time, fails its checks as often as it may, or falls silent, is told to stop as if it had failed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    event::{Cause, Event, ProgramEvent},
    graph::Policy,
    host::{ExitStatus, HostCommand, HostEvent},
    ids::ProgramId,
    machine::{Outputs, Timer},
    state::{Phase, ProgramState},
    time::{Instant, Millis},
};

/// How a program shows that it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadinessProbe {
    /// It sends `READY=1` to the socket in `$NOTIFY_SOCKET`, as `sd_notify` does.
    Notify,
    /// It writes a line to this descriptor, as programs under s6 do.
    Fd(i32),
    /// A line of its log has this text in it.
    LogLine(String),
    /// A line of shell succeeds.
    Command(String),
    /// A connection to this address is accepted.
    Tcp(String),
    /// A request for this url is answered well.
    Http(String),
}

/// What shows whether a program is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// A line of shell succeeds.
    Command(String),
    /// A connection to this address is accepted.
    Tcp(String),
    /// A request for this url is answered well.
    Http(String),
}

impl ReadinessProbe {
    /// The descriptor that it writes a line to.
    pub fn descriptor(&self) -> Option<i32> {
        match self {
            Self::Fd(number) => Some(*number),
            Self::Notify | Self::LogLine(_) | Self::Command(_) | Self::Tcp(_) | Self::Http(_) => None,
        }
    }

    /// What is asked, if it does not say so itself.
    pub fn probe(&self) -> Option<Probe> {
        match self {
            Self::Notify | Self::Fd(_) | Self::LogLine(_) => None,
            Self::Command(line) => Some(Probe::Command(line.clone())),
            Self::Tcp(address) => Some(Probe::Tcp(address.clone())),
            Self::Http(url) => Some(Probe::Http(url.clone())),
        }
    }
}

/// How a program is looked after, as a configuration says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "health", deny_unknown_fields)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// How long after one check the next begins.
    #[serde(default = "Health::interval")]
    pub interval: Millis,
    /// How long an answer may take.
    #[serde(default = "Health::timeout")]
    pub timeout: Millis,
    /// How many checks in a row must fail for it to be unhealthy.
    #[serde(default = "Health::failure_threshold")]
    pub failure_threshold: u32,
}

impl Health {
    /// How long it may take to answer whether it is ready.
    pub const READY_TIMEOUT: Millis = Millis(5000);

    fn interval() -> Millis {
        Millis(10_000)
    }

    fn timeout() -> Millis {
        Self::READY_TIMEOUT
    }

    fn failure_threshold() -> u32 {
        3
    }
}

/// How it is known that a program is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// It says so itself.
    Notified,
    /// It is asked until it is.
    Probed,
}

/// How a program is looked after once it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// How long after one check the next begins.
    pub every: Millis,
    /// How many checks in a row must fail for it to be unhealthy.
    pub failures: u32,
}

/// What is asked of a program beyond that it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthPolicy {
    /// Whether its command leaves a daemon behind, which is the program from then on.
    #[serde(default)]
    pub daemonizes: bool,
    /// How it is known that it is ready; that it runs is enough if there is nothing.
    #[serde(default)]
    pub readiness: Option<Readiness>,
    /// How long it may take to be ready.
    pub start_timeout: Millis,
    /// How it is looked after.
    #[serde(default)]
    pub check: Option<HealthCheck>,
    /// How long it may be silent.
    #[serde(default)]
    pub watchdog: Option<Millis>,
    /// How long a run may take that is meant to end by itself.
    #[serde(default)]
    pub run_timeout: Option<Millis>,
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self {
            daemonizes: false,
            readiness: None,
            start_timeout: Millis(60_000),
            check: None,
            watchdog: None,
            run_timeout: None,
        }
    }
}

impl HealthPolicy {
    /// Whether it is ready as soon as it runs.
    pub fn ready_on_start(&self) -> bool {
        !self.daemonizes && self.readiness.is_none()
    }
}

/// What a program is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Whether it is ready.
    Ready,
    /// Whether it is well.
    Health,
}

/// What was wrong with an answer, or with a pid file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeError {
    /// A call of the system failed, with this error number.
    Os(i32),
    /// There was no answer in time.
    Timeout,
    /// The answer had this HTTP status.
    HttpStatus(u16),
    /// The name of its host is not known.
    DnsFailure,
    /// There is no TLS connection that can be trusted.
    Tls,
    /// The answer was not understood.
    InvalidResponse,
    /// The command of the check ended like this.
    ExitStatus(ExitStatus),
    /// There is no process id in the pid file.
    PidFileEmpty,
    /// The process in the pid file is not there.
    NoSuchProcess(i32),
    /// The process in the pid file is not one of this program.
    ForeignProcess(i32),
}

/// What is wrong with a program that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnhealthyReason {
    /// It was not ready in time; what was wrong when it was last looked at.
    ReadinessTimeout(Option<ProbeError>),
    /// It has failed as many checks as it may; what was wrong with the last.
    HealthCheckFailed(ProbeError),
    /// It has said nothing for longer than it may.
    WatchdogTimeout,
    /// It is meant to end by itself, and has not in time.
    RunTimeout,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Os(errno) => {
                let error = std::io::Error::from_raw_os_error(*errno).to_string();
                f.write_str(&error.split(" (os error").next().unwrap_or_default().to_lowercase())
            }
            Self::Timeout => f.write_str("no answer in time"),
            Self::HttpStatus(status) => write!(f, "HTTP status {status}"),
            Self::DnsFailure => f.write_str("the name of its host is not known"),
            Self::Tls => f.write_str("no TLS connection that can be trusted"),
            Self::InvalidResponse => f.write_str("an answer that is not understood"),
            Self::ExitStatus(status) => write!(f, "the command {status}"),
            Self::PidFileEmpty => f.write_str("there is no process id in the pid file"),
            Self::NoSuchProcess(pid) => write!(f, "the pid file names process {pid}, which is not there"),
            Self::ForeignProcess(pid) => {
                write!(f, "the pid file names process {pid}, which is not one of this program")
            }
        }
    }
}

impl fmt::Display for UnhealthyReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ReadinessTimeout(None) => f.write_str("it was not ready in time"),
            Self::ReadinessTimeout(Some(error)) => write!(f, "it was not ready in time: {error}"),
            Self::HealthCheckFailed(error) => write!(f, "it has failed its checks: {error}"),
            Self::WatchdogTimeout => f.write_str("it has been silent for too long"),
            Self::RunTimeout => f.write_str("it has not ended in time"),
        }
    }
}

/// How soon a program that is not ready is asked again, at first and at most.
const PROBE_RETRY_DELAY: (Millis, Millis) = (Millis(50), Millis(1000));

/// The part of the rules of a program that watches over it.
#[derive(Clone, Debug)]
pub(crate) struct HealthMonitor {
    program: ProgramId,
    policy: HealthPolicy,
    /// What was wrong when it was last looked at.
    last: Option<ProbeError>,
    /// How many checks have failed in a row.
    failures: u32,
    /// How soon it is asked again.
    retry_after: Millis,
    /// Whether it has said that it is ready before its daemon was known.
    ready_before_daemon: bool,
    /// The time limit that is over, while the host is asked whether the program has spoken in time after all.
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

    /// A run begins: nothing is known of it.
    pub(crate) fn reset(&mut self) {
        (self.last, self.failures, self.retry_after, self.ready_before_daemon, self.overdue) =
            (None, 0, PROBE_RETRY_DELAY.0, false, None);
    }

    /// It runs, or is ready: from now on something else is watched.
    ///
    /// It has to be ready so long after `since`: whoever has just begun to look gives it all of its time.
    pub(crate) fn begin(&self, now: Instant, since: Instant, state: &ProgramState, out: &mut Outputs) {
        if !is_watched(state) {
            return;
        }
        if state.ready_since.is_none() {
            out.set_timer(Timer::StartTimeout(state.instance), since + self.policy.start_timeout);
            if self.ready_before_daemon && state.daemonized {
                let instance = state.instance;
                self.propose(ProgramEvent::Ready { instance }, Cause::Kernel, out);
            }
            if self.policy.readiness == Some(Readiness::Probed) && (state.daemonized || !self.policy.daemonizes) {
                self.probe(state, out);
            }
            return;
        }
        if let Some(check) = self.policy.check {
            out.set_timer(Timer::Probe, now + check.every);
        }
        if let Some(limit) = self.policy.run_timeout {
            out.set_timer(Timer::StartTimeout(state.instance), since + limit);
        }
        self.on_watchdog_ping(now, state, out);
    }

    /// It has said that it is alive.
    pub(crate) fn on_watchdog_ping(&self, now: Instant, state: &ProgramState, out: &mut Outputs) {
        if let Some(span) = self.policy.watchdog.filter(|_| state.ready_since.is_some()) {
            out.set_timer(Timer::Watchdog(state.instance), now + span);
        }
    }

    fn probe(&self, state: &ProgramState, out: &mut Outputs) {
        let check = if state.ready_since.is_some() { ProbeKind::Health } else { ProbeKind::Ready };
        out.execute(HostCommand::Probe { program: self.program, instance: state.instance, kind: check });
    }

    /// The host has seen something of the run that there is.
    pub(crate) fn host_reported(&mut self, now: Instant, state: &ProgramState, event: HostEvent, out: &mut Outputs) {
        let instance = state.instance;
        let ready = ProgramEvent::Ready { instance };
        match event {
            HostEvent::ProbeResult(_) if !is_watched(state) => {}
            HostEvent::Ready if self.policy.daemonizes && !state.daemonized => self.ready_before_daemon = true,
            // That it was started may have been seen just before, and not be committed yet.
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
                    let unhealthy_reason = UnhealthyReason::HealthCheckFailed(error);
                    self.propose(ProgramEvent::Unhealthy { instance, reason: unhealthy_reason }, Cause::Kernel, out);
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
                if let Some(unhealthy_reason) = self.overdue.take().and_then(|timer| self.missed(state, timer)) {
                    let unhealthy = ProgramEvent::Unhealthy { instance, reason: unhealthy_reason };
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

    /// A timer of this part has come. A program may have spoken in time and not have been heard because gaggled, or the
    /// machine, stood still: what it has said is heard before anything follows from its silence.
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

    /// What is wrong with a run that has not kept this time limit, if it still has not.
    fn missed(&self, state: &ProgramState, timer: Timer) -> Option<UnhealthyReason> {
        match timer {
            _ if !is_watched(state) => None,
            Timer::StartTimeout(instance) if instance == state.instance && state.ready_since.is_none() => {
                Some(UnhealthyReason::ReadinessTimeout(self.last))
            }
            Timer::StartTimeout(instance) if instance == state.instance => {
                self.policy.run_timeout.map(|_| UnhealthyReason::RunTimeout)
            }
            Timer::Watchdog(instance) if instance == state.instance => Some(UnhealthyReason::WatchdogTimeout),
            Timer::StartTimeout(_)
            | Timer::Watchdog(_)
            | Timer::Probe
            | Timer::Backoff
            | Timer::DependentsGrace
            | Timer::KillTimeout(_)
            | Timer::DependencyDelay
            | Timer::ShutdownTimeout => None,
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

/// Whether there is a run that nobody has decided to stop.
fn is_watched(state: &ProgramState) -> bool {
    state.phase == Phase::Up && state.pending_stop.is_none()
}
