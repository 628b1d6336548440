//! The connection to the daemon: its states, and reports to it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use gaggled_core::{
    base::{ids::ProgramId, time::WallTime},
    cluster::{
        Observation, PublishedState, Sight,
        claims::{ClaimWish, ClaimsSight, Wishes},
        rollout::Outcome,
    },
    event::{Envelope, Event, ProgramEvent, StopReason},
    graph::Policy,
    journal::history::History,
    protocol::{Action, ErrorCode, InfoBody, Reply, Request, describe_origin},
    state::{ProgramState, State},
};
use gaggled_gateways::{
    client::{CallError, ControlClient},
    follow::{FollowEvent, Follower},
};
use gaggled_tools::common::endpoints::Urls;
use tokio::sync::mpsc::UnboundedSender;

use crate::{etcd::publication::split, gateway::Message};

/// After what time the daemon is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// How many events are kept to explain a state.
const HISTORY: usize = 1024;

/// The states of a daemon that has just been found, or found again.
#[derive(Debug)]
pub struct DaemonState {
    /// A name for its journal.
    pub journal: Arc<str>,
    /// The states of its exported programs.
    pub exports: Vec<(Arc<str>, PublishedState)>,
    /// The names of the programs of other nodes that it has, and whether each is one of a group that runs on one node at a time.
    pub externals: Vec<(Arc<str>, bool)>,
    /// The revision of the published configuration that it has, 0 before the first; `None` if it takes none.
    pub published: Option<u64>,
    /// What it wants of the claims on its groups.
    pub wishes: Wishes,
}

/// Follows the daemon at these urls, for ever, and sends what the gateway needs of it.
///
/// # Errors
///
/// A url cannot be used, or no thread can be started.
pub fn follow(urls: &Urls, messages: UnboundedSender<Message>) -> Result<(), CallError> {
    let follower = Follower::new(&urls.event, &urls.control, None)?;
    let client = ControlClient::dial_whenever(&urls.control)?;
    let history = History::new(HISTORY);
    let own_pid = i32::try_from(std::process::id()).unwrap_or_default();
    let mut source = Source { follower, client, own_pid, journal: "".into(), is_due: false, history, messages };
    thread::spawn(move || {
        let _end = EndOfThread;
        while source.next().is_some() {}
    });
    Ok(())
}

struct Source {
    follower: Follower,
    client: ControlClient,
    own_pid: i32,
    journal: Arc<str>,
    /// Whether the whole state is still to be sent, because the daemon did not say its name.
    is_due: bool,
    history: History,
    messages: UnboundedSender<Message>,
}

impl Source {
    /// Waits for what the daemon does next; `None` when the gateway has ended.
    fn next(&mut self) -> Option<()> {
        let again = self.is_due.then(|| now() + AGAIN);
        match self.follower.next(again) {
            FollowEvent::Synchronised { .. } | FollowEvent::Nothing => self.synchronised(),
            FollowEvent::Event(envelope, _) => self.event(Arc::new(*envelope)),
            FollowEvent::Silent => self.messages.send(Message::Silent).ok(),
            FollowEvent::Permits(permits) => self.messages.send(Message::Permits(permits)).ok(),
            FollowEvent::Back => self.messages.send(Message::Back).ok(),
            FollowEvent::Past(_) | FollowEvent::Garbled(_) => Some(()),
        }
    }

    fn synchronised(&mut self) -> Option<()> {
        let call = || self.client.call(&Request::new("", Action::Status), ControlClient::TIMEOUT);
        let status = call().or_else(|_| call());
        let info = status.ok().and_then(|reply| serde_json::from_str::<InfoBody>(reply.body?.get()).ok());
        // States of a journal without a name would count as those of another one.
        let Some(info) = info.filter(|info| !info.journal.is_empty()) else {
            self.is_due = true;
            return Some(());
        };
        self.is_due = false;
        self.journal = info.journal.into();
        let Some(state) = self.follower.state() else { return Some(()) };
        let exported = state.graph.programs.iter().filter(|(_, policy)| policy.export);
        let exports = exported.map(|(id, policy)| (policy.name.clone(), self.published(state, id, None))).collect();
        let external = |policy: &Policy| Some((policy.name.clone(), policy.external.as_ref()?.of_group));
        let externals = state.graph.programs.values().filter_map(external).collect();
        let (journal, wishes) = (self.journal.clone(), ClaimWish::all(state));
        let found = DaemonState { journal, exports, externals, published: info.published, wishes };
        self.messages.send(Message::Daemon(found)).ok()
    }

    fn event(&mut self, envelope: Arc<Envelope>) -> Option<()> {
        let Some(state) = self.follower.state() else { return Some(()) };
        self.history.push(envelope.clone(), state);
        if let Event::Program(id, ProgramEvent::Stopping { reason, .. }) = &envelope.event
            && state.programs.get(*id).and_then(ProgramState::pid) == Some(self.own_pid)
        {
            self.messages.send(Message::Stopping { for_good: *reason == StopReason::Shutdown }).ok()?;
        }
        if state.graph.groups.values().any(|group| group.tenancy.is_some()) {
            let is_of_group = |id: ProgramId| state.graph.programs[id].group.is_some();
            if matches!(envelope.event, Event::Group(..))
                || state.graph.subject(&envelope.event).is_some_and(is_of_group)
            {
                self.messages.send(Message::Wishes(ClaimWish::all(state))).ok()?;
            }
        }
        let is_exported = |id: &ProgramId| state.graph.programs.get(*id).is_some_and(|policy| policy.export);
        let Some(id) = state.graph.subject(&envelope.event).filter(is_exported).filter(|_| !self.is_due) else {
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

/// How long a part of a configuration is at most, in bytes: a request may have 64 KiB, and a text is longer as JSON.
const PART_MAX: usize = 8 << 10;

/// How long the daemon may take for a configuration.
const CONFIGURE_TIME: Duration = Duration::from_secs(60);

/// What is to be reported: the newest sight of each program, however many there were since the last report.
#[derive(Debug, Default, PartialEq)]
struct Pending {
    sights: BTreeMap<String, Sight>,
    is_in_reach: bool,
    claims: Option<ClaimsSight>,
}

/// Reports to the daemon, which are sent by a thread of their own.
#[derive(Clone, Debug, Default)]
pub struct Reporter(Arc<(Mutex<Pending>, Condvar)>);

impl Reporter {
    /// Starts the thread. A report that the daemon does not take is a message to the gateway, which reports everything again.
    ///
    /// # Errors
    ///
    /// The url cannot be used.
    pub fn start(urls: &Urls, messages: UnboundedSender<Message>) -> Result<Self, CallError> {
        let client = ControlClient::dial_whenever(&urls.control)?;
        let reporter = Self::default();
        let own = reporter.clone();
        thread::spawn(move || {
            let _end = EndOfThread;
            loop {
                let Pending { sights, is_in_reach, claims } = own.next();
                let external = |(program, sight)| Observation::External { program, sight };
                let contact = is_in_reach.then_some(Observation::Contact);
                let others: Vec<Observation> = sights.into_iter().map(external).chain(contact).collect();
                // Claims are the most urgent, and may be long.
                let claims: Vec<Observation> = claims.map(Observation::Claims).into_iter().collect();
                for observations in claims.chunks(1).chain(others.chunks(CHUNK)) {
                    let request = Request::new("", Action::Observe { observations: observations.to_vec() });
                    // The daemon may just have been replaced: the next one is asked as soon as it listens.
                    let call = || client.call(&request, ControlClient::TIMEOUT);
                    let failure = match call().or_else(|_| call()) {
                        Ok(reply) => reply.error.map(|error| error.message),
                        Err(error) => Some(error.to_string()),
                    };
                    if failure.is_some_and(|why| messages.send(Message::NotReported(why)).is_err()) {
                        return;
                    }
                }
            }
        });
        Ok(reporter)
    }

    /// Reports this as soon as the daemon has taken what was reported before.
    pub fn report(&self, observations: Vec<Observation>) {
        let mut pending = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        for observation in observations {
            match observation {
                Observation::Contact => pending.is_in_reach = true,
                Observation::External { program, sight } => drop(pending.sights.insert(program, sight)),
                Observation::Claims(sight) => pending.claims = Some(sight),
            }
        }
        self.0.1.notify_one();
    }

    /// Waits for something to report.
    fn next(&self) -> Pending {
        let is_empty = |pending: &mut Pending| *pending == Pending::default();
        let pending = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pending = self.0.1.wait_while(pending, is_empty).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *pending)
    }
}

/// Gives the daemon a published configuration, and sends its answer to the gateway. That can take long, and has a thread of its own.
///
/// # Errors
///
/// The url cannot be used.
pub fn configure(
    urls: &Urls,
    revision: u64,
    text: String,
    messages: UnboundedSender<Message>,
) -> Result<(), CallError> {
    let client = ControlClient::dial_whenever(&urls.control)?;
    thread::spawn(move || {
        // An error: the gateway has ended.
        let _ = messages.send(Message::Configured(revision, send_config(&client, revision, &text)));
    });
    Ok(())
}

/// How often a part is sent again that the daemon is too busy for.
const BUSY_MAX: usize = 10;

fn is_busy(answer: &Result<Reply, CallError>) -> bool {
    let error = answer.as_ref().ok().and_then(|reply| reply.error.as_ref());
    error.is_some_and(|error| error.code == ErrorCode::Busy)
}

/// Sends a published configuration to the daemon, in parts.
fn send_config(client: &ControlClient, revision: u64, text: &str) -> Outcome {
    let texts = split(text, PART_MAX);
    let parts = u32::try_from(texts.len()).unwrap_or(u32::MAX);
    let mut hands_over = false;
    for (part, text) in (0..).zip(texts) {
        let action = Action::Configure { revision, part, parts, text: text.to_owned() };
        let request = Request::new("", action);
        // A gateway with a user of its own has an allowance. What exceeds it is refused after a second, and may be sent again.
        let call = || (0..BUSY_MAX).map(|_| client.call(&request, CONFIGURE_TIME)).find(|answer| !is_busy(answer));
        match call() {
            Some(Ok(reply)) => match reply.error {
                // Only a reply that announces another daemon says where that will be.
                None => {
                    let body = reply.body.and_then(|body| serde_json::from_str::<serde_json::Value>(body.get()).ok());
                    hands_over = body.is_some_and(|body| body.get("controlurl").is_some());
                }
                Some(error) if error.code == ErrorCode::ShuttingDown => return Outcome::Unanswered,
                Some(error) => return Outcome::Refused(error.message),
            },
            Some(Err(_)) | None => return Outcome::Unanswered,
        }
    }
    if hands_over { Outcome::HandedOver } else { Outcome::Applied }
}

/// Ends the process with its thread, whatever the reason: a gateway that hears nothing more must not keep its session.
struct EndOfThread;

impl Drop for EndOfThread {
    fn drop(&mut self) {
        std::process::exit(i32::from(thread::panicking()));
    }
}

#[expect(clippy::disallowed_methods, reason = "the follower lives in real time")]
fn now() -> Instant {
    Instant::now()
}
