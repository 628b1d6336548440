//! The connection to the daemon: its states, and reports to it.

use std::{
    sync::{
        Arc,
        mpsc::{self, Sender},
    },
    thread,
};

use gaggled_core::{
    base::{ids::ProgramId, time::WallTime},
    cluster::{Observation, PublishedState},
    event::Envelope,
    journal::history::History,
    protocol::{Action, InfoBody, Request, describe_origin},
    state::State,
};
use gaggled_gateways::{
    client::{CallError, ControlClient},
    follow::{FollowEvent, Follower},
};
use gaggled_tools::common::endpoints::Urls;
use tokio::sync::mpsc::UnboundedSender;

use crate::gateway::Message;

/// How many events are kept to explain a state.
const HISTORY: usize = 1024;

/// The states of a daemon that has just been found, or found again.
#[derive(Debug)]
pub struct DaemonState {
    /// A name for its journal.
    pub journal: Arc<str>,
    /// The states of its exported programs.
    pub exports: Vec<(Arc<str>, PublishedState)>,
    /// The names of the programs of other nodes that it has.
    pub externals: Vec<Arc<str>>,
}

/// Follows the daemon at these urls, for ever, and sends what the gateway needs of it.
///
/// # Errors
///
/// A url cannot be used, or no thread can be started.
pub fn follow(urls: &Urls, messages: UnboundedSender<Message>) -> Result<(), CallError> {
    let follower = Follower::new(&urls.event, &urls.control, None)?;
    let client = ControlClient::dial_whenever(&urls.control)?;
    let mut source = Source { follower, client, journal: "".into(), history: History::new(HISTORY), messages };
    thread::spawn(move || while source.next().is_some() {});
    Ok(())
}

struct Source {
    follower: Follower,
    client: ControlClient,
    journal: Arc<str>,
    history: History,
    messages: UnboundedSender<Message>,
}

impl Source {
    /// Waits for what the daemon does next; `None` when the gateway has ended.
    fn next(&mut self) -> Option<()> {
        match self.follower.next(None) {
            FollowEvent::Synchronised { .. } => self.synchronised(),
            FollowEvent::Event(envelope, _) => self.event(Arc::new(*envelope)),
            FollowEvent::Silent => self.messages.send(Message::Silent).ok(),
            FollowEvent::Back | FollowEvent::Past(_) | FollowEvent::Garbled(_) | FollowEvent::Nothing => Some(()),
        }
    }

    fn synchronised(&mut self) -> Option<()> {
        if let Ok(reply) = self.client.call(&Request::new("", Action::Status), ControlClient::TIMEOUT)
            && let Some(info) = reply.body.and_then(|body| serde_json::from_str::<InfoBody>(body.get()).ok())
        {
            self.journal = info.journal.into();
        }
        let state = self.follower.state()?;
        let exported = state.graph.programs.iter().filter(|(_, policy)| policy.export);
        let exports = exported.map(|(id, policy)| (policy.name.clone(), self.published(state, id, None))).collect();
        let externals = state.graph.programs.values().filter(|policy| policy.external.is_some());
        let externals = externals.map(|policy| policy.name.clone()).collect();
        let found = DaemonState { journal: self.journal.clone(), exports, externals };
        self.messages.send(Message::Daemon(found)).ok()
    }

    fn event(&mut self, envelope: Arc<Envelope>) -> Option<()> {
        let state = self.follower.state()?;
        self.history.push(envelope.clone(), state);
        let Some(id) = state.graph.subject(&envelope.event).filter(|id| state.graph.programs[*id].export) else {
            return Some(());
        };
        let (program, published) = (state.graph.programs[id].name.clone(), self.published(state, id, Some(&envelope)));
        self.messages.send(Message::Changed(program, published)).ok()
    }

    /// What is published of a program, after this event of it.
    fn published(&self, state: &State, id: ProgramId, last: Option<&Envelope>) -> PublishedState {
        let why = last.map_or_else(Vec::new, |last| {
            let chain = self.history.chain(last.seq);
            let origin = chain.last().map(|link| describe_origin(&link.envelope.cause));
            let first = last.seq;
            let words = chain.into_iter().map(|link| match link.envelope.seq {
                seq if seq == first => format!("{} (event {seq})", link.words),
                _ => link.words,
            });
            words.take(4).chain(origin).collect()
        });
        PublishedState::new(state, id, &self.journal, last.map_or(WallTime::default(), |last| last.time), &why)
    }
}

/// How many observations one request has: it may have 64 KiB, and a state 8 KiB.
const CHUNK: usize = 6;

fn chunks(observations: Vec<Observation>) -> Vec<Vec<Observation>> {
    observations.chunks(CHUNK).map(<[Observation]>::to_vec).collect()
}

/// Starts the thread that sends reports to the daemon, one after the other. One that the daemon does not take is an event of
/// the gateway, which reports everything again when it next renews its session.
///
/// # Errors
///
/// The url cannot be used.
pub fn reporter(urls: &Urls, messages: UnboundedSender<Message>) -> Result<Sender<Vec<Observation>>, CallError> {
    let client = ControlClient::dial_whenever(&urls.control)?;
    let (sender, reports) = mpsc::channel::<Vec<Observation>>();
    thread::spawn(move || {
        for observations in reports.iter().flat_map(chunks) {
            let request = Request::new("", Action::Observe { observations });
            let taken = client.call(&request, ControlClient::TIMEOUT);
            let failure = match taken {
                Ok(reply) => reply.error.map(|error| error.message),
                Err(error) => Some(error.to_string()),
            };
            if failure.is_some_and(|why| messages.send(Message::NotReported(why)).is_err()) {
                return;
            }
        }
    });
    Ok(sender)
}
