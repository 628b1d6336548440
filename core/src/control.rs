//! What commands of operators mean: which programs they select, which events they propose, and when they are done.
//!
//! | step | where |
//! |---|---|
//! | names and patterns become programs and groups | [`Operator::choose`] |
//! | a command becomes events, and a target to wait for | [`Operator::propose`] |
//! | a command is done, late, or will never be done | [`Wait`] |
//!
//! Who may give which command is not decided here, and neither is how long anyone waits.

mod commands;
mod targets;
mod wait;

pub use self::{
    targets::Targets,
    wait::{Progress, Target, Wait},
};
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
