//! A model of etcd: keys, and leases that end late or are revoked early.

use std::{collections::BTreeMap, sync::Arc};

use gaggled_core::{
    base::time::Instant,
    cluster::{
        exports::Batch,
        store::{Key, StateValue},
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

    /// Carries out a write.
    pub fn write(&mut self, now: Instant, node: &Arc<str>, session: &Arc<str>, batch: Batch) -> Vec<Change> {
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
        changes
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
