//! The one point that every event passes: admit, number, apply.
//!
//! Nothing is numbered anywhere else. The journal decides nothing: [`crate::journal::admission`] says what may be committed.

pub mod admission;
pub mod audit;
pub mod history;
pub mod recovery;
mod refusal;
pub mod replica;
pub mod segment;

use std::{collections::BTreeMap, sync::Arc};

pub use self::refusal::Refusal;
use crate::{
    base::{
        ids::{EpochId, GroupId, Seq},
        time::{Instant, Millis, WallTime},
    },
    cluster::claims::ClaimsSight,
    event::{Cause, Envelope, Event, ProgramEvent, SystemEvent},
    graph::Graph,
    protocol::Permits,
    state::{State, Tenancy},
};

/// The sequence of events: its last number, and the state after it.
///
/// ```
/// use std::sync::Arc;
///
/// use gaggled_core::{
///     base::{ids::{EpochId, InstanceId}, time::{Instant, WallTime}},
///     config::Config,
///     event::{Cause, Event, ProgramEvent},
///     journal::{Journal, Refusal},
/// };
///
/// let graph = Config::parse(r#"(programs: {"a": (command: "true")})"#).expect("it is correct").config.graph();
/// let a = graph.names()["a"];
/// let mut journal = Journal::new(Arc::new(graph), EpochId(1));
/// let (now, wall) = (Instant::default(), WallTime(0));
/// let start = || Event::Program(a, ProgramEvent::Starting { instance: InstanceId(1) });
///
/// let envelope = journal.commit(now, wall, start(), Cause::DaemonStart).expect("a start is pending");
/// assert_eq!((envelope.seq.0, journal.state().programs[a].instance), (1, InstanceId(1)));
/// // The same proposal again is out of date.
/// assert!(matches!(journal.commit(now, wall, start(), Cause::DaemonStart), Err((_, Refusal::Stale))));
/// ```
#[derive(Clone, Debug)]
pub struct Journal {
    state: State,
    /// Until when programs of each group may be started that runs on one node at a time.
    permits: BTreeMap<GroupId, Instant>,
}

/// How long it may take until another daemon looks after everything.
const HANDOVER_TIME: Millis = Millis(1000);

/// After what time a start is proposed again that this node is not permitted now: by then it is, or its group is left.
const PERMIT_AGAIN: Millis = Millis(600);

impl Journal {
    /// The journal of a new epoch, before its first event.
    pub fn new(graph: Arc<Graph>, epoch: EpochId) -> Self {
        Self::resume(State::new(graph, epoch))
    }

    /// The journal of an epoch that goes on from a state.
    pub fn resume(state: State) -> Self {
        Self { state, permits: BTreeMap::new() }
    }

    /// Permits this node to run the groups that it holds until a moment. This is no fact of the journal: a permit ends by itself,
    /// also while nothing is committed.
    pub fn permit(&mut self, sight: &ClaimsSight) {
        for (id, group) in self.state.graph.groups.iter() {
            let holder = sight.claims.get(&group.name).and_then(|claim| claim.holder.as_ref());
            let Some(holder) = holder.filter(|holder| holder.is_own) else { continue };
            let is_meant = match &self.state.groups[id].tenancy {
                Some(Tenancy::Held { token, .. } | Tenancy::Leaving { token, .. }) => *token == holder.token,
                // The report by which it will be held.
                Some(Tenancy::Claiming { attempt, .. }) => *attempt == holder.attempt,
                Some(Tenancy::Away { .. }) | None => false,
            };
            if is_meant {
                let until = self.permits.entry(id).or_default();
                *until = (*until).max(sight.permit_until);
            }
        }
    }

    /// Until when this node may run the groups that it holds, or is about to.
    pub fn permits(&self) -> Permits {
        let named = |(id, until): (&GroupId, &Instant)| (self.state.graph.groups[*id].name.clone(), *until);
        let is_away = |id: &GroupId| matches!(self.state.groups[*id].tenancy, None | Some(Tenancy::Away { .. }));
        self.permits.iter().filter(|(id, _)| !is_away(id)).map(named).collect()
    }

    /// Until when this node may run a group that it holds.
    fn permit_of(&self, id: GroupId) -> Instant {
        self.permits.get(&id).copied().unwrap_or_default()
    }

    /// Whether an event has to wait for a permit: a start, or another daemon, which could not stop a group in time whose permit is
    /// about to end.
    fn lacks_permit(&self, now: Instant, event: &Event) -> bool {
        let is_held = |id: GroupId| matches!(self.state.groups[id].tenancy, Some(Tenancy::Held { .. }));
        match event {
            Event::Program(id, ProgramEvent::Starting { .. }) => {
                let group = self.state.graph.programs[*id].group.filter(|group| is_held(*group));
                group.is_some_and(|group| self.permit_of(group) <= now)
            }
            Event::System(SystemEvent::HandoverStarted { .. }) => {
                let ends = |id: GroupId| self.permit_of(id) > now && self.permit_of(id) <= now + HANDOVER_TIME;
                self.state.graph.groups.ids().any(|id| is_held(id) && ends(id))
            }
            Event::Program(..) | Event::Remote(..) | Event::Dependency(..) | Event::Group(..) | Event::System(_) => {
                false
            }
        }
    }

    /// Commits an event, or says why it may not be.
    pub fn commit(
        &mut self,
        now: Instant,
        wall: WallTime,
        event: Event,
        cause: Cause,
    ) -> Result<Envelope, (Event, Refusal)> {
        if let Err(refusal) = self.state.admit(now, &event) {
            return Err((event, refusal));
        }
        if self.lacks_permit(now, &event) {
            return Err((event, Refusal::TooEarly { ready_at: now + PERMIT_AGAIN }));
        }
        let cause = self.latest(&event, cause);
        Ok(self.commit_unchecked(now, wall, event, cause))
    }

    /// The cause of an exit is the last event that stopped the program, which the proposer may not have seen yet.
    fn latest(&self, event: &Event, cause: Cause) -> Cause {
        let stop_event = match (event, &cause) {
            (Event::Program(id, ProgramEvent::Exited { .. }), Cause::Event(_)) => self.state.programs[*id].stop_event,
            _ => None,
        };
        stop_event.map_or(cause, Cause::Event)
    }

    /// Commits an event without admission: for facts found at recovery, and for the simulator's defective journals.
    pub fn commit_unchecked(&mut self, now: Instant, wall: WallTime, event: Event, cause: Cause) -> Envelope {
        let seq = Seq(self.state.seq.0 + 1);
        let envelope =
            Envelope { seq, epoch: self.state.epoch, monotonic: now.max(self.state.at), time: wall, cause, event };
        self.state.apply(&envelope);
        envelope
    }

    /// The fold of everything committed.
    pub fn state(&self) -> &State {
        &self.state
    }
}
