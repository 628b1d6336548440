//! What a node sees of the programs of others, from the keys in the store, and what of that is still to be reported to its
//! daemon.
//!
//! A state counts only in the session in which it was written. A node writes all its states before its session, but a watch may
//! show the session first. So a state of another session tells nothing: only one that is missing was withdrawn.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    external::split_name,
    news::Observation,
    published::Sight,
    store::{Key, StateValue},
};

/// What the store has of a state.
#[derive(Clone, Debug)]
pub enum StateInStore {
    /// This value.
    Written(StateValue),
    /// A value that this version cannot read.
    Unreadable,
    /// Nothing: it was never published, or was withdrawn.
    Missing,
}

/// What a node sees of the programs of others.
#[derive(Clone, Debug, Default)]
pub struct Sights {
    /// The external programs, by their names here, with the keys of their states.
    externals: BTreeMap<Arc<str>, (Arc<str>, Arc<str>)>,
    /// The session of each node.
    sessions: BTreeMap<Arc<str>, Arc<str>>,
    /// The state of each program; `None` if it cannot be read.
    states: BTreeMap<(Arc<str>, Arc<str>), Option<StateValue>>,
    /// Whether the store was read since the connection to it was made.
    is_read: bool,
    /// What was reported to the daemon.
    reported: BTreeMap<Arc<str>, Sight>,
}

impl Sights {
    /// The programs of other nodes that the daemon has, by their names. The store has to be read for them.
    pub fn set_externals(&mut self, names: impl IntoIterator<Item = Arc<str>>) {
        let key = |name: Arc<str>| {
            let (program, node) = split_name(&name)?;
            Some((name.clone(), (node.into(), program.into())))
        };
        self.externals = names.into_iter().filter_map(key).collect();
        self.forget_reports();
    }

    /// The keys that are to be read and watched.
    pub fn keys(&self) -> BTreeSet<Key> {
        let alive = |node: &Arc<str>| Key::Alive { node: node.clone() };
        let state =
            |(node, program): &(Arc<str>, Arc<str>)| Key::State { node: node.clone(), program: program.clone() };
        self.externals.values().flat_map(|key| [alive(&key.0), state(key)]).collect()
    }

    /// The connection to the store is lost: what it shows next may come after changes that were missed.
    pub fn disconnect(&mut self) {
        self.is_read = false;
        self.sessions.clear();
        self.states.clear();
    }

    /// All keys have been read. Only now does a key that is missing mean something.
    pub fn read(&mut self) {
        self.is_read = true;
    }

    /// A session as it is in the store; `None` if it has ended.
    pub fn session(&mut self, node: &str, session: Option<Arc<str>>) {
        match session {
            Some(session) => drop(self.sessions.insert(node.into(), session)),
            None => drop(self.sessions.remove(node)),
        }
    }

    /// A state as it is in the store.
    pub fn state(&mut self, node: &str, program: &str, state: StateInStore) {
        let key = (node.into(), program.into());
        match state {
            StateInStore::Written(value) => drop(self.states.insert(key, Some(value))),
            StateInStore::Unreadable => drop(self.states.insert(key, None)),
            StateInStore::Missing => drop(self.states.remove(&key)),
        }
    }

    /// The daemon is another one, which has heard of nothing.
    pub fn forget_reports(&mut self) {
        self.reported.clear();
    }

    /// What has changed since it was last reported.
    pub fn take_news(&mut self) -> Vec<Observation> {
        if !self.is_read {
            return Vec::new();
        }
        let mut news = Vec::new();
        for (name, key) in &self.externals {
            if let Some(sight) = self.sight(key).filter(|sight| self.reported.get(name) != Some(sight)) {
                self.reported.insert(name.clone(), sight.clone());
                news.push(Observation::External { program: name.to_string(), sight });
            }
        }
        news
    }

    /// How a program is seen; `None` while that cannot be told.
    fn sight(&self, key: &(Arc<str>, Arc<str>)) -> Option<Sight> {
        let Some(session) = self.sessions.get(&key.0) else { return Some(Sight::Unseen) };
        match self.states.get(key) {
            Some(Some(value)) if value.session == *session => Some(Sight::Seen(Some(value.state.clone()))),
            Some(_) => None,
            None => Some(Sight::Seen(None)),
        }
    }
}
