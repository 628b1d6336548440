//! Follows a gaggled: subscribes, asks for a snapshot, and keeps a mirror that is never silently wrong.
//!
//! It reconnects by itself, notices by number what it has missed, asks for it again, and says so when that is no longer
//! to be had. It notices a gaggled that has gone by the heartbeat that does not come.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use gaggled_core::{
    event::Envelope,
    ids::{EpochId, Seq},
    mirror::{Fed, Mirror},
    state::State,
    wire::{Action, BEAT_TOPIC, EVENT_TOPIC, EventText, Request, decode_event},
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
    call::{CallError, Caller},
};

/// What a follower hears.
#[derive(Clone, Debug)]
pub enum Heard {
    /// The state as a whole: at first, when gaggled has begun a new life, and when events were lost for good.
    Synchronised {
        /// Whether events were missed that nobody can tell any more.
        missed: bool,
    },
    /// An event, which the mirror has already applied, and its text.
    Event(Box<Envelope>, String),
    /// An event of an earlier life of gaggled, about programs that there are no longer.
    Past(String),
    /// Nothing was heard of gaggled for some heartbeats.
    Silent,
    /// It is heard again.
    Back,
    /// Something came that is not understood.
    Garbled(String),
    /// Nothing, until the moment that was given.
    Nothing,
}

/// The last event that is known already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Since {
    /// The life of gaggled that it belongs to; whichever it is if this is not known.
    pub epoch: Option<EpochId>,
    /// Its number.
    pub seq: Seq,
}

/// A follower of one gaggled.
#[derive(Debug)]
pub struct Follower {
    events: Socket,
    caller: Caller,
    mirror: Mirror,
    heard: VecDeque<Heard>,
    last_heard: Instant,
    silent: bool,
    /// What happened after this is told before anything else.
    since: Option<Since>,
    /// Whether the last question was not answered: the next heartbeat shows that there is somebody to ask again.
    unanswered: bool,
}

/// After how long without a heartbeat gaggled is said to be silent.
const SILENCE: Duration = HEARTBEAT.saturating_mul(3);

impl Follower {
    /// Begins to follow; gaggled may come later. With `since`, what has happened after that event is told first.
    pub fn new(eventurl: &str, controlurl: &str, since: Option<Since>) -> Result<Self, CallError> {
        let unreachable = |why| CallError::Unreachable { url: eventurl.to_owned(), why };
        let events = subscribe(eventurl).map_err(unreachable)?;
        let caller = Caller::dial_whenever(controlurl)?;
        let heard = VecDeque::new();
        let mut follower = Self {
            events,
            caller,
            mirror: Mirror::default(),
            heard,
            last_heard: now(),
            silent: false,
            since,
            unanswered: false,
        };
        // One that is there is not kept waiting for; of one that comes later the first message tells.
        if Caller::dial(controlurl).is_ok() {
            follower.synchronise();
        }
        Ok(follower)
    }

    /// The state that is followed, once there is one.
    pub fn state(&self) -> Option<&State> {
        self.mirror.state()
    }

    /// The next thing that is heard; [`Heard::Nothing`] at `until`, if that is given.
    pub fn next(&mut self, until: Option<Instant>) -> Heard {
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
            self.heard.push_back(Heard::Silent);
        }
        if until.is_some_and(|until| now >= until) {
            self.heard.push_back(Heard::Nothing);
        }
    }

    fn receive(&mut self, message: &[u8]) {
        self.last_heard = now();
        if std::mem::take(&mut self.silent) {
            self.heard.push_back(Heard::Back);
        }
        match EventText::parse(message) {
            Ok(EventText::Beat(beat)) => {
                self.unanswered = false;
                let fed = self.mirror.beat(beat);
                self.take(fed, "");
            }
            Ok(EventText::Event(text)) => self.feed(text),
            Err(why) => self.heard.push_back(Heard::Garbled(why)),
        }
    }

    fn feed(&mut self, text: &str) {
        match self.mirror.feed(text) {
            Ok(fed) => self.take(fed, text),
            Err(why) => self.heard.push_back(Heard::Garbled(why)),
        }
    }

    fn take(&mut self, fed: Fed, text: &str) {
        match fed {
            Fed::Applied(envelope) => self.heard.push_back(Heard::Event(envelope, text.to_owned())),
            Fed::Known => {}
            Fed::Gap(epoch, since) => {
                self.fetch(epoch, since);
                if !text.is_empty() && matches!(self.mirror.feed(text), Ok(Fed::Gap(..))) {
                    self.synchronise();
                }
            }
            Fed::NeedSnapshot => self.synchronise(),
        }
    }

    /// Asks for what was missed, or, if that is no longer to be had, for everything.
    fn fetch(&mut self, epoch: EpochId, since: Seq) {
        let mut since = Since { epoch: Some(epoch), seq: since };
        loop {
            let Some(body) = self.ask(events(since)) else { return };
            let Ok(body) = serde_json::from_str::<Value>(body.get()) else { return self.synchronise() };
            if body["gap"] != Value::Bool(false) {
                return self.synchronise();
            }
            for event in body["events"].as_array().into_iter().flatten() {
                let text = event.to_string();
                if let Ok(Fed::Applied(envelope)) = self.mirror.feed(&text) {
                    self.heard.push_back(Heard::Event(envelope, text));
                }
            }
            match next_of(&body) {
                Some(next) => since = next,
                None => return,
            }
        }
    }

    /// Tells what has happened after an event, up to a state; false if some of that is no longer kept.
    fn recount(&mut self, since: Since, state: &State) -> bool {
        let names = state.graph.names();
        let mut since = since;
        let mut complete = true;
        loop {
            let Some(body) = self.ask(events(since)) else { return false };
            let Ok(body) = serde_json::from_str::<Value>(body.get()) else { return false };
            complete &= body["gap"] == Value::Bool(false);
            for event in body["events"].as_array().into_iter().flatten() {
                let text = event.to_string();
                let place = (event["epoch"].as_u64(), event["seq"].as_u64());
                if place > (Some(state.epoch.0), Some(state.seq.0)) {
                    return complete;
                }
                self.heard.push_back(match decode_event(&text, &names, state) {
                    Ok(envelope) => Heard::Event(Box::new(envelope), text),
                    Err(_) => Heard::Past(text),
                });
            }
            match next_of(&body) {
                Some(next) => since = next,
                None => return complete,
            }
        }
    }

    /// The last event that waits to be told.
    fn last_told(&self) -> Option<Since> {
        self.heard.iter().rev().find_map(|heard| {
            let text = match heard {
                Heard::Event(_, text) | Heard::Past(text) => text,
                Heard::Synchronised { .. } | Heard::Silent | Heard::Back | Heard::Garbled(_) | Heard::Nothing => {
                    return None;
                }
            };
            let event: Value = serde_json::from_str(text).ok()?;
            Some(Since { epoch: event["epoch"].as_u64().map(EpochId), seq: Seq(event["seq"].as_u64()?) })
        })
    }

    fn ask(&mut self, action: Action) -> Option<Box<RawValue>> {
        if self.unanswered {
            return None;
        }
        let reply = self.caller.call(&Request::new("", action), Caller::TIMEOUT).ok();
        if reply.is_none() {
            self.unanswered = true;
            if self.mirror.state().is_none() {
                let why = format!(
                    "gaggled publishes, but the control channel at {} does not answer: give its url",
                    self.caller.url()
                );
                self.heard.push_back(Heard::Garbled(why));
            }
        }
        reply.filter(|reply| reply.ok)?.body
    }

    /// Asks for everything. If nobody answers, the next event or heartbeat leads here again.
    fn synchronise(&mut self) {
        let Some(body) = self.ask(Action::Snapshot) else { return };
        match serde_json::from_str::<State>(body.get()) {
            Ok(state) => {
                let before = self.mirror.state().map(|state| Since { epoch: Some(state.epoch), seq: state.seq });
                let missed = before.is_some_and(|before| before.epoch == Some(state.epoch));
                // What the lives between have left is told as well.
                let since = self.since.take().or(before.filter(|_| !missed));
                let complete = since.is_none_or(|since| self.recount(since, &state));
                if self.unanswered {
                    // What has been told so far is not told again; the rest is asked for with the next heartbeat.
                    self.since = self.last_told().or(since);
                    return;
                }
                self.mirror.restore(state);
                self.heard.push_back(Heard::Synchronised { missed: missed || !complete });
            }
            Err(why) => self.heard.push_back(Heard::Garbled(format!("snapshot is not understood: {why}"))),
        }
    }
}

/// A socket that hears everything, and connects again by itself.
fn subscribe(url: &str) -> nng::Result<Socket> {
    let socket = Socket::new(Protocol::Sub0)?;
    socket.set_opt::<RecvBufferSize>(BUFFER)?;
    socket.set_opt::<RecvMaxSize>(0)?;
    socket.set_opt::<ReconnectMinTime>(Some(Duration::from_millis(50)))?;
    socket.set_opt::<ReconnectMaxTime>(Some(Duration::from_secs(1)))?;
    socket.set_opt::<Subscribe>(EVENT_TOPIC.as_bytes().to_vec())?;
    socket.set_opt::<Subscribe>(BEAT_TOPIC.as_bytes().to_vec())?;
    socket.dial_async(url)?;
    Ok(socket)
}

/// The question for the events after one.
fn events(since: Since) -> Action {
    let Since { epoch, seq } = since;
    Action::Events { epoch, since: seq, limit: None, program: None, from: None, until: None }
}

/// Where the next page of an answer begins, if there is one.
fn next_of(body: &Value) -> Option<Since> {
    let seq = body["next"].as_u64().map(Seq)?;
    Some(Since { epoch: body["next_epoch"].as_u64().map(EpochId), seq })
}

#[expect(clippy::disallowed_methods, reason = "the heartbeat is real time")]
fn now() -> Instant {
    Instant::now()
}
