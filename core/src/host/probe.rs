//! Readiness probes and health checks: what is asked of a program, and what can be wrong with the answer.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{base::time::Millis, process::ExitStatus};

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

/// A probe that gaggled runs to see whether a program is ready or healthy.
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

    /// The probe to run; `None` if the program notifies its readiness itself.
    pub fn probe(&self) -> Option<Probe> {
        match self {
            Self::Notify | Self::Fd(_) | Self::LogLine(_) => None,
            Self::Command(line) => Some(Probe::Command(line.clone())),
            Self::Tcp(address) => Some(Probe::Tcp(address.clone())),
            Self::Http(url) => Some(Probe::Http(url.clone())),
        }
    }
}

/// The periodic health check of a program, as configured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "health", deny_unknown_fields)]
pub struct Health {
    /// The probe to run.
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
    /// How long one attempt of a readiness probe may take, and by default a health check. The limit for becoming ready is
    /// `start_timeout`.
    pub const PROBE_TIMEOUT: Millis = Millis(5000);

    fn interval() -> Millis {
        Millis(10_000)
    }

    fn timeout() -> Millis {
        Self::PROBE_TIMEOUT
    }

    fn failure_threshold() -> u32 {
        3
    }
}

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeKind {
    /// Readiness: it is repeated until it succeeds.
    Ready,
    /// The periodic health check.
    Health,
}

/// Why a probe, or the look at a pid file, failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeError {
    /// A call of the system failed, with this error number.
    Os(i32),
    /// There was no answer in time.
    Timeout,
    /// The answer had this HTTP status.
    HttpStatus(u16),
    /// The name of the host could not be resolved.
    DnsFailure,
    /// No trusted TLS connection could be made.
    Tls,
    /// The answer was not understood.
    InvalidResponse,
    /// The command of the check ended like this.
    ExitStatus(ExitStatus),
    /// There is no process id in the pid file.
    PidFileEmpty,
    /// The process that the pid file names does not exist.
    NoSuchProcess(i32),
    /// The process that the pid file names does not belong to this program.
    ForeignProcess(i32),
}

/// What is wrong with a program that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnhealthyReason {
    /// It was not ready in time; with the last error, if there was one.
    ReadinessTimeout(Option<ProbeError>),
    /// It has failed `failure_threshold` checks in a row; with the last error.
    HealthCheckFailed(ProbeError),
    /// It has sent no watchdog message for too long.
    WatchdogTimeout,
    /// It is meant to end by itself, and has not ended in time.
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
            Self::DnsFailure => f.write_str("the host name cannot be resolved"),
            Self::Tls => f.write_str("no trusted TLS connection"),
            Self::InvalidResponse => f.write_str("an answer that is not understood"),
            Self::ExitStatus(status) => write!(f, "the command {status}"),
            Self::PidFileEmpty => f.write_str("there is no process id in the pid file"),
            Self::NoSuchProcess(pid) => write!(f, "the pid file names process {pid}, which does not exist"),
            Self::ForeignProcess(pid) => {
                write!(f, "the pid file names process {pid}, which does not belong to this program")
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
