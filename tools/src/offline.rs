//! Subcommands of `gaggled` that read files and need no daemon.

pub mod graph;
pub mod import;
pub mod journal;
pub mod nodes;
pub mod simulate;
