//! A follower's copy of the state. It applies the events that arrive, and detects missing ones.
//!
//! A follower first subscribes and then requests a snapshot. Events that the snapshot contains are dropped by number,
//! missing events are requested by number. The heartbeat shows the loss even of the last event.

use crate::{
    base::ids::{EpochId, Seq},
    event::Envelope,
    protocol::{Heartbeat, ProgramIndex, decode_event},
    state::State,
};

/// A copy of the state.
#[derive(Clone, Debug, Default)]
pub struct StateReplica {
    state: Option<State>,
    names: ProgramIndex,
}

/// The result of feeding a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedResult {
    /// It was the next event.
    Applied(Box<Envelope>),
    /// The state contains the event already.
    Duplicate,
    /// Events are missing after this one: ask for them.
    Gap(EpochId, Seq),
    /// There is no state yet, or it is that of an earlier run of the daemon: ask for a snapshot.
    NeedSnapshot,
}

impl StateReplica {
    /// The state, once there is one.
    pub fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    /// Takes a snapshot, unless the present state is at least as new.
    pub fn restore(&mut self, snapshot: State) {
        let newer = |state: &State| (snapshot.epoch, snapshot.seq) > (state.epoch, state.seq);
        if self.state.as_ref().is_none_or(newer) {
            self.names = snapshot.graph.names();
            self.state = Some(snapshot);
        }
    }

    /// Takes an event as JSON. An error is an event that cannot be read.
    pub fn feed(&mut self, event: &str) -> Result<FeedResult, String> {
        let Some(state) = &mut self.state else { return Ok(FeedResult::NeedSnapshot) };
        let number: Heartbeat = serde_json::from_str(event).map_err(|why| format!("event is not understood: {why}"))?;
        if number.epoch != state.epoch {
            return Ok(if number.epoch > state.epoch { FeedResult::NeedSnapshot } else { FeedResult::Duplicate });
        }
        if number.seq <= state.seq {
            return Ok(FeedResult::Duplicate);
        }
        if number.seq.0 > state.seq.0 + 1 {
            return Ok(FeedResult::Gap(state.epoch, state.seq));
        }
        let envelope = decode_event(event, &self.names, state)?;
        state.apply(&envelope);
        Ok(FeedResult::Applied(Box::new(envelope)))
    }

    /// Takes a heartbeat.
    pub fn beat(&self, beat: &Heartbeat) -> FeedResult {
        match &self.state {
            Some(state) if state.epoch == beat.epoch && state.seq < beat.seq => FeedResult::Gap(state.epoch, state.seq),
            Some(state) if state.epoch >= beat.epoch => FeedResult::Duplicate,
            Some(_) | None => FeedResult::NeedSnapshot,
        }
    }
}
