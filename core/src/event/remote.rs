//! What can happen to a program of another node, as seen from this one.

use serde::{Deserialize, Serialize};

use crate::{
    base::ids::InstanceId,
    cluster::{RemoteSource, UnseenReason},
    process::Outcome,
};

/// What can happen to a program of another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event")]
pub enum RemoteEvent {
    /// It came up there.
    #[serde(rename = "RemoteUp")]
    Up {
        /// The state that shows it.
        source: Box<RemoteSource>,
        /// Its run there.
        remote_instance: InstanceId,
    },
    /// It is ready.
    #[serde(rename = "RemoteReady")]
    Ready {
        /// The state that shows it.
        source: Box<RemoteSource>,
    },
    /// It went down, or is about to be stopped.
    #[serde(rename = "RemoteDown")]
    Down {
        /// The state that shows it.
        source: Box<RemoteSource>,
        /// How often it went down besides, since the event before.
        #[serde(default, skip_serializing_if = "is_zero")]
        missed: u64,
        /// Whether its node stops it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        planned: bool,
        /// How its run ended, if it has ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
    },
    /// It ran to its end there, and is not to run again.
    #[serde(rename = "RemoteCompleted")]
    Completed {
        /// The state that shows it.
        source: Box<RemoteSource>,
        /// Its run there.
        remote_instance: InstanceId,
        /// How it ended.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outcome: Option<Outcome>,
    },
    /// Its state is not known any more.
    #[serde(rename = "RemoteUnseen")]
    Unseen {
        /// Why.
        reason: UnseenReason,
        /// Whether it was up and counts as down from now on.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        assumed_down: bool,
    },
    /// Its state is known again.
    #[serde(rename = "RemoteSeen")]
    Seen,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl RemoteEvent {
    /// What the names of these events begin with on the wire.
    pub const PREFIX: &str = "Remote";

    /// The name of the event, as on the wire.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Up { .. } => "RemoteUp",
            Self::Ready { .. } => "RemoteReady",
            Self::Down { .. } => "RemoteDown",
            Self::Completed { .. } => "RemoteCompleted",
            Self::Unseen { .. } => "RemoteUnseen",
            Self::Seen => "RemoteSeen",
        }
    }
}
