//! What an operator wants of the groups that run on one node at a time, besides what the nodes decide themselves.
//!
//! Orders are only ever written, and never taken back by a node: one that was given before a claim was made has been carried
//! out with that claim, or could not be.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::base::{ids::Level, time::WallTime};

/// The version of the values.
const VERSION: u32 = 1;

/// An order as it is in the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The version of this value.
    pub v: u32,
    /// Who has given it.
    pub by: String,
    /// When, by the clock of the machine on which it was given.
    pub time: WallTime,
    /// What it says besides its key: the node to which a group is to move, its level, or the session that has ended for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Arc<str>>,
}

impl Order {
    /// An order that was given now.
    pub fn new(by: String, time: WallTime, of: Option<Arc<str>>) -> Self {
        Self { v: VERSION, by, time, of }
    }
}

/// All orders, as they were at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// The nodes that are to run no group that runs on one node at a time.
    pub drained: BTreeSet<Arc<str>>,
    /// The node to which a group is to move, and the revision at which that was ordered.
    pub moves: BTreeMap<Arc<str>, (u64, Arc<str>)>,
    /// The level to which a group is to go, and the revision at which that was ordered.
    pub levels: BTreeMap<Arc<str>, (u64, Level)>,
    /// The session of a node of which an operator says that nothing of it runs any more.
    pub fenced: BTreeMap<Arc<str>, Arc<str>>,
}

impl Orders {
    /// Where the group is to move whose claim has this token: an order that was given before the claim was made is done.
    pub fn move_to(&self, group: &str, token: u64) -> Option<&Arc<str>> {
        self.moves.get(group).filter(|(revision, _)| *revision > token).map(|(_, node)| node)
    }

    /// The level to which the group is to go whose claim says that the order of this revision was the last one, and the revision
    /// of the new one.
    pub fn level(&self, group: &str, last: u64) -> Option<&(u64, Level)> {
        self.levels.get(group).filter(|(revision, _)| *revision > last)
    }

    /// Whether nothing of this session of a node runs any more.
    pub fn is_fenced(&self, node: &str, session: &str) -> bool {
        self.fenced.get(node).is_some_and(|fenced| **fenced == *session)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_to_move_is_done_with_the_next_claim() {
        let moves = [("shop".into(), (7, "n2".into()))].into();
        let orders = Orders { moves, ..Orders::default() };
        assert_eq!(orders.move_to("shop", 6), Some(&"n2".into()));
        assert_eq!(orders.move_to("shop", 8), None);
        assert_eq!(orders.move_to("other", 1), None);
    }

    #[test]
    fn only_the_session_that_was_named_is_fenced() {
        let orders = Orders { fenced: [("n1".into(), "a".into())].into(), ..Orders::default() };
        assert!(orders.is_fenced("n1", "a") && !orders.is_fenced("n1", "b") && !orders.is_fenced("n2", "a"));
    }
}
