//! Events on the bus: `TOPIC\nJSON`.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{EVENT_TOPIC, HEARTBEAT_TOPIC, ProgramView, VERSION, View};
use crate::{
    base::{
        ids::{EpochId, ProgramId, Seq},
        time::{Instant, WallTime},
    },
    event::{Cause, DependencyEvent, Envelope, Event, GroupEvent, ProgramEvent, RemoteEvent, SystemEvent},
    graph::Graph,
    state::{ProgramState, State},
};

/// The heartbeat: once a second, so that a follower notices the loss even of the last event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The version of the protocol.
    pub v: u32,
    /// The epoch.
    pub epoch: EpochId,
    /// The last event.
    pub seq: Seq,
    /// Until when this node may run each group that it has claimed.
    #[serde(default, rename = "permits_us", skip_serializing_if = "Permits::is_empty")]
    pub permits: Permits,
}

/// Until when a node may run the groups that it has claimed, by their names.
pub type Permits = BTreeMap<Arc<str>, Instant>;

/// A parsed message of the bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BusMessage<'a> {
    /// The heartbeat.
    Heartbeat(Heartbeat),
    /// An event, still as text.
    Event(&'a str),
}

#[derive(Serialize)]
struct EventMessage<'a> {
    v: u32,
    epoch: EpochId,
    seq: Seq,
    at_ms: u64,
    at_us: Instant,
    time: WallTime,
    cause: &'a Cause,
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dependency: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    group: Option<&'a str>,
    #[serde(flatten)]
    event: EventFields<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<ProgramView<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum EventFields<'a> {
    Program(&'a ProgramEvent),
    Remote(&'a RemoteEvent),
    Dependency(&'a DependencyEvent),
    Group(&'a GroupEvent),
    System(&'a SystemEvent),
}

#[derive(Deserialize)]
struct EventHeader {
    epoch: EpochId,
    seq: Seq,
    at_us: Instant,
    time: WallTime,
    cause: Cause,
    event: String,
    program: Option<String>,
    dependency: Option<String>,
    group: Option<String>,
}

impl Heartbeat {
    /// The heartbeat of a daemon in this state.
    pub fn new(state: &State, permits: Permits) -> Self {
        Self { v: VERSION, epoch: state.epoch, seq: state.seq, permits }
    }

    /// The heartbeat as a message of the bus.
    pub fn encode(&self) -> String {
        format!("{HEARTBEAT_TOPIC}\n{}", serde_json::to_string(self).unwrap_or_default())
    }
}

impl<'a> BusMessage<'a> {
    /// Parses a message of the bus.
    pub fn parse(message: &'a [u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(message).map_err(|_| "message is not UTF-8".to_owned())?;
        let (topic, body) = text.split_once('\n').ok_or("message has no topic line")?;
        if topic == HEARTBEAT_TOPIC {
            return serde_json::from_str(body)
                .map(Self::Heartbeat)
                .map_err(|why| format!("heartbeat is not understood: {why}"));
        }
        if topic.starts_with(EVENT_TOPIC) {
            Ok(Self::Event(body))
        } else {
            Err(format!("topic {topic:?} is not known"))
        }
    }
}

/// An event as JSON, with the state of its program after it, or, for `None`, without.
pub fn encode_event(envelope: &Envelope, graph: &Graph, view: Option<ProgramView<'_>>) -> String {
    let (program, on, group) = match &envelope.event {
        Event::Program(program, _) | Event::Remote(program, _) => (Some(*program), None, None),
        Event::Dependency(dependency, _) => {
            let dependency = &graph.dependencies[*dependency];
            (Some(dependency.dependent), Some(dependency.dependency), None)
        }
        Event::Group(group, _) => (None, None, Some(&*graph.groups[*group].name)),
        Event::System(_) => (None, None, None),
    };
    let name = |id: ProgramId| &*graph.programs[id].name;
    let message = EventMessage {
        v: VERSION,
        epoch: envelope.epoch,
        seq: envelope.seq,
        at_ms: envelope.monotonic.as_millis(),
        at_us: envelope.monotonic,
        time: envelope.time,
        cause: &envelope.cause,
        program: program.map(name),
        dependency: on.map(name),
        group,
        event: match &envelope.event {
            Event::Program(_, event) => EventFields::Program(event),
            Event::Remote(_, event) => EventFields::Remote(event),
            Event::Dependency(_, event) => EventFields::Dependency(event),
            Event::Group(_, event) => EventFields::Group(event),
            Event::System(event) => EventFields::System(event),
        },
        state: view,
    };
    serde_json::to_string(&message).unwrap_or_default()
}

/// A past event as JSON, with the state that its program had after it.
pub fn encode_event_with_state(
    envelope: &Envelope,
    graph: &Graph,
    after: Option<(ProgramId, &ProgramState)>,
) -> String {
    let view =
        after.map(|(id, state)| ProgramView::without_reason(&graph.programs[id].name, state, envelope.monotonic));
    encode_event(envelope, graph, view)
}

/// An event as a message of the bus, after it was applied to `state`.
pub fn encode_message(envelope: &Envelope, state: &State) -> String {
    let subject = state.graph.subject(&envelope.event);
    let name = subject.map_or("", |id| &*state.graph.programs[id].name);
    format!("{EVENT_TOPIC}{name}\n{}", encode_applied(envelope, state))
}

/// An event as JSON, after it was applied to `state`, with the state of its program.
pub fn encode_applied(envelope: &Envelope, state: &State) -> String {
    let subject = state.graph.subject(&envelope.event);
    let view = subject.map(|id| View::at(state, envelope.monotonic).program(id));
    encode_event(envelope, &state.graph, view)
}

/// Programs by name.
pub type ProgramIndex = BTreeMap<Arc<str>, ProgramId>;

/// Parses an event; the names in it are looked up in `names` and `state`.
pub fn decode_event(text: &str, names: &ProgramIndex, state: &State) -> Result<Envelope, String> {
    let value: Value = serde_json::from_str(text).map_err(|why| format!("event is not JSON: {why}"))?;
    let wrong = |why: serde_json::Error| format!("event is not understood: {why}");
    let header = EventHeader::deserialize(&value).map_err(wrong)?;
    let find = |name: &str| names.get(name).copied().ok_or_else(|| format!("program \"{name}\" is not known"));
    let program = header.program.as_deref().map(find).transpose()?;
    let on = header.dependency.as_deref().map(find).transpose()?;
    let in_graph = |name: &String| state.graph.group(name).ok_or_else(|| format!("group \"{name}\" is not known"));
    let group = header.group.as_ref().map(in_graph).transpose()?;
    let event = match (program, on) {
        (Some(of), Some(on)) => {
            let dependencies = state.graph.dependencies_of(of).iter();
            let dependency = dependencies
                .copied()
                .find(|dependency| state.graph.dependencies[*dependency].dependency == on)
                .ok_or("dependency is not known")?;
            Event::Dependency(dependency, DependencyEvent::deserialize(&value).map_err(wrong)?)
        }
        (Some(program), None) if header.event.starts_with(RemoteEvent::PREFIX) => {
            Event::Remote(program, RemoteEvent::deserialize(&value).map_err(wrong)?)
        }
        (Some(program), None) => Event::Program(program, ProgramEvent::deserialize(&value).map_err(wrong)?),
        (None, _) => match group {
            Some(group) => Event::Group(group, GroupEvent::deserialize(&value).map_err(wrong)?),
            None => Event::System(SystemEvent::deserialize(&value).map_err(wrong)?),
        },
    };
    Ok(Envelope {
        seq: header.seq,
        epoch: header.epoch,
        monotonic: header.at_us,
        time: header.time,
        cause: header.cause,
        event,
    })
}
