//! Commands of operators: which programs they mean, and who may give them.

use serde::{Deserialize, Serialize};

use crate::{time::Millis, wire::Action};

/// Programs and groups that a command is for, and whether its sender waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Names of programs or groups, or patterns such as `web-*`; everything if there is none.
    #[serde(default)]
    pub programs: Vec<String>,
    /// Whether to answer when it is done, rather than when it is accepted.
    #[serde(default)]
    pub wait: bool,
    /// How long to wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<Millis>,
}

/// What somebody may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Nothing: it may connect, and is refused.
    Nothing,
    /// Look.
    Observe,
    /// Start and stop programs.
    Operate,
    /// End gaggled, change its configuration or its version.
    Admin,
}

impl Action {
    /// The least role that may ask this.
    pub fn role(&self) -> Role {
        match self {
            Self::Dump { .. }
            | Self::Why { .. }
            | Self::Events { .. }
            | Self::Snapshot
            | Self::Status
            | Self::Wait { .. } => Role::Observe,
            Self::Up(_) | Self::Down(_) | Self::Restart(_) | Self::Tell { .. } | Self::Signal { .. } => Role::Operate,
            Self::Plan { .. } | Self::Reload { .. } | Self::Upgrade { .. } | Self::Shutdown { .. } => Role::Admin,
        }
    }
}

/// Who gave a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who that is, for the journal.
    pub who: String,
    /// What it may do.
    pub role: Role,
}

/// How long a command waits if its sender does not say.
pub const DEFAULT_TIMEOUT: Millis = Millis(30_000);
