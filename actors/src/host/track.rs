//! The processes that there are: which run each belongs to, how it ends, and what it leaves behind.

pub(crate) mod members;
pub(crate) mod orphan_watch;
pub(crate) mod ownership;
pub(crate) mod process_table;
pub(crate) mod process_tree;
pub(crate) mod reaper;
pub(crate) mod tracker;
