//! What the programs of gaggled share: finding the daemon, and printing for people.

pub mod address;
pub mod backoff;
pub mod controller;
pub mod daemon;
pub mod diagnostics;
pub mod dump;
pub mod forecast;
pub mod graph;
pub mod import;
pub mod journal_log;
pub mod journal_tool;
pub mod launcher;
pub mod logger;
pub mod logs;
pub mod nodes;
pub mod output;
pub mod render;
pub mod smtpgate;
pub mod when;

/// The version of gaggled.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
