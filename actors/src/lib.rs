//! The actors of a daemon: one per program, dependency and group, and those for the journal, control and the host.
//!
//! The actors are thin: [`machine_actor`] passes inputs to a machine of the core and carries out its outputs. They know
//! nothing of the network: requests enter through [`control`], and events leave through sinks given to
//! [`actor_system`].

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
