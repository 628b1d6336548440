//! The last events, and the answers that need them: what happened since, and why.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    event::{Cause, Envelope, Event, ProgramEvent, SystemEvent},
    graph::Graph,
    ids::{ProgramId, Seq},
    state::{Outcome, Phase, ProgramState, State},
    wire::describe,
};

/// An event, and the state of its program after it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The event.
    pub envelope: Arc<Envelope>,
    /// The state of the program that it concerns.
    pub after: Option<ProgramState>,
}

/// A link in the chain of causes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The event.
    pub envelope: Arc<Envelope>,
    /// What happened, in words.
    pub words: String,
}

/// The last events of this epoch, as many as are kept.
#[derive(Clone, Debug)]
pub struct History {
    entries: VecDeque<Entry>,
    capacity: usize,
}

impl History {
    /// A history of at most so many events.
    pub fn new(capacity: usize) -> Self {
        Self { entries: VecDeque::new(), capacity }
    }

    /// Keeps an event, just after it was applied to `state`.
    pub fn push(&mut self, envelope: Arc<Envelope>, state: &State) {
        if self.entries.len() == self.capacity {
            self.entries.pop_front();
        }
        let after = state.graph.subject(&envelope.event).map(|id| state.programs[id].clone());
        self.entries.push_back(Entry { envelope, after });
    }

    /// The events after a number, or `None` if some of them are no longer kept.
    pub fn since(&self, seq: Seq) -> Option<impl Iterator<Item = &Entry>> {
        let first = self.entries.front().map_or(Seq(1), |entry| entry.envelope.seq);
        (seq.0.saturating_add(1) >= first.0).then(|| {
            let skip = usize::try_from(seq.0.saturating_add(1) - first.0).unwrap_or(usize::MAX);
            self.entries.iter().skip(skip)
        })
    }

    /// The number of the first event that is kept.
    pub fn first(&self) -> Option<Seq> {
        self.entries.front().map(|entry| entry.envelope.seq)
    }

    /// An event by its number, if it is kept.
    pub fn get(&self, seq: Seq) -> Option<&Entry> {
        let first = self.entries.front()?.envelope.seq;
        self.entries.get(usize::try_from(seq.0.checked_sub(first.0)?).ok()?)
    }

    /// The chains of causes that made a program what it is: how it came to its phase, and before that, if it is up
    /// again, how it went down. Each begins with what happened to the program and goes back to where it came from.
    pub fn why(&self, state: &State, program: ProgramId) -> Vec<Vec<Link>> {
        let now = &state.programs[program];
        let mut chains = Vec::new();
        let last = if now.phase == Phase::Down && now.operator_down { now.last_seq } else { now.changed_by };
        let last = if last == Seq(0) { now.last_seq } else { last };
        chains.push(self.chain(state, last));
        if matches!(now.phase, Phase::Up | Phase::Starting) && now.instance.0 > 1 {
            let end = self.entries.iter().rev().find(|entry| {
                matches!(&entry.envelope.event, Event::Program(id, ProgramEvent::Exited { .. } | ProgramEvent::SpawnFailed { .. }) if *id == program)
            });
            chains.extend(end.map(|end| self.chain(state, end.envelope.seq)));
        }
        if now.phase == Phase::Down && now.due {
            // What it waits for is why it is down.
            let unmet = state.graph.edges_of(program).iter().find(|edge| state.edges[**edge].satisfied.is_none());
            let on = unmet.map(|edge| state.graph.edges[*edge].on);
            chains.extend(on.into_iter().flat_map(|on| self.why(state, on).into_iter().take(1)));
        }
        chains.retain(|chain| !chain.is_empty());
        chains
    }

    fn chain(&self, state: &State, from: Seq) -> Vec<Link> {
        let mut links = Vec::new();
        let mut next = Some(from);
        while let Some(entry) = next.and_then(|seq| self.get(seq)) {
            links.push(Link { envelope: entry.envelope.clone(), words: in_words(&entry.envelope, &state.graph) });
            next = entry.envelope.cause.event();
        }
        links
    }
}

/// What happened, in words, without its cause.
pub fn in_words(envelope: &Envelope, graph: &Graph) -> String {
    let name = |id: ProgramId| &graph.programs[id].name;
    match &envelope.event {
        Event::Program(id, event) => {
            let program = name(*id);
            match event {
                ProgramEvent::Starting { instance } => format!("{program} is being started (run {instance})"),
                ProgramEvent::Started { pid, .. } => format!("{program} came up with pid {pid}"),
                ProgramEvent::SpawnFailed { stage, errno, .. } => {
                    format!(
                        "{program} could not be started: {}",
                        describe(Outcome::SpawnFailed { stage: *stage, errno: *errno })
                    )
                }
                ProgramEvent::Stopping { reason, .. } => format!("{program} was told to stop, because {reason}"),
                ProgramEvent::StopEscalated { .. } => format!("{program} did not stop in time and was killed"),
                ProgramEvent::Exited { status, left_behind: 0, .. } => format!("{program} {status}"),
                ProgramEvent::Exited { status, left_behind: 1, .. } => {
                    format!("{program} {status}, and a process that it left behind was killed")
                }
                ProgramEvent::Exited { status, left_behind, .. } => {
                    format!("{program} {status}, and {left_behind} processes that it left behind were killed")
                }
                ProgramEvent::Signalled { signal, .. } => format!("{program} was sent {signal}"),
                ProgramEvent::OperatorStopped => format!("{program} was put down"),
                ProgramEvent::OperatorStarted => format!("{program} was asked up"),
                ProgramEvent::OperatorRestarted => format!("{program} was asked to restart"),
            }
        }
        Event::Dependency(id, event) => dependency_in_words(graph, *id, event),
        Event::System(event) => match event {
            SystemEvent::EpochOpened { version, programs } => {
                format!("gaggled {version} began with {programs} programs")
            }
            SystemEvent::ShutdownBegun => "gaggled was asked to shut down".to_owned(),
            SystemEvent::ShutdownCompleted { survivors: 0 } => "everything has stopped".to_owned(),
            SystemEvent::ShutdownCompleted { survivors } => format!("{survivors} programs could not be stopped"),
            SystemEvent::CommandRefused { why, .. } => format!("a command was refused: {why}"),
            SystemEvent::ActorPanicked { actor, message } => format!("bug in gaggled: {actor} panicked: {message}"),
        },
    }
}

fn dependency_in_words(graph: &Graph, id: crate::ids::EdgeId, event: &crate::event::DependencyEvent) -> String {
    use crate::event::DependencyEvent::{Broken, RestartDue, Satisfied};
    let edge = &graph.edges[id];
    let (of, on) = (&graph.programs[edge.of].name, &graph.programs[edge.on].name);
    match event {
        Satisfied { .. } if edge.delay.0 == 0 => format!("{on} was up, as {of} needs"),
        Satisfied { .. } => format!("{on} had been up for {}, as {of} needs", edge.delay),
        Broken => format!("{of} can no longer count on {on}"),
        RestartDue { .. } => format!("{of} has to restart, because {on} went down"),
    }
}

/// Where a chain of causes ends, in words.
pub fn origin_in_words(cause: &Cause) -> String {
    match cause {
        Cause::Boot => "gaggled was started".to_owned(),
        Cause::Operator { who, .. } => format!("{who} asked for it"),
        Cause::Os => "the operating system reported it".to_owned(),
        Cause::Event(seq) | Cause::Timer(seq) => format!("event {seq} is no longer kept"),
    }
}
