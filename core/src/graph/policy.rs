//! What the rules use of the configuration of one program, independent of its state.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    base::{
        ids::{GroupId, Level},
        time::Millis,
    },
    cluster::External,
    graph::HealthPolicy,
    process::ExitStatus,
};

/// What to do when a program ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Start it again, whatever its exit status.
    #[default]
    Respawn,
    /// Leave it down until an operator or a propagated restart starts it again.
    Once,
    /// As `Once`; and the programs after it in its group and level wait until it has ended well.
    Wait,
    /// As `Wait`; and its exit status decides whether its group can run on this machine at all.
    Test,
}

impl Mode {
    /// Whether the programs after it in its group and level wait for its end.
    pub fn is_gate(self) -> bool {
        matches!(self, Self::Wait | Self::Test)
    }
}

/// What becomes of processes that a run leaves when it has ended well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leaves {
    /// They are killed.
    #[default]
    Kill,
    /// They run on as part of the effects of the program, and end when those are undone.
    Keep,
    /// They run on, and gaggled no longer manages them.
    Release,
}

/// The level at which a group is down: only programs that name it run, usually to clean up.
pub const STOP: &str = "stop";
/// The level at which a group comes up unless another is configured.
pub const START: &str = "start";
/// Programs that name this level are run to restart their group, instead of stopping and starting it. No group is ever
/// at it.
pub const RESTART: &str = "restart";

/// How the starts of a program that keeps ending are spaced.
///
/// The first restart is at once. After that two starts are at least `initial`, then twice that, and so on up to `max`
/// apart. An instance that stayed up for `reset` resets the spacing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "backoff", deny_unknown_fields, default)]
pub struct Backoff {
    /// The space between the second and the third start.
    pub initial: Millis,
    /// The greatest space.
    pub max: Millis,
    /// How long an instance must stay up to reset the spacing.
    pub reset: Millis,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { initial: Millis(100), max: Millis(60_000), reset: Millis(60_000) }
    }
}

/// When a program that keeps ending is given up: after `burst` starts within `interval`. A start requested by an
/// operator, its group or a propagating dependency begins the count anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename = "start_limit", deny_unknown_fields)]
pub struct StartLimit {
    /// How many starts, at least 1 and at most [`StartLimit::MAX_BURST`].
    pub burst: u32,
    /// Within which time.
    pub interval: Millis,
    /// The time after which it is started again by itself; never if this is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<Millis>,
    /// A run that was up for this long resets the count of starts; none does if this is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset: Option<Millis>,
}

impl StartLimit {
    /// The largest `burst`.
    pub const MAX_BURST: u32 = 1000;
}

/// The part of a program's configuration that the rules look at.
#[expect(clippy::struct_excessive_bools, reason = "each is an independent setting")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: Arc<str>,
    /// What to do when it ends.
    pub mode: Mode,
    /// Whether it is started without a request of an operator.
    pub autostart: bool,
    /// The group it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<GroupId>,
    /// The levels of its group at which it runs; all but `stop` if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<Level>,
    /// Whether it has a stop command, which stops it or undoes its effects.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub has_stop_command: bool,
    /// Whether its effects remain after it has ended well, until its stop command undoes them, even if no process is
    /// left.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remain_after_exit: bool,
    /// What becomes of processes that a run leaves when it has ended well.
    #[serde(default)]
    pub leaves: Leaves,
    /// Whether it is started again until it has ended well, although it is to run only once.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub retry: bool,
    /// The exit codes that mean success; only 0 if there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub success_exit_codes: Vec<i32>,
    /// How long it may take to end before it is killed.
    pub killwait: Millis,
    /// How its starts are spaced.
    pub backoff: Backoff,
    /// Readiness, health-check and watchdog policy.
    #[serde(default)]
    pub health: HealthPolicy,
    /// When it is given up, if ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_limit: Option<StartLimit>,
    /// Whether everything is to end when it ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub essential: bool,
    /// Whether the configuration no longer has it: it is kept only until it has stopped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unconfigured: bool,
    /// Whether its state is published to other nodes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub export: bool,
    /// The program of another node that this stands for, if it does not run here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
}

impl Policy {
    /// The default policy of a program.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            mode: Mode::default(),
            autostart: true,
            group: None,
            levels: Vec::new(),
            has_stop_command: false,
            remain_after_exit: false,
            leaves: Leaves::Kill,
            retry: false,
            success_exit_codes: Vec::new(),
            killwait: Millis(10_000),
            backoff: Backoff::default(),
            health: HealthPolicy::default(),
            start_limit: None,
            essential: false,
            unconfigured: false,
            export: false,
            external: None,
        }
    }

    /// The policy of a program of another node.
    pub fn external(name: &str, external: External) -> Self {
        Self { autostart: false, external: Some(external), ..Self::new(name) }
    }

    /// Whether it is a program of this node.
    pub fn is_here(&self) -> bool {
        self.external.is_none()
    }

    /// Whether it runs when its group is at a level.
    pub fn runs_at(&self, level: &str) -> bool {
        self.levels.is_empty() && ![STOP, RESTART].contains(&level) || self.names(level)
    }

    /// Whether it names a level.
    pub fn names(&self, level: &str) -> bool {
        self.levels.iter().any(|own| &**own == level)
    }

    /// Whether it is meant to end by itself, and has no readiness of its own: only its end shows success.
    pub fn ends_by_itself(&self) -> bool {
        self.mode != Mode::Respawn && self.health.ready_on_start()
    }

    /// Whether an end with this status is a success.
    pub fn succeeds(&self, status: ExitStatus) -> bool {
        status.is_one_of(&self.success_exit_codes)
    }

    /// Whether effects of a run may remain after its end.
    pub fn may_remain(&self) -> bool {
        self.remain_after_exit || self.leaves == Leaves::Keep
    }

    /// Whether effects remain after a run that has ended by itself with this status, and has left so many processes.
    pub fn remains(&self, status: ExitStatus, orphans: u16) -> bool {
        (self.remain_after_exit || self.leaves == Leaves::Keep && orphans > 0) && self.succeeds(status)
    }

    /// Whether it is started again by itself after a run that has ended, well or not.
    pub fn runs_again(&self, well: bool) -> bool {
        self.mode == Mode::Respawn || self.retry && !well
    }

    /// Whether there is a level at which both run.
    pub(super) fn shares_level(&self, other: &Self) -> bool {
        self.levels.is_empty() || other.levels.is_empty() || self.levels.iter().any(|level| other.names(level))
    }
}
