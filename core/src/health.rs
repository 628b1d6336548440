//! Whether a program that runs does what it is there for: that it is ready, that it stays well, that it still speaks.
//!
//! What is asked and how is the host's affair; here is when, and what follows from the answer. A program that is not ready
//! in time, fails its checks as often as it may, or falls silent, is told to stop as if it had failed.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    event::{Cause, Event, ProgramEvent},
    graph::Policy,
    host::{ExitStatus, Fact, HostCommand},
    ids::ProgramId,
    machine::{Outputs, Timer},
    state::{Phase, ProgramState},
    time::{Instant, Millis},
};

/// How a program shows that it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ready {
    /// It sends `READY=1` to the socket in `$NOTIFY_SOCKET`, as `sd_notify` does.
    Notify,
    /// It writes a line to this descriptor, as programs under s6 do.
    Descriptor(i32),
    /// A line of its log has this text in it.
    Line(String),
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

impl Ready {
    /// The descriptor that it writes a line to.
    pub fn descriptor(&self) -> Option<i32> {
        match self {
            Self::Descriptor(number) => Some(*number),
            Self::Notify | Self::Line(_) | Self::Command(_) | Self::Tcp(_) | Self::Http(_) => None,
        }
    }

    /// What is asked, if it does not say so itself.
    pub fn probe(&self) -> Option<Probe> {
        match self {
            Self::Notify | Self::Descriptor(_) | Self::Line(_) => None,
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
    pub check: Probe,
    /// How long after one check the next begins.
    #[serde(default = "Health::every")]
    pub every: Millis,
    /// How long an answer may take.
    #[serde(default = "Health::timeout")]
    pub timeout: Millis,
    /// How many checks in a row must fail for it to be unhealthy.
    #[serde(default = "Health::failures")]
    pub failures: u32,
}

impl Health {
    /// How long it may take to answer whether it is ready.
    pub const READY_TIMEOUT: Millis = Millis(5000);

    fn every() -> Millis {
        Millis(10_000)
    }

    fn timeout() -> Millis {
        Self::READY_TIMEOUT
    }

    fn failures() -> u32 {
        3
    }
}

/// How it is known that a program is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// It says so itself.
    Told,
    /// It is asked until it is.
    Asked,
}

/// How a program is looked after once it is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkup {
    /// How long after one check the next begins.
    pub every: Millis,
    /// How many checks in a row must fail for it to be unhealthy.
    pub failures: u32,
}

/// What is asked of a program beyond that it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Care {
    /// Whether its command leaves a daemon behind, which is the program from then on.
    #[serde(default)]
    pub daemonizes: bool,
    /// How it is known that it is ready; that it runs is enough if there is nothing.
    #[serde(default)]
    pub readiness: Option<Readiness>,
    /// How long it may take to be ready.
    pub within: Millis,
    /// How it is looked after.
    #[serde(default)]
    pub checkup: Option<Checkup>,
    /// How long it may be silent.
    #[serde(default)]
    pub watchdog: Option<Millis>,
    /// How long a run may take that is meant to end by itself.
    #[serde(default)]
    pub limit: Option<Millis>,
}

impl Default for Care {
    fn default() -> Self {
        Self { daemonizes: false, readiness: None, within: Millis(60_000), checkup: None, watchdog: None, limit: None }
    }
}

impl Care {
    /// Whether it is ready as soon as it runs.
    pub fn is_ready_at_once(&self) -> bool {
        !self.daemonizes && self.readiness.is_none()
    }
}

/// What a program is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Whether it is ready.
    Ready,
    /// Whether it is well.
    Health,
}

/// What was wrong with an answer, or with a pid file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Complaint {
    /// A call of the system failed, with this error number.
    Error(i32),
    /// There was no answer in time.
    Late,
    /// The answer had this HTTP status.
    Http(u16),
    /// The name of its host is not known.
    NoHost,
    /// There is no TLS connection that can be trusted.
    Tls,
    /// The answer was not understood.
    Garbled,
    /// The command of the check ended like this.
    Command(ExitStatus),
    /// There is no process id in the pid file.
    NoPid,
    /// The process in the pid file is not there.
    NoProcess(i32),
    /// The process in the pid file is not one of this program.
    Foreign(i32),
}

/// What is wrong with a program that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ailment {
    /// It was not ready in time; what was wrong when it was last looked at.
    NotReady(Option<Complaint>),
    /// It has failed as many checks as it may; what was wrong with the last.
    Unwell(Complaint),
    /// It has said nothing for longer than it may.
    Silent,
    /// It is meant to end by itself, and has not in time.
    Overrun,
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Error(errno) => {
                let error = std::io::Error::from_raw_os_error(*errno).to_string();
                f.write_str(&error.split(" (os error").next().unwrap_or_default().to_lowercase())
            }
            Self::Late => f.write_str("no answer in time"),
            Self::Http(status) => write!(f, "HTTP status {status}"),
            Self::NoHost => f.write_str("the name of its host is not known"),
            Self::Tls => f.write_str("no TLS connection that can be trusted"),
            Self::Garbled => f.write_str("an answer that is not understood"),
            Self::Command(status) => write!(f, "the command {status}"),
            Self::NoPid => f.write_str("there is no process id in the pid file"),
            Self::NoProcess(pid) => write!(f, "the pid file names process {pid}, which is not there"),
            Self::Foreign(pid) => write!(f, "the pid file names process {pid}, which is not one of this program"),
        }
    }
}

impl fmt::Display for Ailment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotReady(None) => f.write_str("it was not ready in time"),
            Self::NotReady(Some(complaint)) => write!(f, "it was not ready in time: {complaint}"),
            Self::Unwell(complaint) => write!(f, "it has failed its checks: {complaint}"),
            Self::Silent => f.write_str("it has been silent for too long"),
            Self::Overrun => f.write_str("it has not ended in time"),
        }
    }
}

/// How soon a program that is not ready is asked again, at first and at most.
const AGAIN: (Millis, Millis) = (Millis(50), Millis(1000));

/// The part of the rules of a program that watches over it.
#[derive(Clone, Debug)]
pub(crate) struct Vigil {
    program: ProgramId,
    care: Care,
    /// What was wrong when it was last looked at.
    last: Option<Complaint>,
    /// How many checks have failed in a row.
    failures: u32,
    /// How soon it is asked again.
    again: Millis,
    /// Whether it has said that it is ready before its daemon was known.
    spoke: bool,
    /// The time limit that is over, while the host is asked whether the program has spoken in time after all.
    overdue: Option<Timer>,
}

impl Vigil {
    pub(crate) fn new(program: ProgramId, policy: &Policy) -> Self {
        Self { program, care: policy.care, last: None, failures: 0, again: AGAIN.0, spoke: false, overdue: None }
    }

    /// A run begins: nothing is known of it.
    pub(crate) fn forget(&mut self) {
        (self.last, self.failures, self.again, self.spoke, self.overdue) = (None, 0, AGAIN.0, false, None);
    }

    /// It runs, or is ready: from now on something else is watched.
    ///
    /// It has to be ready so long after `since`: whoever has just begun to look gives it all of its time.
    pub(crate) fn begin(&self, now: Instant, since: Instant, state: &ProgramState, out: &mut Outputs) {
        if !is_watched(state) {
            return;
        }
        if state.ready_since.is_none() {
            out.arm(Timer::NotReady(state.instance), since + self.care.within);
            if self.spoke && state.daemonized {
                let instance = state.instance;
                self.propose(ProgramEvent::Ready { instance }, Cause::Os, out);
            }
            if self.care.readiness == Some(Readiness::Asked) && (state.daemonized || !self.care.daemonizes) {
                self.ask(state, out);
            }
            return;
        }
        if let Some(checkup) = self.care.checkup {
            out.arm(Timer::Check, now + checkup.every);
        }
        if let Some(limit) = self.care.limit {
            out.arm(Timer::NotReady(state.instance), since + limit);
        }
        self.heard(now, state, out);
    }

    /// It has said that it is alive.
    pub(crate) fn heard(&self, now: Instant, state: &ProgramState, out: &mut Outputs) {
        if let Some(span) = self.care.watchdog.filter(|_| state.ready_since.is_some()) {
            out.arm(Timer::Silent(state.instance), now + span);
        }
    }

    fn ask(&self, state: &ProgramState, out: &mut Outputs) {
        let check = if state.ready_since.is_some() { Check::Health } else { Check::Ready };
        out.perform(HostCommand::Check { program: self.program, instance: state.instance, check });
    }

    /// The host has seen something of the run that there is.
    pub(crate) fn observed(&mut self, now: Instant, state: &ProgramState, fact: Fact, out: &mut Outputs) {
        let instance = state.instance;
        let ready = ProgramEvent::Ready { instance };
        match fact {
            Fact::Checked(_) if !is_watched(state) => {}
            Fact::Ready if self.care.daemonizes && !state.daemonized => self.spoke = true,
            // That it was started may have been seen just before, and not be committed yet.
            Fact::Ready | Fact::Checked(Ok(())) if state.ready_since.is_none() => {
                self.overdue.take_if(|timer| *timer == Timer::NotReady(instance));
                self.propose(ready, Cause::Os, out);
            }
            Fact::Checked(Ok(())) => {
                self.failures = 0;
                self.arm_check(now, out);
            }
            Fact::Checked(Err(complaint)) if state.ready_since.is_none() => {
                self.last = Some(complaint);
                out.arm(Timer::Check, now + self.again);
                self.again = Millis(self.again.0 * 2).min(AGAIN.1);
            }
            Fact::Checked(Err(complaint)) => {
                self.failures += 1;
                if self.care.checkup.is_some_and(|checkup| self.failures >= checkup.failures) {
                    let ailment = Ailment::Unwell(complaint);
                    self.propose(ProgramEvent::Unhealthy { instance, ailment }, Cause::Os, out);
                } else {
                    self.arm_check(now, out);
                }
            }
            Fact::Complained(complaint) => self.last = Some(complaint),
            Fact::Alive => {
                self.overdue.take_if(|timer| *timer == Timer::Silent(instance));
                self.heard(now, state, out);
            }
            Fact::Heard => {
                if let Some(ailment) = self.overdue.take().and_then(|timer| self.missed(state, timer)) {
                    let unhealthy = ProgramEvent::Unhealthy { instance, ailment };
                    self.propose(unhealthy, Cause::Timer(state.changed_by), out);
                }
            }
            Fact::Ready
            | Fact::Daemonized { .. }
            | Fact::Spawned { .. }
            | Fact::SpawnFailed { .. }
            | Fact::StopCommandFailed { .. }
            | Fact::Exited { .. } => {}
        }
    }

    /// A timer of this part has come. A program may have spoken in time and not have been heard because gaggled, or the
    /// machine, stood still: what it has said is heard before anything follows from its silence.
    pub(crate) fn due(&mut self, state: &ProgramState, timer: Timer, out: &mut Outputs) {
        if !is_watched(state) {
            return;
        }
        if timer == Timer::Check {
            self.ask(state, out);
        } else if self.missed(state, timer).is_some() {
            self.overdue = Some(timer);
            out.perform(HostCommand::Listen { program: self.program, instance: state.instance });
        }
    }

    /// What is wrong with a run that has not kept this time limit, if it still has not.
    fn missed(&self, state: &ProgramState, timer: Timer) -> Option<Ailment> {
        match timer {
            _ if !is_watched(state) => None,
            Timer::NotReady(instance) if instance == state.instance && state.ready_since.is_none() => {
                Some(Ailment::NotReady(self.last))
            }
            Timer::NotReady(instance) if instance == state.instance => self.care.limit.map(|_| Ailment::Overrun),
            Timer::Silent(instance) if instance == state.instance => Some(Ailment::Silent),
            Timer::NotReady(_)
            | Timer::Silent(_)
            | Timer::Check
            | Timer::Start
            | Timer::Stop
            | Timer::Kill(_)
            | Timer::Gate
            | Timer::GiveUp => None,
        }
    }

    fn arm_check(&self, now: Instant, out: &mut Outputs) {
        if let Some(checkup) = self.care.checkup {
            out.arm(Timer::Check, now + checkup.every);
        }
    }

    fn propose(&self, event: ProgramEvent, cause: Cause, out: &mut Outputs) {
        out.propose(Event::Program(self.program, event), cause);
    }
}

/// Whether there is a run that nobody has decided to stop.
fn is_watched(state: &ProgramState) -> bool {
    state.phase == Phase::Up && state.leaving.is_none()
}
