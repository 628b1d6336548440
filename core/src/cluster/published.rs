//! What a node publishes of its programs, and what is reported about those of others.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::external::RemoteSource;
use crate::{
    base::{
        ids::InstanceId,
        text::{as_name, harmless},
        time::WallTime,
    },
    process::Outcome,
};

/// How many causes are published: more is on the node itself.
pub(super) const WHY_LINES: usize = 5;
/// How long a text about one of them may be, in characters.
const WHY_MAX: usize = 512;
/// How long the name of a journal may be, in characters.
const JOURNAL_MAX: usize = 64;

/// How far a program is on its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemotePhase {
    /// It is down, or on its way up.
    Down,
    /// It is up, and not ready.
    Up,
    /// It is up and ready.
    Ready,
    /// It is being stopped, or will be.
    Leaving,
    /// It has run to its end, and is not to run again.
    Completed,
}

impl RemotePhase {
    /// Whether dependents can count on it as on a program that runs.
    pub fn is_up(self) -> bool {
        matches!(self, Self::Up | Self::Ready)
    }
}

/// The last state of an exported program, as its node publishes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedState {
    /// Where it stands in the journal of the node.
    #[serde(flatten)]
    pub source: RemoteSource,
    /// The node, if it is one of several on which the program may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Arc<str>>,
    /// The run.
    pub instance: InstanceId,
    /// How far it is.
    pub phase: RemotePhase,
    /// How the last run ended, if it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// When the last event of the program happened, by the clock of its node.
    pub time: WallTime,
    /// The events that led to this, in words, the last one first.
    #[serde(default)]
    pub why: Vec<Arc<str>>,
}

impl PublishedState {
    /// The same, with nothing in its texts that could mislead a reader on this node: other nodes are not trusted with more than
    /// their own programs.
    #[must_use]
    pub fn cleaned(mut self) -> Self {
        self.node = self.node.map(|node| as_name(&node, '?').into());
        self.source.journal = harmless(&self.source.journal, JOURNAL_MAX).into();
        self.why = self.why.iter().take(WHY_LINES).map(|line| harmless(line, WHY_MAX).into()).collect();
        self
    }

    /// Whether another state tells others nothing else.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let facts = |state: &Self| (state.instance, state.phase, state.outcome, state.source.falls);
        facts(self) == facts(other) && self.source.journal == other.source.journal
    }
}

/// What the cluster gateway reports about a program of another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sight {
    /// Its node has a session, and this is the state that it has published, if it has.
    Seen(Option<Arc<PublishedState>>),
    /// Its node has no session.
    Unseen,
}

impl Sight {
    /// The same, with the state [`cleaned`](PublishedState::cleaned).
    #[must_use]
    pub fn cleaned(self) -> Self {
        match self {
            Self::Seen(Some(state)) => Self::Seen(Some(Arc::new(Arc::unwrap_or_clone(state).cleaned()))),
            Self::Seen(None) | Self::Unseen => self,
        }
    }
}
