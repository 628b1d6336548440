//! The last events, and queries of them: the events after a position, and the causes of a state.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use crate::{
    base::{
        ids::{DenseId, Position, ProgramId, Seq},
        time::WallTime,
    },
    event::{Cause, Envelope, Event, GroupEvent, ProgramEvent},
    graph::Graph,
    protocol::{describe_event, encode_event_with_state},
    state::{Membership, Phase, ProgramState, State},
};

/// An event, and the state of its program after it.
#[derive(Clone, Debug)]
pub struct LoggedEvent {
    /// The event.
    pub envelope: Arc<Envelope>,
    /// The state of the program that it concerns.
    pub after: Option<ProgramState>,
    /// The graph that its ids refer to.
    pub graph: Arc<Graph>,
}

impl LoggedEvent {
    /// The program that it concerns, by name.
    pub fn program(&self) -> Option<&str> {
        self.graph.subject(&self.envelope.event).map(|id| &*self.graph.programs[id].name)
    }

    /// The key of the command that caused it, if the command had an id.
    pub fn trace(&self) -> Option<CommandKey> {
        let Cause::Operator { who, command } = &self.envelope.cause else { return None };
        let named = !command.is_empty() && !command.starts_with('#');
        named.then(|| CommandKey::new(who, command, &self.envelope.event, &self.graph))
    }

    /// Its position among the events of all runs of the daemon.
    pub fn position(&self) -> Position {
        Position { epoch: self.envelope.epoch, seq: self.envelope.seq }
    }

    /// The event as JSON, with the state of its program after it.
    pub fn encode(&self) -> String {
        let subject = self.graph.subject(&self.envelope.event);
        let state = subject.zip(self.after.as_ref());
        encode_event_with_state(&self.envelope, &self.graph, state)
    }
}

/// One effect of a command: its sender and id, and the event and program that it caused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CommandKey {
    who: String,
    command: String,
    event: &'static str,
    program: Option<Arc<str>>,
}

impl CommandKey {
    /// The key of an event that a command causes.
    pub fn new(who: &str, command: &str, event: &Event, graph: &Graph) -> Self {
        let program = graph.subject(event).map(|id| graph.programs[id].name.clone());
        Self { who: who.to_owned(), command: command.to_owned(), event: event.name(), program }
    }
}

/// A link in the chain of causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The event.
    pub envelope: Arc<Envelope>,
    /// What happened, in words.
    pub words: String,
}

/// The last events, as many as are kept.
#[derive(Clone, Debug)]
pub struct History {
    entries: VecDeque<LoggedEvent>,
    capacity: usize,
}

impl History {
    /// A history of at most so many events.
    pub fn new(capacity: usize) -> Self {
        Self { entries: VecDeque::new(), capacity }
    }

    /// A history that begins with these events.
    pub fn with(capacity: usize, entries: Vec<LoggedEvent>) -> Self {
        let skip = entries.len().saturating_sub(capacity);
        Self { entries: entries.into_iter().skip(skip).collect(), capacity }
    }

    /// All events that are kept.
    pub fn into_entries(self) -> Vec<LoggedEvent> {
        self.entries.into()
    }

    /// Keeps an event, just after it was applied to `state`.
    pub fn push(&mut self, envelope: Arc<Envelope>, state: &State) {
        if self.entries.len() == self.capacity {
            self.entries.pop_front();
        }
        let after = state.graph.subject(&envelope.event).map(|id| state.programs[id].clone());
        self.entries.push_back(LoggedEvent { envelope, after, graph: state.graph.clone() });
    }

    /// The events after a position, as far as they are kept.
    pub fn after(&self, position: Position) -> impl Iterator<Item = &LoggedEvent> {
        let skip = self.entries.partition_point(|entry| entry.position() <= position);
        self.entries.iter().skip(skip)
    }

    /// The programs of the events that are kept; a program may occur several times.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter_map(LoggedEvent::program)
    }

    /// Whether the first event that is kept came after a time.
    pub fn starts_after(&self, time: WallTime) -> bool {
        self.entries.front().is_none_or(|entry| entry.envelope.time.0 > time.0)
    }

    /// The position of the first event that is kept.
    pub fn first(&self) -> Option<Position> {
        self.entries.front().map(LoggedEvent::position)
    }

    /// An event by its number, if it is kept; if a crash has led to two events of one number, the last of them.
    pub fn get(&self, seq: Seq) -> Option<&LoggedEvent> {
        self.entries.iter().rfind(|entry| entry.envelope.seq <= seq).filter(|entry| entry.envelope.seq == seq)
    }

    /// The chains of causes of the state of a program: how it came to its phase, and before that, if it is up again,
    /// how it went down. Each begins with the last event, and goes back to its origin.
    pub fn why(&self, state: &State, program: ProgramId) -> Vec<Vec<Link>> {
        let now = &state.programs[program];
        let mut chains = Vec::new();
        let last = if now.phase == Phase::Down && now.operator_down { now.last_seq } else { now.phase_event };
        let last = if last == Seq(0) { now.last_seq } else { last };
        chains.push(self.chain(last));
        if matches!(now.phase, Phase::Up | Phase::Starting) && now.instance.0 > 1 {
            let name = &*state.graph.programs[program].name;
            let end = self.entries.iter().rev().find(|entry| {
                let ends = matches!(
                    &entry.envelope.event,
                    Event::Program(_, ProgramEvent::Exited { .. } | ProgramEvent::SpawnFailed { .. })
                );
                ends && entry.program() == Some(name)
            });
            chains.extend(end.map(|end| self.chain(end.envelope.seq)));
        }
        if now.phase == Phase::Down && now.start_pending {
            // It is down because of the dependency that it waits for.
            let unsatisfied = state
                .graph
                .dependencies_of(program)
                .iter()
                .find(|dependency| state.dependencies[**dependency].satisfied.is_none());
            let on = unsatisfied.map(|dependency| state.graph.dependencies[*dependency].dependency);
            chains.extend(on.into_iter().flat_map(|on| self.why(state, on).into_iter().take(1)));
        }
        if now.phase == Phase::Down && now.membership == Membership::Stopped {
            chains.extend(self.move_of(state, program).map(|seq| self.chain(seq)));
        }
        let mut told = BTreeSet::new();
        chains.retain(|chain| {
            let is_new = chain.first().is_some_and(|link| !told.contains(&link.envelope.seq));
            told.extend(chain.iter().map(|link| link.envelope.seq));
            is_new
        });
        chains
    }

    /// The last event that has moved the group of a program to another level.
    fn move_of(&self, state: &State, program: ProgramId) -> Option<Seq> {
        let group = &state.graph.groups[state.graph.programs[program].group?].name;
        let moved = self.entries.iter().rev().find(|entry| match &entry.envelope.event {
            Event::Group(id, GroupEvent::LevelRequested { .. } | GroupEvent::FallbackStarted { .. }) => {
                entry.graph.groups[*id].name == *group
            }
            Event::Group(..) | Event::Program(..) | Event::Remote(..) | Event::Dependency(..) | Event::System(_) => {
                false
            }
        });
        moved.map(|entry| entry.envelope.seq)
    }

    /// An event and what led to it, as far as that is kept.
    pub fn chain(&self, from: Seq) -> Vec<Link> {
        let mut links = Vec::new();
        let mut next = Some(from);
        while let Some(entry) = next.and_then(|seq| self.get(seq)) {
            links.push(Link { envelope: entry.envelope.clone(), words: describe_event(&entry.envelope, &entry.graph) });
            next = next_cause(&links);
        }
        links
    }
}

/// The event with which a chain goes on, if it does. It ends where a start of a program is caused by an event of the
/// same kind as a later start of it: the program restarts again and again for the same reason.
pub fn next_cause(chain: &[Link]) -> Option<Seq> {
    let start_and_cause = |pair: &[Link]| match pair {
        [start, cause] if matches!(start.envelope.event, Event::Program(_, ProgramEvent::Starting { .. })) => {
            let kind = |link: &Link| (subject(&link.envelope.event), link.envelope.event.name());
            Some((kind(start), kind(cause)))
        }
        _ => None,
    };
    let (_, last) = chain.split_at_checked(chain.len().saturating_sub(2))?;
    let earlier = chain.get(..chain.len().saturating_sub(1)).unwrap_or_default();
    let repeats =
        start_and_cause(last).is_some_and(|last| earlier.windows(2).any(|pair| start_and_cause(pair) == Some(last)));
    chain.last()?.envelope.cause.event().filter(|_| !repeats)
}

/// The subject of an event: a repetition has the same kind of event and the same subject.
fn subject(event: &Event) -> Option<(u8, usize)> {
    match event {
        Event::Program(id, _) | Event::Remote(id, _) => Some((0, id.index())),
        Event::Dependency(id, _) => Some((1, id.index())),
        Event::Group(id, _) => Some((2, id.index())),
        Event::System(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        base::{
            ids::{EpochId, InstanceId},
            time::Instant,
        },
        graph::Policy,
        process::ExitStatus,
    };

    const INSTANCE: InstanceId = InstanceId(1);

    fn history(events: &[ProgramEvent]) -> History {
        let mut graph = Graph::default();
        let program = graph.add_program(Policy::new("web"));
        let state = State::new(graph.into(), EpochId(1));
        let mut history = History::new(100);
        for (seq, event) in (1..).zip(events) {
            let cause = if seq == 1 { Cause::DaemonStart } else { Cause::Event(Seq(seq - 1)) };
            let (event, time) = (Event::Program(program, event.clone()), WallTime(0));
            let envelope =
                Envelope { seq: Seq(seq), epoch: EpochId(1), monotonic: Instant::default(), time, cause, event };
            history.push(Arc::new(envelope), &state);
        }
        history
    }

    fn exited(orphans: u16, remains: bool) -> ProgramEvent {
        ProgramEvent::Exited { instance: INSTANCE, status: ExitStatus::Code(0), orphans, remains }
    }

    #[test]
    fn a_chain_goes_back_through_starts_of_other_causes_and_ends_where_the_same_repeats() {
        let starting = || ProgramEvent::Starting { instance: INSTANCE };
        // Started at first, restarted by an operator, then ended and started three times.
        let mut events = vec![starting(), ProgramEvent::RestartRequested, starting()];
        events.extend((0..3).flat_map(|_| [exited(0, false), starting()]));
        let history = history(&events);
        let seqs = |chain: Vec<Link>| chain.iter().map(|link| link.envelope.seq.0).collect::<Vec<_>>();
        assert_eq!(seqs(history.chain(Seq(5))), [5, 4, 3, 2, 1], "two starts of different causes are no repetition");
        assert_eq!(seqs(history.chain(Seq(9))), [9, 8, 7, 6]);
        assert_eq!(next_cause(&history.chain(Seq(9))), None);
    }

    #[test]
    fn what_an_end_leaves_is_said_to_run_on_or_to_be_killed() {
        for (orphans, remains, words) in [
            (0, true, "web exited with code 0"),
            (1, true, "web exited with code 0, and a process that it left behind runs on"),
            (3, true, "web exited with code 0, and 3 processes that it left behind run on"),
            (3, false, "web exited with code 0, and 3 processes that it left behind were killed"),
        ] {
            assert_eq!(history(&[exited(orphans, remains)]).chain(Seq(1))[0].words, words);
        }
    }
}
