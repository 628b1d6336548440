//! Follows a gaggled: subscribes, asks for a snapshot, and keeps a replica that is never silently wrong.
//!
//! It reconnects by itself, detects missed events by their numbers, requests them again, and reports if they are no
//! longer kept. If no heartbeat arrives, it reports that gaggled is silent.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use gaggled_core::{
    base::ids::{EpochId, Position, Seq},
    event::Envelope,
    journal::replica::{FeedResult, StateReplica},
    protocol::{
        Action, BusMessage, EVENT_TOPIC, ErrorCode, EventsBody, HEARTBEAT_TOPIC, Permits, Reply, Request, decode_event,
    },
    state::State,
};
use nng::{
    Protocol, Socket,
    options::{
        Options, ReconnectMaxTime, ReconnectMinTime, RecvBufferSize, RecvMaxSize, RecvTimeout,
        protocol::pubsub::Subscribe,
    },
};
use serde_json::{Value, value::RawValue};

use crate::{
    bus::{BUFFER, HEARTBEAT},
    client::{CallError, ControlClient},
    nng_ffi,
};

/// What a follower reports.
#[derive(Clone, Debug)]
pub enum FollowEvent {
    /// The whole state was replaced: at first, when another daemon has started, and when events were lost for good.
    Synchronised {
        /// Whether events were missed that are no longer kept.
        missed: bool,
    },
    /// An event, which the replica has already applied, and its text.
    Event(Box<Envelope>, String),
    /// An event of an earlier daemon, about programs that no longer exist.
    Past(String),
    /// No message of gaggled has arrived for some heartbeats.
    Silent,
    /// Messages of gaggled arrive again.
    Back,
    /// Until when gaggled may run the groups that it has claimed, as its heartbeat says.
    Permits(Permits),
    /// A message could not be parsed, or the control channel does not answer.
    Garbled(String),
    /// Nothing has arrived until the given moment.
    Nothing,
}

/// The last event that the caller knows already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartPosition {
    /// The epoch that it belongs to; any if it is not known.
    pub epoch: Option<EpochId>,
    /// Its number.
    pub seq: Seq,
}

/// A follower of one gaggled.
#[derive(Debug)]
pub struct Follower {
    events: Socket,
    caller: ControlClient,
    replica: StateReplica,
    heard: VecDeque<FollowEvent>,
    last_heard: Instant,
    silent: bool,
    /// Events after this are delivered before anything else.
    since: Option<StartPosition>,
    /// Whether the last request was not answered: the next heartbeat permits another one.
    unanswered: bool,
}

/// The time without a message after which gaggled is reported as silent.
const SILENCE: Duration = HEARTBEAT.saturating_mul(3);

impl Follower {
    /// Begins to follow; gaggled may start later. With `since`, the events after that one are delivered first.
    pub fn new(eventurl: &str, controlurl: &str, since: Option<StartPosition>) -> Result<Self, CallError> {
        let unreachable = |why| CallError::Unreachable { url: eventurl.to_owned(), why };
        let events = subscribe(eventurl).map_err(unreachable)?;
        let caller = ControlClient::dial_whenever(controlurl)?;
        let heard = VecDeque::new();
        let mut follower = Self {
            events,
            caller,
            replica: StateReplica::default(),
            heard,
            last_heard: now(),
            silent: false,
            since,
            unanswered: false,
        };
        // If gaggled runs, do not wait for its first message; if it starts later, that message triggers the request.
        if ControlClient::dial(controlurl).is_ok() {
            follower.synchronise();
        }
        Ok(follower)
    }

    /// The state that is followed, once there is one.
    pub fn state(&self) -> Option<&State> {
        self.replica.state()
    }

    /// Waits for the next event; [`FollowEvent::Nothing`] at `until`, if that is given.
    pub fn next(&mut self, until: Option<Instant>) -> FollowEvent {
        loop {
            if let Some(heard) = self.heard.pop_front() {
                return heard;
            }
            let silence = if self.silent { None } else { Some(self.last_heard + SILENCE) };
            let moment = [silence, until].into_iter().flatten().min();
            let wait = moment.map(|moment| moment.saturating_duration_since(now()).max(Duration::from_millis(1)));
            let _ = self.events.set_opt::<RecvTimeout>(wait);
            match self.events.recv() {
                Ok(message) => self.receive(&message),
                Err(_) => self.nothing(until),
            }
        }
    }

    fn nothing(&mut self, until: Option<Instant>) {
        let now = now();
        if !self.silent && now >= self.last_heard + SILENCE {
            self.silent = true;
            self.heard.push_back(FollowEvent::Silent);
        }
        if until.is_some_and(|until| now >= until) {
            self.heard.push_back(FollowEvent::Nothing);
        }
    }

    fn receive(&mut self, message: &[u8]) {
        self.last_heard = now();
        if std::mem::take(&mut self.silent) {
            self.heard.push_back(FollowEvent::Back);
        }
        match BusMessage::parse(message) {
            Ok(BusMessage::Heartbeat(beat)) => {
                self.unanswered = false;
                if !beat.permits.is_empty() {
                    self.heard.push_back(FollowEvent::Permits(beat.permits.clone()));
                }
                let fed = self.replica.beat(&beat);
                self.take(fed, "");
            }
            Ok(BusMessage::Event(text)) => self.feed(text),
            Err(why) => self.heard.push_back(FollowEvent::Garbled(why)),
        }
    }

    fn feed(&mut self, text: &str) {
        match self.replica.feed(text) {
            Ok(fed) => self.take(fed, text),
            Err(why) => self.heard.push_back(FollowEvent::Garbled(why)),
        }
    }

    fn take(&mut self, fed: FeedResult, text: &str) {
        match fed {
            FeedResult::Applied(envelope) => self.heard.push_back(FollowEvent::Event(envelope, text.to_owned())),
            FeedResult::Duplicate => {}
            FeedResult::Gap(epoch, since) => {
                self.fetch(epoch, since);
                if !text.is_empty() && matches!(self.replica.feed(text), Ok(FeedResult::Gap(..))) {
                    self.synchronise();
                }
            }
            FeedResult::NeedSnapshot => self.synchronise(),
        }
    }

    /// Requests the missed events or, if they are no longer kept, a snapshot.
    fn fetch(&mut self, epoch: EpochId, since: Seq) {
        let mut since = StartPosition { epoch: Some(epoch), seq: since };
        loop {
            let Some(body) = self.ask(events(since)) else { return };
            let Ok(body) = serde_json::from_str::<EventsBody>(body.get()) else { return self.synchronise() };
            if body.gap {
                return self.synchronise();
            }
            for event in &body.events {
                let text = event.get().to_owned();
                if let Ok(FeedResult::Applied(envelope)) = self.replica.feed(&text) {
                    self.heard.push_back(FollowEvent::Event(envelope, text));
                }
            }
            match next_of(&body) {
                Some(next) => since = next,
                None => return,
            }
        }
    }

    /// Delivers the events after `since` up to a state; false if some of them are no longer kept.
    fn replay_missed(&mut self, since: StartPosition, state: &State) -> bool {
        let names = state.graph.names();
        let mut since = since;
        let mut complete = true;
        loop {
            let Some(body) = self.ask(events(since)) else { return false };
            let Ok(body) = serde_json::from_str::<EventsBody>(body.get()) else { return false };
            complete &= !body.gap;
            for event in &body.events {
                let text = event.get().to_owned();
                let position: Option<Position> = serde_json::from_str(&text).ok();
                if position > Some(Position { epoch: state.epoch, seq: state.seq }) {
                    return complete;
                }
                self.heard.push_back(match decode_event(&text, &names, state) {
                    Ok(envelope) => FollowEvent::Event(Box::new(envelope), text),
                    Err(_) => FollowEvent::Past(text),
                });
            }
            match next_of(&body) {
                Some(next) => since = next,
                None => return complete,
            }
        }
    }

    /// The last event that is queued for delivery.
    fn last_told(&self) -> Option<StartPosition> {
        self.heard.iter().rev().find_map(|heard| {
            let text = match heard {
                FollowEvent::Event(_, text) | FollowEvent::Past(text) => text,
                FollowEvent::Synchronised { .. }
                | FollowEvent::Silent
                | FollowEvent::Back
                | FollowEvent::Permits(_)
                | FollowEvent::Garbled(_)
                | FollowEvent::Nothing => {
                    return None;
                }
            };
            let event: Value = serde_json::from_str(text).ok()?;
            Some(StartPosition { epoch: event["epoch"].as_u64().map(EpochId), seq: Seq(event["seq"].as_u64()?) })
        })
    }

    fn ask(&mut self, action: Action) -> Option<Box<RawValue>> {
        if self.unanswered {
            return None;
        }
        let reply = self.caller.call(&Request::new("", action), ControlClient::TIMEOUT).ok();
        // After the reply `busy` the request is repeated with the next heartbeat, as after no reply.
        let is_busy = |reply: &Reply| reply.error.as_ref().is_some_and(|error| error.code == ErrorCode::Busy);
        self.unanswered = reply.as_ref().is_none_or(is_busy);
        if reply.is_none() && self.replica.state().is_none() {
            let why = format!(
                "gaggled publishes, but the control channel at {} does not answer: give its url",
                self.caller.url()
            );
            self.heard.push_back(FollowEvent::Garbled(why));
        }
        reply.filter(|reply| reply.ok)?.body
    }

    /// Requests a snapshot. Without an answer the next event or heartbeat causes another request.
    fn synchronise(&mut self) {
        let Some(body) = self.ask(Action::Snapshot) else { return };
        match serde_json::from_str::<State>(body.get()) {
            Ok(state) => {
                let before =
                    self.replica.state().map(|state| StartPosition { epoch: Some(state.epoch), seq: state.seq });
                let missed = before.is_some_and(|before| before.epoch == Some(state.epoch));
                // Events of the daemons that ran in between are delivered as well.
                let since = self.since.take().or(before.filter(|_| !missed));
                let complete = since.is_none_or(|since| self.replay_missed(since, &state));
                if self.unanswered {
                    // Events that were delivered are not delivered again; the rest is asked for with the next heartbeat.
                    self.since = self.last_told().or(since);
                    return;
                }
                self.replica.restore(state);
                self.heard.push_back(FollowEvent::Synchronised { missed: missed || !complete });
            }
            Err(why) => self.heard.push_back(FollowEvent::Garbled(format!("snapshot is not understood: {why}"))),
        }
    }
}

/// A socket that receives all messages, and reconnects by itself.
fn subscribe(url: &str) -> nng::Result<Socket> {
    let socket = nng_ffi::socket(Protocol::Sub0)?;
    socket.set_opt::<RecvBufferSize>(BUFFER)?;
    socket.set_opt::<RecvMaxSize>(0)?;
    socket.set_opt::<ReconnectMinTime>(Some(Duration::from_millis(50)))?;
    socket.set_opt::<ReconnectMaxTime>(Some(Duration::from_secs(1)))?;
    socket.set_opt::<Subscribe>(EVENT_TOPIC.as_bytes().to_vec())?;
    socket.set_opt::<Subscribe>(HEARTBEAT_TOPIC.as_bytes().to_vec())?;
    socket.dial_async(url)?;
    Ok(socket)
}

/// The request for the events after a position.
fn events(since: StartPosition) -> Action {
    let StartPosition { epoch, seq } = since;
    Action::Events { epoch, since: seq, limit: None, program: None, from: None, until: None }
}

/// Where the next page of an answer begins, if there is one.
fn next_of(body: &EventsBody) -> Option<StartPosition> {
    Some(StartPosition { epoch: body.next_epoch, seq: body.next? })
}

#[expect(clippy::disallowed_methods, reason = "the heartbeat is real time")]
fn now() -> Instant {
    Instant::now()
}
