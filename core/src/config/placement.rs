//! What a configuration can say about nodes: where a program runs, and what differs there.

use serde::{Deserialize, Serialize};

use super::OrderedMap;
use crate::base::time::Millis;

/// Where a program, or a group with its programs, runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// On each of these nodes: a set such as `@web`, a node, or `*` for all.
    All(String),
    /// On one of these nodes at a time. Only for groups.
    One(String),
}

impl Placement {
    /// The set or node that is named.
    pub fn query(&self) -> &str {
        let (Self::All(query) | Self::One(query)) = self;
        query
    }

    /// Whether it is one node at a time.
    pub fn is_one(&self) -> bool {
        matches!(self, Self::One(_))
    }
}

/// What differs in a program on one node, or on those of a set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename = "per_host", deny_unknown_fields, default)]
pub struct HostOverride {
    /// The executable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// All its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// The line for `/bin/sh -c`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shell: Option<String>,
    /// The directory to run in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wd: Option<String>,
    /// Variables, besides and over those of the program.
    #[serde(skip_serializing_if = "OrderedMap::is_empty")]
    pub env: OrderedMap<String>,
    /// The file that its output is appended to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<String>,
    /// Whether the program exists there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Whether it starts with gaggled there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autostart: Option<bool>,
    /// How long it may take to end before it is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub killwait: Option<Millis>,
}
