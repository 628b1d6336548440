//! What the rules need to know of readiness, health checks and the watchdog. Probes themselves are in [`crate::host::probe`].

use serde::{Deserialize, Serialize};

use crate::base::time::Millis;

/// How gaggled learns that a program is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// The program notifies gaggled.
    Notified,
    /// gaggled repeats a readiness probe until it succeeds.
    Probed,
}

/// The periodic health check of a program that is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// How long after one check the next begins.
    pub every: Millis,
    /// How many checks in a row must fail for it to be unhealthy.
    pub failures: u32,
}

/// Readiness, health-check and watchdog policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthPolicy {
    /// Whether its command leaves a daemon behind, which is the main process from then on.
    #[serde(default)]
    pub daemonizes: bool,
    /// How gaggled learns that it is ready; without this it is ready as soon as it runs.
    #[serde(default)]
    pub readiness: Option<Readiness>,
    /// How long it may take to be ready.
    pub start_timeout: Millis,
    /// The periodic health check.
    #[serde(default)]
    pub check: Option<HealthCheck>,
    /// How long it may go without a watchdog message.
    #[serde(default)]
    pub watchdog: Option<Millis>,
    /// How long a run may take, if the program is meant to end by itself.
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
