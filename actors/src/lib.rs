//! This machine: one actor per program and per dependency, the journal, and the processes.
//!
//! The actors are thin: [`machine_actor`] hands what it hears to a machine of the core and does what that wants. They know
//! nothing of the network; what comes from outside enters through [`control`], and what goes out leaves through a
//! closure given to [`actor_system`].

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]
#![deny(clippy::wildcard_enum_match_arm)]

pub mod actor_system;
pub mod clock;
pub mod control;
pub mod host;
pub mod journal;
pub mod machine_actor;
pub mod messages;
pub mod safe_path;
pub mod spec;
