//! A model of etcd: keys, and leases that end late or are revoked early.

use std::{collections::BTreeMap, sync::Arc};

use gaggled_core::{
    base::time::Instant,
    cluster::{
        claims::{ClaimWrite, ClaimsInStore},
        exports::Batch,
        orders::Orders,
        store::{Claim, Key, Session, StateValue},
    },
};

/// A change of the store, as a watch shows it.
#[derive(Clone, Debug)]
pub enum Change {
    /// Of the session of a node.
    Session(Arc<str>, Option<Arc<str>>),
    /// Of the state of a program.
    State(Arc<str>, Arc<str>, Option<StateValue>),
}

impl Change {
    /// The key.
    pub fn key(&self) -> Key {
        match self {
            Self::Session(node, _) => Key::Alive { node: node.clone() },
            Self::State(node, program, _) => Key::State { node: node.clone(), program: program.clone() },
        }
    }
}

/// The store.
#[derive(Debug, Default)]
pub struct Store {
    /// When each lease ends.
    leases: BTreeMap<Arc<str>, Instant>,
    sessions: BTreeMap<Arc<str>, Arc<str>>,
    states: BTreeMap<(Arc<str>, Arc<str>), StateValue>,
    /// Since when each node has had no session; and for how long, and until when, it had none before.
    pub absent_since: BTreeMap<Arc<str>, Instant>,
    /// The claims, each with the revision that wrote it.
    claims: BTreeMap<Arc<str>, (u64, Claim)>,
    /// What operators want.
    orders: Orders,
    /// How many writes there were.
    revision: u64,
    /// Past times without a session, for each node.
    pub absences: BTreeMap<Arc<str>, Vec<(Instant, Instant)>>,
}

impl Store {
    /// Renews or grants a lease.
    pub fn renew(&mut self, lease: &Arc<str>, ends_at: Instant) {
        self.leases.insert(lease.clone(), ends_at);
    }

    /// Whether a lease has not ended.
    pub fn has_lease(&self, lease: &str) -> bool {
        self.leases.contains_key(lease)
    }

    /// Ends the leases that are over, or this one.
    pub fn end_leases(&mut self, now: Instant, revoked: Option<&str>) -> Vec<Change> {
        self.leases.retain(|lease, ends_at| *ends_at > now && Some(&**lease) != revoked);
        let ended = |(_, session): &(&Arc<str>, &Arc<str>)| !self.leases.contains_key(&**session);
        let ended: Vec<Arc<str>> = self.sessions.iter().filter(ended).map(|(node, _)| node.clone()).collect();
        let mut changes = Vec::new();
        for node in ended {
            self.sessions.remove(&node);
            self.absent_since.insert(node.clone(), now);
            changes.push(Change::Session(node, None));
        }
        changes
    }

    /// Carries out a write, and with a new session these claims; `None` if one of them is another by now.
    pub fn write(
        &mut self,
        now: Instant,
        (node, session): (&Arc<str>, &Arc<str>),
        batch: Batch,
        renewals: &[ClaimWrite],
    ) -> Option<Vec<Change>> {
        if !renewals.iter().all(|renewal| self.is_unchanged(renewal)) {
            return None;
        }
        for renewal in renewals {
            self.put_claim(renewal);
        }
        let mut changes = Vec::new();
        for (program, state) in batch.states {
            let value = StateValue::new(session.clone(), state);
            self.states.insert((node.clone(), program.clone()), value.clone());
            changes.push(Change::State(node.clone(), program, Some(value)));
        }
        for program in batch.withdrawn {
            self.states.remove(&(node.clone(), program.clone()));
            changes.push(Change::State(node.clone(), program, None));
        }
        if batch.announces {
            self.sessions.insert(node.clone(), session.clone());
            if let Some(since) = self.absent_since.remove(node) {
                self.absences.entry(node.clone()).or_default().push((since, now));
            }
            changes.push(Change::Session(node.clone(), Some(session.clone())));
        }
        Some(changes)
    }

    fn is_unchanged(&self, write: &ClaimWrite) -> bool {
        self.claims.get(&write.group).map_or(0, |(revision, _)| *revision) == write.over
    }

    fn put_claim(&mut self, write: &ClaimWrite) {
        self.revision += 1;
        self.claims.insert(write.group.clone(), (self.revision, write.claim.clone()));
    }

    /// Writes a claim in this session of a node, if nothing has changed it; whether it was written.
    pub fn claim(&mut self, node: &Arc<str>, session: &Arc<str>, write: &ClaimWrite, overwrites: bool) -> bool {
        let has = |node: &Arc<str>, session: &Arc<str>| self.sessions.get(node) == Some(session);
        let is_gone = write.absent.as_ref().is_none_or(|(node, session)| !has(node, session));
        let may = overwrites || self.is_unchanged(write) && has(node, session) && is_gone;
        if may {
            self.put_claim(write);
        }
        may
    }

    /// The claims and sessions as they are now.
    pub fn claims(&self) -> ClaimsInStore {
        let session = |(node, session): (&Arc<str>, &Arc<str>)| {
            (node.clone(), Session::new(session.clone(), node.clone(), "", ""))
        };
        let sessions = Some(self.sessions.iter().map(session).collect());
        ClaimsInStore { sessions, claims: self.claims.clone(), orders: self.orders.clone() }
    }

    /// An operator drains a node, or ends that.
    pub fn drain(&mut self, node: Arc<str>, is_drained: bool) {
        if is_drained {
            self.orders.drained.insert(node);
        } else {
            self.orders.drained.remove(&node);
        }
    }

    /// Whether a node is drained.
    pub fn is_drained(&self, node: &Arc<str>) -> bool {
        self.orders.drained.contains(node)
    }

    /// An operator orders a group to go to a level.
    pub fn order_level(&mut self, group: &str, level: &str) {
        self.revision += 1;
        self.orders.levels.insert(group.into(), (self.revision, level.into()));
    }

    /// The level that was last ordered of a group, and whether its claim says that this was carried out.
    pub fn ordered_level(&self, group: &str) -> Option<(&str, bool)> {
        let (revision, level) = self.orders.levels.get(group)?;
        Some((level, self.claims.get(group).is_some_and(|(_, claim)| claim.level_order == *revision)))
    }

    /// An operator orders a group to move.
    pub fn order_move(&mut self, group: &str, to: Arc<str>) {
        self.revision += 1;
        self.orders.moves.insert(group.into(), (self.revision, to));
    }

    /// Everything in it.
    pub fn read(&self) -> Vec<Change> {
        let session = |(node, session): (&Arc<str>, &Arc<str>)| Change::Session(node.clone(), Some(session.clone()));
        let state = |((node, program), value): (&(Arc<str>, Arc<str>), &StateValue)| {
            Change::State(node.clone(), program.clone(), Some(value.clone()))
        };
        let (sessions, states) = (self.sessions.iter().map(session), self.states.iter().map(state));
        sessions.chain(states).collect()
    }
}
