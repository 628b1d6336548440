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
    published::{PublishedState, Sight},
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

/// A program of another node.
#[derive(Clone, Debug)]
struct Seen {
    /// Its node; or its group, if that runs on one node at a time.
    node: Arc<str>,
    of_group: bool,
    /// Its name there.
    program: Arc<str>,
}

/// What a node sees of the programs of others.
#[derive(Clone, Debug, Default)]
pub struct Sights {
    /// This node.
    node: Arc<str>,
    /// The external programs, by their names here.
    externals: BTreeMap<Arc<str>, Seen>,
    /// The node that holds each group that runs on one node at a time; `None` before that is known.
    holders: Option<BTreeMap<Arc<str>, Arc<str>>>,
    /// The states of the exported programs of this node, as its daemon has them.
    own: BTreeMap<Arc<str>, Arc<PublishedState>>,
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
    /// Those of this node.
    pub fn new(node: Arc<str>) -> Self {
        Self { node, ..Self::default() }
    }

    /// The programs of other nodes that the daemon has, by their names, and whether each is one of a group that runs on one node
    /// at a time. The store has to be read for them.
    pub fn set_externals(&mut self, names: impl IntoIterator<Item = (Arc<str>, bool)>) {
        let seen = |(name, of_group): (Arc<str>, bool)| {
            let (program, node) = split_name(&name)?;
            Some((name.clone(), Seen { node: node.into(), of_group, program: program.into() }))
        };
        self.externals = names.into_iter().filter_map(seen).collect();
        self.forget_reports();
    }

    /// Whether there are programs of groups among them.
    pub fn follows_groups(&self) -> bool {
        self.externals.values().any(|seen| seen.of_group)
    }

    /// The nodes that hold groups; whether other keys are to be read for that.
    pub fn set_holders(&mut self, holders: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) -> bool {
        let before = self.keys();
        self.holders = Some(holders.into_iter().collect());
        self.keys().difference(&before).next().is_some()
    }

    /// An exported program of this node is in this state. If its group is held here, that is what others of this node see of it,
    /// also without the store.
    pub fn own(&mut self, program: Arc<str>, state: PublishedState) {
        self.own.insert(program, state.into());
    }

    /// The exported programs of this node are these.
    pub fn set_own(&mut self, states: impl IntoIterator<Item = (Arc<str>, PublishedState)>) {
        self.own = states.into_iter().map(|(program, state)| (program, state.into())).collect();
    }

    /// The keys that are to be read and watched.
    pub fn keys(&self) -> BTreeSet<Key> {
        let keys = |seen: &Seen| {
            let node = self.node_of(seen).filter(|node| !seen.of_group || *node != self.node)?;
            let state = Key::State { node: node.clone(), program: seen.program.clone() };
            Some([Key::Alive { node }, state])
        };
        self.externals.values().filter_map(keys).flatten().collect()
    }

    /// The node of a program; `None` if none holds its group, or that is not known.
    fn node_of(&self, seen: &Seen) -> Option<Arc<str>> {
        if seen.of_group { self.holders.as_ref()?.get(&seen.node).cloned() } else { Some(seen.node.clone()) }
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
        let mut news = Vec::new();
        for (name, seen) in &self.externals {
            if let Some(sight) = self.sight(seen).filter(|sight| self.reported.get(name) != Some(sight)) {
                self.reported.insert(name.clone(), sight.clone());
                news.push(Observation::External { program: name.to_string(), sight });
            }
        }
        news
    }

    /// How a program is seen; `None` while that cannot be told.
    fn sight(&self, seen: &Seen) -> Option<Sight> {
        let node = self.node_of(seen);
        if seen.of_group && node.as_ref() == Some(&self.node) {
            let own = self.own.get(&seen.program);
            return Some(Sight::Seen(own.map(|state| on_node(state, self.node.clone()))));
        }
        if !self.is_read || seen.of_group && self.holders.is_none() {
            return None;
        }
        let Some(node) = node else { return Some(Sight::Seen(None)) };
        let Some(session) = self.sessions.get(&node) else { return Some(Sight::Unseen) };
        match self.states.get(&(node.clone(), seen.program.clone())) {
            Some(Some(value)) if value.session == *session => {
                Some(Sight::Seen(Some(if seen.of_group { on_node(&value.state, node) } else { value.state.clone() })))
            }
            Some(_) => None,
            None => Some(Sight::Seen(None)),
        }
    }
}

/// A state of a program that runs on one of several nodes.
fn on_node(state: &PublishedState, node: Arc<str>) -> Arc<PublishedState> {
    Arc::new(PublishedState { node: Some(node), ..state.clone() })
}
