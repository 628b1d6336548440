//! Tracks processes: which run each belongs to, how it ends, and what it leaves behind.

pub(crate) mod orphan_watch;
pub(crate) mod outside_group;
pub(crate) mod ownership;
pub(crate) mod process_table;
pub(crate) mod process_tree;
pub(crate) mod reaper;
pub(crate) mod run_end;
pub(crate) mod tracker;
