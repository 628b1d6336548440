//! A model of etcd: keys with revisions, leases that end late or are revoked early.

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
    revision: u64,
    /// When each lease ends.
    leases: BTreeMap<Arc<str>, Instant>,
    sessions: BTreeMap<Arc<str>, (Arc<str>, u64)>,
    states: BTreeMap<(Arc<str>, Arc<str>), (StateValue, u64)>,
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
    pub fn end_leases(&mut self, now: Instant, revoked: Option<&str>) -> Vec<(Change, u64)> {
        self.leases.retain(|lease, ends_at| *ends_at > now && Some(&**lease) != revoked);
        let ended = |(_, (session, _)): &(&Arc<str>, &(Arc<str>, u64))| !self.leases.contains_key(session);
        let ended: Vec<Arc<str>> = self.sessions.iter().filter(ended).map(|(node, _)| node.clone()).collect();
        let mut changes = Vec::new();
        for node in ended {
            self.revision += 1;
            self.sessions.remove(&node);
            self.absent_since.insert(node.clone(), now);
            changes.push((Change::Session(node, None), self.revision));
        }
        changes
    }

    /// Carries out a write.
    pub fn write(&mut self, now: Instant, node: &Arc<str>, session: &Arc<str>, batch: Batch) -> Vec<(Change, u64)> {
        self.revision += 1;
        let revision = self.revision;
        let mut changes = Vec::new();
        for (program, state) in batch.states {
            let value = StateValue::new(session.clone(), state);
            self.states.insert((node.clone(), program.clone()), (value.clone(), revision));
            changes.push(Change::State(node.clone(), program, Some(value)));
        }
        for program in batch.withdrawn {
            self.states.remove(&(node.clone(), program.clone()));
            changes.push(Change::State(node.clone(), program, None));
        }
        if batch.announces {
            self.sessions.insert(node.clone(), (session.clone(), revision));
            if let Some(since) = self.absent_since.remove(node) {
                self.absences.entry(node.clone()).or_default().push((since, now));
            }
            changes.push(Change::Session(node.clone(), Some(session.clone())));
        }
        changes.into_iter().map(|change| (change, revision)).collect()
    }

    /// Everything in it.
    pub fn read(&self) -> Vec<(Change, u64)> {
        let sessions = self.sessions.iter();
        let sessions = sessions
            .map(|(node, (session, revision))| (Change::Session(node.clone(), Some(session.clone())), *revision));
        let states = self.states.iter().map(|((node, program), (value, revision))| {
            (Change::State(node.clone(), program.clone(), Some(value.clone())), *revision)
        });
        sessions.chain(states).collect()
    }
}
