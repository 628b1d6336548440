//! Who gives commands, and what a command proposes.

use super::target::Target;
use crate::{base::time::Millis, event::Event, protocol::ProgramIndex, state::State};

/// An operator who looks at a state.
#[derive(Clone, Copy, Debug)]
pub struct Operator<'a> {
    /// The state.
    pub state: &'a State,
    /// The configured programs by name.
    pub names: &'a ProgramIndex,
}

/// What a command proposes, what it waits for after that, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The events, in the order in which they are proposed.
    pub events: Vec<Event>,
    /// What is waited for once they are committed; nothing if the sender does not wait.
    pub target: Option<Target>,
    /// How long it is waited for.
    pub timeout: Millis,
}
