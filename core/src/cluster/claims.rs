//! Which node runs a group that runs on one node at a time: claims in the store, and what a node sees and writes of them.
//!
//! A claim is a key without a lease, which names a node and its session. It is only ever overwritten, by a comparison with the
//! revision that was seen, so that of several nodes that try only one succeeds. The leases say when a node may be replaced, and
//! nothing else: what a node may run is said by its permit.
//!
//! **Permit.** A read by a majority, sent at a moment s, that finds the session of this node and its claims, permits it to run
//! what it has claimed until s + [`ClusterConfig::permit`](crate::config::ClusterConfig::permit). A node whose permit ends
//! stops the group.
//!
//! **Successor.** A session that is gone never comes back. So a node that sees that the session of a claim is gone, waits on
//! its own clock for the longest permit and the longest stop, and then overwrites the claim if nothing has changed it, is never
//! early: the last read that permitted the other to run was sent before the session was gone. No two clocks are compared, only
//! their rates, which may differ by 1 %.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{
    orders::Orders,
    store::{Claim, Session},
};
use crate::{
    base::{
        ids::{GroupId, Level},
        text::{as_name, harmless},
        time::{Instant, Millis},
    },
    protocol::Permits,
    state::{Phase, State, Tenancy},
};

/// The sessions and claims of a cluster, as a majority of the store had them at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimsInStore {
    /// The session of each node; `None` if they were not read, as a node without groups to claim does not need them.
    pub sessions: Option<BTreeMap<Arc<str>, Session>>,
    /// The claim on each group, with the revision that wrote it.
    pub claims: BTreeMap<Arc<str>, (u64, Claim)>,
    /// What operators want.
    pub orders: Orders,
}

/// What a node is told of the claims.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimsSight {
    /// Until when this node may run what it has claimed; 0 if its own session is not in the store.
    #[serde(rename = "permit_until_us")]
    pub permit_until: Instant,
    /// The nodes that have a session.
    pub present: BTreeSet<Arc<str>>,
    /// The nodes that are to run no such group.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drained: BTreeSet<Arc<str>>,
    /// The claims; a group that was never claimed has none.
    pub claims: BTreeMap<Arc<str>, ClaimSight>,
}

/// One claim as a node sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClaimSight {
    /// The revision that wrote it.
    pub revision: u64,
    /// Who has it; `None` if it was released.
    pub holder: Option<Holder>,
    /// The level to which an operator has told the group to go.
    pub level: Option<Level>,
    /// Whether that is an order which its holder has not carried out yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_ordered: bool,
    /// How long the holder says that others have to wait when its session is gone.
    #[serde(rename = "takeover_after_ms")]
    pub takeover_after: Millis,
    /// What the last holder has said when it released it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// The node to which it is to move, if that was ordered after the claim was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub move_to: Option<Arc<str>>,
}

/// Who has a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The node.
    pub node: Arc<str>,
    /// The revision that made the claim: each holder has a larger one than those before.
    pub token: u64,
    /// Which attempt of the node it was.
    pub attempt: Arc<str>,
    /// Whether its session is in the store.
    pub is_present: bool,
    /// Whether that is the present session of this node.
    pub is_own: bool,
    /// Whether an operator says that nothing of that session runs any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_fenced: bool,
}

/// What the daemon of this node wants of the claim on a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClaimWish {
    /// It does not run it.
    Away {
        /// Whether nothing of the group runs any more, so that another node may.
        is_stopped: bool,
        /// Why it was released the last time.
        why: String,
    },
    /// It wants to take it over.
    Claiming {
        /// The name of the attempt.
        attempt: Arc<str>,
        /// The revision that it has seen; 0 if there is no claim.
        over: u64,
        /// How long others have to wait if its session ends.
        takeover_after: Millis,
    },
    /// It runs it, or is stopping it.
    Holding {
        /// Its token.
        token: u64,
        /// The level at which it is, once it was requested here; and the one at which it comes up.
        level: Option<(Level, Level)>,
        /// How long others have to wait if its session ends.
        takeover_after: Millis,
        /// Whether it is stopping it.
        is_leaving: bool,
        /// Whether something is to be undone that outlives processes, such as a mount.
        has_remains: bool,
    },
}

/// A claim to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimWrite {
    /// The group.
    pub group: Arc<str>,
    /// Only if this revision has written the claim that is there; 0: only if there is none.
    pub over: u64,
    /// Only if this node does not have this session.
    pub absent: Option<(Arc<str>, Arc<str>)>,
    /// The claim.
    pub claim: Claim,
}

/// The claims on the groups that this node may run.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    node: Arc<str>,
    wishes: BTreeMap<Arc<str>, ClaimWish>,
    /// Whether programs run that the configuration has no longer.
    has_leftovers: bool,
    store: Option<ClaimsInStore>,
    /// Until when the daemon says that it may run each group that it holds.
    permits: Permits,
}

/// How long a daemon may take to leave a group whose permit has ended, with the time until that is heard.
const NEGLECT: Millis = Millis(2000);

/// What a daemon wants of the claims, by the names of the groups; and whether programs run that its configuration has no longer.
pub type Wishes = (BTreeMap<Arc<str>, ClaimWish>, bool);

impl ClaimsSight {
    /// How long a text of another node may be, in characters.
    const TEXT_MAX: usize = 512;

    /// Whether a node is there and may run such groups.
    pub fn may_claim(&self, node: &Arc<str>) -> bool {
        self.present.contains(node) && !self.drained.contains(node)
    }

    /// The same, with nothing in its texts that could mislead a reader on this node.
    #[must_use]
    pub fn cleaned(mut self) -> Self {
        let name = |text: &Arc<str>| as_name(text, '?').into();
        self.drained = self.drained.iter().map(name).collect();
        for claim in self.claims.values_mut() {
            claim.move_to = claim.move_to.as_ref().map(name);
            if let Some(holder) = &mut claim.holder {
                holder.node = name(&holder.node);
            }
            claim.level = claim.level.as_ref().map(name);
            claim.why = harmless(&claim.why, Self::TEXT_MAX);
        }
        self
    }
}

impl ClaimSight {
    /// A claim about which nothing was told or ordered.
    pub fn held_by(holder: Holder) -> Self {
        let (level, is_ordered, takeover_after, why, move_to) = (None, false, Millis(0), String::new(), None);
        Self { revision: 0, holder: Some(holder), level, is_ordered, takeover_after, why, move_to }
    }
}

impl ClaimWish {
    /// What a daemon in this state wants of a group; `None` if the group does not run on one node at a time.
    pub fn of(state: &State, id: GroupId) -> Option<Self> {
        let (group, configured) = (&state.groups[id], &state.graph.groups[id]);
        let takeover_after = configured.tenancy.as_ref()?.takeover_after;
        let has_remains = configured.members.iter().any(|id| state.programs[*id].phase == Phase::ActiveExited);
        Some(match group.tenancy.as_ref()? {
            Tenancy::Away { left, .. } => {
                let is_stopped = !state.runs_shared(id);
                let why = left.as_ref().map_or_else(String::new, ToString::to_string);
                Self::Away { is_stopped, why }
            }
            Tenancy::Claiming { attempt, over } => {
                Self::Claiming { attempt: attempt.clone(), over: *over, takeover_after }
            }
            Tenancy::Held { token, since } => {
                let level = || (group.level.clone(), configured.default_level.clone());
                let level = (group.requested_by > *since).then(level);
                Self::Holding { token: *token, level, takeover_after, is_leaving: false, has_remains }
            }
            Tenancy::Leaving { token, .. } => {
                Self::Holding { token: *token, level: None, takeover_after, is_leaving: true, has_remains }
            }
        })
    }

    /// What a daemon wants of all its groups that run on one node at a time, by their names.
    pub fn all(state: &State) -> Wishes {
        let wish = |id: GroupId| Some((state.graph.groups[id].name.clone(), Self::of(state, id)?));
        (state.graph.groups.ids().filter_map(wish).collect(), state.has_leftovers())
    }
}

impl Claims {
    /// Those of a node.
    pub fn new(node: Arc<str>) -> Self {
        Self { node, ..Self::default() }
    }

    /// What a daemon in this state wants; whether that is something new.
    pub fn wish(&mut self, (wishes, has_leftovers): Wishes) -> bool {
        let is_new = self.wishes != wishes || self.has_leftovers != has_leftovers;
        (self.wishes, self.has_leftovers) = (wishes, has_leftovers);
        let wishes = &self.wishes;
        self.permits.retain(|group, _| wishes.get(group).is_some_and(|wish| !matches!(wish, ClaimWish::Away { .. })));
        is_new
    }

    /// The daemon says until when it may run each group that it holds.
    pub fn permitted(&mut self, permits: Permits) {
        for (group, until) in permits {
            let known = self.permits.entry(group).or_default();
            *known = (*known).max(until);
        }
    }

    /// The daemon was told this: if it does not say so itself, it does not hear.
    pub fn reported(&mut self, sight: &ClaimsSight) {
        for (group, claim) in &sight.claims {
            if claim.holder.as_ref().is_some_and(|holder| holder.is_own) {
                self.permits.entry(group.clone()).or_insert(sight.permit_until);
            }
        }
    }

    /// Whether the daemon has not left a group whose permit has ended, or does not take one that was claimed for it: it hangs, is
    /// stopped, or is dead. Then its session must end, so that another node takes the group. A group is not given to another
    /// node while something is to be undone that the keeper cannot undo: that needs a daemon, or an operator who fences.
    /// `is_silent` is whether nothing at all is heard of the daemon.
    pub fn is_neglected(&self, now: Instant, is_silent: bool) -> bool {
        let allowed = |wish: &ClaimWish| match wish {
            ClaimWish::Away { .. } | ClaimWish::Holding { has_remains: true, .. } => None,
            ClaimWish::Claiming { .. } | ClaimWish::Holding { is_leaving: false, .. } => Some(NEGLECT),
            // A daemon that works may wait for a permit to clean up.
            ClaimWish::Holding { is_leaving: true, .. } => is_silent.then_some(NEGLECT),
        };
        let has_ended = |(group, wish): (&Arc<str>, &ClaimWish)| {
            let until = self.permits.get(group).copied().zip(allowed(wish));
            until.is_some_and(|(until, allowed)| until + allowed <= now)
        };
        self.wishes.iter().any(has_ended)
    }

    /// Whether there are groups to claim.
    pub fn is_needed(&self) -> bool {
        !self.wishes.is_empty()
    }

    /// Whether nothing is left to be released.
    pub fn is_idle(&self) -> bool {
        let Some(store) = &self.store else { return false };
        let is_own = |group: &Arc<str>| {
            store.claims.get(group).is_some_and(|(_, claim)| claim.node == self.node && !claim.released)
        };
        self.wishes.keys().all(|group| !is_own(group))
    }

    /// What the store has, by a read of a majority.
    pub fn read(&mut self, store: ClaimsInStore) {
        self.store = Some(store);
    }

    /// Whether it is known what the store has: before that no other session may begin, as claims would be lost with it.
    pub fn is_read(&self) -> bool {
        self.store.is_some()
    }

    /// What is in the store may have changed: nothing is written before it is read again.
    pub fn forget(&mut self) {
        self.store = None;
    }

    /// What the daemon is told; `session` is that of this node, and `permit_until` follows from when the store was read.
    pub fn sight(&self, session: Option<&str>, permit_until: Instant) -> Option<ClaimsSight> {
        let store = self.store.as_ref()?;
        let sessions = store.sessions.as_ref()?;
        let has = |node: &str, session: &str| sessions.get(node).is_some_and(|known| *known.session == *session);
        let own = session.filter(|own| has(&self.node, own));
        let sight = |group: &str, (revision, claim): &(u64, Claim)| {
            let holder = Holder {
                node: claim.node.clone(),
                token: claim.token_at(*revision),
                attempt: claim.attempt.clone(),
                is_present: claim.is_unreadable() || has(&claim.node, &claim.session),
                is_own: claim.node == self.node && own.is_some_and(|own| *own == *claim.session),
                is_fenced: store.orders.is_fenced(&claim.node, &claim.session),
            };
            let order = store.orders.level(group, claim.level_order);
            ClaimSight {
                revision: *revision,
                holder: (!claim.released).then_some(holder),
                level: order.map(|(_, level)| level).or(claim.level.as_ref()).cloned(),
                is_ordered: order.is_some(),
                takeover_after: claim.takeover_after,
                why: claim.why.clone(),
                move_to: store.orders.move_to(group, claim.token_at(*revision)).cloned(),
            }
        };
        let wanted = store.claims.iter().filter(|(group, _)| self.wishes.contains_key(*group));
        Some(ClaimsSight {
            permit_until: if own.is_some() { permit_until } else { Instant::default() },
            present: sessions.keys().cloned().collect(),
            drained: store.orders.drained.clone(),
            claims: wanted.map(|(group, known)| (group.clone(), sight(group, known))).collect(),
        })
    }

    /// What is to be written in this session, which is in the store. The store is to be read again after that.
    pub fn writes(&self, session: &Arc<str>) -> Vec<ClaimWrite> {
        let Some(store) = &self.store else { return Vec::new() };
        let own = |claim: &Claim| claim.node == self.node && claim.session == *session && !claim.released;
        let write = |(group, wish): (&Arc<str>, &ClaimWish)| {
            let known = store.claims.get(group);
            let (over, absent, claim) = match (wish, known) {
                (ClaimWish::Claiming { attempt, over, takeover_after }, known)
                    if known.map_or(0, |(revision, _)| *revision) == *over
                        && !store.orders.drained.contains(&self.node) =>
                {
                    let before = known.map(|(_, claim)| claim);
                    let absent = before.filter(|claim| !claim.released);
                    let (level, level_order) =
                        before.map_or((None, 0), |claim| (claim.level.clone(), claim.level_order));
                    (
                        *over,
                        absent.map(|claim| (claim.node.clone(), claim.session.clone())),
                        Claim {
                            level,
                            level_order,
                            takeover_after: *takeover_after,
                            ..Claim::new(self.node.clone(), session.clone(), attempt.clone())
                        },
                    )
                }
                (ClaimWish::Away { is_stopped: true, why }, Some((revision, claim))) if own(claim) => {
                    let token = claim.token_at(*revision);
                    (*revision, None, Claim { token, released: true, why: why.clone(), ..claim.clone() })
                }
                (ClaimWish::Holding { level, takeover_after, .. }, Some((revision, claim))) if own(claim) => {
                    let (token, takeover_after) = (claim.token_at(*revision), *takeover_after);
                    let is_told = |(level, default): &&(Level, Level)| claim.level.as_ref().unwrap_or(default) != level;
                    let told = level.as_ref().filter(is_told).map(|(level, _)| level.clone());
                    let is_at = |(_, ordered): &&(u64, Level)| level.as_ref().is_some_and(|(now, _)| now == ordered);
                    let order = store.orders.level(group, claim.level_order);
                    let obeyed = order.filter(is_at).map(|(revision, _)| *revision);
                    if told.is_none() && obeyed.is_none() && claim.takeover_after == takeover_after {
                        return None;
                    }
                    let (level, level_order) = (told.or(claim.level.clone()), obeyed.unwrap_or(claim.level_order));
                    (*revision, None, Claim { token, level, level_order, takeover_after, ..claim.clone() })
                }
                _ => return None,
            };
            Some(ClaimWrite { group: group.clone(), over, absent, claim })
        };
        // A group that this node is not to run any more is left to others when nothing of it can be left here. `write` passes over
        // claims that are not of this session.
        let away = ClaimWish::Away { is_stopped: !self.has_leftovers, why: "it is to run on other nodes".to_owned() };
        let forgotten = store.claims.keys().filter(|group| !self.wishes.contains_key(*group));
        let released = forgotten.filter_map(|group| write((group, &away)));
        self.wishes.iter().filter_map(write).chain(released).collect()
    }

    /// What is to be written together with another session of this node: the claims that it still holds.
    pub fn renewals(&self, session: &Arc<str>) -> Vec<ClaimWrite> {
        let Some(store) = &self.store else { return Vec::new() };
        let renewal = |(group, wish): (&Arc<str>, &ClaimWish)| {
            let ClaimWish::Holding { token, .. } = wish else { return None };
            let (revision, claim) = store.claims.get(group)?;
            let is_held = claim.node == self.node && claim.token_at(*revision) == *token && !claim.released;
            let claim = Claim { token: *token, session: session.clone(), ..claim.clone() };
            is_held.then(|| ClaimWrite { group: group.clone(), over: *revision, absent: None, claim })
        };
        self.wishes.iter().filter_map(renewal).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::default() + Millis(ms)
    }

    /// Claims of a daemon that wants this of the group `shop`, and was last permitted to run it until 10 s.
    fn claims(wish: ClaimWish) -> Claims {
        let mut claims = Claims::new("n1".into());
        claims.wish(([("shop".into(), wish)].into(), false));
        claims.permitted([("shop".into(), at(10_000))].into());
        claims
    }

    fn holding(is_leaving: bool, has_remains: bool) -> ClaimWish {
        ClaimWish::Holding { token: 5, level: None, takeover_after: Millis(8000), is_leaving, has_remains }
    }

    #[test]
    fn a_daemon_neglects_what_it_holds_after_its_permit() {
        let held = claims(holding(false, false));
        assert!(!held.is_neglected(at(11_999), true), "it may take a moment");
        assert!(held.is_neglected(at(12_000), false), "also if something of it still sends heartbeats");
        let claiming = ClaimWish::Claiming { attempt: "a".into(), over: 3, takeover_after: Millis(8000) };
        assert!(claims(claiming).is_neglected(at(12_000), false));
        let away = ClaimWish::Away { is_stopped: true, why: String::new() };
        assert!(!claims(away).is_neglected(at(60_000), true));
    }

    #[test]
    fn a_daemon_that_works_may_wait_for_a_permit_to_clean_up() {
        let leaving = claims(holding(true, false));
        assert!(!leaving.is_neglected(at(60_000), false));
        assert!(leaving.is_neglected(at(12_000), true));
    }

    #[test]
    fn what_outlives_processes_keeps_a_group_on_its_node() {
        assert!(!claims(holding(false, true)).is_neglected(at(60_000), true));
    }
}
