//! The rules of a program of another node: which events follow from what is seen of it.
//!
//! It is folded like a program of this node, so dependencies on it need no rules of their own. The machine holds the newest
//! state that the cluster gateway has reported, and the fold of the events so far, and proposes one event at a time until the
//! two agree. A state that is reported again changes nothing: that is why reconnects, repeated reports and the death of a
//! daemon on either side restart no dependent twice.
//!
//! Ends that lie between two reports are one end here. The published state counts them, so that none is hidden: a run that
//! is another one, or a greater count, is an end even if the program is up both times.

use crate::{
    base::{ids::ProgramId, time::Instant},
    cluster::{Assumption, External, News, PublishedState, RemotePhase, RemoteRun, RemoteSource, Sight, UnseenReason},
    event::{Cause, Envelope, Event, RemoteCause, RemoteEvent},
    machine::{Input, Outputs, Timer},
    state::{Phase, ProgramState, State},
};

/// The machine of one program of another node.
#[derive(Clone, Debug)]
pub struct ExternalMachine {
    id: ProgramId,
    external: External,
    state: ProgramState,
    /// How it was last seen, if this daemon has heard of it.
    sight: Option<Sight>,
    /// Since when its node has been without a session, if it is.
    unseen_since: Option<Instant>,
    /// When something was last heard of the cluster.
    contact: Instant,
    /// Whether the timer is armed that shows that nothing is heard.
    awaits_contact: bool,
    /// Whether a proposal is neither committed nor refused yet.
    pending_proposal: bool,
}

impl ExternalMachine {
    /// Takes a report of the cluster gateway.
    fn observed(&mut self, now: Instant, news: &News, out: &mut Outputs) {
        self.contact = now;
        self.await_contact(out);
        match news {
            // A store that was restored from a backup shows states that have been seen already.
            News::Sight(Sight::Seen(Some(state))) if state.source.is_before(self.newest()) => self.unseen_since = None,
            News::Sight(sight @ Sight::Seen(_)) => {
                self.unseen_since = None;
                self.sight = Some(sight.clone());
            }
            News::Sight(Sight::Unseen) => {
                self.unseen_since = self.unseen_since.or(Some(now));
                self.sight = Some(Sight::Unseen);
            }
            News::Contact | News::Claims(_) => {}
        }
    }

    fn await_contact(&mut self, out: &mut Outputs) {
        if !self.awaits_contact {
            self.awaits_contact = true;
            out.set_timer(Timer::ClusterBlind, self.contact + self.external.blind_after);
        }
    }

    /// The newest state that was reported or used.
    fn newest(&self) -> &RemoteSource {
        match &self.sight {
            Some(Sight::Seen(Some(state))) => &state.source,
            Some(Sight::Seen(None) | Sight::Unseen) | None => &self.remote().source,
        }
    }

    fn remote(&self) -> &RemoteRun {
        static NONE: std::sync::LazyLock<RemoteRun> = std::sync::LazyLock::new(RemoteRun::default);
        self.state.remote.as_deref().unwrap_or(&NONE)
    }

    /// Proposes the next event, if the state of the program is not what is seen of it.
    fn decide(&mut self, now: Instant, out: &mut Outputs) {
        if self.pending_proposal {
            return;
        }
        let blind_at = self.contact + self.external.blind_after;
        let lost_at = self.unseen_since.map(|since| since + self.external.lost_after);
        let (event, cause) = match &self.sight {
            // Only a cluster that is still in reach shows that a node stays away.
            _ if lost_at.is_some_and(|at| at <= self.contact) => {
                (self.unseen(UnseenReason::Lost, self.external.on_lost), Cause::Cluster)
            }
            _ if blind_at <= now => (self.unseen(UnseenReason::Blind, self.external.on_blind), Cause::Cluster),
            Some(Sight::Seen(_)) if self.remote().unseen.is_some() => (Some(RemoteEvent::Seen), Cause::Cluster),
            Some(Sight::Seen(Some(reported))) => {
                let node = reported.node.as_ref().unwrap_or(&self.external.node).clone();
                let cause = RemoteCause { node, time: reported.time, why: reported.why.clone() };
                (self.difference(reported), Cause::Remote(Box::new(cause)))
            }
            Some(Sight::Seen(None)) => (self.withdrawn(), Cause::Cluster),
            Some(Sight::Unseen) | None => return,
        };
        if let Some(event) = event {
            self.pending_proposal = true;
            out.propose(Event::Remote(self.id, event), cause);
        }
    }

    /// The event that records that nothing is known of it, unless that is recorded.
    fn unseen(&self, reason: UnseenReason, assumed: Assumption) -> Option<RemoteEvent> {
        let falls = assumed == Assumption::Down && self.state.phase == Phase::Up;
        let is_known = match reason {
            UnseenReason::Lost => self.remote().unseen == Some(reason),
            UnseenReason::Blind => self.remote().unseen.is_some(),
        };
        (falls || !is_known).then_some(RemoteEvent::Unseen { reason, assumed_down: falls })
    }

    /// The event that records that its node does not publish it any more.
    fn withdrawn(&self) -> Option<RemoteEvent> {
        let source = Box::new(self.remote().source.clone());
        let was_up = self.state.phase == Phase::Up || self.state.is_completed();
        was_up.then_some(RemoteEvent::Down { source, missed: 0, planned: false, outcome: None })
    }

    /// The event by which the state comes nearer to the reported one.
    fn difference(&self, reported: &PublishedState) -> Option<RemoteEvent> {
        let known = self.remote();
        let source = || Box::new(reported.source.clone());
        let is_same_run = known.source.journal == reported.source.journal
            && known.instance == reported.instance
            && known.source.falls == reported.source.falls;
        let (instance, outcome) = (reported.instance, reported.outcome);
        match (self.state.phase == Phase::Up, reported.phase) {
            (true, RemotePhase::Up) if is_same_run => None,
            (true, RemotePhase::Ready) if is_same_run => {
                self.state.ready_since.is_none().then(|| RemoteEvent::Ready { source: source() })
            }
            (true, RemotePhase::Completed) if known.instance == instance => {
                Some(RemoteEvent::Completed { source: source(), remote_instance: instance, outcome })
            }
            (true, _) => {
                let is_same_journal = known.source.journal == reported.source.journal;
                let falls = reported.source.falls.saturating_sub(known.source.falls);
                let missed = if is_same_journal { falls.saturating_sub(1) } else { 0 };
                let planned = reported.phase == RemotePhase::Leaving;
                Some(RemoteEvent::Down { source: source(), missed, planned, outcome })
            }
            (false, RemotePhase::Up | RemotePhase::Ready) => {
                Some(RemoteEvent::Up { source: source(), remote_instance: instance })
            }
            (false, RemotePhase::Completed) if !self.state.is_completed() || !is_same_run => {
                Some(RemoteEvent::Completed { source: source(), remote_instance: instance, outcome })
            }
            (false, RemotePhase::Down | RemotePhase::Leaving) if self.state.is_completed() => {
                Some(RemoteEvent::Down { source: source(), missed: 0, planned: false, outcome })
            }
            (false, RemotePhase::Completed | RemotePhase::Down | RemotePhase::Leaving) => None,
        }
    }

    fn committed(&mut self, envelope: &Envelope) {
        if let Event::Remote(id, event) = &envelope.event
            && *id == self.id
        {
            self.pending_proposal = false;
            self.state.apply_remote(envelope.seq, envelope.monotonic, event);
        }
    }

    /// The machine of a program of another node; `None` if the program is one of this node.
    pub fn of(state: &State, id: ProgramId) -> Option<Self> {
        Some(Self {
            id,
            external: state.graph.programs[id].external.clone()?,
            state: state.programs[id].clone(),
            sight: None,
            unseen_since: None,
            contact: state.at,
            awaits_contact: false,
            pending_proposal: false,
        })
    }

    /// Processes an input, and adds the outputs that follow from it.
    pub fn step(&mut self, now: Instant, input: &Input<'_>, out: &mut Outputs) {
        match input {
            Input::Observed(news) => self.observed(now, news, out),
            Input::Committed(envelope) => self.committed(envelope),
            Input::Refused(..) => self.pending_proposal = false,
            Input::Restored(_) => {
                self.contact = now;
                self.await_contact(out);
            }
            Input::TimerFired(Timer::ClusterBlind) => {
                self.awaits_contact = false;
                if self.contact + self.external.blind_after > now {
                    self.await_contact(out);
                }
            }
            Input::TimerFired(_) | Input::HostReported(_) => {}
        }
        // After a refusal nothing is proposed until something new is known.
        if !matches!(input, Input::Refused(..)) {
            self.decide(now, out);
        }
    }
}
