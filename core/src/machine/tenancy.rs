//! The rules of a group that runs on one node at a time: when this node claims it, and when it leaves it to others.
//!
//! They drive the group only through its level: it goes to its level when the claim is held, and to `stop` when it has to be
//! left. So its order, its tests and its programs of the level `stop` are those of any group.
//!
//! A node claims a group that no node holds, or whose holder has had no session for long enough to have stopped it (see
//! [`crate::cluster::claims`]). All candidates compute the same order, and each waits a little longer than the one before it,
//! so that mostly one tries. It leaves a group when its permit ends, when the claim is another's, when an operator has ordered it
//! ([`crate::cluster::orders`]), and when the group has failed here: then another node tries, and this one again after a time
//! that doubles.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    base::{
        ids::{GroupId, Level, Seq},
        time::{Instant, Millis},
    },
    cluster::claims::{ClaimSight, ClaimsSight, Holder},
    event::{Cause, GroupEvent, LeaveReason},
    graph::{Graph, STOP, TenancyPolicy},
    state::{GroupState, Tenancy},
};

/// How much longer each candidate waits than the one before it.
const TURN: Millis = Millis(300);
/// How much longer other nodes wait than one to which a group was ordered to move.
const ORDERED_TURN: Millis = Millis(5000);
/// How long a new daemon goes on with a group before it has heard of its permit.
const GRACE: Millis = Millis(500);
/// After what time a node tries a group again that has failed on it, or the clean-up after it: at first, and at most.
const UNFIT: (Millis, Millis) = (Millis(1000), Millis(300_000));

/// What the rules need to know of the group besides its state.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Whether one of its programs has something to stop.
    pub is_running: bool,
    /// The program that cannot run here, if there is one.
    pub failed_program: Option<Arc<str>>,
    /// Whether the node shuts down.
    pub shutdown: bool,
    /// A name for an attempt that no other has.
    pub attempt: Arc<str>,
    /// Whether it has programs at the level `stop`.
    pub cleans_up: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Propose this.
    Propose(GroupEvent, Cause),
    /// Look again at this moment.
    Wait(Instant),
    /// Wait for an event.
    Nothing,
}

/// The rules of one group.
#[derive(Clone, Debug)]
pub(super) struct TenancyRules {
    group: Arc<str>,
    policy: TenancyPolicy,
    default_level: Level,
    levels: BTreeSet<Level>,
    sight: Option<Arc<ClaimsSight>>,
    /// Until when this node may run the group.
    permit: Instant,
    /// Until when a new daemon goes on without having heard of that.
    grace: Instant,
    /// The claim that could be overwritten, by its revision, and since when this node knows that.
    available: Option<(u64, Instant)>,
    /// How often the group has failed here in a row, and until when this node does not try it.
    unfit: (u32, Instant),
}

impl TenancyRules {
    /// The rules of a group; `None` if it does not run on one node at a time.
    pub(super) fn of(graph: &Graph, id: GroupId) -> Option<Self> {
        let group = &graph.groups[id];
        Some(Self {
            levels: graph.levels(id).into_iter().collect(),
            group: group.name.clone(),
            policy: group.tenancy.clone()?,
            default_level: group.default_level.clone(),
            sight: None,
            permit: Instant::default(),
            grace: Instant::default(),
            available: None,
            unfit: (0, Instant::default()),
        })
    }

    /// A new daemon begins: what it holds it may keep until it hears of its permit.
    pub(super) fn restored(&mut self, now: Instant) {
        self.grace = now + GRACE;
    }

    /// The store was read.
    pub(super) fn observed(&mut self, now: Instant, sight: &Arc<ClaimsSight>) {
        self.sight = Some(sight.clone());
        let claim = sight.claims.get(&self.group);
        if claim.and_then(|claim| claim.holder.as_ref()).is_some_and(|holder| holder.is_own) {
            self.permit = self.permit.max(sight.permit_until);
        }
        self.available = match claim {
            // Its holder is there.
            Some(ClaimSight { holder: Some(holder), .. }) if holder.is_present => None,
            claim => {
                let revision = claim.map_or(0, |claim| claim.revision);
                let since = self.available.filter(|(known, _)| *known == revision).map_or(now, |(_, since)| since);
                Some((revision, since))
            }
        };
    }

    /// The group has reached its level here.
    pub(super) fn is_fit(&mut self) {
        self.unfit.0 = 0;
    }

    /// What is to be done now.
    pub(super) fn next(&mut self, now: Instant, group: &GroupState, facts: Facts) -> Next {
        match group.tenancy.as_ref() {
            None => Next::Nothing,
            Some(Tenancy::Away { holder, .. }) => self.away(now, holder.as_ref(), group, facts),
            Some(Tenancy::Claiming { attempt, over }) => self.claiming(now, attempt, *over, &facts),
            Some(Tenancy::Held { token, since }) => self.held(now, *token, *since, group, facts),
            Some(Tenancy::Leaving { token, since, .. }) => self.leaving(now, *token, *since, group, &facts),
        }
    }

    fn claim(&self) -> Option<&ClaimSight> {
        self.sight.as_ref()?.claims.get(&self.group)
    }

    /// Whether this node has the claim with this token, also in an earlier session.
    fn has_claim(&self, token: u64) -> bool {
        self.holder().is_some_and(|holder| holder.node == self.policy.node && holder.token == token)
    }

    fn holder(&self) -> Option<&Holder> {
        self.claim()?.holder.as_ref()
    }

    /// Where an operator has ordered it to move, if that node is there and may take it.
    fn move_to<'a>(&'a self, sight: &ClaimsSight) -> Option<&'a Arc<str>> {
        let to = self.claim()?.move_to.as_ref()?;
        (sight.may_claim(to) && self.policy.candidates.contains(to)).then_some(to)
    }

    /// The place of this node in the order of those that may claim the group, from 0; `None` if it is none of them.
    fn turn(&self, sight: &ClaimsSight) -> Option<u64> {
        // While no node holds the group, nodes that have no session yet get their turn as well.
        let gets_turn = |node: &&Arc<str>| {
            sight.may_claim(node)
                || !sight.drained.contains(*node) && (self.holder().is_none() || **node == self.policy.node)
        };
        let first = self.move_to(sight);
        let others = self.policy.candidates.iter().filter(|node| Some(*node) != first);
        let turn = first.into_iter().chain(others).filter(gets_turn).position(|node| *node == self.policy.node)?;
        u64::try_from(turn).ok()
    }

    /// Why an operator wants this node to leave the group to others, if so.
    fn ordered_away(&self) -> Option<LeaveReason> {
        let sight = self.sight.as_ref()?;
        if sight.drained.contains(&self.policy.node) {
            return Some(LeaveReason::Drained);
        }
        let to = self.move_to(sight).filter(|to| **to != self.policy.node)?;
        Some(LeaveReason::Moved { to: to.clone() })
    }

    fn away(&self, now: Instant, known: Option<&Arc<str>>, group: &GroupState, facts: Facts) -> Next {
        let Some(sight) = self.sight.as_ref().filter(|_| !facts.shutdown) else { return Next::Nothing };
        let holder = self.holder().map(|holder| &holder.node);
        // A claim of this node that it does not hold any more is one to be released, or of an earlier life.
        let other = holder.filter(|holder| **holder != self.policy.node);
        if other != known {
            return Next::Propose(GroupEvent::HolderSeen { node: other.cloned() }, Cause::Cluster);
        }
        let Some((over, since)) = self.available else { return Next::Nothing };
        if facts.is_running || group.is_switching() || sight.permit_until <= now {
            return Next::Nothing;
        }
        let Some(turn) = self.turn(sight) else { return Next::Nothing };
        // The holder may have had a configuration in which it takes longer to stop.
        let of_holder = self.claim().map_or(Millis(0), |claim| claim.takeover_after);
        let is_stopped = self.holder().is_none_or(|holder| holder.is_fenced);
        let stop = if is_stopped { Millis(0) } else { self.policy.takeover_after.max(of_holder) };
        let at = since + stop + Millis(TURN.0 * turn);
        let at = match self.move_to(sight) {
            // Who orders a group to move here wants it to be tried.
            Some(to) if *to == self.policy.node => at,
            Some(_) => (at + ORDERED_TURN).max(self.unfit.1),
            None => at.max(self.unfit.1),
        };
        if at > now {
            return Next::Wait(at);
        }
        Next::Propose(GroupEvent::ClaimStarted { attempt: facts.attempt, over }, Cause::Cluster)
    }

    fn claiming(&self, now: Instant, attempt: &Arc<str>, over: u64, facts: &Facts) -> Next {
        let failed = || Next::Propose(GroupEvent::ClaimFailed { attempt: attempt.clone() }, Cause::Cluster);
        let Some(sight) = self.sight.as_ref().filter(|sight| !facts.shutdown && sight.permit_until > now) else {
            // A new daemon has not heard of anything yet.
            return if facts.shutdown || self.grace <= now { failed() } else { Next::Wait(self.grace) };
        };
        match self.holder() {
            // A daemon before has lost what it had begun.
            _ if facts.is_running => failed(),
            // Nothing is written for a node that is drained.
            None if sight.drained.contains(&self.policy.node) => failed(),
            Some(holder) if holder.is_own && holder.attempt == *attempt => {
                Next::Propose(GroupEvent::Held { attempt: attempt.clone(), token: holder.token }, Cause::Cluster)
            }
            _ if self.claim().map_or(0, |claim| claim.revision) != over => failed(),
            _ => Next::Wait(sight.permit_until),
        }
    }

    fn held(&mut self, now: Instant, token: u64, since: Seq, group: &GroupState, facts: Facts) -> Next {
        let leave = |reason: LeaveReason, cause: Cause| Next::Propose(GroupEvent::Leaving { reason }, cause);
        if facts.shutdown {
            // A shutdown does not clean up: then others wait as for a node that is lost.
            let is_left = !facts.is_running && (!facts.cleans_up || *group.level == *STOP && !group.is_switching());
            return if is_left {
                Next::Propose(GroupEvent::Released { token }, Cause::Event(since))
            } else {
                Next::Nothing
            };
        }
        let until = self.permit.max(self.grace);
        if until <= now {
            return leave(LeaveReason::PermitEnded, Cause::Cluster);
        }
        if self.sight.is_some() && !self.has_claim(token) {
            return leave(LeaveReason::ClaimLost, Cause::Cluster);
        }
        if let Some(program) = facts.failed_program.filter(|_| *group.level != *STOP) {
            self.pause(now);
            return leave(LeaveReason::Failed { program }, Cause::Event(since));
        }
        if let Some(reason) = self.ordered_away() {
            return leave(reason, Cause::Cluster);
        }
        let told = self.claim().and_then(|claim| claim.level.clone()).filter(|level| self.levels.contains(level));
        let wanted = told.unwrap_or_else(|| self.default_level.clone());
        if group.requested_by < since && *wanted != *STOP {
            return Next::Propose(GroupEvent::LevelRequested { level: wanted }, Cause::Event(since));
        }
        // A group that was at this level when it was held says that it was told, too.
        let is_new = |level: &Level| *level != group.level || group.requested_by < since;
        if let Some(level) = self.ordered_level().filter(is_new) {
            return Next::Propose(GroupEvent::LevelRequested { level }, Cause::Cluster);
        }
        Next::Wait(until)
    }

    /// The level to which an operator has ordered it on another node, until that is known to be carried out.
    fn ordered_level(&self) -> Option<Level> {
        let level = self.claim().filter(|claim| claim.is_ordered)?.level.clone()?;
        (self.levels.contains(&level) || *level == *STOP).then_some(level)
    }

    /// What a group needs that this node leaves to others.
    fn leaving(&mut self, now: Instant, token: u64, since: Seq, group: &GroupState, facts: &Facts) -> Next {
        let has_failed = group.failed_program.is_some() && group.requested_by > since;
        let is_stopped = group.requested_by > since && !group.is_switching() && !has_failed;
        if !facts.is_running && (is_stopped || facts.shutdown && !facts.cleans_up) {
            return Next::Propose(GroupEvent::Released { token }, Cause::Event(since));
        }
        if facts.shutdown || group.requested_by > since && !has_failed {
            return Next::Nothing;
        }
        if has_failed {
            // What cleans up has to end well before another node may begin: it is run again, as long as none has begun.
            if self.sight.is_some() && !self.has_claim(token) {
                return if facts.is_running {
                    Next::Nothing
                } else {
                    Next::Propose(GroupEvent::Released { token }, Cause::Cluster)
                };
            }
            if self.permit <= now {
                return Next::Nothing;
            }
            if self.unfit.1 > now {
                return Next::Wait(self.unfit.1);
            }
            self.pause(now);
        }
        Next::Propose(GroupEvent::LevelRequested { level: STOP.into() }, Cause::Event(since))
    }

    /// Begins the time in which this node does not try the group again, or its clean-up.
    fn pause(&mut self, now: Instant) {
        let pause = Millis(UNFIT.0.0.saturating_mul(1 << self.unfit.0.min(20))).min(UNFIT.1);
        self.unfit = (self.unfit.0 + 1, now + pause);
    }
}
