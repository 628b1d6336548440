//! `gaggled_controller backoff`: the restart delays of a program, and how close it is to its start limit.
//!
//! `wait` is the remaining delay in milliseconds, as gaggled reports it.

use gaggled_core::{
    base::{ids::ProgramId, time::Millis},
    state::State,
};
use serde_json::{Value, json};

/// The result as JSON.
pub fn body(state: &State, id: ProgramId, wait: Option<u64>) -> Value {
    let (policy, program) = (&state.graph.programs[id], &state.programs[id]);
    json!({
        "program": policy.name,
        "backoff": policy.backoff,
        "limit": policy.start_limit,
        "attempts": program.attempts,
        "starts_counted": counted(state, id),
        "wait_ms": wait,
        "start_limit_hit": program.start_limit_hit,
    })
}

/// The result as text.
pub fn describe(state: &State, id: ProgramId, wait: Option<u64>) -> String {
    let (policy, program) = (&state.graph.programs[id], &state.programs[id]);
    let backoff = policy.backoff;
    let mut lines = vec![format!(
        "{}: the first restart is immediate, later starts are at least {} apart, doubling up to {}; reset after {} up",
        policy.name, backoff.initial, backoff.max, backoff.reset
    )];
    lines.push(match policy.start_limit {
        None => "it has no start limit".to_owned(),
        Some(limit) => {
            let retry = limit
                .retry_after
                .map_or_else(|| "until an operator starts it".to_owned(), |retry| format!("for {retry}"));
            let counted = counted(state, id);
            let reset = limit.reset.map_or_else(String::new, |reset| format!(", none of which was up for {reset}"));
            format!(
                "it is left down {retry} after {} starts within {}{reset}; {counted} are counted now",
                limit.burst, limit.interval
            )
        }
    });
    lines.push(match (program.start_limit_hit, wait, program.attempts) {
        (true, ..) => "it has reached its start limit: start it".to_owned(),
        (false, Some(wait), attempts) => {
            format!("after {attempts} starts in a row it starts again in {}", Millis(wait))
        }
        (false, None, 0 | 1) => "nothing holds it back".to_owned(),
        (false, None, attempts) => format!("it has been started {attempts} times in a row"),
    });
    lines.join("\n")
}

fn counted(state: &State, id: ProgramId) -> usize {
    let within = state.graph.programs[id].start_limit.map_or(Millis(0), |limit| limit.interval);
    state.programs[id].recent_starts.iter().filter(|start| **start + within > state.at).count()
}
