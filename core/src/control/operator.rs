//! The operator that gives commands, and the events that a command proposes.

use super::target::Target;
use crate::{base::time::Millis, event::Event, protocol::ProgramIndex, state::State};

/// Interprets the commands of an operator against a state.
///
/// ```
/// use std::sync::Arc;
///
/// use gaggled_core::{
///     base::ids::EpochId,
///     config::Config,
///     control::Operator,
///     protocol::{Action, Selection},
///     state::State,
/// };
///
/// let text = r#"(programs: {"web-1": (command: "a"), "web-2": (command: "a"), "db": (command: "a")})"#;
/// let graph = Config::parse(text).expect("it is correct").config.graph();
/// let (names, state) = (graph.names(), State::new(Arc::new(graph), EpochId(1)));
/// let operator = Operator { state: &state, names: &names };
///
/// let down = |word: &str| Action::Down(Selection { programs: vec![word.to_owned()], ..Selection::default() });
/// assert_eq!(operator.propose(&down("web-*")).expect("they are there").events.len(), 2);
/// let error = operator.propose(&down("wep-1")).unwrap_err();
/// assert!(error.message.contains("did you mean \"web-1\"?"));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Operator<'a> {
    /// The state.
    pub state: &'a State,
    /// The configured programs by name.
    pub names: &'a ProgramIndex,
}

/// The events that a command proposes, what it waits for after them, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// The events, in the order in which they are proposed.
    pub events: Vec<Event>,
    /// What to wait for once they are committed; `None` if the sender does not wait.
    pub target: Option<Target>,
    /// How long to wait.
    pub timeout: Millis,
}
