//! This machine: one actor per program and per dependency, the journal, and the processes.
//!
//! The actors are thin: [`shell`] hands what it hears to a machine of the core and does what that wants. They know
//! nothing of the network; what comes from outside enters through [`control`], and what goes out leaves through a
//! closure given to [`root`].

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]
#![deny(clippy::wildcard_enum_match_arm)]

pub mod archive;
pub mod clock;
pub mod control;
pub mod host;
pub mod journal;
pub mod launch;
pub mod root;
pub mod safe_path;
pub mod shell;
pub mod state_directory;
