//! Why a proposal is refused.

use std::{fmt, sync::Arc};

use crate::base::{
    ids::{DependencyId, Level},
    time::Instant,
};

/// Why a proposed event may not be committed, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The proposal is stale: its instance is not the current one, or no longer in the phase that the event needs.
    Stale,
    /// No start is pending, or an operator, the start limit or its group keeps the program down.
    NoStartPending,
    /// This dependency is not satisfied.
    DependencyUnsatisfied {
        /// Which.
        dependency: DependencyId,
    },
    /// It is too early.
    TooEarly {
        /// When to propose it again.
        ready_at: Instant,
    },
    /// The configuration no longer has the program.
    Unconfigured,
    /// The level of its group does not have the program.
    NotAtLevel {
        /// The group.
        group: String,
        /// The level it is at.
        level: Level,
    },
    /// The program runs on another node, where it is started and stopped.
    RunsElsewhere {
        /// Where, in words.
        place: String,
    },
    /// The group runs on one node at a time, and this one does not hold it.
    NotHeld {
        /// The group.
        group: Arc<str>,
        /// The node that holds it, as far as is known.
        holder: Option<Arc<str>>,
    },
    /// The group has no such level.
    NoSuchLevel,
    /// Everything is being stopped.
    ShuttingDown,
    /// This daemon hands over to the next, and only records reports of the host.
    HandingOver,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale => f.write_str("the instance is not, or no longer, in the required phase"),
            Self::NoStartPending => f.write_str("no start of the program is pending"),
            Self::DependencyUnsatisfied { dependency } => write!(f, "dependency {dependency} is not satisfied"),
            Self::TooEarly { ready_at } => write!(f, "too early, ready at {} ms", ready_at.as_millis()),
            Self::Unconfigured => f.write_str("the configuration no longer has the program"),
            Self::NotAtLevel { group, level } => {
                write!(f, "group {group} is at level {level}, at which the program does not run: request another level")
            }
            Self::RunsElsewhere { place } => write!(f, "the program runs {place}: give the command there"),
            Self::NotHeld { group, holder: Some(node) } => {
                write!(f, "group {group} runs on node {node}: give the command there")
            }
            Self::NotHeld { group, holder: None } => {
                write!(f, "group {group} runs on one node at a time, and not on this one now")
            }
            Self::NoSuchLevel => f.write_str("the group has no such level"),
            Self::ShuttingDown => f.write_str("gaggled is shutting down"),
            Self::HandingOver => f.write_str("gaggled is handing over to the next daemon: ask again"),
        }
    }
}
