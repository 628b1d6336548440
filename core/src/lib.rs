//! What is true in a gaggle of programs, and what should happen next.
//!
//! Everything here is pure: bytes, numbers and `now` come in, events and requests go out. There is no clock, no
//! thread, no file and no socket in this crate, so the same rules run in the daemon, in every tool that follows it,
//! and in the simulator.
//!
//! Reading order, which is also how a fact travels:
//!
//! 1. [`config`] reads a file into a [`config::Config`], and [`graph`] turns that into programs and dependencies;
//! 2. [`event`] is what can have happened, [`state`] is the one fold over it, [`rules`] says what may be committed, and
//!    [`journal`] numbers it;
//! 3. [`program`], [`dependency`], [`group`] and [`shutdown`] are the machines that propose events and ask for effects;
//! 4. [`ensemble`] is all of them together, and [`forecast`] runs them on programs that are made up;
//! 5. [`segment`] is how the journal lies on disk, and [`succession`] how one life of the daemon
//!    follows another, with [`plan`] for a changed configuration;
//! 6. [`history`], [`wire`], [`command`] and [`mirror`] are how others see it, and [`audit`] how its journal is checked.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]
#![deny(clippy::wildcard_enum_match_arm)]

pub mod base;
pub mod config;
pub mod control;
pub mod event;
pub mod graph;
pub mod host;
pub mod journal;
pub mod machine;
pub mod planning;
pub mod process;
pub mod protocol;
pub mod state;
