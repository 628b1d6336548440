//! What of the state of a program is published.

use super::{
    external::RemoteSource,
    published::{PublishedState, RemotePhase, WHY_LINES},
};
use crate::{
    base::{ids::ProgramId, time::WallTime},
    state::State,
};

/// How long the texts about the causes may be together, in bytes.
const WHY_BYTES: usize = 1024;

impl PublishedState {
    /// The state of a program, with the causes of its last event in words.
    pub fn new(state: &State, id: ProgramId, journal: &str, time: WallTime, why: &[String]) -> Self {
        let program = &state.programs[id];
        let phase = if program.is_ready() {
            RemotePhase::Ready
        } else if program.is_running_and_wanted() {
            RemotePhase::Up
        } else if program.is_completed() {
            RemotePhase::Completed
        } else if program.is_running() && program.pending_stop.is_some() {
            RemotePhase::Leaving
        } else {
            RemotePhase::Down
        };
        let mut left = WHY_BYTES;
        let fits = |line: &&String| {
            let fits = line.len() <= left;
            left = left.saturating_sub(line.len());
            fits
        };
        Self {
            source: RemoteSource {
                journal: journal.into(),
                epoch: state.epoch,
                seq: program.last_seq,
                falls: program.falls,
            },
            node: None,
            instance: program.instance,
            phase,
            outcome: program.outcome.filter(|_| matches!(phase, RemotePhase::Down | RemotePhase::Completed)),
            time,
            why: why.iter().take(WHY_LINES).take_while(fits).map(|line| line.as_str().into()).collect(),
        }
    }
}
